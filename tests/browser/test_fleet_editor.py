"""ComfyUI's own editor, unchanged, behind nginx before two boxes: each of its requests goes to either. By hand:

GUARDED_FLEET_CLIENTS=1 pytest tests/browser/test_fleet_editor.py
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from browser.conftest import PATIENCE_MS, Faults, shoot
from browser.test_editor import KINDS, SETTINGS, expand_queue, load, run, wait_for_editor
from contract.client import Prompt, gated, node, open_gate, save, sleep, unique
from contract.test_access import make_key
from contract.test_proxies import find_program, nginx, running
from fleet.conftest import Box, Fleet, make_fleet, until
from fleet.test_clients import BALANCER, NAMES_CALLER
from playwright.sync_api import Browser, Page, TimeoutError, expect
from postgres import Server, find_programs

from comfyui_guarded.tests.hosts.launch import ROOT, free_port
from comfyui_guarded.tests.hosts.lend import lend

pytestmark = [
    pytest.mark.browser,
    pytest.mark.comfyui,
    pytest.mark.timeout(600),
    pytest.mark.skipif("GUARDED_FLEET_CLIENTS" not in os.environ, reason="by hand: GUARDED_FLEET_CLIENTS=1"),
]

#: What the editor hears, noted as it comes.
LISTEN = """() => {
    window.heard = []
    for (const type of ["execution_start", "progress", "b_preview", "b_preview_with_metadata", "executed",
        "execution_success", "execution_error", "execution_interrupted"])
        window.app.api.addEventListener(type, ({detail}) => window.heard.push([type, detail?.prompt_id ?? null]))
}"""


@dataclass
class Pair:
    fleet: Fleet
    url: str
    #: The editor's, and that of whoever else is there.
    key: str
    other: str

    def make_link(self) -> str:
        box = self.fleet.boxes[0]
        command = [sys.executable, str(ROOT), "open", "--url", self.url, "--user", str(box.base / "user")]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GUARDED_")}
        environment = {**inherited, **box._environment}
        made = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return made.stdout.split()[0]

    def _submit(self, box: Box, prompt: Prompt) -> str:
        status, body = until(lambda: box.ask("POST", "/guarded/prompt", {"prompt": prompt}, key=self.other))
        assert status == 200, body
        return str(body["prompt_id"])

    @contextlib.contextmanager
    def only(self, box: Box) -> Iterator[None]:
        """Keep the other one busy."""
        prefixes = {self._submit(box, gated(prefix)): prefix for prefix in (unique(), unique())}
        runs_on = {job_id: self.fleet.find_box_of(job_id) for job_id in prefixes}
        assert {id(one) for one in runs_on.values()} == {id(one) for one in self.fleet.boxes}

        def end(where: Callable[[Box], bool]) -> None:
            for job_id, prefix in prefixes.items():
                if where(runs_on[job_id]):
                    open_gate(runs_on[job_id].base, prefix)
                    assert box.settled(job_id)["state"] == "succeeded"

        end(lambda one: one is box)
        try:
            yield
        finally:
            end(lambda one: one is not box)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if find_programs() is None or find_program("nginx") is None:
        pytest.skip("no PostgreSQL or no nginx here")
    folder, port = tmp_path_factory.mktemp("fleet"), free_port()
    (folder / "depot").mkdir()
    settings = {"GUARDED_FILES__URL": (folder / "depot").as_uri(), "GUARDED_NATIVE__MODE": "guarded"}
    engine = Server()
    with contextlib.ExitStack() as stack:
        stack.callback(engine.stop)
        fleet = stack.enter_context(make_fleet(folder, engine))
        boxes = [fleet.make(kind=request.param, tells=True, shares=False, **settings) for _ in range(2)]
        for box in boxes:
            box.set(**lend(box.kind, "obstore", box.base / "lent"))
        key, other = make_key(boxes[0].base, "editor", "operate"), make_key(boxes[0].base, "other")
        for box in boxes:
            (box.base / "user" / "default").mkdir()
            (box.base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS))
            box.spawn()
        for box in boxes:
            box.wait_ready()
        servers = " ".join(f"server 127.0.0.1:{box.port} max_fails=0;" for box in boxes)
        text = BALANCER.format(servers=servers, port=port, names_caller=NAMES_CALLER)
        url = stack.enter_context(running(nginx, folder / "nginx", text, port))
        yield Pair(fleet, url, key, other)


@pytest.fixture(params=["a key", "a link"])
def owner(request: pytest.FixtureRequest) -> str:
    """Whom a browser is that sends a key as its password, and one that a link has signed in."""
    return "editor" if request.param == "a key" else "local"


@pytest.fixture
def page(browser: Browser, pair: Pair, owner: str) -> Iterator[Page]:
    password = {"http_credentials": {"username": "any", "password": pair.key}} if owner == "editor" else {}
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en", **password)
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    opened = context.new_page()
    faults = Faults(opened)
    if owner == "local":
        answer = opened.goto(pair.make_link())
        assert answer is not None
        assert answer.ok, answer.text()
    opened.goto(pair.url)
    wait_for_editor(opened)
    opened.evaluate(LISTEN)
    yield opened
    context.close()
    assert [fault for fault in faults.seen if "/extensions/ComfyUI-Guarded/" in fault] == []


def queue(page: Page, pair: Pair, prompt: Prompt) -> str:
    """Press the button; the id of the job."""
    load(page, prompt)
    with page.expect_response(lambda answer: answer.request.method == "POST" and answer.url.endswith("/prompt")) as got:
        run(page)
    return str(got.value.json()["prompt_id"])


def hears(page: Page, what: str, job_id: str | None) -> None:
    wanted = "([what, id]) => window.heard.some(([type, of]) => type.startsWith(what) && (!id || of === id))"
    try:
        page.wait_for_function(wanted, arg=[what, job_id])
    except TimeoutError:
        heard = page.evaluate("() => window.heard.filter(([type]) => type !== 'progress').slice(-20)")
        raise AssertionError(f"no {what} of {job_id}, but {heard}") from None


def pictured(steps: int) -> Prompt:
    return {"1": node("FaultPreview", steps=steps, seed=0), "2": save("1", unique())}


def pending(page: Page) -> list[Any]:
    listed = page.evaluate("() => window.app.api.getQueue()")
    return [one.get("id") or one["prompt"][1] for one in listed["Pending"]]


@pytest.mark.parametrize("number", [0, 1])
def test_the_editor_shows_a_job_from_its_progress_to_the_history_whichever_box_runs_it(
    page: Page, pair: Pair, owner: str, number: int
) -> None:
    box = pair.fleet.boxes[number]
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    with pair.only(box):
        job_id = queue(page, pair, pictured(200))
        hears(page, "progress", job_id)
        hears(page, "b_preview", None)
        shoot(page, f"fleet-editor-{owner}-{number}-running")
        assert pair.fleet.find_box_of(job_id) is box
        hears(page, "execution_success", job_id)
        page.wait_for_function(
            "window.app.graph._nodes.find(one => one.type === 'SaveImage').imgs?.[0]?.naturalWidth > 0"
        )
        job = box.settled(job_id)
        assert (job["state"], job["owner"]) == ("succeeded", owner)
        expand_queue(page, job["artifacts"][0]["filename"])
        shoot(page, f"fleet-editor-{owner}-{number}-done")
    assert [line for line in said if "Jobs API" in line or "ZodError" in line] == []


@pytest.mark.parametrize("number", [0, 1])
def test_the_editor_deletes_clears_and_interrupts_whichever_box_runs_it(
    page: Page, pair: Pair, owner: str, number: int
) -> None:
    box = pair.fleet.boxes[number]
    with pair.only(box):
        running = queue(page, pair, sleep(3600, steps=100_000))
        box.reached(running, "running")
        first, second, third = (queue(page, pair, sleep(0.1)) for _ in range(3))
        until(lambda: set(pending(page)) == {first, second, third})
        page.evaluate("id => window.app.api.deleteItem('queue', id)", first)
        assert box.settled(first)["error"]["code"] == "cancelled"
        assert set(pending(page)) == {second, third}
        page.evaluate("() => window.app.api.clearItems('queue')")
        assert {box.settled(one)["error"]["code"] for one in (second, third)} == {"cancelled"}
        assert pending(page) == []
        assert box.job(running)["state"] == "running"
        hears(page, "progress", running)
        page.evaluate("id => window.app.api.interrupt(id)", running)
        assert box.settled(running)["state"] == "cancelled"
        hears(page, "execution_error", running)
        again = queue(page, pair, sleep(3600, steps=100_000))
        box.reached(again, "running")
        page.evaluate("() => window.app.api.interrupt(null)")
        assert box.settled(again)["state"] == "cancelled"
        shoot(page, f"fleet-editor-{owner}-{number}-interrupted")
        assert pair.fleet.count_ends(running) == pair.fleet.count_ends(again) == 1
