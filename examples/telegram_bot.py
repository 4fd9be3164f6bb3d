# Over 400 lines: a bot that is copied is read from top to bottom.
"""A Telegram bot that sells generations for credits, on a guarded ComfyUI. Copy it and guarded.py, and make it yours.

    pip install "aiogram>=3.13,<4"
    BOT_TOKEN=123:abc python telegram_bot.py

A user sends a photo, or an album. The bot checks that it shows a face, takes the price, submits the job together with
the photo, shows the place in the queue with a button to cancel, and sends the result. If there is none, it says why and
gives the price back.

The bot may be killed at any moment. Its ledger (SQLite) holds all orders, and the next start continues each from its
state:

    new ── face found, price taken ──> paid ── job made ──> sent ── job settled ──> ended ── user told ──> done

One commit takes the price and makes the order `paid`, another gives it back and makes the order `ended`, so neither
can happen twice. The bot may submit again and again, because the `Idempotency-Key` makes that one job. Only messages
to the user are not part of a commit: a bot killed after it sent one, but before it noted that, sends it again. A
ledger that is gone is made anew of the server's jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
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
from aiogram.types import (
    BufferedInputFile,
    CallbackQuery,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    Message,
    ReplyParameters,
)
from guarded import AwayError, Guarded, GuardedError, RefusedError, Update

log = logging.getLogger("bot")

GUARDED_URL = os.environ.get("GUARDED_URL", "http://127.0.0.1:8188")
#: `keys create my-bot --bot` makes one. A bot on the same machine needs none.
GUARDED_KEY = os.environ.get("GUARDED_KEY", "")
#: In API format. The node titled "Photo" gets the photo, the node titled "Prompt" its caption.
WORKFLOW = Path(os.environ.get("WORKFLOW") or Path(__file__).parents[1] / "workflows/api/photo_check.json")
LEDGER = os.environ.get("LEDGER", "ledger.db")
FREE_CREDITS = int(os.environ.get("FREE_CREDITS", "3"))
#: What the workflow costs, and each template of the server: a caption such as "sdxl_face: an astronaut" chooses one.
PRICE = 1
PRICES: dict[str, int] = json.loads(os.environ.get("PRICES", "{}"))
#: The Telegram ids of those who may give credits back with /refund.
OWNERS = {int(owner) for owner in os.environ.get("OWNERS", "").split(",") if owner}
#: How long to repeat a request to a server that is busy or does not answer, before the price is taken.
PATIENCE_S = 120.0
#: After how long without the server to say so, and to give the price back.
NOTICE_S = float(os.environ.get("NOTICE_S", "15"))
LOST_S = float(os.environ.get("LOST_S", "3600"))
#: Results so young are sent once more where the ledger was lost: nobody knows whether they had been.
RESENT_S = 3600
#: Telegram allows 30 calls in any second, and one a second in a chat; edits may be rarer.
CALLS_PER_S = float(os.environ.get("CALLS_PER_S", "25"))
CHAT_PAUSE_S = float(os.environ.get("CHAT_PAUSE_S", "1.1"))
EDIT_PAUSE_S = float(os.environ.get("EDIT_PAUSE_S", "3"))

#: The bot's own texts. Those about the generation come from the server, in the user's language.
TEXTS = {
    "hello": {"ru": "Пришлите фото. Кредитов: {credits}.", "en": "Send me a photo. Credits: {credits}."},
    "prices": {
        "ru": "Чтобы выбрать стиль, начните подпись к фото с названия стиля и двоеточия. Цены в кредитах: {prices}.",
        "en": "To choose a style, begin the photo's caption with its name and a colon. Prices in credits: {prices}.",
    },
    "taken": {"ru": "Фото получено, смотрим…", "en": "Got your photo, having a look…"},
    "working": {"ru": "Генерация началась…", "en": "The generation has begun…"},
    "poor": {"ru": "Кредитов не хватает.", "en": "You do not have enough credits."},
    "lost": {"ru": "Не удалось получить фото. Отправьте его еще раз.", "en": "Your photo did not arrive. Try again."},
    "away": {"ru": "Сервер генерации недоступен. Попробуйте позже.", "en": "The server is away. Try again later."},
    "waiting": {
        "ru": "Сервер генерации пока не отвечает. Заказ не потерян: как только связь вернется, все продолжится.",
        "en": "The server does not answer at the moment. Your order is safe and goes on as soon as it does.",
    },
    "given_up": {
        "ru": "Сервер генерации так и не ответил. Кредиты возвращены.",
        "en": "The server did not come back. Your credits were returned.",
    },
    "cancel": {"ru": "Отменить", "en": "Cancel"},
    "cancelling": {"ru": "Отменяем…", "en": "Cancelling…"},
    "gone": {"ru": "Результат больше недоступен. Кредиты возвращены.", "en": "The result is gone. Credits returned."},
    "refunded": {"ru": "Вам возвращено кредитов: {credits}.", "en": "Credits returned to you: {credits}."},
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
    product: str
    price: int
    key: str
    state: str
    notice_id: int | None
    job_id: str | None
    ending: str | None
    cancelled: int

    def text(self, name: str, **facts: object) -> str:
        return TEXTS[name][self.locale].format(**facts)

    def facts(self) -> dict[str, Any]:
        """What the server keeps with the job, so that the ledger can be made anew of it."""
        names = ("id", "chat_id", "message_id", "locale", "photo", "caption", "product", "price")
        return {"order": self.id, **{name: getattr(self, name) for name in names}}


class Ledger:
    """Keep orders and credits. Every change is one commit, which takes about a millisecond."""

    SCHEMA = """
        CREATE TABLE IF NOT EXISTS orders (
            id INTEGER PRIMARY KEY, chat_id INTEGER, message_id INTEGER, locale TEXT, photo TEXT, caption TEXT,
            product TEXT, price INTEGER, key TEXT, state TEXT, notice_id INTEGER, job_id TEXT, ending TEXT,
            cancelled INTEGER DEFAULT 0, UNIQUE (chat_id, message_id));
        CREATE INDEX IF NOT EXISTS open_orders ON orders (id) WHERE state != 'done';
        CREATE TABLE IF NOT EXISTS entries (
            chat_id INTEGER, order_id INTEGER, kind TEXT, credits INTEGER, UNIQUE (order_id, kind));
        CREATE UNIQUE INDEX IF NOT EXISTS one_gift ON entries (chat_id) WHERE kind = 'gift';
        CREATE INDEX IF NOT EXISTS of_chat ON entries (chat_id);
    """

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path)
        self._db.executescript(self.SCHEMA)

    @property
    def is_whole(self) -> bool:
        """Whether it has been made anew of the server's jobs, if it ever was empty."""
        return bool(self._db.execute("PRAGMA user_version").fetchone()[0])

    def restore(self, jobs: list[dict[str, Any]]) -> None:
        """Write the orders and bookings of these jobs, all in one commit."""
        with self._db:
            for job in jobs:
                if job.get("retry_of"):  # an operator's, for which nobody has paid
                    continue
                facts = job["metadata"]
                row = [facts[name] for name in ("id", "chat_id", "message_id", "locale", "photo", "caption")]
                made = self._db.execute(
                    "INSERT OR IGNORE INTO orders (id, chat_id, message_id, locale, photo, caption, product, price,"
                    " key, state, job_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'sent', ?) RETURNING *",
                    (*row, facts["product"], facts["price"], job["idempotency_key"], job["job_id"]),
                ).fetchone()
                if made:
                    order = Order(*made)
                    self._give_gift(order.chat_id)
                    self._book(order, "charge", -order.price)
                    if job["settled_at_ms"] and job["settled_at_ms"] < (time.time() - RESENT_S) * 1000:
                        if job["refund"]:
                            self._refund(order)
                        self._write(order, {"state": "done"})
            self._db.execute("PRAGMA user_version = 1")

    def _give_gift(self, chat_id: int) -> None:
        self._db.execute("INSERT OR IGNORE INTO entries VALUES (?, NULL, 'gift', ?)", (chat_id, FREE_CREDITS))

    def balance(self, chat_id: int) -> int:
        with self._db:
            self._give_gift(chat_id)
            (credits,) = self._db.execute("SELECT sum(credits) FROM entries WHERE chat_id = ?", (chat_id,)).fetchone()
        return int(credits)

    def abandoned_orders(self) -> list[Order]:
        """Those that were given up while the server was away, and whose jobs must not run."""
        return [Order(*row) for row in self._db.execute("SELECT * FROM orders WHERE cancelled = 2")]

    def open_orders(self) -> list[Order]:
        return [Order(*row) for row in self._db.execute("SELECT * FROM orders WHERE state != 'done' ORDER BY id")]

    def find(self, order_id: int) -> Order | None:
        row = self._db.execute("SELECT * FROM orders WHERE id = ?", (order_id,)).fetchone()
        return Order(*row) if row else None

    def take(self, message: Message) -> Order | None:
        """Record a new order; None if it is already there, since Telegram may deliver a message twice."""
        assert message.photo
        chat_id, photo, caption = message.chat.id, message.photo[-1].file_id, message.caption or ""
        name, colon, rest = caption.partition(":")
        chosen = bool(colon) and name.strip() in PRICES
        product, caption = (name.strip(), rest.strip()) if chosen else ("", caption)
        with self._db:
            row = self._db.execute(
                "INSERT OR IGNORE INTO orders (chat_id, message_id, locale, photo, caption, product, price, key, state)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'new') RETURNING *",
                (chat_id, message.message_id, read_language(message), photo, caption, product,
                 PRICES.get(product, PRICE), str(uuid.uuid4())),
            ).fetchone()  # fmt: skip
        return Order(*row) if row else None

    def note(self, order: Order, **changes: Any) -> None:
        with self._db:
            self._write(order, changes)

    def pay(self, order: Order) -> bool:
        """Take the price; False if the user has too few credits."""
        if self.balance(order.chat_id) < order.price:
            return False
        with self._db:
            self._book(order, "charge", -order.price)
            self._write(order, {"state": "paid"})
        return True

    def end(self, order: Order, ending: dict[str, Any], *, refund: bool) -> None:
        """Record how the order ended; with `refund`, also give back what it cost."""
        with self._db:
            if refund:
                self._refund(order)
            self._write(order, {"state": "ended", "ending": json.dumps(ending)})

    def refund(self, order: Order) -> int:
        """Give back what the order cost, unless that was done. Returns the credits."""
        with self._db:
            return self._refund(order)

    def _refund(self, order: Order) -> int:
        row = self._db.execute(
            "INSERT OR IGNORE INTO entries SELECT chat_id, order_id, 'refund', -credits FROM entries"
            " WHERE order_id = ? AND kind = 'charge' RETURNING credits",
            (order.id,),
        ).fetchone()
        return int(row[0]) if row else 0

    def _book(self, order: Order, kind: str, credits: int) -> None:
        self._db.execute("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?)", (order.chat_id, order.id, kind, credits))

    def _write(self, order: Order, changes: dict[str, Any]) -> None:
        columns = ", ".join(f"{name} = ?" for name in changes)
        self._db.execute(f"UPDATE orders SET {columns} WHERE id = ?", (*changes.values(), order.id))
        for name, value in changes.items():
            setattr(order, name, value)


# Telegram. -----------------------------------------------------------------------------------------------------


class Pace:
    """Let calls of Telegram go no faster than it allows: in all, and in each chat.

    Nobody knows when Telegram hears of a call, only that it has by its answer. So a call counts from its beginning to a
    second after its answer, and a chat's pause begins with the answer.
    """

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(max(int(CALLS_PER_S), 1))
        #: By chat: when its last call was answered, and who waits for the next.
        self._last_s: dict[int, float] = {}
        self._lines: dict[int, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def turn(self, chat_id: int | None = None) -> AsyncIterator[None]:
        """Wait for the chat's turn, then for a place among all; the call is made within the block."""
        if chat_id is None:
            async with self._place():
                yield
            return
        async with self._lines.setdefault(chat_id, asyncio.Lock()):
            await asyncio.sleep(self._last_s.get(chat_id, 0.0) + CHAT_PAUSE_S - time.monotonic())
            async with self._place():
                try:
                    yield
                finally:
                    self._last_s[chat_id] = time.monotonic()
        if len(self._last_s) > 10_000:
            self._forget_quiet_chats()

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        await self._places.acquire()
        try:
            yield
        finally:
            asyncio.get_running_loop().call_later(1, self._places.release)

    def _forget_quiet_chats(self) -> None:
        quiet_s = time.monotonic() - EDIT_PAUSE_S
        for chat_id in [chat_id for chat_id, last_s in self._last_s.items() if last_s < quiet_s]:
            if not self._lines[chat_id].locked():
                del self._last_s[chat_id], self._lines[chat_id]

    def rest_s(self, chat_id: int) -> float:
        """How long the chat's last message is too new to edit one."""
        return self._last_s.get(chat_id, 0.0) + EDIT_PAUSE_S - time.monotonic()


class Messenger:
    """Call Telegram at its pace until it answers."""

    def __init__(self, bot: Bot) -> None:
        self._bot = bot
        self._pace = Pace()
        #: What each notice should say, in the order in which they came to: (chat, message) → text, buttons.
        self._wanted: dict[tuple[int, int], tuple[str, InlineKeyboardMarkup | None]] = {}
        self._shown: dict[tuple[int, int], str] = {}
        self._news = asyncio.Event()

    async def call(
        self, call: Callable[..., Awaitable[Any]], *args: Any, chat: int | None = None, **kwargs: Any
    ) -> Any:
        """Returns None if Telegram refuses: the user blocked the bot, the text is the same, …"""
        while True:
            try:
                async with self._pace.turn(chat):
                    return await call(*args, **kwargs)
            except TelegramRetryAfter as error:
                await asyncio.sleep(error.retry_after)
            except (TelegramNetworkError, TelegramServerError, aiohttp.ClientError, asyncio.TimeoutError):
                await asyncio.sleep(1)
            except TelegramAPIError as error:
                log.info("Telegram: %s", error)
                return None

    def show(self, chat_id: int, message_id: int, text: str, buttons: InlineKeyboardMarkup | None) -> None:
        """Have a notice say this, soon: only the last text counts."""
        if self._shown.get((chat_id, message_id)) != text:
            self._wanted[chat_id, message_id] = text, buttons
            self._news.set()

    def forget(self, chat_id: int, message_id: int) -> None:
        self._wanted.pop((chat_id, message_id), None)
        self._shown.pop((chat_id, message_id), None)

    async def edit_notices(self) -> None:
        """Edit one notice after the other, those of a chat no more often than every `EDIT_PAUSE_S`."""
        while True:
            await self._news.wait()
            rests = {at: self._pace.rest_s(at[0]) for at in self._wanted}
            due = next((at for at, rest_s in rests.items() if rest_s <= 0), None)
            if due is None:
                self._news.clear()
                if rests:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._news.wait(), min(rests.values()))
                    self._news.set()
                continue
            text, buttons = self._wanted.pop(due)
            self._shown[due] = text
            chat_id, message_id = due
            edit = self._bot.edit_message_text
            await self.call(edit, text, chat_id=chat_id, message_id=message_id, reply_markup=buttons, chat=chat_id)


# The shop. -----------------------------------------------------------------------------------------------------


class Shop:
    """Carry orders from the photo to the result."""

    def __init__(self, bot: Bot, ledger: Ledger, guarded: Guarded) -> None:
        self._bot = bot
        self._ledger = ledger
        self._guarded = guarded
        self._telegram = Messenger(bot)
        self._carrying: dict[int, Order] = {}
        #: Photos of orders that have not been submitted.
        self._photos: dict[int, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Continue the orders that were open when the bot ended; before that, make a lost ledger anew."""
        self._spawn(self._telegram.edit_notices())
        if not self._ledger.is_whole:
            log.info("the ledger is new: asking the server for orders that it does not have")
            self._ledger.restore(await self._list_jobs())
        for order in self._ledger.abandoned_orders():
            self._spawn(self._abandon(order))
        for order in self._ledger.open_orders():
            self._start(order)

    async def _list_jobs(self, **filters: Any) -> list[dict[str, Any]]:
        """All jobs of ours that match, however long the server is away."""
        while True:
            with contextlib.suppress(AwayError):
                return [job async for job in self._guarded.jobs(**filters) if "chat_id" in job["metadata"]]

    async def take_photo(self, message: Message) -> None:
        """Record the order before returning: only then does Telegram learn that the message has arrived.

        Each photo of an album is a message, and an order, of its own.
        """
        if order := self._ledger.take(message):
            self._start(order)

    async def answer(self, message: Message) -> None:
        """Not in the way of the next update: Telegram's pace may make this wait."""
        words = (message.text or "").split()
        is_owner = message.from_user is not None and message.from_user.id in OWNERS
        is_refund = is_owner and len(words) == 2 and words[0] == "/refund" and words[1].isdigit()
        self._spawn(self._refund(message, int(words[1])) if is_refund else self._greet(message))

    async def _greet(self, message: Message) -> None:
        texts = {name: TEXTS[name][read_language(message)] for name in ("hello", "prices")}
        told = texts["hello"].format(credits=self._ledger.balance(message.chat.id))
        if PRICES:
            prices = ", ".join(f"{name} – {price}" for name, price in PRICES.items())
            told += " " + texts["prices"].format(prices=prices)
        await self._telegram.call(message.answer, told, chat=message.chat.id)

    async def _refund(self, message: Message, order_id: int) -> None:
        """`/refund 17`, by an owner: give back what order 17 cost, and tell its user."""
        order = self._ledger.find(order_id)
        credits = self._ledger.refund(order) if order is not None else 0
        if order is not None and credits:
            told = order.text("refunded", credits=credits)
            await self._telegram.call(self._bot.send_message, order.chat_id, told, chat=order.chat_id)
        await self._telegram.call(message.answer, f"#{order_id}: {credits}", chat=message.chat.id)

    async def cancel(self, query: CallbackQuery) -> None:
        """The button: note the wish, then pass it on. What has ended by then has ended."""
        order = self._carrying.get(int((query.data or "").partition(":")[2] or 0))
        text = None
        if order is not None and order.chat_id == query.from_user.id and order.state != "ended":
            self._ledger.note(order, cancelled=1)
            if order.job_id is not None:
                self._spawn(self._cancel_job(order.job_id))
            text = order.text("cancelling")
        self._spawn(self._telegram.call(self._bot.answer_callback_query, query.id, text=text))

    async def _cancel_job(self, job_id: str) -> None:
        with contextlib.suppress(GuardedError):
            await self._guarded.cancel(job_id)

    async def _abandon(self, order: Order) -> None:
        """Once the server is back, cancel the job that the order may have there: its price was given back."""
        for job in await self._list_jobs(idempotency_key=order.key):
            await self._cancel_job(job["job_id"])
        self._ledger.note(order, cancelled=1)

    def _start(self, order: Order) -> None:
        self._carrying[order.id] = order
        self._spawn(self._carry(order))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself keeps no task alive
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, order: Order) -> None:
        """Take the order from its state to its end, step by step."""
        steps = {"new": self._pay, "paid": self._submit, "sent": self._follow, "ended": self._tell}
        while order.state != "done":
            try:
                await steps[order.state](order)
            except AwayError:
                # Nobody knows whether the job exists, or how it ended. Should the server come back, it is not to run.
                if order.state != "new":
                    self._ledger.note(order, cancelled=2)
                    self._spawn(self._abandon(order))
                text = order.text("away" if order.state == "new" else "given_up")
                self._ledger.end(order, {"text": text}, refund=True)
            except GuardedError as error:
                self._ledger.end(order, {"text": error.user_message}, refund=True)
            except Exception:
                log.exception("order %d", order.id)
                await asyncio.sleep(5)
        self._carrying.pop(order.id, None)
        self._photos.pop(order.id, None)

    async def _pay(self, order: Order) -> None:
        await self._notice(order, order.text("taken"))
        photo = await self._download(order)
        if photo is None:
            return self._ledger.end(order, {"text": order.text("lost")}, refund=False)
        await self._guarded.check_face(photo, order.locale, busy_s=PATIENCE_S, away_s=PATIENCE_S)
        if not self._ledger.pay(order):
            self._ledger.end(order, {"text": order.text("poor")}, refund=False)

    async def _submit(self, order: Order) -> None:
        photo = await self._download(order)
        if photo is None:
            return self._ledger.end(order, {"text": order.text("lost")}, refund=True)
        job: dict[str, Any] = {"photo": photo}
        if order.product and order.caption:
            job["prompt"] = order.caption
        what = order.product or workflow(order.caption)
        away = asyncio.get_running_loop().call_later(NOTICE_S, self._say_away, order)
        try:
            answer = await self._guarded.submit(
                what, key=order.key, user=str(order.chat_id), locale=order.locale, metadata=order.facts(), **job
            )
        except RefusedError as refused:
            if refused.code != "conflict" or refused.job_id is None:
                raise
            answer = {"prompt_id": refused.job_id, "guard": {}}  # it is there, and may deliver
        finally:
            away.cancel()
        self._photos.pop(order.id, None)
        self._ledger.note(order, state="sent", job_id=answer["prompt_id"])
        if order.cancelled:
            self._spawn(self._cancel_job(answer["prompt_id"]))
        if text := answer["guard"].get("user_message"):
            await self._notice(order, text)

    def _say_away(self, order: Order) -> None:
        if order.notice_id is not None:
            self._telegram.show(order.chat_id, order.notice_id, order.text("waiting"), self._buttons(order))

    async def _follow(self, order: Order) -> None:
        async def show(update: Update) -> None:
            if update.kind == "position" and update.text:
                await self._notice(order, update.text)
            elif update.kind == "away":
                await self._notice(order, order.text("waiting"))
            elif update.kind == "state" and update.data["state"] == "running":
                await self._notice(order, order.text("working"))

        assert order.job_id is not None
        job = await self._guarded.follow(order.job_id, show, away_s=LOST_S)
        error = job["error"]
        ending = {"text": error["user_message"]} if error else {"artifacts": job["artifacts"]}
        self._ledger.end(order, ending, refund=job["refund"])

    async def _tell(self, order: Order) -> None:
        ending = json.loads(order.ending or "{}")
        chat = order.chat_id
        reply = {"reply_parameters": ReplyParameters(message_id=order.message_id, allow_sending_without_reply=True)}
        files = []
        for artifact in ending.get("artifacts", ()):
            try:
                files.append((artifact, await self._guarded.fetch(artifact)))
            except RefusedError:  # nobody fetched it in time
                return self._ledger.end(order, {"text": order.text("gone")}, refund=True)
        if order.notice_id:
            self._telegram.forget(chat, order.notice_id)
            await self._telegram.call(self._bot.delete_message, chat, order.notice_id, chat=chat)
        for artifact, data in files:
            file = BufferedInputFile(data, artifact["filename"])
            # Telegram takes as a document what it refuses as a photo.
            call = self._telegram.call
            sent = artifact["kind"] == "image" and await call(self._bot.send_photo, chat, file, chat=chat, **reply)
            if not sent:
                await call(self._bot.send_document, chat, file, chat=chat, **reply)
        if "text" in ending:
            await self._telegram.call(self._bot.send_message, chat, ending["text"], chat=chat, **reply)
        self._ledger.note(order, state="done")

    async def _notice(self, order: Order, text: str) -> None:
        """Show how things stand, in one message that is sent first and edited from then on."""
        if order.notice_id is None:
            buttons = self._buttons(order)
            send = self._bot.send_message
            sent = await self._telegram.call(
                send, order.chat_id, text, reply_markup=buttons, chat=order.chat_id, disable_notification=True
            )
            self._ledger.note(order, notice_id=sent and sent.message_id)
        else:
            self._telegram.show(order.chat_id, order.notice_id, text, self._buttons(order))

    def _buttons(self, order: Order) -> InlineKeyboardMarkup:
        button = InlineKeyboardButton(text=order.text("cancel"), callback_data=f"cancel:{order.id}")
        return InlineKeyboardMarkup(inline_keyboard=[[button]])

    async def _download(self, order: Order) -> bytes | None:
        """The photo; None where Telegram does not have it."""
        if (known := self._photos.get(order.id)) is None:
            file = await self._telegram.call(self._bot.download, order.photo)
            if file is None:
                return None
            known = self._photos[order.id] = bytes(file.read())
        return known


def workflow(caption: str) -> dict[str, Any]:
    nodes: dict[str, Any] = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    for node in nodes.values():
        match node.get("_meta", {}).get("title"):
            case "Photo":
                node["inputs"]["image"] = "photo"  # the name of the form's field
            case "Prompt":
                node["inputs"]["text"] = caption
    return nodes


async def main() -> None:
    logging.basicConfig(level=logging.INFO)
    # Or a Bot API server of your own, as in the tests.
    server = TelegramAPIServer.from_base(os.environ.get("TELEGRAM_URL", "https://api.telegram.org"))
    bot = Bot(os.environ["BOT_TOKEN"], session=AiohttpSession(api=server))
    patience = {"busy_s": LOST_S, "away_s": LOST_S, "notice_s": NOTICE_S}
    async with Guarded(GUARDED_URL, GUARDED_KEY, **patience) as guarded:
        shop = Shop(bot, Ledger(LEDGER), guarded)
        await shop.open()
        dispatcher = Dispatcher()
        dispatcher.message.register(shop.take_photo, F.photo)
        dispatcher.message.register(shop.answer)
        dispatcher.callback_query.register(shop.cancel, F.data.startswith("cancel:"))
        # One update after the other: Telegram forgets a message as soon as the bot asks for the next ones.
        await dispatcher.start_polling(bot, handle_as_tasks=False)


if __name__ == "__main__":
    asyncio.run(main())
