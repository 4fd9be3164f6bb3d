"""The page at /guarded/docs: the server's own contract, to read and search."""

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.conftest import PATIENCE_MS, Faults, made_key, shoot
from playwright.sync_api import Browser, Page, expect

from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with HostProcess(sandbox_kind(), tmp_path_factory.mktemp("docs")) as process:
        yield process


@pytest.fixture(scope="module")
def contract(host: HostProcess) -> dict[str, Any]:
    with urllib.request.urlopen(f"{host.url}/guarded/openapi.json") as answer:
        return dict(json.load(answer))


@pytest.fixture
def opened(browser: Browser, host: HostProcess) -> Iterator[Callable[..., Page]]:
    """Opens the page. A fault in a script, or a request to anybody but this server, fails the test."""
    contexts, faults, asked = [], [], []

    def opened(path: str = "/guarded/docs", url: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"locale": "en", "viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        contexts.append(context)
        faults.append(Faults(page))
        page.on("request", lambda request: asked.append((url or host.url, request.url)))
        page.goto((url or host.url) + path)
        return page

    expect.set_options(timeout=PATIENCE_MS)
    yield opened
    for context in contexts:
        context.close()
    assert [fault for seen in faults for fault in seen.seen] == []
    assert [address for own, address in asked if not address.startswith((f"{own}/", "blob:"))] == []


def test_every_route_of_the_contract_is_there_and_opens(opened: Callable[..., Page], contract: dict[str, Any]) -> None:
    page = opened()
    expect(page.locator(".d-operation").first).to_be_visible()
    for path, item in contract["paths"].items():
        for method, operation in item.items():
            route = page.locator(f"#{operation['operationId']}")
            expect(route.locator("summary").first).to_contain_text(method.upper())
            assert route.locator(".d-path").first.inner_text() == path
    # What is inside is made when it is opened.
    page.evaluate("for (const one of document.querySelectorAll('.d-operation')) one.open = true")
    expect(page.locator(".d-inside:empty")).to_have_count(0)
    for item in contract["paths"].values():
        for operation in item.values():
            shown = page.locator(f"#{operation['operationId']} .d-status").all_inner_texts()
            assert shown == sorted(operation["responses"]), operation["operationId"]
    for name, schema in contract["components"]["schemas"].items():
        fields = page.locator(f"#schema-{name} > .d-inside > ul > li > .d-name").all_inner_texts()
        assert fields == list(schema.get("properties", {})), name


def test_it_is_searched_and_read_with_the_keyboard_alone(opened: Callable[..., Page]) -> None:
    page = opened()
    search = page.get_by_role("searchbox")
    expect(search).to_be_visible()
    for _ in range(10):
        page.keyboard.press("Tab")
        if search.evaluate("one => one === document.activeElement"):
            break
    page.keyboard.type("post no_face")
    expect(page.get_by_role("status")).to_contain_text("route")
    expect(page.locator("#post_prompt")).to_be_visible()
    expect(page.locator("#get_job")).to_be_hidden()
    expect(page.locator("#schema-Job")).to_be_hidden()
    route = page.locator("#post_prompt > summary")
    for _ in range(40):
        page.keyboard.press("Tab")
        if route.evaluate("one => one === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#post_prompt pre")).to_contain_text(re.compile(r"^curl .*Bearer \$KEY.*/guarded/prompt'$"))
    expect(page.locator("#post_prompt")).to_contain_text("Idempotency-Key")
    # A type that the body refers to opens in place, and what that refers to, too.
    body = page.locator("#post_prompt .d-inside > details").first
    body.locator("> summary").press("Enter")
    expect(body.locator("> ul > li > .d-name").first).to_be_visible()
    guard = body.locator("> ul > li").filter(has_text="guard").locator("details").first
    guard.locator("> summary").press("Enter")
    expect(guard).to_contain_text("timeout_s")
    page.keyboard.press("Tab")
    search.fill("nothing has these words")
    expect(page.locator(".d-operation:visible")).to_have_count(0)


def test_a_link_leads_to_a_route(opened: Callable[..., Page]) -> None:
    page = opened("/guarded/docs#delete_key")
    expect(page.locator("#delete_key")).to_have_attribute("open", "")
    expect(page.locator("#delete_key")).to_be_in_viewport()
    page.get_by_role("link", name="The operator's page").click()
    expect(page.get_by_role("heading", name="Recent")).to_be_visible()
    page.get_by_role("link", name="HTTP contract").click()
    expect(page.locator("#post_prompt")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="openapi.json").click()
    assert json.loads(Path(download.value.path()).read_text())["openapi"] == "3.1.0"


def test_from_elsewhere_it_wants_a_key_of_any_scope(opened: Callable[..., Page], tmp_path: Path) -> None:
    strangers = HostProcess(sandbox_kind(), tmp_path, environment={"GUARDED_ACCESS__TRUST_LOOPBACK": "false"})
    key = made_key(strangers, "submit")
    with strangers:
        page = opened(url=strangers.url)
        field = page.get_by_label("Key", exact=True)
        expect(field).to_be_focused()
        expect(page.locator(".d-operation")).to_have_count(0)
        page.keyboard.type("gk_wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The server does not accept this key.")
        field.fill(key)
        page.keyboard.press("Enter")
        expect(page.locator("#post_prompt")).to_be_visible()


@pytest.mark.parametrize(("language", "width", "scheme"), [("en", 1280, "dark"), ("ru", 390, "light")])
def test_axe_finds_no_fault_and_nothing_is_wider_than_a_phone(
    opened: Callable[..., Page], language: str, width: int, scheme: Any
) -> None:
    page = opened(locale=language, color_scheme=scheme, viewport={"width": width, "height": 800})
    for name in ("post_prompt", "list_jobs", "schema-Job"):
        page.locator(f"#{name} > summary").click()
        expect(page.locator(f"#{name} .d-inside").first).to_be_visible()
    page.locator("#schema-Job details > summary").first.click()
    for summary in page.locator("#post_prompt .d-inside > details > summary").all():
        summary.click()
    page.evaluate("scrollTo(0, 0)")
    shoot(page, f"docs-{width}-{language}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    faults = [
        (fault["id"], fault["help"], [part["html"][:200] for part in fault["nodes"]])
        for fault in Axe().run(page).response["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert faults == []
