"""POST /guarded/prompt: what is answered, and what is kept."""

import uuid

import pytest
from contract.client import ARTIFACT_KEYS, JOB_KEYS, assert_succeeded, photo_copy, picture, sleep, text

from comfyui_guarded.tests.hosts.launch import real_kinds


def test_the_suite_runs_on_a_real_comfyui_too():
    kinds = real_kinds()
    if not kinds:
        pytest.skip(
            "no real ComfyUI was found: set COMFYUI_PATH to its folder (and COMFYUI_PYTHON to its Python), "
            "or install one into ~/comfy/ComfyUI, as comfy-cli does"
        )
    assert all(kind.real and kind.main.is_file() for kind in kinds)


async def test_the_server_is_the_host_that_was_meant(client):
    facts = await client.get("/guarded/health")
    assert facts["status"] == "ok"
    assert facts["host"]["name"] in ("ComfyUI", "sandbox")
    if client.host.kind.real:
        assert client.host.kind.name == f"ComfyUI {facts['host']['version']}"


async def test_an_answer_is_comfyuis_with_guard_beside_it(client):
    answer = await client.submit(text())
    assert answer.status == 200
    assert set(answer.json) == {"prompt_id", "number", "node_errors", "guard"}
    assert str(uuid.UUID(answer.json["prompt_id"])) == answer.json["prompt_id"]
    assert answer.json["node_errors"] == {}
    assert isinstance(answer.json["number"], int)
    guard = answer.json["guard"]
    assert set(guard) == {"state", "position", "eta_s", "running", "max_jobs", "user_message"}
    assert guard["state"] == "queued"
    assert guard["max_jobs"] == 1
    assert_succeeded(await client.settled(answer.json["prompt_id"]))


async def test_numbers_go_up(client):
    first = await client.submit(text())
    second = await client.submit(text())
    assert second.json["number"] > first.json["number"]
    await client.settled(second.json["prompt_id"])


async def test_with_an_idle_server_there_is_nothing_to_tell_the_user(client):
    answer = await client.submit(text(), wait_s=60)
    assert answer.json["guard"]["user_message"] is None


async def test_the_callers_own_ids_are_kept(client):
    prompt_id = str(uuid.uuid4())
    async with client.socket() as socket:
        answer = await client.submit(text(), prompt_id=prompt_id, client_id=socket.client_id)
        assert answer.json["prompt_id"] == prompt_id
        events = await socket.until_end_of(prompt_id)
    assert events[0]["type"] == "execution_start"
    entry = await client.native_entry(prompt_id)
    assert entry["prompt"][1] == prompt_id
    assert entry["prompt"][3]["client_id"] == socket.client_id


async def test_a_client_id_inside_extra_data_counts_as_well(client):
    async with client.socket() as socket:
        prompt_id = await client.admitted(text(), extra_data={"client_id": socket.client_id})
        assert await socket.until_end_of(prompt_id)


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "text/plain", "application/x-www-form-urlencoded", "image/png", "junk"]
)
async def test_the_content_type_is_not_looked_at(client, content_type):
    headers = {"Content-Type": content_type} if content_type else None
    assert_succeeded(await client.run(text(), headers=headers))


@pytest.mark.parametrize("path", ["/guarded/prompt?token=x&x=1", "/api/guarded/prompt"])
async def test_other_ways_to_spell_the_route_work(client, path):
    answer = await client.request("POST", path, {"prompt": text()})
    assert answer.status == 200, answer
    await client.settled(answer.json["prompt_id"])


async def test_a_byte_order_mark_is_no_obstacle(client):
    answer = await client.request("POST", "/guarded/prompt", raw=b'\xef\xbb\xbf{"prompt": %s}' % _raw_text())
    assert answer.status == 200, answer
    await client.settled(answer.json["prompt_id"])


def _raw_text() -> bytes:
    return '{"1": {"class_type": "FaultText", "inputs": {"text": "привет", "seed": 0}}}'.encode()


async def test_wait_answers_with_the_settled_job_under_guard(client):
    answer = await client.submit(picture(), wait_s=60, guard={"metadata": {"order": 7}, "priority": 3, "timeout_s": 50})
    assert set(answer.json) == {"prompt_id", "number", "node_errors", "guard"}
    job = answer.json["guard"]["job"]
    assert_succeeded(job)
    assert answer.json["guard"]["state"] == "succeeded"
    assert job == await client.job(answer.json["prompt_id"])


async def test_a_wait_that_runs_out_answers_with_the_job_as_it_is(client):
    answer = await client.submit(sleep(3600), wait_s=0.3)
    assert answer.status == 200
    assert answer.json["guard"]["job"]["state"] in ("queued", "dispatched", "running")
    assert answer.json["guard"]["job"]["refund"] is None
    await client.cancel(answer.json["prompt_id"])


async def test_a_job_is_shown_with_every_key(client):
    before_ms = (await client.run(text()))["settled_at_ms"]
    job = await client.run(picture(), guard={"metadata": {"order": [1, "x", None]}, "priority": 3, "timeout_s": 50})
    assert set(job) == JOB_KEYS
    assert job["job_id"] == job["prompt_id"]
    assert (job["owner"], job["priority"], job["attempts"], job["timeout_s"]) == ("local", 3, 1, 50)
    assert job["metadata"] == {"order": [1, "x", None]}
    assert (job["position"], job["eta_s"], job["progress"]) == (None, None, None)
    assert before_ms <= job["created_at_ms"] <= job["started_at_ms"] <= job["settled_at_ms"]
    (artifact,) = job["artifacts"]
    assert set(artifact) == ARTIFACT_KEYS
    (item,) = job["outputs"]["2"]["images"]
    assert {name: artifact[name] for name in ("filename", "subfolder", "type")} == item
    assert (artifact["index"], artifact["node_id"], artifact["kind"]) == (0, "2", "image")
    assert (artifact["width"], artifact["height"], artifact["duration_s"]) == (128, 128, None)
    assert artifact["bytes"] == (client.base / "output" / artifact["filename"]).stat().st_size
    assert len(artifact["sha256"]) == 64
    assert artifact["url"] == f"/guarded/jobs/{job['job_id']}/artifacts/0"


async def test_a_timeout_above_the_servers_own_is_capped(client):
    job = await client.run(text(), guard={"timeout_s": 10**6})
    assert job["timeout_s"] == 600


async def test_a_photo_goes_in_and_a_picture_comes_out(client):
    job = await client.run(photo_copy("photo.png"))
    assert_succeeded(job)
    assert job["artifacts"][0]["node_id"] == "3"


async def test_a_running_job_shows_its_progress(client):
    job_id = await client.admitted(sleep(3600, steps=100_000))
    job = await client.polled(lambda: client.job(job_id), lambda job: job["progress"] and job["progress"]["value"])
    assert job["state"] == "running"
    assert job["progress"]["node_id"] == "1"
    assert 0 < job["progress"]["value"] <= job["progress"]["max"] == 100_000
    assert 0 <= job["progress"]["percent"] <= 100
    await client.cancel(job_id)


async def test_jobs_are_listed_newest_first_by_state_and_in_pages(client):
    ids = [(await client.run(text()))["job_id"] for _ in range(3)]
    failed = await client.run({"1": {"class_type": "FaultNoOutput", "inputs": {"filename_prefix": "x", "seed": 0}}})
    page = await client.get("/guarded/jobs?limit=2")
    assert [job["job_id"] for job in page["jobs"]] == [failed["job_id"], ids[2]]
    rest = await client.get(f"/guarded/jobs?limit=2&before={page['next']}")
    assert [job["job_id"] for job in rest["jobs"]] == [ids[1], ids[0]]
    assert [job["job_id"] for job in await client.jobs("state=failed&limit=1")] == [failed["job_id"]]
    assert {job["state"] for job in await client.jobs("state=succeeded,cancelled")} <= {"succeeded", "cancelled"}
