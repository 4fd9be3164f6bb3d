"""How the guard writes its log: one line per event, none of which somebody else's text can forge or give away.

Lines go where the host's own go, or, with `log.format = "json"`, to stderr, one JSON object each. A record that
carries an exception raised by somebody's node, whose text may quote the prompt, says so with
`extra={"quotes_prompt": True}`: its stack is shown, and its text at the level DEBUG only.
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

from .settings import LogSettings

LOGGER = logging.getLogger("guarded")
#: What opens doors: keys as `keys create` makes them, and whatever stands where keys and tokens are sent.
_SECRETS = re.compile(r"(gk_[0-9a-f]{8}_)[\w-]+|((?:Bearer|Basic) +)[^\s\"']+|(\b(?:api_key|token)\w*[=:] *)[^\s&\"']+")
_HIDDEN = "…"


def install(settings: LogSettings) -> None:
    """Write the guard's records by these settings from now on. Called once, at start."""
    LOGGER.setLevel(settings.level)
    LOGGER.handlers = [_Json() if settings.format == "json" else _Text()]
    LOGGER.propagate = False


def clean(text: str) -> str:
    """In one line, nothing in it that moves a terminal's cursor or turns its writing round, and no key."""
    if not text.isprintable():
        text = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    return _SECRETS.sub(lambda found: f"{found[1] or found[2] or found[3]}{_HIDDEN}", text)


class _Text(logging.Handler):
    """Hands cleaned records to the host's own handlers."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            told = logging.makeLogRecord(record.__dict__)
            told.msg, told.args = f"[guarded] {clean(record.getMessage())}", ()
            told.exc_info, told.exc_text, told.stack_info = None, None, None
            if lines := _stack(record):
                # Indented, so that no line of an exception's text can pass for one of ours.
                told.exc_text = "\n".join(f"    {line}" for line in lines)
            logging.getLogger().handle(told)
        except Exception:
            self.handleError(record)


class _Json(logging.Handler):
    """One JSON object a line, ASCII only."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = {
                "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
                "level": record.levelname,
                "logger": record.name,
                "message": clean(record.getMessage()),
            }
            if (job_id := getattr(record, "job_id", None)) is not None:
                line["job_id"] = clean(str(job_id))
            if lines := _stack(record):
                line["exception"] = "\n".join(lines)
            sys.stderr.write(json.dumps(line) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def _stack(record: logging.LogRecord) -> list[str]:
    """The record's exception, line by line."""
    if not isinstance(record.exc_info, tuple) or record.exc_info[1] is None:
        return []
    error = record.exc_info[1]
    if getattr(record, "quotes_prompt", False) and not LOGGER.isEnabledFor(logging.DEBUG):
        parts = [*traceback.format_tb(error.__traceback__), type(error).__qualname__]
    else:
        parts = traceback.format_exception(type(error), error, error.__traceback__)
    return [clean(line) for part in parts for line in part.rstrip("\n").split("\n")]


class Throttle:
    """For events that strangers can cause as often as they like: one line a second for each kind. Any thread."""

    def __init__(self, every_s: float = 1.0) -> None:
        self._every_s = every_s
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, int]] = {}

    def take(self, kind: str) -> int | None:
        """How many of that kind have had no line since the last one; None: this one gets none either."""
        now_s = time.monotonic()
        with self._lock:
            last_s, others = self._last.get(kind, (float("-inf"), 0))
            if now_s < last_s + self._every_s:
                self._last[kind] = last_s, others + 1
                return None
            self._last[kind] = now_s, 0
            return others
