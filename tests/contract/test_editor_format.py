"""A workflow in the editor's own format is taken where a prompt is, or refused by the node that is at fault."""

import json

import pytest
from contract.client import assert_refusal, assert_succeeded, node, unique
from contract.conftest import PHOTO
from contract.test_form import form, fresh, part

KINDS = {"EmptyImage": "IMAGE", "LoadImage": "IMAGE"}


def make(number, kind, *values, inputs=(), **more):
    slots = [{"name": name, "type": "IMAGE", "link": link} for name, link in inputs]
    outputs = [{"name": "IMAGE", "type": "IMAGE", "links": []}] if kind in KINDS else []
    return {
        "id": number,
        "type": kind,
        "mode": 0,
        "inputs": slots,
        "outputs": outputs,
        "widgets_values": list(values),
        **more,
    }


def file(*nodes, links=(), **more):
    return {"id": "f3c0", "nodes": list(nodes), "links": [[*link, "IMAGE"] for link in links], "version": 0.4, **more}


def copied(prefix=None):
    """A photo that goes through a reroute on its way into a file; with a note beside it."""
    return file(
        make(1, "LoadImage", PHOTO, "image"),
        make(2, "Reroute", inputs=[("", 1)], outputs=[{"name": "", "type": "IMAGE", "links": [2]}]),
        make(3, "SaveImage", prefix or unique(), inputs=[("images", 2)]),
        make(4, "Note", "A note."),
        links=[(1, 1, 0, 2, 0), (2, 2, 0, 3, 0)],
    )


def prompt_of(workflow):
    """What the editor makes of :func:`copied`."""
    return {
        "1": node("LoadImage", image=PHOTO),
        "3": node("SaveImage", filename_prefix=workflow["nodes"][2]["widgets_values"][0], images=["1", 0]),
    }


def without_titles(prompt):
    return {node_id: {key: one[key] for key in ("class_type", "inputs")} for node_id, one in prompt.items()}


@pytest.mark.parametrize("alone", [False, True])
async def test_a_workflow_becomes_a_job_that_says_so_and_shows_its_prompt(client, alone):
    workflow = copied()
    guard = {"metadata": {"order": 7}}
    body = (
        {**workflow, "guard": guard, "client_id": "c"}
        if alone
        else {"prompt": workflow, "guard": guard, "client_id": "c"}
    )
    answer = await client.request("POST", "/guarded/prompt?wait=60", body)
    assert answer.status == 200, answer
    job = answer.json["guard"]["job"]
    assert_succeeded(job)
    assert job["converted"] is True
    assert job["metadata"] == {"order": 7}
    shown = await client.get(f"/guarded/jobs/{job['job_id']}/prompt")
    assert without_titles(shown["prompt"]) == prompt_of(workflow)
    (entry,) = (await client.get(f"/guarded/history/{job['job_id']}")).values()
    assert entry["prompt"][3]["extra_pnginfo"]["workflow"] == workflow


async def test_a_prompt_is_no_converted_one(client):
    answer = await client.request("POST", "/guarded/prompt?wait=60", {"prompt": prompt_of(copied())})
    assert answer.json["guard"]["job"]["converted"] is False


async def test_a_request_for_the_prompt_of_another_owner_finds_nothing(client):
    answer = await client.request("GET", "/guarded/jobs/00000000-0000-4000-8000-000000000000/prompt")
    assert_refusal(answer, "not_found", 404)


async def test_a_form_may_bring_the_workflow_with_its_picture(client):
    workflow = file(
        make(1, "LoadImage", "photo", "image"),
        make(3, "SaveImage", unique(), inputs=[("images", 1)]),
        links=[(1, 1, 0, 3, 0)],
    )
    raw, headers = form(part("prompt", json.dumps(workflow).encode()), part("photo", fresh(), "me.png"))
    answer = await client.request("POST", "/guarded/prompt?wait=60", raw=raw, headers=headers)
    assert answer.status == 200, answer
    assert_succeeded(answer.json["guard"]["job"])


async def test_a_repeated_request_is_the_same_job(client):
    workflow, key = copied(), {"Idempotency-Key": unique()}
    first, second = [await client.request("POST", "/guarded/prompt", workflow, headers=key) for _ in range(2)]
    assert first.json["prompt_id"] == second.json["prompt_id"]
    assert second.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize(
    ("broken", "code", "reason", "node_id"),
    [
        (file(make(7, "Fast Groups Muter (rgthree)")), "invalid_workflow", "frontend_only", "7"),
        (file(make(7, "workflow>old")), "invalid_workflow", "group_node", "7"),
        (file(make(7, "NoSuchClassAnywhere")), "missing_node", "unknown_class", "7"),
        (file(make(7, "SaveImage", "x", inputs=[("images", 5)])), "invalid_workflow", "link", "7"),
        (file({"id": 7}), "invalid_workflow", "malformed", None),
        (file(make(7, "Note", "x")), "invalid_workflow", "empty", None),
        (file(make(7, "inner"), definitions={"subgraphs": [{"id": "inner", "nodes": [make(8, "inner")]}]}),
         "invalid_workflow", "circle", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
async def test_what_cannot_be_converted_is_refused_by_node_type_and_reason(client, broken, code, reason, node_id):
    answer = await client.request("POST", "/guarded/prompt", {"prompt": broken}, headers={"Accept-Language": "ru"})
    assert_refusal(answer, code)
    found = answer.json["error"]["extra_info"]
    assert found["reason"] == reason
    if node_id is not None:
        assert (found["node_id"], found["class_type"]) == (node_id, broken["nodes"][0]["type"])
        assert found["class_type"] in answer.json["error"]["message"]
    assert answer.json["guard"]["refund"] is True


async def test_the_policy_looks_at_what_a_workflow_becomes(client):
    many = file(*(make(at, "EmptyImage", 64, 32, 1, 0) for at in range(1_500)))
    answer = await client.request("POST", "/guarded/prompt", {"prompt": many})
    assert_refusal(answer, "policy_violation")
    assert answer.json["error"]["extra_info"]["nodes"] == 1_500


async def test_a_workflow_of_twenty_thousand_nodes_is_refused_before_it_is_read(client):
    large = file(*(make(at, "EmptyImage") for at in range(20_000)))
    assert_refusal(await client.request("POST", "/guarded/prompt", {"prompt": large}), "payload_too_large", 413)
