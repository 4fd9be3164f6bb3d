"""What nodes report that no JSON can say, and prompts that take a job's id: nobody else may suffer from it."""

import functools

from contract.client import assert_refusal, assert_succeeded, node, sleep

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
