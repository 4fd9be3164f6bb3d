"""ComfyUI's worker thread: a shield around what it runs, and another thread in its place when it hangs or dies.

Natively, whatever escapes a node's code (SystemExit, a graph that the executor stumbles over) ends the thread while
HTTP goes on answering, and nothing ends a node that never checks for an interrupt.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import comfy.model_management
import execution

from . import report

log = logging.getLogger("guarded.worker")


class JobStopped(BaseException):
    """Ends a job whose stop was swallowed, or that never checks. No node's `except Exception` catches it."""


class Inside:
    """One prompt inside the shield: where a stop can reach it."""

    def __init__(self, prompt_id: str) -> None:
        self.prompt_id = prompt_id
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[Any] | None = None


class Workers:
    """The thread that serves ComfyUI's queue, and those that are no longer trusted to."""

    def __init__(self, prompt_server: Any, is_stopped: Callable[[str], bool]) -> None:
        self._server = prompt_server
        self._is_stopped = is_stopped
        #: Held while a thread enters or leaves the shield or gives a prompt back, while an exception is injected and
        #: while a thread is disowned; so that none of these happens between the halves of another.
        self._lock = threading.Lock()
        self._inside: dict[int, Inside] = {}
        self._taken: dict[int, str] = {}
        self._disowned: list[threading.Thread] = []
        self.current: threading.Thread | None = None

    def install(self) -> None:
        """Put the shield around `PromptExecutor`, on the class: each worker makes its own instance."""
        native, native_async = execution.PromptExecutor.execute, execution.PromptExecutor.execute_async
        shielded = self._shielded

        def execute(executor: Any, prompt: Any, prompt_id: Any, *args: Any, **kwargs: Any) -> None:
            shielded(native, executor, prompt, prompt_id, *args, **kwargs)

        async def execute_async(executor: Any, *args: Any, **kwargs: Any) -> Any:
            inside = self._inside.get(threading.get_ident())
            if inside is not None:
                inside.loop, inside.task = asyncio.get_running_loop(), asyncio.current_task()
            try:
                return await native_async(executor, *args, **kwargs)
            finally:
                if inside is not None:
                    inside.task = None

        self._tell_what_kills()
        execution.PromptExecutor.execute = execute
        execution.PromptExecutor.execute_async = execute_async

    def _tell_what_kills(self) -> None:
        """Python says nothing of a thread that a SystemExit has ended."""
        native = threading.excepthook

        def excepthook(args: Any) -> None:
            if args.thread is not None and args.thread is self.current:
                facts = (args.exc_type, args.exc_value, args.exc_traceback)
                log.error("this has killed ComfyUI's worker thread:", exc_info=facts)
            native(args)

        threading.excepthook = excepthook

    # What a worker thread does. ------------------------------------------------------------------------------

    def serves(self) -> None:
        """This thread asks for the next prompt. A disowned one ends here."""
        self.end_if_disowned()
        self.current = threading.current_thread()

    def takes(self, prompt_id: str) -> None:
        with self._lock:
            self._taken[threading.get_ident()] = prompt_id

    def gives_back(self) -> None:
        """This thread's prompt has ended. A thread that was disowned meanwhile ends here, its result dropped."""
        with self._lock:
            self._taken.pop(threading.get_ident(), None)
            disowned = self._is_disowned()
        if disowned:
            raise SystemExit

    def end_if_disowned(self) -> None:
        if self._is_disowned():
            raise SystemExit

    def is_disowned(self) -> bool:
        """Whether this thread was: nothing that it sends may be heard."""
        return self._is_disowned()

    def executing(self) -> str | None:
        """The prompt on whose behalf this thread runs."""
        taken = self._taken.get(threading.get_ident())
        if taken is not None:
            return taken
        context = report.executing_prompt()
        if context is not None:
            return context
        # A thread that a node has started: it belongs to the only worker there is.
        running = list(self._taken.values())
        return running[0] if len(running) == 1 else None

    # What others do to it. -----------------------------------------------------------------------------------

    def alive(self) -> bool:
        return self.current is None or self.current.is_alive()

    def hung(self) -> int:
        """Disowned threads that have not ended yet."""
        with self._lock:
            self._disowned = [thread for thread in self._disowned if thread.is_alive()]
            return len(self._disowned)

    def cancel(self, prompt_id: str) -> None:
        """End what the prompt awaits: an async node checks for no interrupt. Any thread."""
        for inside in list(self._inside.values()):
            loop, task = inside.loop, inside.task
            if inside.prompt_id == prompt_id and loop is not None and task is not None:
                with contextlib.suppress(RuntimeError):  # the loop was just closed: the prompt is over
                    loop.call_soon_threadsafe(task.cancel)

    def inject(self, prompt_id: str) -> bool:
        """Raise JobStopped in the prompt's thread, if it is inside the shield. Any thread.

        It is raised between two bytecodes, so it ends a loop in Python; a C call only when it returns.
        """
        with self._lock:
            for ident, inside in self._inside.items():
                if inside.prompt_id == prompt_id:
                    _raise_in(ident, JobStopped)
                    return True
        return False

    def replace(self, prompt_id: str | None) -> bool:
        """Start another worker; the one that has `prompt_id` (None: the dead one) is disowned.

        False where it has just let go, or where this ComfyUI has no `prompt_worker` to start.
        """
        work = getattr(sys.modules["__main__"], "prompt_worker", None)
        if work is None:
            return False
        with self._lock:
            old = self.current
            if prompt_id is not None:
                idents = [ident for ident, taken in self._taken.items() if taken == prompt_id]
                if old is None or old.ident not in idents:
                    return False
                self._disowned.append(old)
            elif old is None or old.is_alive():
                return False
            if old.ident is not None:
                self._taken.pop(old.ident, None)
                self._inside.pop(old.ident, None)
            self.current = threading.Thread(
                target=work, args=(self._server.prompt_queue, self._server), name="prompt_worker", daemon=True
            )
            self.current.start()
        return True

    # The shield. ---------------------------------------------------------------------------------------------

    def _shielded(self, native: Any, executor: Any, prompt: Any, prompt_id: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing that a node raises gets past here."""
        inside = Inside(prompt_id)
        failure: BaseException | None = None
        try:
            with self._lock:
                self._inside[threading.get_ident()] = inside
            try:
                native(executor, prompt, prompt_id, *args, **kwargs)
            finally:
                self._leave()
        except BaseException as error:
            failure = error
            self._leave_whatever_comes()
        self.end_if_disowned()
        if failure is not None:
            self._fail(executor, prompt, prompt_id, failure)

    def _leave(self) -> None:
        """From here on nothing can be injected, and what was and has not been raised yet never will be."""
        with self._lock:
            self._inside.pop(threading.get_ident(), None)
            _raise_in(threading.get_ident(), None)

    def _leave_whatever_comes(self) -> None:
        """The exception may have been raised in `_leave` itself, before it had done its work."""
        while True:
            try:
                return self._leave()
            except JobStopped:
                continue

    def _fail(self, executor: Any, prompt: Any, prompt_id: Any, failure: BaseException) -> None:
        """Let the run end as ComfyUI ends one that failed or was interrupted."""
        node_id = getattr(self._server, "last_node_id", None)
        node = prompt.get(node_id) if isinstance(prompt, dict) else None
        facts = {
            "prompt_id": prompt_id,
            "node_id": node_id,
            "node_type": node.get("class_type") if isinstance(node, dict) else None,
            "executed": [],
            "timestamp": int(time.time() * 1000),
        }
        stopped = isinstance(failure, (JobStopped, asyncio.CancelledError)) and self._is_stopped(prompt_id)
        if stopped or isinstance(failure, comfy.model_management.InterruptProcessingException):
            event = "execution_interrupted"
        else:
            event = "execution_error"
            kind = type(failure)
            name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
            log.error(
                "prompt %s would have killed ComfyUI's worker",
                prompt_id,
                exc_info=failure,
                extra={"job_id": prompt_id, "quotes_prompt": True},
            )
            facts.update(
                exception_message=f"{failure}\n",
                exception_type=name,
                traceback=traceback.format_tb(failure.__traceback__),
                current_inputs={},
                current_outputs=[],
            )
        executor.success = False
        executor.status_messages = [*getattr(executor, "status_messages", ()), (event, facts)]
        executor.history_result = {"outputs": {}, "meta": {}}
        self._server.last_node_id = None
        client_id = getattr(self._server, "client_id", None)
        if client_id is not None or event == "execution_interrupted":
            self._server.send_sync(event, facts, client_id)

    def _is_disowned(self) -> bool:
        return bool(self._disowned) and threading.current_thread() in self._disowned


def _raise_in(ident: int, exception: type[BaseException] | None) -> None:
    """Set (None: clear) what the thread raises at its next bytecode."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), ctypes.py_object(exception) if exception is not None else None
    )
