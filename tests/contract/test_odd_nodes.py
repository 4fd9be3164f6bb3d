"""What nodes report that no JSON can say, and prompts that take a job's id: nobody else may suffer from it."""

import functools
import json
from typing import Any

import pytest
from contract.client import Answer, assert_refusal, assert_succeeded, node, picture, sleep
from contract.test_frontends import EDITORS, fits

ODD_REPORTS = (
    *("keys", "circle", "nan", "bytes", "objects", "deep", "grown", "digits", "tuple key", "no files"),
    *("numbers for names", "a type of its own", "texts that are none", "formats"),
)
_FORM_IN_A_FORM = b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--\r\n"


async def test_an_event_that_is_no_json_ends_neither_the_server_nor_the_job(client):
    async with client.socket() as socket:
        job = await client.run({"1": node("FaultOddReport", kind="keys", seed=1)}, client_id=socket.client_id)
    assert_succeeded(job)
    assert job["outputs"]["1"]["rows"], "what JSON can say of it is kept"
    await client.assert_takes_jobs()


async def test_a_result_that_contains_itself_still_settles_its_job(client):
    job = await client.run({"1": node("FaultOddReport", kind="circle", seed=1)})
    assert job["state"] in ("succeeded", "failed"), job
    await client.assert_takes_jobs()


async def test_half_a_surrogate_pair_in_a_result_is_answered_like_anything_else(client):
    job = await client.run({"1": node("FaultOddReport", kind="surrogate", seed=1)})
    assert_succeeded(job)
    assert job["job_id"] in [listed["job_id"] for listed in await client.jobs("limit=5")]
    answer = await client.request("POST", "/guarded/face-check", raw=b'{"image": "\\ud800.png"}')
    assert_refusal(answer, "invalid_request", 400)


async def test_progress_that_makes_no_sense_does_not_fail_the_job(client):
    for kind in ("nan progress", "numpy progress"):
        job_id = await client.admitted({"1": node("FaultOddReport", kind=kind, seed=1)})
        job = await client.polled(functools.partial(client.job, job_id), lambda job: job["settled_at_ms"])
        assert_succeeded(job)


async def test_a_native_prompt_cannot_take_the_id_of_a_waiting_job_and_its_result(client):
    async with client.busy_natively():
        job_id = await client.admitted(sleep(0.01))
        await client.polled(client.native_queue, lambda queue: job_id in queue)
        twin = {"prompt": {"1": node("FaultText", text="not yours", seed=1)}, "prompt_id": job_id, "front": True}
        assert (await client.request("POST", "/prompt", twin)).status == 500
    job = await client.settled(job_id)
    assert_succeeded(job)
    assert "not yours" not in str(job["outputs"])


async def test_a_form_that_cannot_be_read_is_refused(client):
    for kind, raw in (
        ("multipart/form-data", b"no boundary"),
        ("multipart/form-data; boundary=b", b"--b\r\nno header\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", _FORM_IN_A_FORM),
    ):
        headers = {"Content-Type": kind}
        assert_refusal(await client.request("POST", "/guarded/face-check", raw=raw, headers=headers), "invalid_request")
    too_long = b'{"image": "' + b"x" * 5000 + b'.png"}'
    assert_refusal(await client.request("POST", "/guarded/face-check", raw=too_long), "bad_image")


async def test_whatever_a_node_reports_everybody_can_go_on_reading_the_lists(client):
    """A circle, NaN, bytes or a deep nest made ComfyUI's history fail for everybody, until somebody cleared it; a file
    whose name is a number made a frontend reject all jobs. A picture beside them is a result all the same."""
    ended = {}
    async with client.socket() as socket:
        for kind in ODD_REPORTS:
            prompt = {"odd": node("FaultOddReport", kind=kind, seed=1), **picture()}
            job = await client.run(prompt, client_id=socket.client_id, extra_data=EDITORS)
            # What has more than can be kept fails; so does one that names a file that is not there.
            if kind not in ("grown", "numbers for names", "a type of its own"):
                assert_succeeded(job)
                assert [artifact["kind"] for artifact in job["artifacts"]] == ["image"], kind
                assert job["outputs"]["odd"], f"what can be told of {kind} is told"
            ended[job["job_id"]] = kind
    for event in socket.seen:
        if event["type"] == "executed":
            assert fits("executed", event["data"]), event
    for door in ("", "/guarded"):
        for path in ("/history?max_items=100000", *(f"/history/{job_id}" for job_id in ended)):
            history = read_strictly(await client.request("GET", f"{door}{path}"))
            assert path.count("/") == 2 or set(ended) <= set(history)
            for job_id in set(ended) & set(history):
                assert fits("task", {"taskType": "History", **history[job_id]}) == 1, ended[job_id]
        listed = await client.request("GET", f"{door}/api/jobs?limit=200")
        if listed.status != 404 or door:  # since ComfyUI 0.8
            assert fits("jobs", read_strictly(listed)) == 2
            for job_id, kind in ended.items():
                assert fits("job", read_strictly(await client.request("GET", f"{door}/api/jobs/{job_id}"))) == 2, kind
    assert set(ended) <= {job["job_id"] for job in read_strictly(await client.request("GET", "/guarded/jobs"))["jobs"]}


async def test_a_native_prompt_whose_node_reports_no_json_keeps_nobody_from_the_history(client):
    for kind in ("circle", "nan", "deep"):
        prompt_id = await client.native_submit({"odd": node("FaultOddReport", kind=kind, seed=1)})
        history = await client.polled(functools.partial(client.get, f"/history/{prompt_id}"), any)
        assert history[prompt_id]["outputs"]["odd"], kind
        read_strictly(await client.request("GET", "/history?max_items=100000"))


def read_strictly(answer: Answer) -> Any:
    """As browsers do: NaN and Infinity are no JSON."""
    assert answer.status == 200, answer
    return json.loads(answer.content, parse_constant=pytest.fail)
