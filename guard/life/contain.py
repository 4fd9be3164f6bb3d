"""Await code that is not ours on the event loop, and keep in bounds whatever it raises and however long it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class EscapedError(Exception):
    """Code that is not ours has raised something that is no Exception, or was cancelled by its own doing."""


class OverdueError(Exception):
    """Code that is not ours has not ended in time."""


async def contain(begin: Callable[[], Awaitable[T]], timeout_s: float | None = None) -> T:
    """Await what `begin` makes in a task of its own. Event loop.

    What it raises comes out as an Exception: SystemExit would end the server, and a CancelledError of its own would
    pass for one of the caller. A KeyboardInterrupt is the operator's, and stays one. If the caller is cancelled, or
    the time is up, it is cancelled and left behind: it may not listen.

    Raises:
        EscapedError: it raised no Exception, or was cancelled by something else than the caller.
        OverdueError: it has not ended within `timeout_s`.
    """
    task = asyncio.ensure_future(_catch_all(begin))
    task.add_done_callback(_hear)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
    finally:
        task.cancel()
    if not task.done():
        raise OverdueError(f"it did not end within {timeout_s:g} s")
    if task.cancelled():
        raise EscapedError("it was cancelled before it began")
    return task.result()


async def catch(work: Awaitable[T]) -> T:
    """Await `work`; turn what would end a loop, or the task that waits, into an EscapedError."""
    own = asyncio.current_task()
    try:
        return await work
    except (Exception, KeyboardInterrupt, asyncio.CancelledError):
        raise
    except GeneratorExit as error:
        if _find_task() is not own:
            raise  # nobody has raised it: Python closes what a loop left behind
        raise _escape(error) from error
    except BaseException as error:
        raise _escape(error) from error


async def _catch_all(begin: Callable[[], Awaitable[T]]) -> T:
    """Await it for a caller that reads no result once it has cancelled this."""
    try:
        return await catch(begin())
    except asyncio.CancelledError as error:
        raise _escape(error) from error


def _find_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs
        return None


def _escape(error: BaseException) -> EscapedError:
    return EscapedError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)


def _hear(task: asyncio.Task[Any]) -> None:
    """Take the exception of a task that nobody may await any more, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()
