"""A prompt like one that ComfyUI has accepted is not validated again, and comes to the same.

`KNOWN=2000` for a long search.
"""

import json
import os
import urllib.request
import uuid
from typing import Any

from confinement.graphs import declared, make
from contract.client import Client, Prompt, assert_refusal, assert_succeeded, node, save, sleep, text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfyui_guarded.tests.hosts.launch import HostProcess

GRAPHS = int(os.environ.get("KNOWN", "60"))

#: What a prompt may give where a class declares anything.
VALUES: list[Any] = [
    *(0, 1, -1, 7, 64, 2**53, 2**53 + 1, 2**64, -(10**30), True, False),
    *(0.0, -0.0, 0.5, 1.0, 64.0, 1e300, -3.25),
    *("", "a", "1", "0.5", "true", "a\nb", "euler", "x.safetensors"),
    *(None, [], [1], ["9"], ["9", 0], ["9", 1.0], ["9", True], ["none", 0], {}, {"__value__": 3}, {"a": [1]}),
]


def ask(host: HostProcess, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(host.url + path, data), timeout=120) as answer:
        return json.load(answer)


def shown(prompt: Prompt, info: dict[str, Any]) -> Prompt:
    """The prompt with an output, and a node that no output needs."""
    more = {"spare": {**prompt["9"], "inputs": dict(prompt["9"]["inputs"])}}
    if not info.get("output_node"):
        more["out"] = node("PreviewAny", source=["9", 0])
    return {**prompt, **more}


def compare(host: HostProcess, prompts: list[Prompt]) -> list[dict[str, bool]]:
    answers: list[dict[str, bool]] = ask(host, "/guarded_faults/known", {"prompts": prompts})
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer["same"], prompt
    return answers


def test_whatever_prompts_give_what_is_known_is_what_comfyui_makes_of_them(host):
    classes = ask(host, "/object_info")
    names = sorted(name for name, info in classes.items() if make(name, info, classes) is not None)
    seen = {"known": 0, "refused": 0}

    @given(st.data())
    @settings(
        max_examples=GRAPHS,
        deadline=None,
        derandomize="KNOWN" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    def search(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(names))
        info = classes[name]
        first = make(name, info, classes)
        assert first is not None
        prompts = [shown(first, info)] * 3
        inputs = [(each, kind, options) for each, kind, options, _ in declared(info)]
        for _ in range(data.draw(st.integers(4, 8))):
            inputs_now = dict(data.draw(st.sampled_from(prompts))["9"]["inputs"])
            for each, kind, options in data.draw(st.lists(st.sampled_from(inputs or [("x", "", {})]), max_size=3)):
                near = [options[bound] + step for bound in ("min", "max") if bound in options for step in (-1, 0, 0.5)]
                choices = kind if isinstance(kind, list) else options.get("options", [])
                inputs_now[each] = data.draw(st.sampled_from([*VALUES, *near, *choices[:4]]))
            if data.draw(st.booleans()) and inputs_now:
                inputs_now.pop(data.draw(st.sampled_from(sorted(inputs_now))))
            changed = shown({**first, "9": {"class_type": name, "inputs": inputs_now}}, info)
            if data.draw(st.booleans()):
                changed["spare"] = prompts[0]["spare"]
            prompts += [changed, changed]
        answers = compare(host, prompts)
        seen["known"] += sum(answer["known"] for answer in answers)
        seen["refused"] += sum(not answer["taken"] for answer in answers)

    search()
    # Many classes look at their inputs themselves, and have no form.
    assert seen["known"] > GRAPHS // 4, seen
    assert seen["refused"] > GRAPHS / 2, seen


def test_prompts_that_differ_in_words_and_numbers_are_known_and_others_are_not(host):
    def prompt(seconds: Any, prefix: str, seed: Any = 0) -> Prompt:
        inputs = {"seconds": seconds, "checks_interrupt": True, "steps": 0, "seed": seed}
        return {"1": node("FaultSleep", **inputs), "2": save("1", prefix)}

    alike = [prompt(0.5, "a"), prompt(0.5, "a"), prompt(0.25, "b", 7), prompt(86400.0, "", 2**53)]
    other = [prompt(1, "a"), prompt(2, "b"), prompt(86401.0, "a"), prompt(0.5, "a", -1), prompt(0.5, "a", "1")]
    answers = compare(host, alike + other)
    assert [answer["known"] for answer in answers] == [False, False, True, True, False, True, False, False, False]
    assert [answer["taken"] for answer in answers] == [True] * 6 + [False, False, True]


def test_a_model_that_is_gone_is_not_taken_for_known(host):
    """A choice counts only while it is offered."""
    folder = host.base / "models" / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / f"{uuid.uuid4().hex}.safetensors"
    model.write_bytes(b"\0" * 16)
    prompt = {"1": node("VAELoader", vae_name=model.name), "2": node("PreviewAny", source=["1", 0])}
    if not compare(host, [prompt])[0]["taken"]:  # this server's models lie elsewhere
        model.unlink()
        return
    assert [answer["known"] for answer in compare(host, [prompt] * 3)] == [False, False, True]
    model.unlink()
    assert not compare(host, [prompt])[0]["taken"]


async def test_a_job_of_a_known_form_is_what_comfyui_would_have_made_of_it(client: Client):
    """The first is shown to ComfyUI's handler, the last is not: it has learned of the classes, then of the form."""
    more = {"client_id": uuid.uuid4().hex, "extra_data": {"extra_pnginfo": {"workflow": {"id": str(uuid.uuid4())}}}}
    jobs = []
    for seed in range(4):
        jobs.append(await client.run(text(f"number {seed}"), **more))
    for seed, job in enumerate(jobs):
        assert_succeeded(job)
        assert job["outputs"]["1"]["text"] == [f"number {seed}"]
    first, last = [(await client.native_entry(job["job_id"]))["prompt"] for job in (jobs[0], jobs[-1])]
    assert len(first) == len(last)
    assert first[3].keys() == last[3].keys()
    times = {"create_time", "client_id"}
    assert {k: v for k, v in first[3].items() if k not in times} == {k: v for k, v in last[3].items() if k not in times}
    assert first[4] == last[4]
    assert last[2]["1"]["inputs"].keys() == first[2]["1"]["inputs"].keys()


async def test_a_known_form_with_a_value_out_of_bounds_is_refused_as_before(client: Client):
    for _ in range(3):
        assert_succeeded(await client.run(sleep(0.0)))
    wrong = sleep(0.0)
    wrong["1"]["inputs"]["seconds"] = -1.0
    first = assert_refusal(await client.submit(wrong), "invalid_workflow")
    assert "smaller than min" in json.dumps(first)
