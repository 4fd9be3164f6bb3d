"""Long texts without a break in every field that the page shows: nothing is wider than its place, and ids are whole."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from browser.conftest import PATIENCE_MS, Faults, put_photos, shoot
from contract.client import PlainClient, make_key, node, picture, save, sleep
from playwright.sync_api import Browser, Page, expect

from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind

pytestmark = pytest.mark.browser

LONG = "W" * 64
LONGER = "Щ" * 500
TEMPLATE = f"""
outputs = ["2"]
title = {{ en = "{LONGER}", ru = "{LONGER}" }}
description = {{ en = "{LONGER}", ru = "{LONGER}" }}

[parameters.{LONG}]
type = "text"
default = "x"
into = ["1.message"]
help = {{ en = "{LONGER}", ru = "{LONGER}" }}
"""
#: Of another one.
MODEL = f"""
[[models]]
file = "{LONG}.safetensors"
folder = "checkpoints"
size_mb = 5
source = "https://example.com/{LONG}"
licence = "{LONG}"
"""

#: Everything that is drawn beyond the window or beyond its card, and every id that is cut. A place that scrolls by
#: itself, or says by an ellipsis that there is more of a name, shows less on purpose.
FIND_FAULTS = """() => {
    const faults = [];
    const width = window.innerWidth;
    for (const card of document.querySelectorAll('.g-card, .g-header, .g-alarms, .g-figures')) {
        const edge = Math.min(card.getBoundingClientRect().right, width) + 1;
        for (const one of card.querySelectorAll('*')) {
            const box = one.getBoundingClientRect();
            if (!box.width || one.closest('.g-hidden, option, datalist')) continue;
            let isHeld = false;
            for (let around = one.parentElement; around && around !== card; around = around.parentElement)
                isHeld ||= getComputedStyle(around).overflowX !== 'visible';
            const name = `${one.tagName}.${one.className} in ${card.className}: ${one.textContent.slice(0, 40)}`;
            if (!isHeld && box.right > edge) faults.push(`${name} ends at ${box.right} of ${edge}`);
            const texts = [...one.childNodes].filter((child) => child.nodeType === 3).map((child) => child.data);
            const isId = /^[0-9a-f]{8}(-[0-9a-f-]{27})?$/.test(texts.join('').trim());
            const isCut = one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== 'inline';
            if (isId && isCut) faults.push(`${name} is cut`);
        }
    }
    const all = document.documentElement.scrollWidth;
    if (all > width) faults.push(`the page is ${all} wide`);
    return faults;
}"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = HostProcess(
        sandbox_kind(),
        tmp_path_factory.mktemp("long"),
        environment={"GUARDED_WEBHOOKS__ALLOW_HTTP": "true", "GUARDED_WEBHOOKS__ALLOWED_NETWORKS": "127.0.0.0/8"},
    )
    own = process.base / "user" / "__guarded"
    (own / "workflows").mkdir(parents=True)
    for name, manifest in ((LONG, TEMPLATE), ("M" * 64, TEMPLATE + MODEL)):
        (own / "workflows" / f"{name}.toml").write_text(manifest)
        (own / "workflows" / f"{name}.json").write_text(json.dumps({"1": fails("x", "t"), "2": save("1")}))
    put_photos(process.base)
    with process:
        yield process


def fails(message: str, title: str) -> dict[str, Any]:
    return {**node("FaultRaise", kind="value_error", message=message, seed=0), "_meta": {"title": title}}


def test_no_text_is_wider_than_its_place_and_no_id_is_cut(
    browser: Browser, host: HostProcess, bot: PlainClient
) -> None:
    key = make_key(host.base, LONG, webhook=f"http://127.0.0.1:9/{LONG}{LONG}")
    as_owner = {"Authorization": f"Bearer {key}"}

    def submit(prompt: Any, path: str = "/guarded/prompt", **guard: Any) -> str:
        about = {"user": LONG, "metadata": {LONG: LONGER}, "webhook": {"url": f"http://127.0.0.1:9/{LONG}"}, **guard}
        body = {**prompt, "guard": about}
        while (answer := bot.post(json.dumps(body).encode(), path, as_owner)).status == 401:
            time.sleep(0.1)  # the server looks for new keys every second
        assert answer.status == 200, answer
        return str(answer.json["prompt_id"])

    def prompt(graph: Any) -> Any:
        return {"prompt": graph}

    ended = [
        submit(prompt({f"1{LONG}": fails(LONGER, LONGER), "2": save(f"1{LONG}")})),
        submit({"parameters": {LONG: LONGER}}, f"/guarded/workflows/{LONG}"),
        submit(prompt(picture(LONG))),
        bot.run(picture(LONG))["job_id"],
    ]
    for job_id in ended:
        assert bot.get(f"/guarded/jobs/{job_id}?wait=90").json["settled_at_ms"]
    runs = submit(
        prompt({**sleep(3600), "3": {**fails(LONGER, LONGER), "class_type": "FaultSleep", "inputs": {"seconds": 0}}})
    )
    waiting = [submit(prompt(picture())) for _ in range(2)]
    expect.set_options(timeout=PATIENCE_MS)
    for width, language in ((390, "ru"), (1280, "en")):
        context = browser.new_context(locale=language, viewport={"width": width, "height": 900})
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        faults = Faults(page)
        page.goto(f"{host.url}/guarded/")
        for card, jobs in (("recent", ended), ("running", [runs]), ("queue", waiting)):
            for job_id in jobs:
                expect(page.locator(f'.g-{card}-card [data-job="{job_id}"]')).to_be_visible()
        open_all(page)
        shoot(page, f"long-{width}")
        assert page.evaluate(FIND_FAULTS) == [], width
        assert faults.seen == []
        context.close()


def open_all(page: Page) -> None:
    """Open everything that opens, until nothing more comes."""
    page.evaluate("() => { for (const one of document.querySelectorAll('.g-panel details')) one.open = true; }")
    for text in (
        ".g-spending-card td",
        ".g-keys-card li",
        ".g-models-card li",
        ".g-doctor li",
        ".g-nodes li",
        ".g-webhook",
    ):
        expect(page.locator(text).first).to_be_visible()
    page.evaluate("() => { for (const one of document.querySelectorAll('.g-panel details')) one.open = true; }")
    expect(page.locator(".g-spending-card td", has_text=LONG).first).to_be_visible()
