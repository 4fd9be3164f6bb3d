"""Await code that is not ours on the event loop, and keep in bounds whatever it raises and however long it takes."""

from __future__ import annotations

import asyncio
import contextvars
import io
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar, cast

from ..errors import GenerationTimeoutError, GuardError, InternalError
from ..job import Job

log = logging.getLogger("guarded.queue")

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

    It begins at once. Most code that may wait waits for nothing, and is over then, without a turn of the loop.

    Raises:
        EscapedError: it raised no Exception, or was cancelled by something else than the caller.
        OverdueError: it has not ended within `timeout_s`.
    """
    begun = _Begun(_catch_all(begin))
    task = begun.begin()
    if begun.is_over:
        return begun.take_result()
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


class _Begun(Coroutine[Any, Any, T]):
    """A coroutine whose first step is taken at once, as a task of its own, and the rest by that task.

    `asyncio.Task` does so by itself from Python 3.12 on (`eager_start`); this is for all.
    """

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self.is_over = False
        self._work = work
        self._result: T | None = None
        self._error: BaseException | None = None
        #: What the first step waits for, until the task asks.
        self._first: list[Any] = []

    def begin(self) -> asyncio.Task[T]:
        """Take the first step. Whatever that raises is the result's."""
        loop, own = asyncio.get_running_loop(), asyncio.current_task()
        assert own is not None
        context = contextvars.copy_context()
        if sys.version_info < (3, 11):  # where a task always copies the context again
            return asyncio.Task(self, loop=loop)
        task = asyncio.Task(self, loop=loop, context=context)
        # asyncio's documentation names these two for whoever makes tasks, with the underline.
        asyncio.tasks._leave_task(loop, own)
        asyncio.tasks._enter_task(loop, task)
        try:
            self._first.append(context.run(self._work.send, None))
        except StopIteration as end:
            self._result, self.is_over = end.value, True
        except BaseException as error:
            self._error, self.is_over = error, True
        finally:
            asyncio.tasks._leave_task(loop, task)
            asyncio.tasks._enter_task(loop, own)
        return task

    def take_result(self) -> T:
        """What came of it, once it is over."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        return cast("T", self._result)

    # What the task calls. ------------------------------------------------------------------------------------

    def send(self, value: Any) -> Any:
        if self.is_over:
            raise StopIteration
        return self._first.pop() if self._first else self._work.send(value)

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None) -> Any:
        self._first.clear()
        error = value if isinstance(value, BaseException) else kind
        if self.is_over:
            raise error
        return self._work.throw(error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Any:
        raise TypeError("only a task may go on with it")


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


def explain(job: Job, raised: BaseException) -> GuardError:
    """The error of a job that could not be handed over."""
    if isinstance(raised, GuardError):
        return raised
    about = {"job_id": job.job_id, "quotes_prompt": True}
    if isinstance(raised, OverdueError):
        log.error("job %s: its validation at dispatch does not end", job.job_id, extra=about)
        return GenerationTimeoutError(
            f"The job's validation did not end within {job.timeout_s:g} s.", extra_info={"timeout_s": job.timeout_s}
        )
    log.error("job %s could not be handed to the host", job.job_id, exc_info=raised, extra=about)
    details = str(raised) if isinstance(raised, EscapedError) else f"{type(raised).__name__}: {raised}"
    return InternalError("The host did not take the job.", details=details)


def find_failure(task: asyncio.Task[None]) -> BaseException | None:
    """What has ended the task. Any thread."""
    if not task.done():
        return None
    try:
        task.result()
    except BaseException as failure:
        return failure
    return None


def find_stack(task: asyncio.Task[None]) -> str:
    """Where the task stands. Any thread."""
    stack = io.StringIO()
    task.print_stack(file=stack)
    return stack.getvalue().rstrip()
