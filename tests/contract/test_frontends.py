"""Whatever way a job ends, ComfyUI's frontends understand what it leaves in their lists and says on their sockets.

What they understand is written in `frontends/`, from the frontends' own schemas (`frontends/make.py`). One entry that
does not fit, and a frontend shows none of the list.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from contract.client import Client, Prompt, Socket, node, picture, raises, sleep, unique

SCHEMAS = {
    path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "frontends").glob("*.json"))
}
#: A workflow as the editor sends one along.
EDITORS = {"extra_pnginfo": {"workflow": {"nodes": [], "links": [], "version": 0.4}}}
ENDINGS: dict[str, Prompt] = {
    "succeeded": picture(),
    "generation_failed": raises("value_error"),
    "result_missing": {"1": node("FaultMissingFile", filename_prefix=unique(), seed=0)},
    "result_corrupt": {"1": node("FaultTruncatedImage", filename_prefix=unique(), seed=0)},
    "result_blank": {
        "1": node("FaultBlackImage", width=512, height=512, nan=False, seed=0),
        "2": node("PreviewImage", images=["1", 0]),
    },
    "generation_timeout": sleep(3600),
}


def fits(kind: str, value: Any) -> int:
    """Hold the value against every frontend that has a schema of the kind; returns how many those are."""
    known = {version: schemas[kind] for version, schemas in SCHEMAS.items() if kind in schemas}
    for version, schema in known.items():
        try:
            jsonschema.validate(value, schema)
        except jsonschema.ValidationError as error:
            pytest.fail(f"frontend {version} rejects a {kind}: {error.message} at {error.json_path} of {value}")
    return len(known)


async def end_in_every_way(client: Client, socket: Socket) -> dict[str, str]:
    """Prompts of an editor, by the ways in which they end; the last one waits for its turn when it is cancelled."""
    ended = {}

    async def begin(prompt: Prompt, **guard: Any) -> str:
        return await client.admitted(prompt, client_id=socket.client_id, extra_data=EDITORS, guard=guard)

    for way, prompt in ENDINGS.items():
        ended[way] = await begin(prompt, **({"timeout_s": 0.5} if way == "generation_timeout" else {}))
        await socket.until_end_of(ended[way])
    ended["cancelled"] = await begin(sleep(3600))
    ended["cancelled in the queue"] = await begin(picture())
    await client.running(ended["cancelled"])
    for way in ("cancelled in the queue", "cancelled"):
        await client.cancel(ended[way])
        await socket.until_end_of(ended[way])
    for way, job_id in ended.items():
        job = await client.job(job_id)
        assert way.startswith(job["error"]["code"] if job["error"] else job["state"]), job
    return ended


@pytest.mark.parametrize("door", ["", "/guarded"])
async def test_every_ending_fits_what_the_frontends_take(client: Client, door: str) -> None:
    assert {"1.25.11", "1.58.1"} <= set(SCHEMAS)
    async with client.socket(f"{door}/ws") as socket:
        ended = await end_in_every_way(client, socket)
        history = await client.get(f"{door}/history?max_items=100000")
        if not door:  # ComfyUI itself has never heard of what ended before its turn
            del ended["cancelled in the queue"]
        assert set(ended.values()) <= set(history)
        for job_id in ended.values():
            assert fits("task", {"taskType": "History", **history[job_id]}) == 1
        running, waiting = [
            await client.admitted(one, client_id="tab", extra_data=EDITORS) for one in (sleep(3600), picture())
        ]
        await client.taken(running)
        queue = await client.get(f"{door}/queue")
        listed = await client.request("GET", f"{door}/api/jobs?limit=200&offset=0")
        for job_id in (waiting, running):
            await client.cancel(job_id)
    rows = [("Running", row) for row in queue["queue_running"]] + [("Pending", row) for row in queue["queue_pending"]]
    assert {running, waiting} >= {row[1] for _kind, row in rows} >= {running}
    for kind, row in rows:
        fits("task", {"taskType": kind, "prompt": row, "remove": {"name": "Cancel"}})
    if listed.status == 200:  # since ComfyUI 0.8
        assert fits("jobs", listed.json) == 2
        assert {*ended.values(), running} <= {job["id"] for job in listed.json["jobs"]}
        for job_id in ended.values():
            fits("job", await client.get(f"{door}/api/jobs/{job_id}"))
    seen = {
        event["type"]
        for event in socket.seen
        if event["type"] in SCHEMAS["1.25.11"] and fits(event["type"], event["data"])
    }
    assert seen >= {"status", "executed", "execution_start", "execution_success", "execution_error"}
