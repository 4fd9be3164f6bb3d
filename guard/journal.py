"""How the guard writes its log: one line per event, which no stranger's text can forge and which leaks no key.

Lines go where the host's own go or, with `log.format = "json"`, to stderr, one JSON object each. A record with an
exception from a node, whose text may quote the prompt, says so with `extra={"quotes_prompt": True}`: the log shows its
stack, but its text only at the level DEBUG. `extra={"facts": {…}}` adds facts to a JSON line, under their names.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
import traceback
from datetime import datetime, timezone
from typing import Any

from .errors import clip
from .owners import hide
from .settings import LogSettings

LOGGER = logging.getLogger("guarded")
#: Secrets: keys as `keys create` makes them, and whatever stands where keys and tokens are sent.
_SECRETS = re.compile(r"(gk_[0-9a-f]{8}_)[\w-]+|((?:Bearer|Basic) +)[^\s\"']+|(\b(?:api_key|token)\w*[=:] *)[^\s&\"']+")
_HIDDEN = "…"


#: Longer lines of the host's are cut: it quotes what senders have sent, and keeps its last 300 lines in memory.
LINE_CHARS = 2**14
#: How lines of the host's begin that strangers can cause at will.
_STRANGERS = ("WARNING: request with non matching host",)

#: Loggers that write a traceback for each connection, where a fault lasts: too many open files, say.
_REPEATING = ("asyncio", "aiohttp.server")


def install(settings: LogSettings) -> None:
    """Write the guard's records by these settings from now on. Call it once, at start."""
    LOGGER.setLevel(settings.level)
    LOGGER.handlers = [_Json() if settings.format == "json" else _Text()]
    LOGGER.propagate = False
    thin = _Thin()
    LOGGER.handlers[0].addFilter(thin)
    for old in [known for known in logging.getLogger().filters if isinstance(known, _Brief)]:
        logging.getLogger().removeFilter(old)
    logging.getLogger().addFilter(_Brief())
    for name in _REPEATING:
        logger = logging.getLogger(name)
        logger.filters = [*(kept for kept in logger.filters if not isinstance(kept, _Thin)), thin]


def clean(text: str) -> str:
    """Make one line of a text that moves no terminal's cursor, does not reverse its writing, and holds no secret.

    Secrets are keys, tokens, and the names of owners' folders.
    """
    if not text.isprintable():
        text = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    return hide(_SECRETS.sub(lambda match: f"{match[1] or match[2] or match[3]}{_HIDDEN}", text))


class _Text(logging.Handler):
    """Hands cleaned records to the host's own handlers, with the time where one of those writes none."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            copy = logging.makeLogRecord(record.__dict__)
            at = "" if _host_writes_times() else time.strftime("%Y-%m-%d %H:%M:%S ", time.localtime(record.created))
            copy.msg, copy.args = f"[guarded] {at}{clean(record.getMessage())}", ()
            copy.exc_info, copy.exc_text, copy.stack_info = None, None, None
            if lines := _format_stack(record):
                # Indent it, so that no line of an exception's text can pass for one of ours.
                copy.exc_text = "\n".join(f"    {line}" for line in lines)
            logging.getLogger().handle(copy)
        except Exception:
            self.handleError(record)


class _Json(logging.Handler):
    """One JSON object a line, ASCII only."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line: dict[str, Any] = {
                "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
                "level": record.levelname,
                "logger": record.name,
                "message": clean(record.getMessage()),
            }
            if (job_id := getattr(record, "job_id", None)) is not None:
                line["job_id"] = clean(str(job_id))
            facts = getattr(record, "facts", {})
            line |= {name: clean(fact) if isinstance(fact, str) else fact for name, fact in facts.items()}
            if lines := _format_stack(record):
                line["exception"] = "\n".join(lines)
            sys.stderr.write(json.dumps(line) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def _host_writes_times() -> bool:
    handlers = logging.getLogger().handlers
    return all(handler.formatter is not None and handler.formatter.usesTime() for handler in handlers)


def _format_stack(record: logging.LogRecord) -> list[str]:
    """Format the record's exception, line by line."""
    if not isinstance(record.exc_info, tuple) or record.exc_info[1] is None:
        return []
    error = record.exc_info[1]
    if getattr(record, "quotes_prompt", False) and not LOGGER.isEnabledFor(logging.DEBUG):
        parts = [*traceback.format_tb(error.__traceback__), type(error).__qualname__]
    else:
        parts = traceback.format_exception(type(error), error, error.__traceback__)
    return [clean(line) for part in parts for line in part.rstrip("\n").split("\n")]


#: A throttle forgets what it has seen rather than know more kinds than that.
_KINDS = 1000


class Throttle:
    """Lets one line a second through for each kind of event that strangers can cause at will. Any thread."""

    def __init__(self, every_s: float = 1.0) -> None:
        self._every_s = every_s
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, int]] = {}

    def take(self, kind: str) -> int | None:
        """Take a line's turn: return how many of its kind were skipped since the last; None: skip this one too."""
        now_s = time.monotonic()
        with self._lock:
            last_s, skipped = self._last.get(kind, (float("-inf"), 0))
            if now_s < last_s + self._every_s:
                self._last[kind] = last_s, skipped + 1
                return None
            if len(self._last) > _KINDS:
                self._last.clear()
            self._last[kind] = now_s, 0
            return skipped


class _Thin(logging.Filter):
    """Lets one traceback a second through of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self._throttle = Throttle()

    def filter(self, record: logging.LogRecord) -> bool:
        if not isinstance(record.exc_info, tuple):
            return True
        begin = str(record.msg).partition("\n")[0][:60]
        skipped = self._throttle.take(f"{record.name} {begin} {getattr(record.exc_info[0], '__name__', '')}")
        if skipped:
            record.msg, record.args = f"{record.getMessage()} ({skipped} more since the last)", ()
        return skipped is not None


class _Brief(logging.Filter):
    """Cuts long lines of the host's own, and lets one a second through of those that strangers cause."""

    def __init__(self) -> None:
        super().__init__()
        self._throttle = Throttle()

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str) and len(record.msg) <= LINE_CHARS and not record.args:  # nearly always
            message = record.msg
        else:
            try:
                message = record.getMessage()
            except Exception:
                return True  # the handler complains of it
        if message.startswith(_STRANGERS):
            if (skipped := self._throttle.take("strangers")) is None:
                return False
            more = f" ({skipped} more since the last)" if skipped else ""
            record.msg, record.args = f"{clip(message)}{more}", ()
        elif len(message) > LINE_CHARS:
            record.msg, record.args = f"{message[:LINE_CHARS]}… ({len(message)} characters)", ()
        return True
