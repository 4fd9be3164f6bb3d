"""schemathesis: whatever the contract lets a client send, the server answers as the contract says."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from contract.client import Client, assert_succeeded, picture, text
from contract.promised import assert_answer_is_promised

JSON = {"Content-Type": "application/json"}
EXAMPLES = 15
SEED = 1
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method"
)
#: The one would refuse every job after it, the other has no end.
LEFT_OUT = ("/guarded/drain", "/guarded/events")


def test_a_field_that_the_contract_does_not_describe_is_noticed():
    told = {"level": "ok", "check": "host", "message": "", "mend": ""}
    doctor = {"lines": [told]}
    assert_answer_is_promised("GET", "/guarded/doctor", 200, JSON, json.dumps(doctor).encode())
    told["colour"] = "green"
    with pytest.raises(AssertionError, match="colour"):
        assert_answer_is_promised("GET", "/api/guarded/doctor?x=1", 200, JSON, json.dumps(doctor).encode())
    with pytest.raises(AssertionError, match="418 is not in the contract"):
        assert_answer_is_promised("GET", "/guarded/doctor", 418, JSON, b"{}")


async def with_examples(client: Client) -> dict:
    """The contract, with ids that exist and prompts that are good: made-up ones would all end in a 404 or 400."""
    contract = await client.get("/guarded/openapi.json")
    job = await client.run(picture())
    assert_succeeded(job)
    known = {"job_id": job["job_id"], "prompt_id": job["job_id"], "index": "0", "name": "sdxl", "file": "page.js"}
    for item in contract["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path" and parameter["name"] in known:
                    parameter["example"] = known[parameter["name"]]
                elif parameter["name"] == "wait":
                    parameter["example"] = 0.1
    prompts = {"good": {"value": {"prompt": text()}}, "picture": {"value": {"prompt": picture()}}}
    contract["paths"]["/guarded/prompt"]["post"]["requestBody"]["content"]["application/json"]["examples"] = prompts
    photo = {"image": "photo.png"}
    contract["paths"]["/guarded/face-check"]["post"]["requestBody"]["content"]["application/json"]["example"] = photo
    return contract


async def test_the_server_keeps_its_contract(sandbox_client, tmp_path):
    client = await sandbox_client(
        GUARDED_QUEUE__MAX_WAIT_S="0.5", GUARDED_QUEUE__MAX_QUEUED="100000", GUARDED_LIMITS__BODY_TIMEOUT_S="5"
    )
    (tmp_path / "contract.json").write_text(json.dumps(await with_examples(client)))
    told = await asyncio.to_thread(
        subprocess.run,
        [
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", "contract.json", "--url", client.host.url, "--checks", CHECKS),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", str(SEED)),
            *("--workers", "1", "--warnings", "off", "--continue-on-failure"),
            *(part for path in LEFT_OUT for part in ("--exclude-path", path)),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert told.returncode == 0, f"{told.stdout[-20_000:]}\n{told.stderr[-2000:]}\n{client.host.log_tail()}"
    assert " passed" in told.stdout, told.stdout
    log = client.host.log.read_text(errors="replace")
    # aiohttp writes one of its own for a request that is no HTTP.
    assert "/ComfyUI-Guarded/server_routes/" not in log, "a traceback through our handlers"
    await client.assert_takes_jobs()
