"""Telegram, as far as a bot sees it: the Bot API over HTTP, in the test's own process, so that it outlives the bot."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Json = dict[str, Any]


@dataclass
class Sent:
    """A message of the bot's. `texts` holds what it said at first and after each edit."""

    chat_id: int
    message_id: int
    method: str
    texts: list[str]
    reply_to: int | None
    data: bytes = b""
    deleted: bool = False
    at_s: float = field(default_factory=time.monotonic)
    buttons: list[str] = field(default_factory=list)


@dataclass
class Telegram:
    """Keeps each update until it is confirmed, and everything the bot sends."""

    url: str = ""
    photos: dict[str, bytes] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    #: May answer in Telegram's stead: (method, parameters) → (status, body), or None.
    trouble: Callable[[str, Json], tuple[int, Json] | None] = lambda _method, _data: None
    #: Told of each request before it counts (False), where True keeps it from counting, and once it has counted (True).
    watcher: Callable[[str, bool], bool] = lambda _method, _counted: False
    #: So many messages a second in all, and so far apart within a chat, as Telegram has it: its published limits. More
    #: are answered with 429.
    messages_per_s: float = float("inf")
    chat_pause_s: float = 0.0
    refused: int = 0
    _recent: deque[float] = field(default_factory=deque)
    _last_in_chat: dict[str, float] = field(default_factory=dict)
    _updates: list[Json] = field(default_factory=list)
    _ids: Any = field(default_factory=lambda: itertools.count(1))
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def photo(self, user_id: int, data: bytes, caption: str = "", language: str = "ru") -> int:
        """A user sends a photo; the message's id."""
        file_id = f"photo{next(self._ids)}"
        self.photos[file_id] = data
        size = {"file_id": file_id, "file_unique_id": file_id, "width": 1, "height": 1}
        return self._message(user_id, language, photo=[size], **({"caption": caption} if caption else {}))

    def text(self, user_id: int, words: str, language: str = "ru") -> int:
        return self._message(user_id, language, text=words)

    def press(self, sent: Sent) -> None:
        """The user presses the first button below that message."""
        chat = {"id": sent.chat_id, "type": "private"}
        user = {"id": sent.chat_id, "is_bot": False, "first_name": "U", "language_code": "ru"}
        message = {"message_id": sent.message_id, "date": int(time.time()), "chat": chat}
        query = {"id": str(next(self._ids)), "from": user, "chat_instance": "1", "message": message}
        self._push_update({"callback_query": {**query, "data": sent.buttons[0]}})

    def again(self, message_id: int) -> None:
        """Bring a message once more, as Telegram does where the confirmation was lost."""
        messages = (update["message"] for update in self._all if "message" in update)
        (message,) = [message for message in messages if message["message_id"] == message_id]
        self._push(message)

    def answers(self, message_id: int) -> list[Sent]:
        """What the bot sent as a reply to that message: the final word."""
        return [sent for sent in self.sent if sent.reply_to == message_id]

    def notices(self, user_id: int) -> list[Sent]:
        return [sent for sent in self.sent if sent.chat_id == user_id and sent.reply_to is None]

    def _message(self, user_id: int, language: str, **content: Any) -> int:
        message_id = next(self._ids)
        user = {"id": user_id, "is_bot": False, "first_name": "U", "language_code": language}
        chat = {"id": user_id, "type": "private"}
        self._push({"message_id": message_id, "date": int(time.time()), "chat": chat, "from": user, **content})
        return message_id

    def __post_init__(self) -> None:
        self._all: list[Json] = []

    def _push(self, message: Json) -> None:
        self._push_update({"message": message})

    def _push_update(self, what: Json) -> None:
        update = {"update_id": next(self._ids), **what}
        self._updates.append(update)
        self._all.append(update)
        self._news.set()

    # The API. ------------------------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.Response:
        method = request.match_info["method"]
        data: Json = dict(await request.post())
        self.calls.append(method)
        if self.watcher(method, False):
            raise web.HTTPServiceUnavailable
        if (answer := self.trouble(method, data)) is not None:
            return web.json_response({"ok": False, "error_code": answer[0], **answer[1]}, status=answer[0])
        if self._is_too_much(method, data):
            self.refused += 1
            body = {
                "ok": False,
                "error_code": 429,
                "description": "Too Many Requests",
                "parameters": {"retry_after": 1},
            }
            return web.json_response(body, status=429)
        try:
            result = await getattr(self, f"_on_{method}")(data)
        except LookupError as error:
            body = {"ok": False, "error_code": 400, "description": f"Bad Request: {error}"}
            return web.json_response(body, status=400)
        self.watcher(method, True)
        return web.json_response({"ok": True, "result": result})

    def _is_too_much(self, method: str, data: Json) -> bool:
        if not method.startswith(("send", "edit", "delete")):
            return False
        now_s = time.monotonic()
        while self._recent and self._recent[0] < now_s - 1:
            self._recent.popleft()
        before_s = self._last_in_chat.get(data["chat_id"], 0.0)
        if len(self._recent) >= self.messages_per_s or now_s < before_s + self.chat_pause_s:
            return True
        self._recent.append(now_s)
        self._last_in_chat[data["chat_id"]] = now_s
        return False

    async def download(self, request: web.Request) -> web.Response:
        return web.Response(body=self.photos[request.match_info["path"]])

    async def _on_getMe(self, _data: Json) -> Json:
        return {"id": 42, "is_bot": True, "first_name": "bot", "username": "guarded_bot"}

    async def _on_getUpdates(self, data: Json) -> list[Json]:
        offset = int(data.get("offset", 0))
        self._updates = [update for update in self._updates if update["update_id"] >= offset]
        if not self._updates:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), float(data.get("timeout", 0)))
            except TimeoutError:
                return []
        return self._updates[:100]

    async def _on_getFile(self, data: Json) -> Json:
        return {"file_id": data["file_id"], "file_unique_id": data["file_id"], "file_path": data["file_id"]}

    async def _on_sendMessage(self, data: Json) -> Json:
        return self._sent("sendMessage", data, data["text"])

    async def _on_sendPhoto(self, data: Json) -> Json:
        upload = data[data["photo"].removeprefix("attach://")]
        return self._sent("sendPhoto", data, data.get("caption", ""), upload.file.read())

    async def _on_editMessageText(self, data: Json) -> Json:
        sent = self._found(data)
        if sent.texts[-1] == data["text"]:
            raise LookupError("message is not modified")
        sent.texts.append(data["text"])
        return self._shown(sent)

    async def _on_answerCallbackQuery(self, _data: Json) -> bool:
        return True

    async def _on_deleteMessage(self, data: Json) -> bool:
        self._found(data).deleted = True
        return True

    def _found(self, data: Json) -> Sent:
        for sent in self.sent:
            if (sent.chat_id, sent.message_id) == (int(data["chat_id"]), int(data["message_id"])) and not sent.deleted:
                return sent
        raise LookupError("message to edit not found")

    def _sent(self, method: str, data: Json, text: str, content: bytes = b"") -> Json:
        reply = json.loads(data["reply_parameters"])["message_id"] if "reply_parameters" in data else None
        sent = Sent(int(data["chat_id"]), next(self._ids), method, [text], reply, content)
        if "reply_markup" in data:
            rows = json.loads(data["reply_markup"])["inline_keyboard"]
            sent.buttons = [button["callback_data"] for row in rows for button in row]
        self.sent.append(sent)
        return self._shown(sent)

    def _shown(self, sent: Sent) -> Json:
        chat = {"id": sent.chat_id, "type": "private"}
        return {"message_id": sent.message_id, "date": int(time.time()), "chat": chat, "text": sent.texts[-1]}


@asynccontextmanager
async def telegram() -> AsyncIterator[Telegram]:
    fake = Telegram()
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/bot{token}/{method}", fake.handle)
    app.router.add_get("/file/bot{token}/{path}", fake.download)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()
