"""The operator's page, on the sandbox."""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.conftest import PATIENCE_MS, Faults, made_key, put_photos, shoot
from contract.client import PlainClient, node, picture, raises, save, sleep, text
from playwright.sync_api import Browser, Page, expect

from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = HostProcess(
        sandbox_kind(),
        tmp_path_factory.mktemp("page"),
        environment={
            "GUARDED_JANITOR__SWEEP_NATIVE": "true",
            "GUARDED_WEBHOOKS__ALLOW_HTTP": "true",
            "GUARDED_WEBHOOKS__ALLOWED_NETWORKS": "127.0.0.0/8",
        },
    )
    put_photos(process.base)
    with process:
        yield process


@pytest.fixture
def opened(browser: Browser, host: HostProcess) -> Iterator[Callable[..., Page]]:
    """Opens the page: `opened(locale="ru")`. Whatever goes wrong in a script fails the test."""
    contexts, faults = [], []

    def opened(url: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"locale": "en", "viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        contexts.append(context)
        faults.append(Faults(page))
        page.goto((url or host.url) + "/guarded/")
        return page

    expect.set_options(timeout=PATIENCE_MS)
    yield opened
    for context in contexts:
        context.close()
    assert [fault for seen in faults for fault in seen.seen] == []


def posted(bot: PlainClient, prompt: Any, **guard: Any) -> str:
    answer = bot.post(json.dumps({"prompt": prompt, "guard": guard}).encode())
    assert answer.status == 200, answer
    return str(answer.json["prompt_id"])


def within(page: Page, card: str, job_id: str = "") -> Any:
    wanted = f'[data-job="{job_id}"]' if job_id else "[data-job]"
    return page.locator(f".g-{card}-card {wanted}")


def test_a_job_goes_through_its_states_without_a_reload(opened: Callable[..., Page], bot: PlainClient) -> None:
    page = opened()
    expect(page.get_by_text("Nothing is running.")).to_be_visible()
    first = posted(bot, sleep(2, steps=100))
    second = posted(bot, picture(), metadata={"chat": 7})
    running = within(page, "running", first)
    expect(running).to_be_visible()
    expect(running.get_by_role("progressbar", name="Progress through the graph")).to_have_attribute(
        "aria-valuenow", re.compile(r"[1-9]")
    )
    expect(running).to_contain_text("/ 10:00")
    waiting = within(page, "queue", second)
    expect(waiting).to_contain_text("local")
    for job_id in (first, second):
        expect(within(page, "recent", job_id)).to_contain_text("Succeeded")
    expect(within(page, "recent", second).locator("img")).to_be_visible()
    expect(page.get_by_text("Nothing is running.")).to_be_visible()
    within(page, "recent", second).locator("summary").click()
    expect(within(page, "recent", second)).to_contain_text('{"chat":7}')


def test_stop_ends_the_running_job_from_the_keyboard(opened: Callable[..., Page], bot: PlainClient) -> None:
    page = opened()
    job_id = posted(bot, sleep(600))
    stop = within(page, "running", job_id).get_by_role("button", name=re.compile("Stop|Really"))
    stop.focus()
    page.keyboard.press("Enter")
    expect(stop).to_have_text("Really stop?")
    assert bot.get(f"/guarded/jobs/{job_id}").json["state"] in ("dispatched", "running")
    page.keyboard.press("Enter")
    expect(within(page, "recent", job_id)).to_contain_text("Cancelled")
    assert bot.get(f"/guarded/jobs/{job_id}").json["error"]["code"] == "cancelled"


def test_a_waiting_job_is_cancelled_from_the_queue(opened: Callable[..., Page], bot: PlainClient) -> None:
    page = opened()
    running = posted(bot, sleep(600))
    waiting = posted(bot, sleep(600))
    expect(within(page, "queue", waiting)).to_contain_text("1")
    cancel = within(page, "queue", waiting).get_by_role("button", name="Cancel")
    cancel.click()
    cancel.click()
    expect(within(page, "recent", waiting)).to_contain_text("Cancelled")
    expect(within(page, "queue")).to_have_count(0)
    expect(within(page, "running", running)).to_be_visible()

    def ended(state: str) -> int:
        return len(bot.get(f"/guarded/jobs?state={state}&limit=500").json["jobs"])

    # The share of successes leaves cancelled jobs out, and so do the numbers below it.
    expect(page.locator(".g-tiles")).to_contain_text(
        f"{ended('succeeded')} of {ended('succeeded') + ended('failed')} job"
    )


def test_the_page_speaks_russian_and_changes_the_language(opened: Callable[..., Page], bot: PlainClient) -> None:
    bot.run(raises("value_error"))
    page = opened(locale="ru-RU")
    expect(page.get_by_role("heading", name="Недавние")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "ru")
    expect(within(page, "recent").first).to_contain_text("Не удалось обработать изображение.")
    page.get_by_role("button", name="Английский").click()
    expect(page.get_by_role("heading", name="Recent")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Recent")).to_be_visible()


def test_a_photo_without_a_face_shows_its_error(opened: Callable[..., Page], bot: PlainClient) -> None:
    cat = {
        "1": node("LoadImage", image="chelsea.png"),
        "2": node("ImageInvert", image=["1", 0]),  # made on the way, so that it is looked at only when it runs
        "3": node("GuardedFaceCheck", image=["2", 0]),
        "4": save("3"),
    }
    job = bot.run(cat)
    page = opened(locale="ru")
    row = within(page, "recent", job["job_id"])
    expect(row).to_contain_text("no_face")
    expect(row).to_contain_text("На фото не обнаружено лицо.")
    row.locator("summary").click()
    expect(row).to_contain_text("GuardedFaceCheck")


def test_only_jobs_that_ended_in_one_way_are_shown_on_demand(opened: Callable[..., Page], bot: PlainClient) -> None:
    good, bad = bot.run(text()), bot.run(raises("value_error"))
    page = opened()
    expect(within(page, "recent", good["job_id"])).to_be_visible()
    page.get_by_role("combobox", name="State").select_option("failed")
    expect(within(page, "recent", good["job_id"])).to_have_count(0)
    expect(within(page, "recent", bad["job_id"])).to_be_visible()


def test_a_sweep_is_looked_at_before_it_is_done(
    opened: Callable[..., Page], bot: PlainClient, host: HostProcess
) -> None:
    old = host.base / "output" / "old.png"
    old.write_bytes(b"x" * 3000)
    two_days_ago_s = time.time() - 2 * 86400
    os.utime(old, (two_days_ago_s, two_days_ago_s))
    page = opened()
    page.get_by_role("button", name="What would a sweep delete?").click()
    expect(page.get_by_text("It would delete 1 file (2.9 KB).")).to_be_visible()
    assert old.exists()
    delete = page.get_by_role("button", name="Delete it now")
    delete.click()
    page.get_by_role("button", name="Really delete?").click()
    expect(page.get_by_text("Deleted 1 file (2.9 KB).")).to_be_visible()
    assert not old.exists()


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[HostProcess]:
    """A server of its own, with two old pictures that no job has made."""
    process = HostProcess(sandbox_kind(), tmp_path / "asking")
    with process:
        for name in ("one.png", "two.png"):
            path = process.base / "output" / name
            path.write_bytes(b"x" * 4000)
            os.utime(path, (time.time() - 30 * 86400,) * 2)
        yield process


def test_the_janitor_asks_before_it_deletes_what_no_job_has_made(
    opened: Callable[..., Page], asking: HostProcess
) -> None:
    mine = asking.base / "output" / "one.png"
    page = opened(asking.url)
    question = page.locator(".g-native")
    expect(question).to_contain_text("2 old files (7.8 KB) were made by no job")
    result = Axe().run(page)
    assert [one["id"] for one in result.response["violations"] if one["impact"] in ("serious", "critical")] == []
    russian = opened(asking.url, locale="ru", viewport={"width": 390, "height": 800})
    expect(russian.locator(".g-native")).to_contain_text("Удалять такие файлы?")
    page.get_by_role("button", name="Keep them").press("Enter")
    expect(question).to_be_hidden()
    expect(page.get_by_text("Files that no job made are kept.")).to_be_visible()
    assert mine.exists()
    page.get_by_role("button", name="Delete them when they are old").click()
    page.get_by_role("button", name="Really? Your own pictures go, too").click()
    expect(page.get_by_text("Old files go whoever made them.")).to_be_visible()
    page.get_by_role("button", name="What would a sweep delete?").click()
    expect(page.get_by_text("It would delete 2 files")).to_be_visible()


def test_names_from_outside_are_text_and_never_markup(opened: Callable[..., Page], bot: PlainClient) -> None:
    evil = "<img src=x onerror=alert(1)>"
    job_id = posted(bot, picture(prefix=evil), metadata={"chat": evil})
    page = opened()
    dialogs: list[Any] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    row = within(page, "recent", job_id)
    row.locator("summary").click()
    expect(row.locator(".g-inside")).to_contain_text(evil)
    expect(page.locator('img[src="x"]')).to_have_count(0)
    assert dialogs == []


def test_an_artifact_opens_in_a_tab_of_its_own(opened: Callable[..., Page], bot: PlainClient) -> None:
    job = bot.run(picture())
    page = opened()
    row = within(page, "recent", job["job_id"])
    row.locator("summary").click()
    with page.expect_popup() as popup:
        row.get_by_role("button").click()
    popup.value.wait_for_url(re.compile("/artifacts/0$"))


class Hand:
    """What a person does on the page, counted."""

    def __init__(self) -> None:
        self.clicks = 0

    def click(self, place: Any) -> None:
        self.clicks += 1
        place.click()

    def write(self, place: Any, text: str) -> None:
        self.click(place)
        place.press_sequentially(text)
        place.press("Enter")


def test_why_did_order_4711_fail(opened: Callable[..., Page], bot: PlainClient) -> None:
    failing = posted(bot, raises("value_error"), metadata={"order": 4711, "shop": "x"})
    others = [posted(bot, raises("value_error"), metadata={"order": 4712}) for _ in range(3)]
    bot.run(text())
    page, hand = opened(), Hand()
    hand.write(page.get_by_role("searchbox", name="Search"), "4711")
    expect(within(page, "recent")).to_have_count(1)
    row = within(page, "recent", failing)
    hand.click(row.locator("summary"))
    inside = row.locator(".g-inside")
    expect(inside).to_contain_text('"order":4711')
    expect(inside).to_contain_text("generation_failed")
    expect(inside).to_contain_text("ValueError")
    expect(inside.locator("[data-failed]")).to_contain_text("FaultRaise")
    assert hand.clicks <= 4
    shoot(page, "why-4711")
    page.get_by_role("button", name="Show all").click()
    expect(within(page, "recent", others[0])).to_be_visible()


def test_failures_are_listed_by_code_and_a_click_shows_them(opened: Callable[..., Page], bot: PlainClient) -> None:
    good, bad = bot.run(text()), bot.run(raises("value_error"))
    bot.post(json.dumps({"prompt": {}}).encode())
    page, hand = opened(), Hand()
    refused = page.get_by_role("list", name="Refused at the door")
    expect(refused).to_contain_text("invalid_workflow")
    expect(refused).to_contain_text("ComfyUI refuses the graph")
    hand.click(
        page.get_by_role("list", name="Jobs that failed, by code").get_by_role("button", name="generation_failed")
    )
    expect(within(page, "recent", good["job_id"])).to_have_count(0)
    expect(within(page, "recent", bad["job_id"])).to_be_visible()
    expect(page.get_by_role("combobox", name="Error code")).to_have_value("generation_failed")
    page.reload()
    page.get_by_role("combobox", name="State").focus()
    page.keyboard.press("Tab")
    page.keyboard.type("no_such_code")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No job is like that.")).to_be_visible()


@pytest.fixture
def strangers(tmp_path: Path) -> Iterator[tuple[HostProcess, dict[str, str]]]:
    """A server that wants a key even from this machine, as all do from others; and a key of each scope."""
    process = HostProcess(sandbox_kind(), tmp_path, environment={"GUARDED_ACCESS__TRUST_LOOPBACK": "false"})
    keys = {scope: made_key(process, scope) for scope in ("operate", "submit")}
    with process:
        yield process, keys


def test_where_a_key_is_needed_the_page_asks_for_it_and_keeps_it_out_of_addresses(
    opened: Callable[..., Page], strangers: tuple[HostProcess, dict[str, str]]
) -> None:
    host, keys = strangers
    key = keys["operate"]
    page = opened(host.url)
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    field = page.get_by_label("Key", exact=True)
    field.fill("gk_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The server does not accept this key.")
    shoot(page, "key-1280-en")
    field.fill(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Recent")).to_be_visible()
    with closing(PlainClient(host)) as bot:
        answer = bot.post(json.dumps({"prompt": picture()}).encode(), headers={"Authorization": f"Bearer {key}"})
    row = within(page, "recent", answer.json["prompt_id"])
    expect(row.locator("img")).to_be_visible()
    row.locator("summary").click()
    with page.expect_popup() as popup:
        row.get_by_role("button").click()
    popup.value.wait_for_url(re.compile(r"/artifacts/0\?token="))
    page.reload()
    expect(row).to_be_visible()
    page.get_by_role("button", name="Forget the key").click()
    expect(field).to_be_visible()
    assert [address for address in addresses if key in address] == []


def test_whoever_is_no_operator_sees_only_its_own(
    opened: Callable[..., Page], strangers: tuple[HostProcess, dict[str, str]]
) -> None:
    host, keys = strangers
    with closing(PlainClient(host)) as bot:
        body = json.dumps({"prompt": text()}).encode()
        others, own = (
            bot.post(body, "/guarded/prompt?wait=60", {"Authorization": f"Bearer {key}"}).json["prompt_id"]
            for key in (keys["operate"], keys["submit"])
        )
    page = opened(host.url)
    page.get_by_label("Key", exact=True).fill(keys["submit"])
    page.keyboard.press("Enter")
    expect(within(page, "recent", own)).to_be_visible()
    expect(within(page, "recent", others)).to_have_count(0)
    expect(page.get_by_text("1 of 1 job")).to_be_visible()
    for card in ("disk", "server"):
        expect(page.locator(f".g-{card}-card")).to_be_hidden()


def test_whose_jobs_fail(opened: Callable[..., Page], strangers: tuple[HostProcess, dict[str, str]]) -> None:
    host, keys = strangers
    with closing(PlainClient(host)) as bot:
        failing, others = (
            bot.post(
                json.dumps({"prompt": raises("value_error")}).encode(),
                "/guarded/prompt?wait=60",
                {"Authorization": f"Bearer {keys[scope]}"},
            ).json["prompt_id"]
            for scope in ("submit", "operate")
        )
    page, hand = opened(host.url), Hand()
    page.get_by_label("Key", exact=True).fill(keys["operate"])
    page.keyboard.press("Enter")
    hand.click(page.get_by_role("list", name="Whose jobs failed").get_by_role("button", name="key-submit"))
    expect(within(page, "recent", failing)).to_be_visible()
    expect(within(page, "recent", others)).to_have_count(0)
    assert hand.clicks <= 4
    shoot(page, "whose-jobs-fail")


def test_a_job_that_waits_opens(opened: Callable[..., Page], bot: PlainClient) -> None:
    posted(bot, sleep(600))
    waiting = posted(bot, sleep(600), metadata={"order": 12})
    page = opened()
    within(page, "queue", waiting).get_by_role("button", name=waiting[:8], exact=True).press("Enter")
    inside = within(page, "recent", waiting).locator(".g-inside")
    expect(inside).to_contain_text('{"order":12}')
    expect(inside.get_by_role("list", name="The way")).to_contain_text("Queued")
    expect(within(page, "recent")).to_have_count(1)


def test_which_webhook_was_given_up(opened: Callable[..., Page], bot: PlainClient) -> None:
    answers = [410, 200]

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(answers.pop(0))
            self.end_headers()

        def log_message(self, *_args: Any) -> None:
            pass

    def listed(state: str) -> list[str]:
        return [one["job_id"] for one in bot.get(f"/guarded/webhooks?state={state}").json["webhooks"]]

    with HTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{receiver.server_port}/bot"
        job_id = posted(bot, text(), webhook={"url": url})
        while job_id not in listed("dead"):
            time.sleep(0.1)
        page, hand = opened(), Hand()
        hand.click(page.get_by_text("Webhooks that were given up"))
        given_up = page.get_by_role("list", name="Webhooks that were given up").get_by_role("listitem")
        expect(given_up).to_have_count(1)
        expect(given_up).to_contain_text(url)
        expect(given_up).to_contain_text("HTTP 410")
        hand.click(given_up.get_by_role("button", name=job_id[:8]))
        expect(within(page, "recent")).to_have_count(1)
        row = within(page, "recent", job_id)
        expect(row.get_by_role("list", name="The way")).to_contain_text("Running")
        webhooks = row.get_by_role("list", name="Webhooks")
        expect(webhooks).to_contain_text("given up")
        shoot(page, "webhook-given-up")
        hand.click(webhooks.get_by_role("button", name="Send again"))
        assert hand.clicks <= 4
        while job_id not in listed("delivered"):
            time.sleep(0.1)
        receiver.shutdown()


def test_a_server_that_was_gone_is_live_again_and_nothing_is_missed(
    opened: Callable[..., Page], tmp_path: Path
) -> None:
    with HostProcess(sandbox_kind(), tmp_path) as host:
        page = opened(host.url)
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        host.kill()
        expect(page.get_by_text("No connection")).to_be_visible()
        host.start()
        with closing(PlainClient(host)) as bot:
            job = bot.run(text())
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        expect(within(page, "recent", job["job_id"])).to_contain_text("Succeeded")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_no_serious_fault(opened: Callable[..., Page], bot: PlainClient, scheme: str) -> None:
    for name in ("astronaut.png", "coffee.png", "rocket.jpg"):
        bot.run({"1": node("LoadImage", image=name), "2": save("1")})
    bot.run(raises("value_error"))
    posted(bot, sleep(600, steps=400))
    for _ in range(4):
        posted(bot, sleep(600))
    for language, heading, width in (
        ("en", "Running now", 1280),
        ("en", "Running now", 420),
        ("ru", "Выполняется", 1280),
        ("ru", "Выполняется", 420),
    ):
        page = opened(locale=language, color_scheme=scheme, viewport={"width": width, "height": 900})
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
        expect(within(page, "queue")).to_have_count(4)
        within(page, "recent").nth(1).scroll_into_view_if_needed()  # pictures are loaded once they come near
        expect(within(page, "recent").locator("img").first).to_be_visible()
        within(page, "recent").locator("summary").first.click()
        page.locator(".g-disk-card button").first.click()
        expect(page.locator(".g-told p").first).to_be_visible()
        page.locator(".g-keys-card summary").first.click()
        page.locator(".g-keys-card form summary").click()
        page.locator(".g-server-card summary").last.click()
        expect(page.locator(".g-doctor li").first).to_be_visible()
        shoot(page, f"page-{width}-{scheme}-{language}")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        if (language == "ru") == (width == 420):  # it takes a second each
            serious = [
                (fault["id"], fault["help"], [part["html"][:200] for part in fault["nodes"]])
                for fault in Axe().run(page).response["violations"]
                if fault["impact"] in ("serious", "critical")
            ]
            assert serious == [], (language, width)
        page.context.close()
