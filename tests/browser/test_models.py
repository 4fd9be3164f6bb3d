"""The page brings models that templates lack, says how warm the server is, and saves a month's bill."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser.test_page import opened
from contract.client import PlainClient, text
from contract.test_models import put_template
from playwright.sync_api import Page, expect
from unit.test_models import MODEL, Hub

from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind

__all__ = ["opened"]

pytestmark = pytest.mark.browser


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def host(hub: Hub, tmp_path: Path) -> Iterator[HostProcess]:
    put_template(tmp_path)
    environment = {"HF_ENDPOINT": hub.url, "GUARDED_WARMUP__RUNS": "none.json"}
    with HostProcess(sandbox_kind(), tmp_path, environment=environment) as process:
        yield process


def test_a_model_comes_by_the_page_with_its_licence_a_stop_and_a_lie(
    opened: Callable[..., Page], hub: Hub, host: HostProcess, bot: PlainClient
) -> None:
    gate = threading.Event()

    def stall(request: Any) -> None:
        hub.serve(request, most=1_000_000)
        gate.wait(60)

    hub.behave = stall
    page = opened()
    expect(page.locator(".g-warmup")).to_have_text("Warm-ups: none.json: failed.")
    page.get_by_text("What templates lack here").click()

    def row(file: str) -> Any:
        return page.locator(".g-models li").filter(has=page.get_by_text(file, exact=True))

    expect(row("by_hand.bin")).to_contain_text("research only")
    expect(row("by_hand.bin")).to_contain_text("by hand only")
    expect(row("by_hand.bin").get_by_role("button", name="Download")).to_be_hidden()
    one = row("one.bin")
    one.get_by_role("button", name="Download").click()
    assert hub.asked == [], "it asks with the licence first"
    one.get_by_role("button", name="Licence: MIT").click()
    expect(one.get_by_role("progressbar")).to_be_visible()
    expect(one).to_contain_text("downloading")
    one.get_by_role("button", name="Stop").click()
    gate.set()
    go_on = one.get_by_role("button", name="Go on")
    expect(go_on).to_be_visible()
    hub.behave = lambda request: hub.serve(request, b"x" * 3_000_000)
    go_on.click()
    expect(one).to_contain_text("SHA-256")
    hub.behave = hub.serve
    one.get_by_role("button", name="Download").click()
    one.get_by_role("button", name="Licence: MIT").click()
    expect(one).to_have_count(0)
    assert (host.base / "models" / "checkpoints" / "one.bin").read_bytes() == MODEL

    assert bot.post(json.dumps({"prompt": text()}).encode(), "/guarded/prompt?wait=60").status == 200
    page.get_by_text("Who took how much this month").click()
    with page.expect_download() as saving:
        page.get_by_role("button", name="CSV").click()
    saved = saving.value.path().read_text().splitlines()
    assert saved[0].startswith("day,owner,"), saved
    assert len(saved) == 2, saved
