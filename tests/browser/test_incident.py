"""The page in an incident: alarms, a job's graph, retry, many jobs at once, keys, the machine. On the sandbox."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from browser.conftest import shoot
from browser.test_page import host, opened, posted, strangers, within
from contract.client import PlainClient, sleep
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
