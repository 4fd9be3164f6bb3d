"""The operator's page with a long history and a long queue: does anything hold up the browser's main thread?

A server has many settled and many waiting jobs. Chromium opens the page and does what an operator does: scroll from top
to bottom, load older jobs, open one, change the language, while jobs end and the queue moves. A task's time is the
processor time of the page's main thread, from Chromium's own trace: what else runs on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections import deque
from pathlib import Path
from typing import Any

import _common
from _common import HostProcess
from playwright.sync_api import Browser, Page, sync_playwright

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.job import SUCCESS, JobState, NewJob, Verdict
from comfyui_guarded.guard.store import SqliteStore

OWNERS = ("local", "bot-a", "bot-b", "bot-c")
#: The page's promise.
LONG_MS = 100
#: What browsers themselves call a long task.
NOTED_MS = 50


def main() -> None:
    parser = _common.make_parser(__doc__, rounds=3)
    parser.add_argument("--history", type=int, default=10_000, help="settled jobs")
    parser.add_argument("--queue", type=int, default=200, help="waiting jobs")
    parser.add_argument("--fill", type=Path, metavar="DATABASE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        _fill(options.fill, options.history)
        return
    kind = _common.find_host_kind(options.host)
    _common.print_headline(kind, options)
    with _common.make_base_directory() as base:
        host = HostProcess(kind, base / "host", environment=_common.NO_LIMITS)
        command = [sys.executable, __file__, "--fill", str(host.base / "user" / "__guarded" / "guarded.db")]
        subprocess.run([*command, "--history", str(options.history)], check=True)
        with host:
            _ask(host, "POST", "/guarded/prompt", json.loads(_common.make_holder()))
            for _ in range(options.queue):
                _ask(host, "POST", "/guarded/prompt", json.loads(_common.make_no_op()))
            print(f"{options.history:,} jobs in history, {options.queue} in the queue\n")
            worst = _rounds(host, options.rounds)
    print(f"\nlongest task {worst:.0f} ms (promised: none over {LONG_MS} ms)")
    sys.exit(worst > LONG_MS)


def _fill(database: Path, history: int) -> None:
    """Settled jobs of the last week, as they would be after it. In a process that owns the store meanwhile."""
    database.parent.mkdir(parents=True, exist_ok=True)
    store = SqliteStore(database, Clock())
    now_ms = time.time_ns() // 1_000_000
    pending: deque[Any] = deque()
    for count in range(history):
        job_id = str(uuid.uuid4())
        new = NewJob(
            job_id=job_id,
            owner=OWNERS[count % len(OWNERS)],
            body=_common.make_no_op(),
            created_at_ms=now_ms - (history - count) * 60_000,
            timeout_s=600,
            locale="ru",
            shape="PreviewAny,PrimitiveInt",
            template=("", "portrait_video", "upscale")[count % 3],
            outputs_to_execute=("2",),
            metadata={"chat": count},
        )
        # The store takes calls in order, so that the one that waits is the one that is claimed.
        store.submit(new, 10 * history)
        store.claim("local", 10 * history)
        store.start(job_id)
        failed = count % 10 == 0
        verdict = Verdict(JobState.FAILED, "no_face", "No face found in photo.png.") if failed else None
        store.settle(job_id, verdict or SUCCESS)
        pending.append(store.release(job_id))
        if len(pending) > 1000:
            pending.popleft().result()
    for future in pending:
        future.result()
    store.close()


def _ask(host: HostProcess, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(host.url + path, data, method=method)) as answer:
        return json.load(answer)


def _rounds(host: HostProcess, rounds: int) -> float:
    worst = 0.0
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for number in range(rounds):
            page = browser.new_page(locale="en", viewport={"width": 1280, "height": 900})
            parts = _walk(browser, page, host)
            page.close()
            for name, tasks, took_s in parts:
                worst = max([worst, *tasks])
                noted = sum(task > NOTED_MS for task in tasks)
                print(
                    f"round {number + 1}  {name:<28} {took_s:5.1f} s  busy {sum(tasks) / 1000:4.1f} s, "
                    f"longest task {max(tasks):3.0f} ms, {noted} over {NOTED_MS} ms",
                    flush=True,
                )
        browser.close()
    return worst


def _tasks_ms(trace: bytes) -> list[float]:
    """Processor time of each task of the renderers' main threads."""
    events = json.loads(trace)["traceEvents"]
    main = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    return [
        event["tdur"] / 1000
        for event in events
        if event["name"].endswith("RunTask") and "tdur" in event and (event["pid"], event["tid"]) in main
    ]


def _walk(browser: Browser, page: Page, host: HostProcess) -> list[tuple[str, list[float], float]]:
    """What an operator does, and the tasks (ms) of each part."""
    seen: list[tuple[str, list[float], float]] = []

    def part(name: str, act: Any) -> None:
        browser.start_tracing(page=page, categories=["toplevel"])
        began_s = time.monotonic()
        act()
        page.wait_for_timeout(500)
        took_s = time.monotonic() - began_s
        seen.append((name, _tasks_ms(browser.stop_tracing()), took_s))

    def open_page() -> None:
        page.goto(host.url + "/guarded/")
        page.locator(".g-queue-card tbody tr").nth(100).wait_for()
        page.locator(".g-recent > li").nth(20).wait_for()

    def load_older() -> None:
        for count in range(1, 13):
            page.get_by_role("button", name="Older").click()
            page.locator(".g-recent > li").nth(25 * count).wait_for(state="attached")

    def scroll() -> None:
        for _ in range(30):
            page.mouse.wheel(0, 600)
            page.wait_for_timeout(30)
        page.locator(".g-recent summary").nth(200).click()

    def move_queue() -> None:
        """Twenty jobs leave the queue and a hundred come and end: positions, states and figures of all of it."""
        waiting = _ask(host, "GET", "/guarded/jobs?state=queued&limit=500")["jobs"]
        for job in waiting[:20]:
            _ask(host, "DELETE", f"/guarded/jobs/{job['job_id']}")
        for _ in range(100):
            added = _ask(host, "POST", "/guarded/prompt", json.loads(_common.make_no_op()))
            _ask(host, "DELETE", f"/guarded/jobs/{added['prompt_id']}")
        for _ in range(20):
            _ask(host, "POST", "/guarded/prompt", json.loads(_common.make_no_op()))

    part("opening the page", open_page)
    part("300 older jobs", load_older)
    part("scrolling, opening one", scroll)
    part("the queue moves", move_queue)
    part("ten seconds of live figures", lambda: page.wait_for_timeout(10_000))
    part("another language", lambda: page.get_by_role("button", name="Russian").click())
    return seen


if __name__ == "__main__":
    main()
