"""Chromium without a window. Where none is found the tests are skipped with a line that says how to get one; with
GUARDED_BROWSER=required, as on the CI machine, they fail instead.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract.client import PlainClient
from playwright.sync_api import Browser, Page, sync_playwright

from comfyui_guarded.tests.hosts.launch import HostProcess

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
PHOTOS = Path(sys.prefix) / "photos" / "skimage" / "data"

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WANTED = "no Chromium was found: apt-get install chromium, or python -m playwright install chromium"

#: Far above what anything here takes.
PATIENCE_MS = 90_000


def browser_path(own: str) -> str | None:
    """`GUARDED_BROWSER` where it is a path, playwright's own Chromium, or one of the system's."""
    given = os.environ.get("GUARDED_BROWSER", "")
    found = [given if os.sep in given else None, own, *map(shutil.which, NAMES)]
    return next((path for path in found if path and Path(path).is_file()), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Of one module and no longer: while playwright runs, no other event loop can in this thread.
    with sync_playwright() as playwright:
        path = browser_path(playwright.chromium.executable_path)
        if path is None:
            if os.environ.get("GUARDED_BROWSER") == "required":
                pytest.fail(WANTED)
            pytest.skip(WANTED)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Faults:
    """What must not happen on a page: errors in its scripts, and anything that its policy refuses; with where."""

    def __init__(self, page: Page) -> None:
        self.seen: list[str] = []
        page.on("pageerror", lambda error: self.seen.append(error.stack or str(error)))
        page.on("console", self._said)

    def _said(self, message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.seen.append(f"{message.location.get('url', '')}: {message.text}")


def made_key(host: HostProcess, scope: str = "operate") -> str:
    """A key of the server that is to be started, as its owner makes one."""
    command = [sys.executable, str(ROOT), "keys", "create", f"key-{scope}", "--scope", scope]
    made = subprocess.run([*command, "--user", str(host.base / "user")], capture_output=True, text=True, check=True)
    found = re.search(r"gk_[\w-]+", made.stdout)
    assert found, made
    return found[0]


def put_photos(base: Path) -> None:
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"):
        shutil.copy(PHOTOS / name, base / "input" / name)


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SCREENSHOTS / f"{name}.png"), full_page=True)


@pytest.fixture
def bot(host: HostProcess) -> Iterator[PlainClient]:
    client = PlainClient(host)
    yield client
    for job in client.get("/guarded/jobs?state=queued,dispatched,running,validating&limit=500").json["jobs"]:
        client.delete(f"/guarded/jobs/{job['job_id']}")
    client.close()
