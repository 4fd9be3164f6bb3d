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


#: How long the disk may take before the process is replaced or ends.
DISK_S = 5.0


class Process:
    """This server process."""

    def __init__(self, close: Callable[[], None], flush: Callable[[float], bool]) -> None:
        """`close` is called before the process ends, `flush` before it is replaced; that takes seconds, and says
        whether all is on disk."""
        self._close_all = close
        self._flush = flush
        #: Why the process could not be replaced at the last try.
        self.failure: str | None = None

    def restart(self, reason: str) -> None:
        """Replace this process by a new one with the same arguments; the store keeps the jobs. Any thread.

        Returns only where that fails. Nothing was closed then, and the server goes on.
        """
        if self.failure is None:
            log.error("restarting the process: %s", reason)
        # What is on disk survives this, as it survives SIGKILL, and the lock's file closes by itself.
        _run_briefly(lambda: self._flush(DISK_S))
        try:
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        except OSError as error:
            failure = f"{sys.executable}: {error}"
            if self.failure != failure:
                log.error("the process cannot be restarted, and is tried again: %s", failure)
            self.failure = failure

    def exit(self, reason: str) -> NoReturn:
        """End the process at once, for a supervisor to start it again. Any thread."""
        log.error("ending the process with code %d: %s", EXIT_STUCK, reason)
        _run_briefly(self._close_all)
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

    def close(self) -> None:
        """Close everything, unless the disk hangs. For atexit, where no thread can be started any more."""
        if self._flush(DISK_S):
            self._close_all()


def _run_briefly(work: Callable[[], object]) -> None:
    """Do the work, and flush the log; but a hung disk must not keep a stuck process alive."""
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(DISK_S)
    for handler in logging.getLogger().handlers:
        handler.flush()
