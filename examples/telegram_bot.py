"""A Telegram bot that sells generations for credits, on a guarded ComfyUI. Copy it and make it yours.

    pip install "aiogram>=3.13,<4"
    BOT_TOKEN=123:abc python telegram_bot.py

A user sends a photo. The bot checks that it shows a face, takes a credit, submits the workflow together with the photo,
shows the position in the queue as it changes, and sends the result. If there is none, it says why and refunds the
credit.

The bot may be killed at any moment. Its ledger (SQLite) holds all orders, and the next start continues each from its
state:

    new ── face found, credit taken ──> paid ── job made ──> sent ── job settled ──> ended ── user told ──> done

One commit takes the credit and makes the order `paid`, another refunds it and makes the order `ended`, so neither can
happen twice. The bot may submit again and again, because the `Idempotency-Key` makes that one job. Only messages to the
user are not part of a commit: a bot killed after it sent one, but before it noted that, sends it again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiogram import Bot, Dispatcher, F
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import TelegramAPIError, TelegramNetworkError, TelegramRetryAfter, TelegramServerError
from aiogram.types import BufferedInputFile, Message, ReplyParameters

log = logging.getLogger("bot")

GUARDED_URL = os.environ.get("GUARDED_URL", "http://127.0.0.1:8188")
#: `keys create` makes one. A bot on the same machine needs none.
GUARDED_KEY = os.environ.get("GUARDED_KEY", "")
#: In API format. The node titled "Photo" gets the photo, the node titled "Prompt" its caption.
WORKFLOW = Path(os.environ.get("WORKFLOW") or Path(__file__).parents[1] / "workflows/api/photo_check.json")
LEDGER = os.environ.get("LEDGER", "ledger.db")
FREE_CREDITS = int(os.environ.get("FREE_CREDITS", "3"))
PRICE = 1
#: How long to repeat a request to a server that is busy or does not answer, before the user hears of it.
PATIENCE_S = 120.0

#: The bot's own texts. Those about the generation come from the server, in the user's language.
TEXTS = {
    "hello": {"ru": "Пришлите фото. Кредитов: {credits}.", "en": "Send me a photo. Credits: {credits}."},
    "taken": {"ru": "Фото получено, смотрим…", "en": "Got your photo, having a look…"},
    "working": {"ru": "Генерация началась…", "en": "The generation has begun…"},
    "poor": {"ru": "Кредиты закончились.", "en": "You have run out of credits."},
    "lost": {"ru": "Не удалось получить фото. Отправьте его еще раз.", "en": "Your photo did not arrive. Try again."},
    "away": {"ru": "Сервер генерации недоступен. Попробуйте позже.", "en": "The server is away. Try again later."},
}


def read_language(message: Message) -> str:
    code = (message.from_user.language_code if message.from_user else None) or "ru"
    return "ru" if code.startswith("ru") else "en"


# The ledger. ---------------------------------------------------------------------------------------------------


@dataclass
class Order:
    """One photo that a user sent: a row of the ledger."""

    id: int
    chat_id: int
    message_id: int
    locale: str
    photo: str
    caption: str
    key: str
    state: str
    notice_id: int | None
    job_id: str | None
    ending: str | None

    def text(self, name: str) -> str:
        return TEXTS[name][self.locale]


class Ledger:
    """Keep orders and credits. Every change is one commit, which takes about a millisecond."""

    SCHEMA = """
        CREATE TABLE IF NOT EXISTS orders (
            id INTEGER PRIMARY KEY, chat_id INTEGER, message_id INTEGER, locale TEXT, photo TEXT, caption TEXT,
            key TEXT, state TEXT, notice_id INTEGER, job_id TEXT, ending TEXT, UNIQUE (chat_id, message_id));
        CREATE TABLE IF NOT EXISTS entries (
            chat_id INTEGER, order_id INTEGER, kind TEXT, credits INTEGER, UNIQUE (order_id, kind));
        CREATE UNIQUE INDEX IF NOT EXISTS one_gift ON entries (chat_id) WHERE kind = 'gift';
        CREATE INDEX IF NOT EXISTS of_chat ON entries (chat_id);
    """

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path)
        self._db.executescript(self.SCHEMA)

    def balance(self, chat_id: int) -> int:
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO entries VALUES (?, NULL, 'gift', ?)", (chat_id, FREE_CREDITS))
            (credits,) = self._db.execute("SELECT sum(credits) FROM entries WHERE chat_id = ?", (chat_id,)).fetchone()
        return int(credits)

    def open_orders(self) -> list[Order]:
        return [Order(*row) for row in self._db.execute("SELECT * FROM orders WHERE state != 'done' ORDER BY id")]

    def take(self, message: Message) -> Order | None:
        """Record a new order; None if it is already there, since Telegram may deliver a message twice."""
        assert message.photo
        chat_id, photo, caption = message.chat.id, message.photo[-1].file_id, message.caption or ""
        with self._db:
            row = self._db.execute(
                "INSERT OR IGNORE INTO orders (chat_id, message_id, locale, photo, caption, key, state)"
                " VALUES (?, ?, ?, ?, ?, ?, 'new') RETURNING *",
                (chat_id, message.message_id, read_language(message), photo, caption, str(uuid.uuid4())),
            ).fetchone()
        return Order(*row) if row else None

    def note(self, order: Order, **changes: Any) -> None:
        with self._db:
            self._write(order, changes)

    def pay(self, order: Order) -> bool:
        """Take the price; False if the user has too few credits."""
        if self.balance(order.chat_id) < PRICE:
            return False
        with self._db:
            self._db.execute("INSERT INTO entries VALUES (?, ?, 'charge', ?)", (order.chat_id, order.id, -PRICE))
            self._write(order, {"state": "paid"})
        return True

    def end(self, order: Order, ending: dict[str, Any], *, refund: bool) -> None:
        """Record how the order ended; with `refund`, also give back what it cost."""
        with self._db:
            if refund:
                self._db.execute(
                    "INSERT OR IGNORE INTO entries SELECT chat_id, order_id, 'refund', -credits FROM entries"
                    " WHERE order_id = ? AND kind = 'charge'",
                    (order.id,),
                )
            self._write(order, {"state": "ended", "ending": json.dumps(ending)})

    def _write(self, order: Order, changes: dict[str, Any]) -> None:
        columns = ", ".join(f"{name} = ?" for name in changes)
        self._db.execute(f"UPDATE orders SET {columns} WHERE id = ?", (*changes.values(), order.id))
        for name, value in changes.items():
            setattr(order, name, value)


# The server. ---------------------------------------------------------------------------------------------------


class RefusedError(Exception):
    """The order cannot be carried out; the message is a text for the user."""


class Guarded:
    """Call the routes of ComfyUI-Guarded that a bot needs."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def submit(self, order: Order, photo: bytes) -> str:
        """Submit the order, and return its job's id: always the same one, however often this is called."""

        def form() -> aiohttp.FormData:
            form = aiohttp.FormData()
            form.add_field("prompt", json.dumps(workflow(order.caption)))
            form.add_field("guard", json.dumps({"locale": order.locale, "metadata": {"order": order.id}}))
            form.add_field("photo", photo, filename="photo.jpg")
            return form

        # After a broken connection only the server knows whether there is a job, so repeat until it answers.
        answer = await self.request(order, "POST", "/guarded/prompt", form)
        return str(json.loads(answer)["prompt_id"])

    async def events(self, order: Order) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield (event, data) until the job has settled, however often the server goes away in between."""
        path = f"/guarded/jobs/{order.job_id}"
        while True:
            job = json.loads(await self.request(order, "GET", path, busy_s=math.inf))
            yield "state", job
            if job["settled_at_ms"]:
                return
            try:
                async with self._http.get(f"{path}/events") as stream:
                    event = {}
                    async for line in stream.content:  # `event: …`, `data: …`, then an empty line
                        name, _, value = line.decode().rstrip("\r\n").partition(": ")
                        if name:
                            event[name] = value
                        elif event.get("data"):
                            yield event["event"], json.loads(event.pop("data"))
            except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
                log.info("job %s: %r", order.job_id, error)
                await asyncio.sleep(1)

    async def request(
        self,
        order: Order,
        method: str,
        path: str,
        body: Any = None,
        busy_s: float = PATIENCE_S,
        away_s: float = math.inf,
    ) -> bytes:
        """Send a request until it succeeds, and return the body of the answer.

        Args:
            body: makes the request's body, anew for each attempt.
            busy_s: how long to repeat it while the server says "later".
            away_s: how long to repeat it while the server does not answer.

        Raises:
            RefusedError: the server refuses for good, or for longer than that.
        """
        headers = {"Accept-Language": order.locale, "Idempotency-Key": order.key}
        began_s = time.monotonic()
        while True:
            try:
                async with self._http.request(method, path, data=body and body(), headers=headers) as response:
                    if response.status == 200:
                        return await response.read()
                    refusal = (await response.json())["guard"]
            except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
                log.info("%s %s: %r", method, path, error)
                if time.monotonic() > began_s + away_s:
                    raise RefusedError(order.text("away")) from error
                await asyncio.sleep(1)
            else:
                if not refusal["retryable"] or time.monotonic() > began_s + busy_s:
                    raise RefusedError(refusal["user_message"])
                await asyncio.sleep(refusal["retry_after_s"] or 1)


def workflow(caption: str) -> dict[str, Any]:
    nodes: dict[str, Any] = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    for node in nodes.values():
        match node.get("_meta", {}).get("title"):
            case "Photo":
                node["inputs"]["image"] = "photo"  # the name of the form's field
            case "Prompt":
                node["inputs"]["text"] = caption
    return nodes


# The shop. -----------------------------------------------------------------------------------------------------


class Shop:
    """Carry orders from the photo to the result."""

    def __init__(self, bot: Bot, ledger: Ledger, guarded: Guarded) -> None:
        self._bot = bot
        self._ledger = ledger
        self._guarded = guarded
        self._carrying: set[asyncio.Task[None]] = set()

    def resume(self) -> None:
        """Continue the orders that were open when the bot ended."""
        for order in self._ledger.open_orders():
            self._start(order)

    async def take_photo(self, message: Message) -> None:
        """Record the order before returning: only then does Telegram learn that the message has arrived."""
        if order := self._ledger.take(message):
            self._start(order)

    async def greet(self, message: Message) -> None:
        await message.answer(
            TEXTS["hello"][read_language(message)].format(credits=self._ledger.balance(message.chat.id))
        )

    def _start(self, order: Order) -> None:
        task = asyncio.create_task(self._carry(order))
        self._carrying.add(task)  # asyncio itself keeps no task alive
        task.add_done_callback(self._carrying.discard)

    async def _carry(self, order: Order) -> None:
        """Take the order from its state to its end, step by step."""
        steps = {"new": self._pay, "paid": self._submit, "sent": self._follow, "ended": self._tell}
        while order.state != "done":
            try:
                await steps[order.state](order)
            except RefusedError as refused:
                self._ledger.end(order, {"text": str(refused)}, refund=True)
            except Exception:
                log.exception("order %d", order.id)
                await asyncio.sleep(5)

    async def _pay(self, order: Order) -> None:
        await self._notice(order, order.text("taken"))
        photo = await self._download(order)
        await self._guarded.request(order, "POST", "/guarded/face-check", lambda: photo, away_s=PATIENCE_S)
        if not self._ledger.pay(order):
            raise RefusedError(order.text("poor"))

    async def _submit(self, order: Order) -> None:
        job_id = await self._guarded.submit(order, await self._download(order))
        self._ledger.note(order, state="sent", job_id=job_id)

    async def _follow(self, order: Order) -> None:
        async for event, data in self._guarded.events(order):
            if event == "position" and data["user_message"]:
                await self._notice(order, data["user_message"])
            elif event == "state" and data["state"] == "running":
                await self._notice(order, order.text("working"))
            elif event == "state" and data["settled_at_ms"]:
                error = data["error"]
                ending = {"text": error["user_message"]} if error else {"artifacts": data["artifacts"]}
                self._ledger.end(order, ending, refund=data["refund"])
                return

    async def _tell(self, order: Order) -> None:
        ending = json.loads(order.ending or "{}")
        chat = order.chat_id
        reply = {"reply_parameters": ReplyParameters(message_id=order.message_id, allow_sending_without_reply=True)}
        if order.notice_id:
            await self._call(self._bot.delete_message, chat, order.notice_id)
        for artifact in ending.get("artifacts", ()):
            data = await self._guarded.request(order, "GET", artifact["url"], busy_s=math.inf)
            file = BufferedInputFile(data, artifact["filename"])
            # Telegram takes as a document what it refuses as a photo.
            sent = artifact["kind"] == "image" and await self._call(self._bot.send_photo, chat, file, **reply)
            if not sent:
                await self._call(self._bot.send_document, chat, file, **reply)
        if "text" in ending:
            await self._call(self._bot.send_message, chat, ending["text"], **reply)
        self._ledger.note(order, state="done")

    async def _notice(self, order: Order, text: str) -> None:
        """Show how things stand, in one message that is sent first and edited from then on."""
        if order.notice_id is None:
            sent = await self._call(self._bot.send_message, order.chat_id, text)
            self._ledger.note(order, notice_id=sent and sent.message_id)
        else:
            edit = self._bot.edit_message_text
            await self._call(edit, text, chat_id=order.chat_id, message_id=order.notice_id)

    async def _download(self, order: Order) -> bytes:
        file = await self._call(self._bot.download, order.photo)
        if file is None:
            raise RefusedError(order.text("lost"))
        return bytes(file.read())

    async def _call(self, call: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Call Telegram until it answers; None if it refuses: the user blocked the bot, the text is the same, …"""
        while True:
            try:
                return await call(*args, **kwargs)
            except TelegramRetryAfter as error:
                await asyncio.sleep(error.retry_after)
            except (TelegramNetworkError, TelegramServerError, aiohttp.ClientError, asyncio.TimeoutError):
                await asyncio.sleep(1)
            except TelegramAPIError as error:
                log.info("Telegram: %s", error)
                return None


async def main() -> None:
    logging.basicConfig(level=logging.INFO)
    # Or a Bot API server of your own, as in the tests.
    server = TelegramAPIServer.from_base(os.environ.get("TELEGRAM_URL", "https://api.telegram.org"))
    bot = Bot(os.environ["BOT_TOKEN"], session=AiohttpSession(api=server))
    headers = {"Authorization": f"Bearer {GUARDED_KEY}"} if GUARDED_KEY else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=90)
    async with aiohttp.ClientSession(GUARDED_URL, headers=headers, timeout=timeout) as http:
        shop = Shop(bot, Ledger(LEDGER), Guarded(http))
        shop.resume()
        dispatcher = Dispatcher()
        dispatcher.message.register(shop.take_photo, F.photo)
        dispatcher.message.register(shop.greet)
        # One update after the other: Telegram forgets a message as soon as the bot asks for the next ones.
        await dispatcher.start_polling(bot, handle_as_tasks=False)


if __name__ == "__main__":
    asyncio.run(main())
