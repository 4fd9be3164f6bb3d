"""Shield what ComfyUI's worker thread runs, and put another thread in its place when it hangs or dies.

Natively, whatever escapes a node's code (SystemExit, a graph that the executor stumbles over) ends the thread while
HTTP goes on answering, and nothing ends a node that never checks for an interrupt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from typing import Any

import comfy.model_management
import execution

from ...guard.life import injection
from . import report
from .patching import Native
from .stops import JobStopped, Stops

log = logging.getLogger("guarded.worker")

#: Ours that hold a lock while they tell of what a node does.
_HOLDING = frozenset(f"{__package__}.{name}" for name in ("ends", "hooks", "run", "sockets"))


class Inside:
    """One prompt inside the shield: where a stop can reach it."""

    def __init__(self, prompt_id: str) -> None:
        self.prompt_id = prompt_id
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[Any] | None = None


class Workers:
    """The thread that serves ComfyUI's queue, and those that are no longer trusted to."""

    def __init__(self, prompt_server: Any, stops: Stops) -> None:
        """`prompt_server` is ComfyUI's own, untyped object."""
        self._server = prompt_server
        self._stops = stops
        #: Held while a thread enters or leaves the shield or gives a prompt back, while an exception is injected and
        #: while a thread is disowned, so that none of these happens in the middle of another.
        self._lock = threading.Lock()
        #: By thread.
        self._inside: dict[int, Inside] = {}
        #: The prompt that each thread took from the queue and has not given back.
        self._taken: dict[int, str] = {}
        #: Those of them whose run has begun: ComfyUI has taken back whatever interrupt came before.
        self._begun: set[str] = set()
        self._disowned: list[threading.Thread] = []
        self.current: threading.Thread | None = None
        #: Since when that one has neither had a prompt nor asked for one; None where it has, or does.
        self._away_since_s: float | None = None

    def install(self) -> None:
        """Put the shield around `PromptExecutor`, on the class: each worker makes its own instance."""
        native, native_async = execution.PromptExecutor.execute, execution.PromptExecutor.execute_async
        run = self._run_shielded

        def execute(executor: Any, prompt: Any, prompt_id: Any, *args: Any, **kwargs: Any) -> None:
            run(native, executor, prompt, prompt_id, *args, **kwargs)

        async def execute_async(executor: Any, *args: Any, **kwargs: Any) -> Any:
            inside = self._inside.get(threading.get_ident())
            if inside is not None:
                inside.loop, inside.task = asyncio.get_running_loop(), asyncio.current_task()
            try:
                return await native_async(executor, *args, **kwargs)
            finally:
                if inside is not None:
                    inside.task = None

        self._log_death()
        execution.PromptExecutor.execute = execute
        execution.PromptExecutor.execute_async = execute_async

    def _log_death(self) -> None:
        """Log what ends the worker; Python says nothing of a thread that a SystemExit has ended."""
        native = threading.excepthook

        def excepthook(args: Any) -> None:
            if args.thread is not None and args.thread is self.current:
                facts = (args.exc_type, args.exc_value, args.exc_traceback)
                log.error("ComfyUI's worker thread died of this error:", exc_info=facts)
            native(args)

        threading.excepthook = excepthook

    # What a worker thread does. ------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """This thread asks for the next prompt. A disowned one ends here."""
        with self._lock:
            self.end_if_disowned()
            self.current, self._away_since_s = threading.current_thread(), None

    def go_away(self) -> None:
        """This thread goes on in ComfyUI's own code, without a prompt: until it asks for the next one."""
        with self._lock:
            if self.current is threading.current_thread():
                self._away_since_s = time.monotonic()

    def take(self, prompt_id: str) -> None:
        """This thread has taken the prompt from the queue."""
        with self._lock:
            self._taken[threading.get_ident()] = prompt_id

    def give_back(self) -> str | None:
        """This thread's prompt has ended; returns its id. If the thread was disowned meanwhile, it ends here and its
        result is dropped."""
        with self._lock:
            prompt_id = self._taken.pop(threading.get_ident(), None)
            self._begun.discard(prompt_id or "")
            disowned = self.is_disowned()
        if disowned:
            raise SystemExit
        return prompt_id

    def note_begun(self) -> None:
        """ComfyUI has begun to run what this thread has taken. Any thread; most have taken nothing."""
        prompt_id = self._taken.get(threading.get_ident())
        if prompt_id is not None:
            self._begun.add(prompt_id)

    def has_begun(self, prompt_id: str) -> bool:
        """Whether an interrupt will be seen by the run of that prompt. Any thread."""
        return prompt_id in self._begun

    def list_taken(self) -> list[str]:
        """List the prompts that workers have taken and not given back. Any thread."""
        return list(self._taken.values())

    def has_taken(self, thread: threading.Thread) -> bool:
        """Whether that thread has a prompt. Any thread."""
        return thread.ident in self._taken

    def has_lost(self, thread: threading.Thread) -> bool:
        """Whether that thread was disowned and goes on all the same. Any thread."""
        return bool(self._disowned) and thread in self._disowned and thread.is_alive()

    def end_if_disowned(self) -> None:
        """Raise SystemExit in a thread that is no longer to serve."""
        if self.is_disowned():
            raise SystemExit

    def is_disowned(self) -> bool:
        """Whether this thread was disowned, so that nothing it sends may be heard."""
        return bool(self._disowned) and threading.current_thread() in self._disowned

    def find_executing(self) -> str | None:
        """The prompt on whose behalf this thread runs, if any. Any thread."""
        taken = self._taken.get(threading.get_ident())
        if taken is not None:
            return taken
        context = report.find_executing_prompt()
        if context is not None:
            return context
        # A node has started this thread: it belongs to the only worker there is.
        running = list(self._taken.values())
        return running[0] if len(running) == 1 else None

    # What others do to it. -----------------------------------------------------------------------------------

    def is_alive(self) -> bool:
        """Whether a thread serves the queue; True until the first has come. Any thread."""
        return self.current is None or self.current.is_alive()

    @property
    def away_s(self) -> float:
        """For how long the worker has neither had a prompt nor asked for one. Any thread."""
        since_s = self._away_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def count_hung(self) -> int:
        """Count the disowned threads that have not ended yet. Any thread."""
        with self._lock:
            self._disowned = [thread for thread in self._disowned if thread.is_alive()]
            return len(self._disowned)

    def cancel(self, prompt_id: str) -> None:
        """Cancel what the prompt awaits, since async nodes check for no interrupt. Any thread."""
        for inside in list(self._inside.values()):
            loop, task = inside.loop, inside.task
            if inside.prompt_id == prompt_id and loop is not None and task is not None:
                with contextlib.suppress(RuntimeError):  # the loop was just closed: the prompt is over
                    loop.call_soon_threadsafe(task.cancel)

    def inject(self, prompt_id: str) -> bool:
        """Raise JobStopped in the prompt's thread, if it is inside the shield. Any thread.

        Python raises it between two bytecodes, so it ends a loop in Python at once, a C call only when that returns.
        False also where the thread would keep a lock by that, so that the next try may do better.
        """
        with self._lock:
            for ident, inside in self._inside.items():
                if inside.prompt_id == prompt_id:
                    return injection.inject(ident, JobStopped, _HOLDING)
        return False

    def replace(self, prompt_id: str | None) -> bool:
        """Start another worker, and disown the one that has `prompt_id` (None: that is dead or away). Any thread.

        False where it has just let go or come back, or where this ComfyUI has no `prompt_worker` to start.
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
            elif old is None:
                return False
            elif old.is_alive():
                if self._away_since_s is None:
                    return False
                self._disowned.append(old)
            if old.ident is not None:
                self._taken.pop(old.ident, None)
                self._inside.pop(old.ident, None)
            self.current = threading.Thread(
                target=work, args=(self._server.prompt_queue, self._server), name="prompt_worker", daemon=True
            )
            self._away_since_s = time.monotonic()
            self.current.start()
        return True

    # The shield. ---------------------------------------------------------------------------------------------

    def _run_shielded(
        self, native: Native, executor: Any, prompt: Any, prompt_id: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Run a prompt; nothing that a node raises gets past here."""
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
            self._leave_despite_stops()
        self.end_if_disowned()
        if failure is not None:
            self._fail(executor, prompt, prompt_id, failure)

    def _leave(self) -> None:
        """Keep out injections from here on, and clear one that Python has not raised yet."""
        with self._lock:
            self._inside.pop(threading.get_ident(), None)
            injection.withdraw(threading.get_ident())

    def _leave_despite_stops(self) -> None:
        """Leave; an injected exception may have been raised in `_leave` itself, before it had done its work."""
        while True:
            try:
                return self._leave()
            except JobStopped:
                continue

    def _fail(self, executor: Any, prompt: Any, prompt_id: Any, failure: BaseException) -> None:
        """End the run as ComfyUI ends one that failed or was interrupted."""
        node_id = getattr(self._server, "last_node_id", None)
        node = prompt.get(node_id) if isinstance(prompt, dict) else None
        facts = {
            "prompt_id": prompt_id,
            "node_id": node_id,
            "node_type": node.get("class_type") if isinstance(node, dict) else None,
            "executed": [],
            "timestamp": int(time.time() * 1000),
        }
        stopped = isinstance(failure, (JobStopped, asyncio.CancelledError)) and prompt_id in self._stops
        if stopped or isinstance(failure, comfy.model_management.InterruptProcessingException):
            event = "execution_interrupted"
        else:
            event = "execution_error"
            kind = type(failure)
            name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
            log.error(
                "prompt %s raised what would have killed ComfyUI's worker",
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
