"""The sandbox and a real ComfyUI get the same requests and must give the same answers."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]


def comparable(value: Any, key: str = "") -> Any:
    """The value without what differs from run to run: ids, times, memory addresses, tracebacks, orders."""
    if isinstance(value, dict):
        return {name: comparable(item, name) for name, item in value.items() if name != "is_changed"}
    if key == "exception_message":  # the node's own words, a line break, and perhaps the host's tips
        words, line_break, tips = value.partition("\n")
        return [words, line_break, bool(tips)]
    if key == "traceback":
        return "traceback" if value else value
    if key in ("executed", "current_outputs", "nodes", "dependent_outputs") and isinstance(value, list):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if key in ("timestamp", "create_time", "execution_start_time", "execution_end_time"):
        return key
    if isinstance(value, str):
        value = re.sub(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", "uuid", value)
        return re.sub(r"_temp_[a-z]{5}", "_temp_", value)
    return value


def compact(events: list[dict[str, Any]]) -> list[Any]:
    """The events in order. Images in `current_inputs` print differently and are left out."""
    for event in events:
        event["data"].pop("current_inputs", None)
    return [[event["type"], comparable(event["data"])] for event in events]


Prompts = list[dict[str, Any]]
SCENARIOS: dict[str, Callable[[Any], Prompts]] = {
    "one image": lambda n: [n.saved("one")],
    "the same twice": lambda n: [n.saved("twice"), n.saved("twice")],
    "an extra input runs the output node again": lambda n: [
        n.saved("extra"),
        n.saved("extra", _guarded="a"),
        n.saved("extra", _guarded="a"),
        n.saved("extra", _guarded="b"),
    ],
    "a longer graph": lambda n: [
        {
            "1": n.image(),
            "2": n.node("ImageInvert", image=["1", 0]),
            "3": n.node("ImageScale", image=["2", 0], upscale_method="area", width=32, height=0, crop="disabled"),
            "4": n.node("ImageBatch", image1=["2", 0], image2=["3", 0]),
            "5": n.save("longer", "4"),
        }
    ],
    "a preview": lambda n: [{"1": n.image(), "2": n.node("PreviewImage", images=["1", 0])}],
    "two equal output nodes": lambda n: [{"1": n.image(), "2": n.save("equal"), "3": n.save("equal")}],
    "a node that raises": lambda n: [n.fault("FaultRaise", kind="value_error", message="no")],
    "out of memory": lambda n: [n.fault("FaultRaise", kind="out_of_memory", message="CUDA out of memory")],
    "progress": lambda n: [n.fault("FaultSleep", seconds=0.0, checks_interrupt=True, steps=1)],
    "an async node": lambda n: [n.fault("FaultAsyncHang", seconds=0.05)],
    "text": lambda n: [{"1": n.node("FaultText", text="hello", seed=0)}],
    "no output": lambda n: [{"1": n.node("FaultNoOutput", filename_prefix="none", seed=0)}],
    "a constant as text": lambda n: [
        {"1": n.node("PrimitiveInt", value=7), "2": n.node("PreviewAny", source=["1", 0])}
    ],
    "partly valid": lambda n: [
        n.saved("part") | {"3": n.image(width=0), "4": n.save("bad", "3")},
    ],
}


@pytest.mark.parametrize("has_client", [True, False], ids=["own socket", "foreign socket"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_events_have_the_same_order_and_shapes(sandbox, real, nodes, name, has_client):
    for number, prompt in enumerate(SCENARIOS[name](nodes)):
        transcripts = [compact(host.events(_mine(prompt, has_client), has_client)) for host in (sandbox, real)]
        if name == "two equal output nodes":
            transcripts = [_in_order(transcript) for transcript in transcripts]
        assert transcripts[0] == transcripts[1], f"prompt {number}"


def _in_order(transcript: list[Any]) -> list[Any]:
    """Nodes 2 and 3 renamed if 3 ran first: of several output nodes, which runs first is arbitrary."""
    text = json.dumps(transcript)
    if '"3"' in text and text.index('"3"') < text.index('"2"'):
        text = text.replace('"2"', '"x"').replace('"3"', '"2"').replace('"x"', '"3"')
    return [[event, _sorted_nodes(data)] for event, data in json.loads(text)]


def _sorted_nodes(data: dict[str, Any]) -> dict[str, Any]:
    is_list = isinstance(data.get("nodes"), list)
    return data | {"nodes": sorted(data["nodes"])} if is_list else data


def _mine(prompt: dict[str, Any], has_client: bool) -> dict[str, Any]:
    """Another prefix for each variant, so that none finds the other's work in the cache."""
    prompt = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()}
    for node in prompt.values():
        if "filename_prefix" in node["inputs"] and has_client:
            node["inputs"]["filename_prefix"] += "_own"
        if node["class_type"] in ("EmptyImage", "PrimitiveInt"):
            node["inputs"]["color" if "color" in node["inputs"] else "value"] = int(has_client)
    return prompt


def test_an_interrupt_gives_the_same_events(sandbox, real, nodes):
    prompt = nodes.fault("FaultSleep", seconds=20.0, checks_interrupt=True, steps=0)
    transcripts = [compact(host.events(prompt, interrupt_after="executing")) for host in (sandbox, real)]
    assert transcripts[0] == transcripts[1]


def test_history_entries_are_equal(sandbox, real, nodes):
    graphs = [nodes.saved("history"), nodes.fault("FaultRaise", kind="value_error", message="x")]
    for prompt in graphs:
        entries = [host.run(prompt, extra_data={"api_key_comfy_org": "secret", "a": 1}) for host in (sandbox, real)]
        for entry in entries:
            assert "secret" not in str(entry)
        assert comparable(entries[0]) == comparable(entries[1])


def test_jobs_are_listed_alike(sandbox, real, nodes):
    for prompt in (nodes.saved("jobs"), nodes.fault("FaultRaise", kind="value_error", message="x")):
        ids = [host.submit(prompt) for host in (sandbox, real)]
        for host, prompt_id in zip((sandbox, real), ids, strict=True):
            host.wait(prompt_id)
        jobs = [host.request(f"/api/jobs/{i}") for host, i in zip((sandbox, real), ids, strict=True)]
        listed = []
        for host, prompt_id in zip((sandbox, real), ids, strict=True):
            _, answer = host.request("/api/jobs?sort_order=asc")
            listed.append(next(job for job in answer["jobs"] if job["id"] == prompt_id))
        assert _job(jobs[0][1]) == _job(jobs[1][1])
        assert _job(listed[0]) == _job(listed[1])


def _job(job: dict[str, Any]) -> Any:
    job.pop("priority", None)
    return comparable(job)


PROMPT_BODIES: dict[str, Callable[[Any], Any]] = {
    "no prompt": lambda n: {},
    "empty prompt": lambda n: {"prompt": {}},
    "no outputs": lambda n: {"prompt": {"1": n.image()}},
    "unknown class": lambda n: {"prompt": {"1": n.node("NoSuchNode")}},
    "unknown class with a title": lambda n: {"prompt": {"1": {"class_type": "Nope", "_meta": {"title": "T"}}}},
    "no class": lambda n: {"prompt": {"1": {"inputs": {}}}},
    "a required input is missing": lambda n: {"prompt": {"1": n.node("SaveImage", filename_prefix="x")}},
    "a link of length 3": lambda n: {
        "prompt": {"1": n.image(), "2": n.node("SaveImage", images=["1", 0, 0], filename_prefix="x")}
    },
    "a link to nowhere": lambda n: {"prompt": {"2": n.save("x", "9")}},
    "a link to no slot": lambda n: {
        "prompt": {"1": n.image(), "2": n.node("SaveImage", images=["1", 5], filename_prefix="x")}
    },
    "a link of the wrong type": lambda n: {"prompt": {"1": n.node("PrimitiveString", value="x"), "2": n.save("x")}},
    "not a number": lambda n: {"prompt": {"1": n.image(width="wide"), "2": n.save("x")}},
    "too small": lambda n: {"prompt": {"1": n.image(width=0), "2": n.save("x")}},
    "too big": lambda n: {"prompt": {"1": n.image(width=99999), "2": n.save("x")}},
    "a number as text": lambda n: {"prompt": {"1": n.image(width="0"), "2": n.save("x")}},
    "not in the list": lambda n: {
        "prompt": {
            "1": n.image(),
            "3": n.node("ImageScale", image=["1", 0], upscale_method="magic", width=8, height=8, crop="disabled"),
            "2": n.save("x", "3"),
        }
    },
    "custom validation": lambda n: {"prompt": {"1": n.node("LoadImage", image="nope.png"), "2": n.save("x")}},
    "outside the input folder": lambda n: {
        "prompt": {"1": n.node("LoadImage", image="../../etc/passwd"), "2": n.save("x")}
    },
    "an exception in validation": lambda n: {"prompt": {"1": n.node("LoadImage", image=5), "2": n.save("x")}},
    "an output without inputs": lambda n: {"prompt": {"2": {"class_type": "SaveImage"}}},
    "an inner node without inputs": lambda n: {"prompt": {"1": {"class_type": "EmptyImage"}, "2": n.save("x")}},
    "a cycle": lambda n: {
        "prompt": {
            "1": n.node("ImageInvert", image=["3", 0]),
            "3": n.node("ImageInvert", image=["1", 0]),
            "2": n.save("x"),
        }
    },
    "two outputs below one fault": lambda n: {"prompt": {"1": n.image(width=0), "2": n.save("x"), "3": n.save("y")}},
    "prompt_id in capitals": lambda n: {
        "prompt": n.saved("x"),
        "prompt_id": "AAAAAAAA-AAAA-4AAA-8AAA-AAAAAAAAAAAA",
    },
    "prompt_id no string": lambda n: {"prompt": n.saved("x"), "prompt_id": 7},
    "targets without outputs": lambda n: {"prompt": n.saved("x"), "partial_execution_targets": ["1"]},
    "null": lambda n: None,
    "a list": lambda n: [],
    "a list of prompt": lambda n: ["prompt"],
    "text": lambda n: "prompt",
    "a null node": lambda n: {"prompt": {"1": None}},
    "a list as prompt": lambda n: {"prompt": [n.image()]},
    "null as prompt": lambda n: {"prompt": None},
    "inputs that are a list": lambda n: {"prompt": {"1": {"class_type": "EmptyImage", "inputs": []}}},
    "number x": lambda n: {"prompt": n.saved("x"), "number": "x"},
    "extra_data null": lambda n: {"prompt": n.saved("x"), "extra_data": None},
}


@pytest.mark.parametrize("name", PROMPT_BODIES)
def test_faulty_prompts_are_answered_alike(sandbox, real, nodes, name):
    body = PROMPT_BODIES[name](nodes)
    raw = None if body is not None else b"null"
    answers = [host.request("/prompt", body, raw) for host in (sandbox, real)]
    assert answers[0][0] == answers[1][0] >= 400
    assert _unordered(answers[0][1]) == _unordered(answers[1][1])


def _unordered(answer: Any) -> Any:
    """Validation walks over sets: the order of errors is arbitrary on the real host."""
    if not isinstance(answer, dict):
        return answer
    answer = _without_tooltips(comparable(answer))
    answer["error"]["details"] = sorted(answer["error"]["details"].split("\n"))
    for node in answer["node_errors"].values():
        node["errors"].sort(key=str)
    return answer


REQUESTS: list[tuple[str, bytes | None, str]] = [
    ("/prompt", b"{", ""),
    ("/prompt", None, "PUT"),
    ("/nowhere", None, ""),
    ("/nowhere", b"{}", ""),
    ("/api/queue", None, ""),
    ("/queue", b"[]", ""),
    ("/queue", b'{"delete": ["x"]}', ""),
    ("/queue", b"null", ""),
    ("/history/none", None, ""),
    ("/history", b'{"delete": ["none"]}', ""),
    ("/history?max_items=x", None, ""),
    ("/interrupt", b'{"prompt_id": "none"}', ""),
    ("/interrupt", b"{", ""),
    ("/interrupt", b"[]", ""),
    ("/interrupt", b"null", ""),
    ("/interrupt", b'"x"', ""),
    ("/free", b"{}", ""),
    ("/free", b"{", ""),
    ("/view", None, ""),
    ("/view?filename=none.png", None, ""),
    ("/view?filename=../x.png", None, ""),
    ("/view?filename=/etc/passwd", None, ""),
    ("/view?filename=x.png&type=secret", None, ""),
    ("/view?filename=x.png&subfolder=../..", None, ""),
    ("/view?filename=", None, ""),
    ("/upload/image", b"", ""),
    ("/embeddings", None, ""),
    ("/features", None, ""),
    ("/object_info/NoSuchNode", None, ""),
    ("/api/jobs?status=odd", None, ""),
    ("/api/jobs?limit=0", None, ""),
    ("/api/jobs?limit=x", None, ""),
    ("/api/jobs/none", None, ""),
    ("/api/jobs/none/cancel", b"", ""),
    ("/api/jobs/cancel", b"[]", ""),
    ("/api/jobs/cancel", b'{"job_ids": ["x", 5]}', ""),
]


@pytest.mark.parametrize(("path", "raw", "method"), REQUESTS)
def test_other_requests_are_answered_alike(sandbox, real, path, raw, method):
    answers = [host.request(path, raw=raw, method=method) for host in (sandbox, real)]
    if isinstance(answers[0][1], bytes):
        answers = [(status, None) for status, _ in answers]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("class_type", ["EmptyImage", "LoadImage", "SaveImage", "PreviewImage", "FaultSleep"])
def test_node_classes_are_described_alike(sandbox, real, class_type):
    answers = [host.request(f"/object_info/{class_type}")[1][class_type] for host in (sandbox, real)]
    for info in answers:
        for prose in ("description", "search_aliases", "essentials_category"):
            info.pop(prose, None)
    assert set(answers[0]) == set(answers[1])
    assert _without_tooltips(answers[0]) == _without_tooltips(answers[1])


def _without_tooltips(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_tooltips(item) for name, item in value.items() if name != "tooltip"}
    if isinstance(value, list):
        return [item for item in map(_without_tooltips, value) if item != {}]
    return value


def test_model_folders_are_the_same(sandbox, real):
    kinds = [set(host.request("/models")[1]) for host in (sandbox, real)]
    assert kinds[0] <= kinds[1]


def test_stats_have_the_same_shape(sandbox, real):
    answers = [host.request("/system_stats")[1] for host in (sandbox, real)]
    assert set(answers[0]["system"]) == set(answers[1]["system"])
    assert set(answers[0]["devices"][0]) == set(answers[1]["devices"][0])
