"""ComfyUI's editor opens workflows, and sends for each of them what the guard makes of it.

Those are the templates' own, which the routes render; those of comfyui-workflow-templates that this server has the
classes for, some of them by turns; and some made by chance. `CONVERSIONS=300` takes all of the second, and 300 of the
third.
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser.conftest import PATIENCE_MS
from browser.graphs import Known, workflows
from contract.client import PlainClient
from hypothesis import HealthCheck, Phase, given, settings
from playwright.sync_api import Browser, Page
from workflows import editor
from workflows.studio import ASTRONAUT, TEMPLATES, furnish

from comfyui_guarded.guard.editor.resolve import convert
from comfyui_guarded.guard.errors import InvalidWorkflowError, MissingNodeError
from comfyui_guarded.tests.hosts.launch import HostProcess, real_kinds

pytestmark = [
    pytest.mark.browser,
    pytest.mark.comfyui,
    pytest.mark.timeout(360),
    pytest.mark.skipif(not ASTRONAUT.is_file(), reason="the photos are not there; `make venv` brings them"),
]
#: The pack's own script reads these nodes' widgets by name, and only the pack itself brings it.
BY_NAME = "VHS_"


@pytest.fixture(scope="module", params=real_kinds(), ids=lambda kind: kind.name.replace(" ", "-"))
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    base = tmp_path_factory.mktemp("templates")
    process = HostProcess(request.param, base)
    furnish(base)
    with process:
        user = base / "user" / "default"
        user.mkdir(exist_ok=True)
        (user / "comfy.settings.json").write_text(json.dumps({"Comfy.TutorialCompleted": True}))
        yield process


@pytest.fixture(scope="module")
def page(browser: Browser, host: HostProcess) -> Iterator[Page]:
    context = browser.new_context(locale="en")
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(host.url)
    page.wait_for_function("window.app?.vueAppReady && window.app.graph?._nodes.length")
    yield page
    context.close()


def runs_on(host: HostProcess, first: str) -> bool:
    """Whether the host's version is the template's first one or later."""
    own = host.kind.name.split()[-1]
    return not first or tuple(map(int, own.split("."))) >= tuple(map(int, first.split(".")))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_editor_sends_what_the_routes_render(page: Page, host: HostProcess, info: Known, name: str) -> None:
    if not runs_on(host, TEMPLATES[name].manifest.comfyui):
        pytest.skip("the template is for newer versions of ComfyUI")
    workflow = json.loads((editor.WORKFLOWS / f"{name}.json").read_text())
    sent = page.evaluate(
        "async workflow => { await app.loadGraphData(workflow); return (await app.graphToPrompt()).output }", workflow
    )
    wanted = TEMPLATES[name].graph
    assert set(sent) == set(wanted)
    for node_id, node in wanted.items():
        assert sent[node_id]["class_type"] == node["class_type"]
        inputs, expected = sent[node_id]["inputs"], node["inputs"]
        if node["class_type"].startswith(BY_NAME):
            inputs, expected = (
                {each: value for each, value in given.items() if isinstance(value, list)}
                for given in (inputs, expected)
            )
        # An older node lacks what a later one has beside it, with a default.
        has = (info.get(node["class_type"]) or {}).get("input", {})
        known = {each for part in has.values() for each in part} | inputs.keys()
        expected = {each: value for each, value in expected.items() if each in known}
        # What only a choice brings along (`format.codec`) has the node's own default where nobody sends it.
        assert {each: value for each, value in inputs.items() if "." not in each} == expected, node_id


#: What the page makes anew each time that it sends; docs/editor.md has the list of what differs.
LIVE = {("Load3D", "image"), ("Load3DAnimation", "image")}
#: ComfyUI's own templates lie in a package of its venv.
SHIPPED = "comfyui_workflow_templates_json/templates/*.json"
MADE = int(os.environ.get("CONVERSIONS", "12"))


@pytest.fixture(scope="module")
def info(host: HostProcess) -> Known:
    client = PlainClient(host)
    found = Known(client.get("/object_info").json)
    client.close()
    return found


def send(page: Page, workflow: dict[str, Any]) -> dict[str, Any]:
    """What the editor sends of it."""
    sent: dict[str, Any] = page.evaluate(
        """async workflow => {
            await app.loadGraphData(workflow)
            await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
            return (await app.graphToPrompt()).output
        }""",
        workflow,
    )
    return sent


def send_until(page: Page, workflow: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The same, compared: parts of the editor, its 3D views among them, come when a node first needs them."""
    for _ in range(20):
        if (sent := compared(send(page, workflow))) == wanted:
            break
        page.wait_for_timeout(250)
    return sent


def simplify(value: Any) -> Any:
    """JavaScript has one kind of number."""
    if isinstance(value, dict):
        return {name: simplify(one) for name, one in value.items()}
    if isinstance(value, list):
        return [simplify(one) for one in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def is_live(class_type: str, name: str, value: Any) -> bool:
    """Whether the page, or a pack's script in it, has the last word on an input's value."""
    by_name = class_type.startswith(BY_NAME) and not isinstance(value, list)
    return by_name or (class_type, name) in LIVE or name == "viewport_state"


def compared(prompt: dict[str, Any]) -> dict[str, Any]:
    return {
        node_id: (
            one["class_type"],
            {
                name: simplify(value)
                for name, value in one["inputs"].items()
                if not is_live(one["class_type"], name, value)
            },
        )
        for node_id, one in prompt.items()
    }


def list_shipped(host: HostProcess) -> list[Path]:
    """All, or some by turns; none where this ComfyUI's Python lacks that package."""
    found = sorted(Path(host.kind.python).parents[1].glob(f"lib/python*/site-packages/{SHIPPED}"))
    return found if "CONVERSIONS" in os.environ else random.sample(found, min(len(found), 40))


def test_the_editor_sends_what_the_guard_makes_of_shipped_workflows(page: Page, host: HostProcess, info: Known) -> None:
    loaded = 0
    for path in [*sorted(editor.WORKFLOWS.glob("*.json")), *list_shipped(host)]:
        workflow = json.loads(path.read_text("utf-8"))
        if not isinstance(workflow, dict) or "nodes" not in workflow:
            continue
        try:
            made = convert(workflow, info.get, 10_000)
        except MissingNodeError:
            continue
        assert send_until(page, workflow, compared(made)) == compared(made), path.name
        loaded += 1
    assert loaded >= 3, "this server has the classes of three of our own at least"


def test_the_editor_sends_what_the_guard_makes_of_workflows_made_by_chance(page: Page, info: Known) -> None:
    @settings(
        max_examples=MADE, deadline=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink)
    )
    @given(workflows(info))
    def compare(workflow: dict[str, Any]) -> None:
        workflow = json.loads(json.dumps(workflow, default=lambda _widget: None))
        try:
            made = convert(workflow, info.get, 10_000)
        except InvalidWorkflowError as error:
            if error.extra_info["reason"] != "empty":
                raise
            made = {}
        assert compared(made) == send_until(page, workflow, compared(made)), json.dumps(workflow)

    compare()
