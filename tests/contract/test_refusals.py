"""Prompts that are not let in: by kind, by name, and without a trace."""

import io

import numpy as np
import pytest
from contract.client import assert_refusal, node, photo_copy, picture, save, text
from PIL import Image


@pytest.fixture
async def leaves_nothing_behind(client):
    """After the test there are as many jobs as before, and ComfyUI's queue is empty."""
    await client.polled(client.native_queue, lambda queue: not queue)  # a job is settled before the worker lets it go
    before = [job["job_id"] for job in await client.jobs("limit=1")]
    yield
    assert [job["job_id"] for job in await client.jobs("limit=1")] == before
    assert await client.guarded_queue() == []
    assert await client.native_queue() == []
    await client.assert_takes_jobs()


pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")


async def test_an_unknown_class_is_missing_node_by_name(client):
    body = assert_refusal(await client.submit({**text(), "7": node("NoSuchNode")}), "missing_node", 422)
    assert body["error"]["extra_info"]["classes"] == ["NoSuchNode"]
    assert body["error"]["extra_info"]["nodes"] == ["7"]
    assert "NoSuchNode" in body["error"]["message"]


async def test_an_unknown_model_is_missing_model_by_name(client):
    if "CheckpointLoaderSimple" in await client.get("/object_info"):
        prompt = {
            "1": node("CheckpointLoaderSimple", ckpt_name="sub/absent.safetensors"),
            "2": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "3": node("VAEDecode", samples=["2", 0], vae=["1", 2]),
            "4": save("3"),
        }
    else:  # the sandbox loads no models; any choice that names one will do
        prompt = {"1": node("FaultRaise", kind="sub/absent.safetensors", message="", seed=0), "4": save("1")}
    body = assert_refusal(await client.submit(prompt), "missing_model", 422)
    assert "absent.safetensors" in body["error"]["message"]
    assert body["error"]["extra_info"]["node_id"] == "1"
    assert "1" in body["node_errors"]
    assert body["error"]["type"] == "prompt_outputs_failed_validation", "ComfyUI's own, where it refused"


@pytest.mark.parametrize("name", ["absent.png", "../../../absent.png"])
async def test_an_image_that_is_not_there_is_bad_image(client, name):
    body = assert_refusal(await client.submit(photo_copy(name)), "bad_image", 422)
    assert "absent.png" in body["error"]["message"]
    assert body["error"]["extra_info"]["node_id"] == "1"
    assert body["error"]["extra_info"]["input"] == "image"


@pytest.mark.parametrize("name", ["words.png", "cut.jpg", "empty.png", "fake.heic.png"])
async def test_what_cannot_be_opened_is_refused_before_there_is_a_job(client, name):
    made = io.BytesIO()
    noise = np.random.default_rng(3).integers(0, 255, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(made, "JPEG")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)
    content = {"words.png": b"words", "cut.jpg": made.getvalue()[:3000], "empty.png": b"", "fake.heic.png": heic}[name]
    (client.base / "input" / name).write_bytes(content)
    body = assert_refusal(await client.submit(photo_copy(name)), "bad_image", 422)
    assert (body["error"]["extra_info"]["node_id"], body["error"]["extra_info"]["input"]) == ("1", "image")
    (client.base / "input" / name).unlink()


async def test_a_wrong_value_is_invalid_workflow_in_comfyuis_words(client):
    prompt = picture()
    prompt["1"]["inputs"]["steps"] = "many"
    body = assert_refusal(await client.submit(prompt), "invalid_workflow", 400)
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    (error,) = body["node_errors"]["1"]["errors"]
    assert error["type"] == "invalid_input_type"
    assert error["extra_info"]["input_name"] == "steps"


async def test_a_value_out_of_range_is_invalid_workflow(client):
    prompt = picture()
    prompt["1"]["inputs"]["steps"] = -1
    body = assert_refusal(await client.submit(prompt), "invalid_workflow", 400)
    assert body["node_errors"]["1"]["errors"][0]["type"] == "value_smaller_than_min"


async def test_a_prompt_without_outputs_is_invalid_workflow(client):
    body = assert_refusal(await client.submit({"1": picture()["1"]}), "invalid_workflow", 400)
    assert body["error"]["type"] == "prompt_no_outputs"


async def test_a_prompt_of_which_comfyui_would_drop_a_part_is_refused_with_the_output_named(client):
    prompt = {
        **picture(),
        "8": node("FaultSleep", seconds=-1.0, checks_interrupt=True, steps=0, seed=0),
        "9": save("8"),
    }
    body = assert_refusal(await client.submit(prompt), "invalid_workflow", 400)
    assert body["error"]["extra_info"]["outputs"] == ["9"]
    assert "9" in body["error"]["message"]
    assert set(body["node_errors"]) == {"8"}


async def test_an_unknown_field_of_guard_is_refused_by_name(client):
    body = assert_refusal(await client.submit(text(), guard={"timeout": 5}), "invalid_request", 400)
    assert "guard.timeout" in body["error"]["message"]
    assert body["error"]["extra_info"] == {"field": "guard.timeout"}


async def test_a_prompt_over_the_node_limit_breaks_policy(client):
    prompt = {str(number): text()["1"] for number in range(1001)}
    body = assert_refusal(await client.submit(prompt), "policy_violation", 422)
    assert (body["error"]["extra_info"]["nodes"], body["error"]["extra_info"]["max_nodes"]) == (1001, 1000)


async def test_a_body_over_the_size_limit_is_too_large(client):
    raw = b'{"prompt": {}, "padding": "%s"}' % (b"x" * 17 * 2**20)
    assert_refusal(await client.request("POST", "/guarded/prompt", raw=raw), "payload_too_large", 413)


async def test_a_refusal_speaks_the_language_that_the_request_asks_for(client):
    prompt = {**text(), "7": node("NoSuchNode")}
    english = assert_refusal(await client.submit(prompt, guard={"locale": "en"}), "missing_node")
    assert english["guard"]["user_message"].startswith("The server lacks")
    unknown = await client.submit(prompt, guard={"locale": "de"}, headers={"Accept-Language": "en"})
    assert assert_refusal(unknown)["guard"]["user_message"].startswith("The server lacks")
    russian = assert_refusal(await client.submit(prompt, guard={"locale": "ru"}, headers={"Accept-Language": "en"}))
    assert russian["guard"]["user_message"].startswith("На сервере нет")


async def test_only_the_refusal_of_a_submit_speaks_of_a_refund(client):
    nothing_of_it = (
        await client.request("GET", "/guarded/jobs/00000000-0000-4000-8000-000000000000"),
        await client.request("POST", "/guarded/face-check", {"image": "absent.png"}),
        await client.request("GET", "/guarded/nowhere"),
        await client.request("GET", "/guarded/prompt/nowhere"),
        await client.request("GET", "/guarded/jobs?limit=0"),
    )
    assert ["refund" in assert_refusal(answer)["guard"] for answer in nothing_of_it] == [False] * 5
    asked_for_a_job = (
        await client.request("POST", "/guarded/prompt", raw=b"{"),
        await client.request("POST", "/api/guarded/prompt", {"prompt": {}}),
        await client.request("POST", "/guarded/api/prompt?wait=x", {"prompt": text()}),
        await client.request("POST", "/guarded/workflows/absent", {}),
        await client.submit(text(), guard={"timeout_s": -1}),
    )
    assert [assert_refusal(answer)["guard"]["refund"] for answer in asked_for_a_job] == [True] * 5
