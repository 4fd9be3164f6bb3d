"""Make the pictures in docs/: the page in a day of two bots and in an incident, and the editor with the tab open.

`make pictures` runs it; it needs Chromium. The page's server is the sandbox, whose database gets the day before the
start; a few jobs then run for real. The editor is that of a real ComfyUI, where one is found.
"""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

# Python puts this folder on sys.path. `alias` lies in the root, and takes the root off sys.path again.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import alias

alias.register()

from PIL import Image  # noqa: E402
from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

from comfyui_guarded.guard.access.keys import Key, create  # noqa: E402
from comfyui_guarded.guard.job import SUCCESS, JobState, NewJob, Verdict  # noqa: E402
from comfyui_guarded.guard.store import SqliteStore  # noqa: E402
from comfyui_guarded.tests.hosts.launch import ROOT, HostProcess, real_kinds, sandbox_kind  # noqa: E402

DOCS = ROOT / "docs"
PHOTOS = Path(sys.prefix) / "photos" / "skimage" / "data"
NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
BOTS = ("avatar-bot", "salon-bot")
RUN_MS = {"sdxl": 18_000, "sdxl_face": 25_000, "liveportrait": 100_000}
HOUR_MS = 3_600_000
PATIENCE_MS = 60_000
#: Until the lines have something to show.
SAMPLES_S = 60


class Clock:
    """Time as the filling has it."""

    ms = 0

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        host = HostProcess(sandbox_kind(), Path(folder))
        own = host.base / "user" / "__guarded"
        for name in NAMES:
            shutil.copy(PHOTOS / name, host.base / "input" / name)
        blank = {"key_id": "", "scope": "submit", "sha256": "", "created_at_ms": 0, "webhook_secret": ""}
        keys = {bot: create(own, Key(name=bot, **blank), same_owner=False)[1] for bot in BOTS}  # type: ignore[arg-type]
        _fill(own / "guarded.db")
        with host, sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("google-chrome") or playwright.chromium.executable_path
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            failed = _play(host, keys)
            time.sleep(SAMPLES_S)
            _shoot(browser, host, "page-dark.png", "en", "dark")
            _shoot(browser, host, "page-light-ru.png", "ru", "light")
            _shoot(browser, host, "page-incident.png", "en", "light", opens=failed)
            browser.close()
    for kind in real_kinds()[:1]:
        with tempfile.TemporaryDirectory() as folder:
            _shoot_editor(HostProcess(kind, Path(folder), environment={"GUARDED_NATIVE__MODE": "guarded"}))


def _fill(database: Path) -> None:
    """The jobs of the last day."""
    chance, clock = random.Random(7), Clock()
    now_ms = time.time_ns() // 1_000_000
    store = SqliteStore(database, clock)
    clock.ms = now_ms - 24 * HOUR_MS
    while clock.ms < now_ms - 300_000:
        template = chance.choices(tuple(RUN_MS), (6, 3, 1))[0]
        job_id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        bot = chance.choice(BOTS)
        facts: dict[str, Any] = {"timeout_s": 600, "locale": "en", "shape": template, "template": template}
        store.submit(NewJob(job_id, bot, b'{"prompt": {}}', clock.ms, **facts), 10**6)
        store.claim("local", 1)
        store.start(job_id).result()
        clock.ms += int(RUN_MS[template] * chance.uniform(0.7, 1.3))
        fault = chance.choices((None, "generation_failed", "out_of_memory", "result_blank"), (170, 3, 1, 1))[0]
        store.settle(job_id, SUCCESS if fault is None else Verdict(JobState.FAILED, fault, "On purpose."))
        store.release(job_id).result()
        clock.ms += int(chance.expovariate(1 / 60_000))
    store.close()


def _play(host: HostProcess, keys: dict[str, str]) -> str:
    """What has just happened, and what runs and waits; returns the id of the job that failed."""

    def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs, **({"_meta": {"title": title}} if title else {})}

    def post(bot: str, prompt: Any, wait_s: int = 60, **guard: Any) -> Any:
        body = json.dumps({"prompt": prompt, "guard": {"locale": "en", **guard}}).encode()
        headers = {"Authorization": f"Bearer {keys[bot]}"}
        request = urllib.request.Request(f"{host.url}/guarded/prompt?wait={wait_s}", body, headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def copy(name: str) -> Any:
        return {"1": node("LoadImage", image=name), "2": node("SaveImage", images=["1", 0], filename_prefix="portrait")}

    def sleep(seconds: float) -> Any:
        slow = node("FaultSleep", "KSampler", seconds=seconds, checks_interrupt=True, steps=400, seed=0)
        return {"1": slow, "2": node("SaveImage", images=["1", 0], filename_prefix="slow")}

    failing = {
        "1": node("LoadImage", "Photo", image="astronaut.png"),
        "2": node("ImageInvert", "Colours", image=["1", 0]),
        "3": node(
            "FaultRaise",
            "Face detailer",
            image=["2", 0],
            kind="value_error",
            message="mask and image differ in size",
            seed=0,
        ),
        "4": node("ImageInvert", image=["3", 0]),
        "5": node("SaveImage", images=["4", 0], filename_prefix="portrait"),
        "6": node("SaveImage", images=["2", 0], filename_prefix="colours"),
    }
    post("salon-bot", {}, 0)
    failed = post("salon-bot", failing, metadata={"order": 4711, "chat": 81}, user="81")["prompt_id"]
    for name, bot in zip(NAMES, [*BOTS, *BOTS], strict=True):
        post(bot, copy(name), metadata={"order": 4712})
    post("avatar-bot", sleep(60), timeout_s=1)
    for count in range(6):
        post(BOTS[count % 2], sleep(400), 0)
    return str(failed)


def _shoot(browser: Browser, host: HostProcess, name: str, locale: str, scheme: Any, opens: str = "") -> None:
    page: Page = browser.new_page(locale=locale, color_scheme=scheme, viewport={"width": 1280, "height": 960})
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{host.url}/guarded/")
    page.locator(".g-recent img").first.wait_for()
    page.locator(".g-lines-card").wait_for()
    page.locator(".g-disk-card td", has_text=re.compile("[0-9]")).first.wait_for()
    if opens:
        search = page.get_by_role("searchbox")
        search.fill("4711")
        search.press("Enter")
        page.locator(f'.g-recent-card [data-job="{opens}"] summary').first.click()
        page.locator("[data-failed]").wait_for()
        page.locator(".g-recent-card").screenshot(path=DOCS / name)
    else:
        page.screenshot(path=DOCS / name)
    page.close()


def _shoot_editor(host: HostProcess) -> None:
    """Two faces found by the node, and the tab beside it with what has run."""
    for name in NAMES:
        shutil.copy(PHOTOS / name, host.base / "input" / name)
    user = host.base / "user" / "default"
    user.mkdir(parents=True)
    settings = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Locale": "en"}
    (user / "comfy.settings.json").write_text(json.dumps(settings))
    rules = {"min_faces": 1, "max_faces": 0, "min_confidence": 0.5, "min_face_fraction": 0.04, "detector": "auto"}
    checks = {"check_nan": True, "check_blank": True, "check_speckle": True, "check_frozen": False}
    sizes = {"width": 0, "height": 0, "frames": 0, "on_fail": "raise"}
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "astronaut.png"}},
        "2": {"class_type": "GuardedFaceCheck", "inputs": {"image": ["1", 0], **rules}},
        "3": {"class_type": "GuardedValidateImage", "inputs": {"image": ["2", 0], **sizes, **checks}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "portrait"}},
    }
    with host, sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(locale="en", viewport={"width": 1440, "height": 900})
        page.set_default_timeout(2 * PATIENCE_MS)
        page.goto(host.url)
        page.wait_for_function("window.app?.vueAppReady && window.app.graph?._nodes.length")
        page.evaluate("prompt => window.app.loadApiJson(prompt, 'portrait')", prompt)
        page.wait_for_function("window.app.graph._nodes.some(one => one.type === 'GuardedFaceCheck')")
        page.locator('.guarded-tab-button, [data-testid="guarded-tab-button"]').click()
        page.evaluate("window.app.queuePrompt(0, 1)")
        page.locator(".g-recent img").first.wait_for()
        page.locator(".g-node figure rect").first.wait_for()
        page.evaluate("window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        time.sleep(3)  # it glides there
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(256).save(
            DOCS / "editor.png", optimize=True
        )  # a third of the size, and nothing to be seen of it
        browser.close()


if __name__ == "__main__":
    main()
