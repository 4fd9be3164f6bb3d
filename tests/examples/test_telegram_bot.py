"""examples/telegram_bot.py as it is, between a sandbox and a Telegram of the test's own."""

import asyncio
import io
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from contract.client import connected
from examples.conftest import PATIENCE_S, REFUSED, Shop, opened, polled
from PIL import Image

from comfyui_guarded.guard import messages

pytestmark = pytest.mark.asyncio(loop_scope="module")

_users = itertools.count(100)
FREE_CREDITS, OWNER = 3, 1


@pytest.fixture
def user() -> int:
    return next(_users)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    # As for a bot on another machine: what it may do, it may by its key.
    settings = {"GUARDED_ACCESS__TRUST_LOOPBACK": "false"}
    bought = {"FREE_CREDITS": str(FREE_CREDITS), "OWNERS": str(OWNER), "PRICES": '{"photo_check": 2}'}
    async with opened(tmp_path_factory.mktemp("shop"), settings, **bought) as shop:
        yield shop


async def test_a_photo_becomes_a_picture_for_one_credit(shop: Shop, user: int, face: bytes):
    message_id = shop.messenger.photo(user, face, "ok")
    sent = await shop.last_word(message_id)
    assert sent.method == "sendPhoto"
    with Image.open(io.BytesIO(sent.data)) as image:
        assert image.size == (256, 256)
    assert shop.bot.entries(message_id) == [("charge", -1)]
    await polled(lambda: shop.messenger.notices(user)[0].deleted)
    shop.messenger.text(user, "/start")
    (hello,) = await polled(lambda: shop.messenger.notices(user)[1:])
    assert hello.texts[0].startswith("Пришлите фото. Кредитов: 2. ")
    assert hello.texts[0].endswith("Цены в кредитах: photo_check – 2.")


@pytest.mark.parametrize("language", ["ru", "en"])
async def test_a_photo_without_a_face_costs_nothing_and_says_why(shop: Shop, user: int, cat: bytes, language: str):
    message_id = shop.messenger.photo(user, cat, "ok", language)
    assert (await shop.last_word(message_id)).texts == [messages.text("no_face", language)]
    assert shop.bot.entries(message_id) == []


@pytest.mark.parametrize(("caption", "code"), [("error", "generation_failed"), ("blank", "result_blank")])
async def test_a_job_that_fails_is_refunded_in_the_servers_words(
    shop: Shop, user: int, face: bytes, caption: str, code: str
):
    message_id = shop.messenger.photo(user, face, caption)
    assert (await shop.last_word(message_id)).texts == [messages.text_of_end(code, "ru")]
    assert shop.bot.entries(message_id) == [("charge", -1), ("refund", 1)]


async def test_what_is_refused_after_the_credit_was_taken_is_refunded(shop: Shop, user: int, face: bytes):
    message_id = shop.messenger.photo(user, face, REFUSED)
    assert (await shop.last_word(message_id)).texts == [messages.text("bad_image", "ru")]
    assert shop.bot.entries(message_id) == [("charge", -1), ("refund", 1)]


async def test_without_a_credit_nothing_is_generated(shop: Shop, user: int, face: bytes):
    sent = [shop.messenger.photo(user, face, "ok") for _ in range(FREE_CREDITS + 1)]
    words = [await shop.last_word(message_id) for message_id in sent]
    assert Counter(word.method for word in words) == {"sendPhoto": FREE_CREDITS, "sendMessage": 1}
    (refused,) = [word for word in words if word.method == "sendMessage"]
    assert refused.texts == ["Кредитов не хватает."]
    assert shop.bot.entries(refused.reply_to or 0) == []


async def test_the_notice_follows_the_place_in_the_queue(shop: Shop, user: int, face: bytes):
    sent = [shop.messenger.photo(user, face, "slow") for _ in range(3)]
    for message_id in sent:
        assert (await shop.last_word(message_id)).method == "sendPhoto"
    told = [text for notice in shop.messenger.notices(user) for text in notice.texts]
    assert any(text.startswith("Сервер загружен (1/1 задач)") for text in told), told
    assert "Генерация началась…" in told, told


async def test_a_photo_that_telegram_brings_twice_is_one_order(shop: Shop, user: int, face: bytes):
    message_id = shop.messenger.photo(user, face, "ok")
    await shop.done(message_id)
    shop.messenger.again(message_id)
    await shop.done(shop.messenger.photo(user, face, "ok"))
    assert len(shop.messenger.answers(message_id)) == 1
    assert len(shop.orders("chat_id = ?", user)) == 2


async def test_telegrams_troubles_are_waited_out(shop: Shop, user: int, face: bytes):
    seen: Counter[str] = Counter()

    def trouble(method: str, _data: object) -> tuple[int, dict[str, Any]] | None:
        seen[method] += 1
        if method in ("sendPhoto", "getFile") and seen[method] <= 2:
            if seen[method] == 1:
                return 429, {"description": "Too Many Requests", "parameters": {"retry_after": 1}}
            return 502, {"description": "Bad Gateway"}
        return None

    shop.messenger.trouble = trouble
    message_id = shop.messenger.photo(user, face, "ok")
    assert (await shop.last_word(message_id)).method == "sendPhoto"
    assert seen["sendPhoto"] == 3
    assert shop.bot.entries(message_id) == [("charge", -1)]


async def test_killed_in_the_middle_the_bot_goes_on_where_it_was(shop: Shop, user: int, face: bytes):
    good, bad = shop.messenger.photo(user, face, "slow"), shop.messenger.photo(user, face, "no memory")
    await polled(lambda: shop.orders("state = 'sent' AND chat_id = ?", user), told=shop.bot.tail)
    shop.bot.kill()
    shop.host.kill()
    await asyncio.to_thread(shop.host.start)
    shop.bot.start()
    assert (await shop.last_word(good)).method == "sendPhoto"
    assert shop.bot.entries(good) == [("charge", -1)]
    assert (await shop.last_word(bad)).texts == [messages.text_of_end("out_of_memory", "ru")]
    assert shop.bot.entries(bad) == [("charge", -1), ("refund", 1)]


async def test_a_server_that_is_away_is_waited_for_once_the_credit_is_taken(shop: Shop, user: int, face: bytes):
    message_id = shop.messenger.photo(user, face, "slow")
    await polled(lambda: shop.orders("state != 'new' AND chat_id = ?", user), told=shop.bot.tail)
    shop.host.kill()
    await asyncio.sleep(1)
    await asyncio.to_thread(shop.host.start)
    assert (await shop.last_word(message_id)).method == "sendPhoto"
    assert shop.bot.entries(message_id) == [("charge", -1)]


@pytest.mark.timeout(600)  # a dozen starts of the bot
async def test_killed_at_every_step_that_telegram_sees_it_books_once_and_loses_nobody(
    shop: Shop, user: int, face: bytes
):
    steps = ("getUpdates", "sendMessage", "getFile", "editMessageText", "sendPhoto", "deleteMessage")
    killed: set[tuple[str, bool]] = set()

    def kill(method: str, counted: bool) -> bool:
        """Once at each step, before Telegram has heard of it and after."""
        known = shop.orders("chat_id = ?", user)
        due = bool(known) and method in steps and (method, counted) not in killed and shop.bot.alive
        if due:
            killed.add((method, counted))
            shop.bot.kill()
        return due and not counted

    shop.messenger.watcher = kill
    good, bad = shop.messenger.photo(user, face, "slow"), shop.messenger.photo(user, face, "error")
    # (photo, last words so far) where it died after Telegram had heard one and before it could note that down.
    unnoted: set[tuple[int, int]] = set()
    while len(shop.orders("state = 'done' AND chat_id = ?", user)) < 2:
        await asyncio.sleep(0.05)
        if not shop.bot.alive:
            done = {row[0] for row in shop.bot.rows("SELECT message_id FROM orders WHERE state = 'done'")}
            words = {photo: len(shop.messenger.answers(photo)) for photo in {good, bad} - done}
            unnoted |= {(photo, count) for photo, count in words.items() if count}
            shop.bot.start()
    shop.messenger.watcher = lambda _method, _counted: False
    # Where the job has ended by the time the bot is back, there is nothing to edit any more.
    assert killed >= set(itertools.product(steps, (False, True))) - {("editMessageText", True)}
    assert shop.bot.entries(good) == [("charge", -1)]
    assert shop.bot.entries(bad) == [("charge", -1), ("refund", 1)]
    # It tells again what it could not note down, and nothing else. Which of the two jobs that is beside the photo's, is
    # up to the kill that comes first.
    assert (good, 1) in unnoted
    told = {photo: 1 + sum(each == photo for each, _count in unnoted) for photo in (good, bad)}
    assert [word.method for word in shop.messenger.answers(good)] == ["sendPhoto"] * told[good]
    failed = [messages.text_of_end("generation_failed", "ru")]
    assert [word.texts for word in shop.messenger.answers(bad)] == [failed] * told[bad]


async def test_the_button_cancels_and_the_credit_comes_back(shop: Shop, user: int, face: bytes):
    message_id = shop.messenger.photo(user, face, "very slow")
    await polled(lambda: shop.orders("state = 'sent' AND chat_id = ?", user), told=shop.bot.tail)
    shop.messenger.press(shop.messenger.notices(user)[0])
    assert (await shop.last_word(message_id)).texts == [messages.text_of_end("cancelled", "ru")]
    assert shop.bot.entries(message_id) == [("charge", -1), ("refund", 1)]


async def test_an_owner_gives_back_what_an_order_cost_once_and_nobody_else_can(shop: Shop, user: int, face: bytes):
    message_id = shop.messenger.photo(user, face, "ok")
    await shop.done(message_id)
    ((order_id,),) = shop.bot.rows("SELECT id FROM orders WHERE message_id = ?", message_id)
    for who in (user, OWNER, OWNER):
        shop.messenger.text(who, f"/refund {order_id}")
        await polled(lambda who=who: shop.messenger.notices(who)[1 if who == user else 0 :])
    await polled(lambda: len(shop.messenger.notices(OWNER)) == 2)
    assert [sent.texts for sent in shop.messenger.notices(OWNER)] == [[f"#{order_id}: 1"], [f"#{order_id}: 0"]]
    assert shop.bot.entries(message_id) == [("charge", -1), ("refund", 1)]
    assert shop.messenger.notices(user)[-1].texts == ["Вам возвращено кредитов: 1."]


async def test_a_template_costs_its_price_and_takes_the_rest_of_the_caption(shop: Shop, user: int, face: bytes):
    message_id = shop.messenger.photo(user, face, "photo_check:")
    assert (await shop.last_word(message_id)).method == "sendPhoto"
    assert shop.bot.entries(message_id) == [("charge", -2)]


async def test_a_server_that_never_comes_back_ends_the_order_and_its_job(
    tmp_path_factory: pytest.TempPathFactory, face: bytes
):
    folder = tmp_path_factory.mktemp("lost")
    async with opened(folder, {}, LOST_S="6", NOTICE_S="1") as shop, connected(shop.host) as client:
        message_id = shop.messenger.photo(7, face, "very slow")
        await polled(lambda: shop.orders("state = 'sent'"), told=shop.bot.tail)
        shop.host.kill()
        notice = shop.messenger.notices(7)[0]
        await polled(lambda: "пока не отвечает" in notice.texts[-1], told=shop.bot.tail)
        word = await shop.last_word(message_id)
        assert word.texts == ["Сервер генерации так и не ответил. Кредиты возвращены."]
        assert shop.bot.entries(message_id) == [("charge", -1), ("refund", 1)]
        shop.bot.kill()  # what is left to do outlives it
        shop.bot.start()
        await asyncio.to_thread(shop.host.start)
        (job,) = await client.polled(lambda: client.jobs("state=cancelled,failed"), bool)
        assert job["error"]["code"] in ("cancelled", "server_restarted")
        assert shop.bot.entries(message_id) == [("charge", -1), ("refund", 1)]


@pytest.mark.timeout(3000)
async def test_many_users_stay_within_what_telegram_takes_and_take_turns(
    tmp_path_factory: pytest.TempPathFactory, face: bytes
):
    """Two photos of each; GUARDED_USERS=1000 tries it at full size, which takes some ten minutes."""
    users, speed = int(os.environ.get("GUARDED_USERS", "40")), 4
    long_s = PATIENCE_S + 4 * users
    paces = {"CALLS_PER_S": str(25 * speed), "CHAT_PAUSE_S": str(1.1 / speed), "EDIT_PAUSE_S": str(3 / speed)}
    settings = {
        "GUARDED_LIMITS__USER_JOBS_PER_MINUTE": "10",
        "GUARDED_LIMITS__USER_MAX_QUEUED": "10",
        "GUARDED_QUEUE__MAX_QUEUED": "10000",
    }
    async with opened(tmp_path_factory.mktemp("many"), settings, **paces) as shop, connected(shop.host) as client:
        shop.messenger.messages_per_s, shop.messenger.chat_pause_s = 30 * speed, 0.8 / speed
        async with client.busy():
            first = [shop.messenger.photo(1000 + user, face, "ok") for user in range(users)]
            second = [shop.messenger.photo(1000 + user, face, "ok") for user in range(users)]
            await polled(lambda: len(shop.orders("state = 'sent'")) == 2 * users, told=shop.bot.tail, within_s=long_s)
        await shop.done(*first, *second, within_s=long_s)
        words = [shop.messenger.answers(message_id) for message_id in (*first, *second)]
        assert {word.method for each in words for word in each} == {"sendPhoto"}, "nobody was refused"
        assert shop.messenger.refused == 0, "however slow the machine: see Pace"
        began: dict[int, int] = {}
        page = "limit=500"
        while page:
            answer = await client.get(f"/guarded/jobs?{page}")
            began |= {job["metadata"]["message_id"]: job["started_at_ms"] for job in answer["jobs"] if job["user"]}
            page = f"limit=500&before={answer['next']}" if answer["next"] is not None else ""
        assert max(began[photo] for photo in first) <= min(began[photo] for photo in second)
