"""ComfyUI's own editor on a server with `native.mode = "guarded"`: it queues, shows, deletes and stops as ever."""

from collections.abc import Iterator
from typing import Any

import pytest
from browser.conftest import PATIENCE_MS, shoot
from contract.client import PlainClient, assert_ended_badly, assert_succeeded, node, save, sleep
from playwright.sync_api import Browser, Page

from comfyui_guarded.tests.hosts.launch import HostProcess, real_kinds

# Its scripts alone take the editor seconds to load.
pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.timeout(360)]

NO_COMFYUI = "the editor is a real ComfyUI's: COMFYUI_PATH names one (tests/hosts/launch.py says where we look)"


@pytest.fixture(scope="module")
def editors_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    kinds = real_kinds()
    if not kinds:
        pytest.skip(NO_COMFYUI)
    environment = {"GUARDED_NATIVE__MODE": "guarded"}
    with HostProcess(kinds[0], tmp_path_factory.mktemp("editor"), environment=environment) as host:
        yield host


@pytest.fixture(scope="module")
def editor(browser: Browser, editors_host: HostProcess) -> Iterator[Page]:
    page = browser.new_page()
    page.goto(editors_host.url)
    page.wait_for_function(
        "window.app && window.app.graph && window.app.extensionManager && window.app.api.clientId",
        timeout=4 * PATIENCE_MS,
    )
    yield page
    page.close()


@pytest.fixture
def asker(editors_host: HostProcess) -> Iterator[PlainClient]:
    client = PlainClient(editors_host)
    yield client
    client.close()


def queued(editor: Page, graph: dict[str, Any], client: PlainClient) -> str:
    """The id of the job that the editor's own button makes of a graph."""
    before = {job["job_id"] for job in client.get("/guarded/jobs").json["jobs"]}
    titled = {node_id: {**entry, "_meta": {"title": entry["class_type"]}} for node_id, entry in graph.items()}
    editor.evaluate("graph => window.app.loadApiJson(graph, 'test')", titled)
    assert editor.evaluate("() => window.app.queuePrompt(0, 1)")
    (job,) = [job for job in client.get("/guarded/jobs").json["jobs"] if job["job_id"] not in before]
    return str(job["job_id"])


def pending(editor: Page) -> list[str]:
    """What the editor has in its queue panel, by its own request."""
    queue = editor.evaluate("() => window.app.api.getQueue()")
    return [str(job["id"]) for job in queue["Pending"]]


def test_the_editor_queues_a_prompt_and_shows_its_result(editor: Page, asker: PlainClient) -> None:
    graph = sleep(0.5, steps=5, prefix="editor")
    job_id = queued(editor, graph, asker)
    editor.wait_for_function(
        "Object.values(window.app.nodeOutputs || {}).some(output => output.images && output.images.length)",
        timeout=PATIENCE_MS,
    )
    job = dict(asker.get(f"/guarded/jobs/{job_id}").json)
    assert_succeeded(job)
    assert job["owner"] == "local"
    assert editor.evaluate("window.app.nodeOutputs['2'].images") == job["outputs"]["2"]["images"]
    shoot(editor, "editor-result")


def test_what_waits_is_in_its_queue_and_can_be_deleted_there(editor: Page, asker: PlainClient) -> None:
    running = queued(editor, sleep(3600, steps=100_000), asker)
    waiting = queued(editor, sleep(0.1), asker)
    editor.wait_for_function("() => window.app.api.getQueue().then(queue => queue.Pending.length === 1)")
    assert pending(editor) == [waiting]
    editor.evaluate("id => window.app.api.deleteItem('queue', id)", waiting)
    assert_ended_badly(_until_settled(asker, waiting), "cancelled")
    assert pending(editor) == []
    editor.evaluate("id => window.app.api.interrupt(id)", running)
    assert_ended_badly(_until_settled(asker, running), "interrupted")


def test_a_picture_that_fails_the_checks_is_an_error_in_the_editor(editor: Page, asker: PlainClient) -> None:
    black = {"1": node("FaultBlackImage", width=64, height=64, nan=False, seed=0), "2": save("1")}
    editor.evaluate(
        "() => { window.seenError = null;"
        " window.app.api.addEventListener('execution_error', event => { window.seenError = event.detail; }) }"
    )
    job_id = queued(editor, black, asker)
    editor.wait_for_function("window.seenError !== null", timeout=PATIENCE_MS)
    assert editor.evaluate("window.seenError.prompt_id") == job_id
    assert editor.evaluate("window.seenError.exception_type") == "comfyui_guarded.ResultBlankError"
    assert_ended_badly(_until_settled(asker, job_id), "result_blank")
    shoot(editor, "editor-error")


def _until_settled(client: PlainClient, job_id: str) -> dict[str, Any]:
    for _ in range(60):
        job = dict(client.get(f"/guarded/jobs/{job_id}?wait=1").json)
        if job["settled_at_ms"]:
            return job
    raise AssertionError(f"never settled: {job}")
