"""Raise an exception in the code of another thread, but not where a lock would stay locked for ever. Any thread.

Python raises it between any two bytecodes: also behind the `acquire` of a lock and before the `try` that gives it back.
If that is a handler's of the log, everybody who logs waits from then on, the event loop first; an import that is broken
off leaves half a module.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Collection

#: Modules of Python's own that hold locks of the whole process while one of their functions runs.
_HOLDING = frozenset({"logging", "importlib._bootstrap", "importlib._bootstrap_external"})


def inject(ident: int, exception: type[BaseException], holding: Collection[str] = ()) -> bool:
    """Have the thread raise the exception at its next bytecode.

    False where it is in code of a module that holds locks, `holding` among them: ask again later.
    """
    if _is_within(ident, holding):
        return False
    _set(ident, exception)
    if _is_within(ident, holding):  # it has gone on between the two
        _set(ident, None)
        return False
    return True


def withdraw(ident: int) -> None:
    """Take back what the thread has not raised yet."""
    _set(ident, None)


def _is_within(ident: int, holding: Collection[str]) -> bool:
    frame = sys._current_frames().get(ident)
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if name in _HOLDING or name in holding:
            return True
        frame = frame.f_back
    return False


class _OwnError(BaseException):
    """What `_set` raises in its own thread."""


def _set(ident: int, exception: type[BaseException] | None) -> None:
    """Leave the exception for the thread, and nothing for the others.

    Python tells all threads of the interpreter that one has something to raise, and takes that back only once some
    thread has raised something. Up to 3.11, a traced thread (a profile, a debugger) enters no function until then: it
    does not end where the thread hangs in C, nor after a withdrawal. So this thread raises one at once. The other one
    loses nothing: it looks whenever it gets the interpreter back.
    """
    set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
    them, theirs = ctypes.c_ulong(ident), ctypes.py_object(exception) if exception is not None else None
    us, ours = ctypes.c_ulong(threading.get_ident()), ctypes.py_object(_OwnError)
    looks = range(1000)  # Python looks at the end of each turn of a loop
    # No call of a function of Python's within: if this thread is traced, it is not entered.
    try:
        set_exception(them, theirs)
        set_exception(us, ours)
        for _ in looks:
            pass
    except _OwnError:
        return
