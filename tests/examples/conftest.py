"""The bot of examples/ as a process of its own, between a Telegram of the test's and a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from contract.client import PATIENCE_S, node
from examples.telegram import Sent, Telegram, telegram
from faces import photos

from comfyui_guarded.guard.owners import FOLDER
from comfyui_guarded.tests.hosts.launch import ROOT, HostProcess, sandbox_kind

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HOST_NODES = Path(__file__).parent / "host_nodes"


def titled(title: str, each: dict[str, Any]) -> dict[str, Any]:
    return {**each, "_meta": {"title": title}}


#: Words that no job may have: they name another owner's file.
REFUSED = f"{FOLDER}/somebody-0123456789abcdef0123456789abcdef/x.png"

#: A workflow that ends as the words under the photo say.
ENDING_BY_TEXT = {
    "1": titled("Photo", node("LoadImage", image="")),
    "2": node("GuardedFaceCheck", image=["1", 0]),
    "3": titled("Prompt", node("NumberByText", text="")),
    "4": titled("Prompt", node("EndingByText", image=["2", 0], text="", steps=["3", 0])),
}


class BotProcess:
    """examples/telegram_bot.py, started with `environment`; its ledger outlives it."""

    def __init__(self, folder: Path, telegram_url: str, guarded_url: str, **environment: str) -> None:
        self.ledger = folder / "ledger.db"
        self.log = folder / "bot.log"
        workflow = folder / "workflow.json"
        workflow.write_text(json.dumps(ENDING_BY_TEXT))
        self._environment = {
            "BOT_TOKEN": "42:TEST",
            "TELEGRAM_URL": telegram_url,
            "GUARDED_URL": guarded_url,
            "WORKFLOW": str(workflow),
            "LEDGER": str(self.ledger),
            # Telegram's clock runs fast.
            "CALLS_PER_S": "1000",
            "CHAT_PAUSE_S": "0.02",
            "EDIT_PAUSE_S": "0.1",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(EXAMPLES / "telegram_bot.py")],
                env={**inherited, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def rows(self, query: str, *values: object) -> list[Any]:
        """Of the ledger; none before the bot has made it."""
        with contextlib.suppress(sqlite3.OperationalError):
            return self._rows(query, values)
        return []

    def _rows(self, query: str, values: tuple[object, ...]) -> list[Any]:
        with contextlib.closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True, timeout=30)) as db:
            return db.execute(query, values).fetchall()

    def entries(self, message_id: int) -> list[tuple[str, int]]:
        """What was booked for the photo in that message."""
        query = (
            "SELECT kind, credits FROM entries JOIN orders ON orders.id = order_id WHERE message_id = ?"
            " ORDER BY entries.rowid"
        )
        return self.rows(query, message_id)

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-60:])


@dataclass(frozen=True)
class Shop:
    """Telegram, the bot, and the server that it has its generations from."""

    messenger: Telegram
    bot: BotProcess
    host: HostProcess

    def orders(self, condition: str, *values: object) -> list[Any]:
        return self.bot.rows(f"SELECT * FROM orders WHERE {condition}", *values)

    async def done(self, *message_ids: int, within_s: float = PATIENCE_S) -> None:
        """Wait until the bot's ledger says that each of these photos has had its last word."""
        wanted = set(message_ids)

        def undone() -> set[int]:
            return wanted - {row[0] for row in self.bot.rows("SELECT message_id FROM orders WHERE state = 'done'")}

        await polled(undone, lambda left: not left, self.bot.tail, within_s)

    async def last_word(self, message_id: int) -> Sent:
        await self.done(message_id)
        (sent,) = self.messenger.answers(message_id)
        return sent


async def polled(
    look: Callable[[], Any],
    enough: Callable[[Any], Any] = bool,
    told: Callable[[], str] = str,
    within_s: float = PATIENCE_S,
) -> Any:
    ends_s = time.monotonic() + within_s
    while not enough(seen := await asyncio.to_thread(look)):
        assert time.monotonic() < ends_s, f"still {str(seen)[:2000]}\n{told()}"
        await asyncio.sleep(0.05)
    return seen


def new_key(host: HostProcess) -> str:
    command = [sys.executable, str(ROOT), "keys", "create", "my-bot", "--user", str(host.base / "user")]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    (key,) = re.findall(r"^\s*(\S{40,})$", made.stdout, re.MULTILINE)
    return str(key)


@asynccontextmanager
async def opened(folder: Path, settings: Mapping[str, str], **environment: str) -> AsyncIterator[Shop]:
    """A shop over `folder`; the bot gets `environment`, the server `settings`."""
    base = folder / "base"
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / "ending_by_text").symlink_to(HOST_NODES, target_is_directory=True)
    host = HostProcess(sandbox_kind(), base, environment=settings)
    environment["GUARDED_KEY"] = new_key(host)
    async with telegram() as messenger:
        bot = BotProcess(folder, messenger.url, host.url, **environment)
        try:
            bot.start()
            await asyncio.to_thread(host.start)
            yield Shop(messenger, bot, host)
        finally:
            bot.kill()
            host.kill()


@pytest.fixture(scope="session")
def face() -> bytes:
    return photos.jpeg(photos.sized(photos.photo("skimage/data/astronaut.png"), 256))


@pytest.fixture(scope="session")
def cat() -> bytes:
    return photos.jpeg(photos.sized(photos.photo("skimage/data/chelsea.png"), 256))
