"""The page in an incident: alarms, a job's graph, retry, many jobs at once, keys, the machine. On the sandbox."""

import json
import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from browser.conftest import shoot
from browser.test_page import Hand, host, opened, posted, strangers, within
from contract.client import PlainClient, node, raises, save, sleep, text
from playwright.sync_api import Page, expect

from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind

__all__ = ["host", "opened", "strangers"]

pytestmark = pytest.mark.browser


def test_an_alarm_stays_until_it_is_seen_over_a_kill_and_leads_to_its_job(
    opened: Callable[..., Page], tmp_path: Path
) -> None:
    with HostProcess(sandbox_kind(), tmp_path) as host, closing(PlainClient(host)) as bot:
        page = opened(host.url, locale="ru")
        expect(page.get_by_text("Онлайн")).to_be_visible()
        late = [posted(bot, sleep(600), timeout_s=0.5) for _ in range(2)]
        alarms = page.get_by_role("status", name="Оповещения")
        expect(alarms.get_by_text("Задание не уложилось в срок и было остановлено.")).to_have_count(2)
        expect(page).to_have_title("(2) ComfyUI-Guarded")
        host.kill()
        bot.close()
        host.start()
        page = opened(host.url, locale="ru", viewport={"width": 420, "height": 900})
        alarms = page.get_by_role("status", name="Оповещения")
        expect(alarms.get_by_role("listitem")).to_have_count(2)
        shoot(page, "alarms-420-ru")
        alarms.get_by_role("button", name=late[0][:8]).press("Enter")
        expect(within(page, "recent", late[0]).locator(".g-inside")).to_contain_text("generation_timeout")
        seen = alarms.get_by_role("button", name="Просмотрено")
        seen.first.press("Enter")
        expect(seen).to_have_count(1)
        expect(page).to_have_title("(1) ComfyUI-Guarded")
        posted(bot, sleep(600), timeout_s=0.5)
        expect(seen).to_have_count(2)
        alarms.get_by_role("button", name="Отметить все как просмотренные").press("Enter")
        expect(alarms).to_be_hidden()
        expect(page).to_have_title("ComfyUI-Guarded")
        page.get_by_text("Все оповещения").click()
        expect(page.get_by_role("list", name="Все оповещения").get_by_role("listitem")).to_have_count(3)


def test_a_failed_job_shows_its_graph_with_the_node_that_failed_and_is_retried_from_the_keyboard(
    opened: Callable[..., Page], bot: PlainClient
) -> None:
    idle = {str(number): node("EmptyImage", width=8, height=8, batch_size=1, color=0) for number in range(1, 150)}
    fails = node("FaultRaise", kind="value_error", message="<b>on</b> purpose", seed=0)
    graph = {"199": node("ImageInvert", image=["150", 0]), "200": save("199"), "150": fails, **idle}
    failing = posted(bot, graph, metadata={"order": 7})
    page = opened()
    row = within(page, "recent", failing)
    row.locator("summary").first.focus()
    page.keyboard.press("Enter")
    nodes = row.get_by_role("list", name="Graph").locator("[data-node]")
    expect(nodes).to_have_count(152)
    failed = row.locator("[data-failed]")
    expect(failed).to_contain_text("150 · FaultRaise")
    expect(failed).to_contain_text("failed here")
    expect(failed).to_contain_text("<b>on</b> purpose")
    shoot(page, "graph-1280-en")
    order = nodes.evaluate_all("all => all.map(one => one.dataset.node)")
    assert order == [*map(str, range(1, 151)), "199", "200"]
    place, part = row.get_by_role("list", name="Graph").bounding_box(), failed.bounding_box()
    assert place
    assert part
    assert place["y"] <= part["y"] < place["y"] + place["height"] - 20
    row.locator("[data-node='199']").get_by_role("button", name="150 · FaultRaise").press("Enter")
    expect(failed).to_be_focused()
    expect(row.locator(".g-inside")).to_contain_text("ValueError")
    row.get_by_role("button", name="Retry").press("Enter")
    link = row.get_by_text("Retried as").get_by_role("button")
    expect(link).to_be_focused()
    (retry,) = [job for job in bot.get("/guarded/jobs").json["jobs"] if job["retry_of"] == failing]
    page.keyboard.press("Enter")
    repeated = within(page, "recent", retry["job_id"])
    expect(within(page, "recent")).to_have_count(1)
    expect(repeated.locator(".g-inside")).to_contain_text("Retry of")
    repeated.get_by_role("button", name=failing[:8]).press("Enter")
    expect(row.get_by_text("Retried as")).to_be_visible()
    expect(row.get_by_role("button", name="Retry", exact=True)).to_have_count(0)


def test_a_graph_that_is_no_longer_kept_says_since_when(opened: Callable[..., Page], tmp_path: Path) -> None:
    with (
        HostProcess(sandbox_kind(), tmp_path, environment={"GUARDED_STORE__BODIES_MAX_AGE_S": "0.001"}) as host,
        closing(PlainClient(host)) as bot,
    ):
        failing = bot.run(raises("value_error"))["job_id"]
        while bot.get(f"/guarded/jobs/{failing}/prompt").status == 200:
            time.sleep(0.1)
        page = opened(host.url, locale="ru")
        row = within(page, "recent", failing)
        row.locator("summary").first.click()
        expect(row.get_by_text("Граф не хранится с")).to_be_visible()
        row.get_by_role("button", name="Повторить").click()
        expect(row.get_by_text("Запрос больше не хранится, повторить его нельзя.")).to_be_visible()


def test_many_waiting_jobs_are_cancelled_by_mark_and_by_owner(
    opened: Callable[..., Page], strangers: tuple[HostProcess, dict[str, str]]
) -> None:
    host, keys = strangers
    made: dict[str, list[str]] = {}
    with closing(PlainClient(host)) as bot:
        for scope in ("submit", "operate"):
            headers = {"Authorization": f"Bearer {keys[scope]}"}
            body = json.dumps({"prompt": sleep(600)}).encode()
            made[scope] = [str(bot.post(body, headers=headers).json["prompt_id"]) for _ in range(4)]
    page = opened(host.url, viewport={"width": 420, "height": 900})
    page.get_by_label("Key", exact=True).fill(keys["operate"])
    page.keyboard.press("Enter")
    expect(within(page, "queue")).to_have_count(7)
    for job_id in made["operate"][1:3]:
        page.get_by_role("checkbox", name=f"Select {job_id[:8]}").press("Space")
    shoot(page, "cancel-many-420-en")
    marked = page.get_by_role("button", name="Cancel the selected")
    marked.press("Enter")
    page.get_by_role("button", name="Really cancel?").press("Enter")
    expect(page.get_by_text("2 jobs were cancelled.")).to_be_visible()
    expect(within(page, "queue")).to_have_count(5)
    page.get_by_role("combobox", name="Owner").and_(page.locator(".g-many select")).select_option("key-submit")
    page.get_by_role("button", name="Cancel all jobs of").click()
    page.get_by_role("button", name="Really cancel?").click()
    expect(page.get_by_text("4 jobs were cancelled.")).to_be_visible()
    expect(page.locator('.g-queue-card td.g-owner:text("key-submit")')).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_jobs_are_filtered_by_the_time_at_which_they_were_sent(opened: Callable[..., Page], bot: PlainClient) -> None:
    job_id = bot.run(raises("value_error"))["job_id"]
    page = opened()
    expect(within(page, "recent", job_id)).to_be_visible()
    page.get_by_label("until").fill("2020-01-01T00:00")
    expect(page.get_by_text("No job is like that.")).to_be_visible()
    page.get_by_label("until").fill("")
    page.get_by_label("Sent from").fill("2020-01-01T00:00")
    expect(within(page, "recent", job_id)).to_be_visible()
    page.get_by_label("Sent from").fill("2099-01-01T00:00")
    expect(page.get_by_text("No job is like that.")).to_be_visible()
    page.get_by_role("button", name="Show all").click()
    expect(page.get_by_label("Sent from")).to_have_value("")
    expect(within(page, "recent", job_id)).to_be_visible()


def test_a_key_is_made_limited_and_revoked_on_the_page(opened: Callable[..., Page], bot: PlainClient) -> None:
    def status(secret: str) -> int:
        return bot.get("/guarded/jobs", {"Authorization": f"Bearer {secret}"}).status

    page = opened(locale="ru", viewport={"width": 420, "height": 900})
    opens = page.get_by_text("Создать, ограничить или отозвать ключ")
    expect(opens).to_be_visible()  # a key pressed before that goes nowhere
    opens.press("Enter")
    form = page.get_by_role("form", name="Новый ключ")
    form.get_by_label("Владелец", exact=True).fill("shop")
    form.get_by_text("Ограничения").press("Enter")
    form.get_by_label("Заданий в минуту").fill("30")
    form.get_by_role("button", name="Создать ключ").press("Enter")
    made = page.locator(".g-made")
    expect(made).to_contain_text("Ключ владельца shop.")
    secret = made.locator("code").first.inner_text()
    assert status(secret) == 200
    shoot(page, "keys-420-ru")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    made.get_by_role("button", name="Значения сохранены").press("Enter")
    expect(page.get_by_text(secret)).to_have_count(0)
    row = page.get_by_role("list", name="Ключи").get_by_role("listitem").filter(has_text="shop")
    expect(row).to_contain_text("Заданий в минуту: 30")
    row.get_by_role("button", name="Ограничения").press("Enter")
    limits = page.get_by_role("form", name="Ограничения shop")
    expect(limits.get_by_label("Заданий в минуту")).to_have_value("30")
    limits.get_by_label("Заданий в очереди").fill("5")
    limits.get_by_role("button", name="Сохранить").press("Enter")
    expect(row).to_contain_text("Заданий в очереди: 5")
    row.get_by_role("button", name="Отозвать").press("Enter")
    row.get_by_role("button", name="Точно? Навсегда").press("Enter")
    expect(row).to_contain_text("отозван")
    assert status(secret) == 401


def test_the_machine_is_shown_as_live_lines_with_scales(opened: Callable[..., Page], bot: PlainClient) -> None:
    bot.run(text())
    page = opened()
    card = page.locator(".g-lines-card")
    expect(card.get_by_role("heading", name="Load")).to_be_visible()
    for name in ("cpu", "ram"):
        expect(card.locator(f'[data-series="{name}"] polyline')).to_have_attribute("points", re.compile(r" \S+"))
    expect(card.locator('[data-series="cpu"] .g-scale')).to_have_text("100%0%")
    expect(card.locator('[data-series="ram"] .g-scale')).to_contain_text("GB")
    expect(card.locator('[data-series="gpu"]')).to_be_hidden()  # this machine has none
    expect(page.locator(".g-chart-card .g-scale").first).to_have_text(re.compile(r"^\d+0$"))


def test_what_fills_the_disk(opened: Callable[..., Page], host: HostProcess) -> None:
    (host.base / "output" / "large.bin").write_bytes(b"x" * 5 * 2**20)
    page, hand = opened(), Hand()
    disk = page.locator(".g-disk-card")
    expect(disk).to_contain_text("Job database")
    hand.click(disk.get_by_role("button", name="What would a sweep delete?"))
    expect(disk.get_by_role("status")).to_contain_text(re.compile("would delete|Nothing is old enough"))
    # Counted at most minutes ago by itself, and anew for whoever asks.
    expect(disk.get_by_role("row", name=re.compile("^output"))).to_contain_text("MB")
    assert hand.clicks <= 4
    shoot(page, "what-fills-the-disk")


def test_the_doctor_is_counted_and_opens_by_itself_on_errors(opened: Callable[..., Page], bot: PlainClient) -> None:
    page = opened(locale="ru", viewport={"width": 420, "height": 900})
    ill = {"level": "error", "check": "keys", "message": "keys.json cannot be read.", "mend": "Restore it."}
    lines = [*bot.get("/guarded/doctor").json["lines"], ill]
    page.route("**/guarded/doctor", lambda route: route.fulfill(json={"lines": lines}))
    page.reload()
    doctor = page.locator(".g-doctor-card")
    expect(doctor.get_by_text(re.compile("^1 ошибка$"))).to_be_visible()
    expect(doctor.get_by_role("listitem").first).to_contain_text("keys.json cannot be read.")
    shoot(page, "doctor-420-ru")
    doctor.locator("summary").press("Enter")
    expect(doctor).not_to_have_attribute("open", "")


def test_the_doctor_stays_closed_where_there_is_no_error(opened: Callable[..., Page]) -> None:
    doctor = opened().locator(".g-doctor-card")
    expect(doctor.locator("li").first).to_be_attached()
    expect(doctor).not_to_have_attribute("open", "")
