"""The sandbox breaks where ComfyUI breaks: what the guard has to survive."""

import time
import uuid

import pytest


def is_dead(host, nodes):
    """Whether a new prompt is accepted but never worked on."""
    prompt_id = host.submit(nodes.saved(f"dead-{uuid.uuid4().hex}"))
    time.sleep(0.5)
    return host.request(f"/history/{prompt_id}") == (200, {})


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda n: {**n.saved("x"), "3": {"class_type": "EmptyImage"}}, id="a node without inputs"),
        pytest.param(lambda n: n.fault("FaultRaise", kind="system_exit", message="x"), id="SystemExit"),
        pytest.param(lambda n: n.fault("FaultRaise", kind="keyboard_interrupt", message="x"), id="KeyboardInterrupt"),
    ],
)
def test_a_prompt_kills_the_worker_and_the_server_goes_on_answering(fresh_sandbox, nodes, make):
    prompt_id = fresh_sandbox.submit(make(nodes))
    assert is_dead(fresh_sandbox, nodes)
    _, queue = fresh_sandbox.request("/queue")
    assert [item[1] for item in queue["queue_running"]] == [prompt_id]


def test_deep_extra_data_kills_the_worker(fresh_sandbox, nodes):
    deep: dict = {}
    for _ in range(900):
        deep = {"a": deep}
    fresh_sandbox.submit(nodes.saved("deep"), extra_data={"deep": deep})
    assert is_dead(fresh_sandbox, nodes)


@pytest.mark.parametrize("client_id", [[1], {"a": 1}])
def test_a_client_id_that_cannot_be_hashed_ends_the_process(fresh_sandbox, nodes, client_id):
    fresh_sandbox.submit(nodes.saved("unhashable"), client_id=client_id)
    assert fresh_sandbox.process.wait(timeout=10) != 0


def test_equal_number_and_id_are_a_500_and_are_queued_all_the_same(fresh_sandbox, nodes):
    fresh_sandbox.submit(nodes.fault("FaultHangC", seconds=5.0))
    while not fresh_sandbox.request("/queue")[1]["queue_running"]:
        time.sleep(0.01)
    # Two prompts: items that are equal to the last field compare without trouble.
    same = {"number": 5, "prompt_id": str(uuid.uuid4())}
    bodies = [{"prompt": nodes.saved(prefix), **same} for prefix in ("a", "b")]
    assert [fresh_sandbox.request("/prompt", body)[0] for body in bodies] == [200, 500]
    assert len(fresh_sandbox.request("/queue")[1]["queue_pending"]) == 2


def test_files_are_named_again_after_a_deletion(sandbox, nodes):
    names = []
    for color in (1, 2):
        prompt = {"1": nodes.image(color=color), "2": nodes.save("rewind")}
        (image,) = sandbox.run(prompt)["outputs"]["2"]["images"]
        names.append(image["filename"])
        (sandbox.base / "output" / image["filename"]).unlink()
    assert names[0] == names[1]


def test_the_cache_names_a_file_that_is_gone(sandbox, nodes):
    first = sandbox.run(nodes.saved("gone"))["outputs"]
    name = first["2"]["images"][0]["filename"]
    (sandbox.base / "output" / name).unlink()
    assert sandbox.run(nodes.saved("gone"))["outputs"] == first
    assert sandbox.request(f"/view?filename={name}")[0] == 404


def test_an_interrupt_of_a_hung_call_waits_for_its_end(sandbox, nodes):
    prompt_id = sandbox.submit(nodes.fault("FaultHangC", seconds=0.6))
    time.sleep(0.2)
    started_s = time.monotonic()
    assert sandbox.request("/interrupt", {"prompt_id": prompt_id})[0] == 200
    entry = sandbox.wait(prompt_id)
    assert time.monotonic() - started_s > 0.3
    assert entry["status"]["status_str"] == "error"
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"


def test_exception_does_not_swallow_an_interrupt_but_base_exception_does(sandbox, nodes):
    ends = {}
    for catches in ("Exception", "BaseException"):
        prompt_id = sandbox.submit(nodes.fault("FaultSwallow", seconds=1.0, catches=catches))
        time.sleep(0.3)
        sandbox.request("/interrupt", {"prompt_id": prompt_id})
        ends[catches] = sandbox.wait(prompt_id)["status"]["status_str"]
    assert ends == {"Exception": "error", "BaseException": "success"}


@pytest.mark.parametrize("class_type", ["FaultTruncatedImage", "FaultTinyFile", "FaultMissingFile", "FaultOutsideFile"])
def test_a_bad_file_is_reported_as_a_success(sandbox, nodes, class_type):
    entry = sandbox.run({"1": nodes.node(class_type, filename_prefix=f"bad/{class_type}", seed=1)})
    assert entry["status"]["status_str"] == "success"
    (image,) = entry["outputs"]["1"]["images"]
    exists = (sandbox.base / "output" / image["subfolder"] / image["filename"]).is_file()
    assert exists == (class_type in ("FaultTruncatedImage", "FaultTinyFile"))


def test_nan_is_saved_as_a_success(sandbox, nodes):
    entry = sandbox.run(nodes.fault("FaultBlackImage", width=64, height=64, nan=True))
    assert entry["status"]["status_str"] == "success"
