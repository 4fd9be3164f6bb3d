"""Restart or end the server process, and drain it on SIGTERM."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

log = logging.getLogger("guarded.process")

#: The exit code for a supervisor when `on_stuck = exit` ends the process (EX_TEMPFAIL: try again).
EXIT_STUCK = 75


class Process:
    """This server process. It calls `close` before it is replaced or ends, and waits five seconds at most."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close_all = close

    def restart(self, reason: str) -> NoReturn:
        """Replace this process by a new one with the same arguments; the store keeps the jobs. Any thread."""
        log.error("restarting the process: %s", reason)
        self._close()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    def exit(self, reason: str) -> NoReturn:
        """End the process at once, for a supervisor to start it again. Any thread."""
        log.error("ending the process with code %d: %s", EXIT_STUCK, reason)
        self._close()
        os._exit(EXIT_STUCK)

    def end_if_silent(self, after_s: float) -> None:
        """End the process (code 1) unless this is called again within `after_s`.

        The timer is in C: it works even when other C code holds Python's lock and none of our threads runs.
        """
        faulthandler.dump_traceback_later(after_s, exit=True, file=sys.__stderr__ or sys.stderr)

    def on_sigterm(self, drain: Callable[[float], None], grace_s: float) -> None:
        """On SIGTERM call `drain(grace_s)` on a thread of its own, then do what SIGINT does. Main thread.

        By default SIGTERM ends Python at once, without atexit. A handler that somebody else has set stays. A second
        SIGTERM changes nothing; SIGINT ends a drain early. A process that a script started with `&` ignores SIGINT:
        after a SIGTERM it no longer does, since nothing else could end it.
        """
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return

        begun = threading.Event()

        def drain_and_interrupt() -> None:
            try:
                drain(grace_s)
            except Exception:
                log.exception("the drain failed")
            finally:
                os.kill(os.getpid(), signal.SIGINT)

        def handle(_number: int, _frame: object) -> None:
            if not begun.is_set():
                begun.set()
                if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                threading.Thread(target=drain_and_interrupt, name="guarded-drain", daemon=True).start()

        signal.signal(signal.SIGTERM, handle)

    def _close(self) -> None:
        closer = threading.Thread(target=self._close_all, daemon=True)
        closer.start()
        closer.join(5)  # a hung disk must not keep a stuck process alive
        for handler in logging.getLogger().handlers:
            handler.flush()
