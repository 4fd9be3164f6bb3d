"""ComfyUI's editor opens the templates' workflows, and sends for each of them the graph that the routes render."""

import json
from collections.abc import Iterator

import pytest
from browser.conftest import PATIENCE_MS
from playwright.sync_api import Browser, Page
from workflows import editor
from workflows.studio import ASTRONAUT, TEMPLATES, furnish

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


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_editor_sends_what_the_routes_render(page: Page, name: str) -> None:
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
        assert inputs == expected, node_id
