"""The runs that ComfyUI's worker has let go of, until their verdicts are there.

ComfyUI goes on with the next prompt meanwhile. It shows these as running, but does not have them in
`currently_running`: an interrupt that names one of them would hit the prompt after it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from ...guard.errors import GuardError
from ...guard.events import lines
from ...guard.events.lines import Message
from ...guard.job import Verdict
from . import report
from .patching import Native
from .report import QueueItem
from .run import Run

log = logging.getLogger("guarded.host")

#: Set in requests that change something. Who asks there what runs means to act on it: `/interrupt` raises a flag that
#: would end the prompt after the one that is over.
_is_acting: ContextVar[bool] = ContextVar("guarded_is_acting", default=False)


@web.middleware
async def note_acting(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a request that changes something see only the prompt that the worker runs."""
    token = _is_acting.set(request.method not in ("GET", "HEAD"))
    try:
        return await handler(request)
    finally:
        _is_acting.reset(token)


@dataclass
class End:
    """A run that is over.

    Attributes:
        item: as ComfyUI keeps it while it runs.
        history: what the run made, for ComfyUI's history.
        task_done, args, kwargs: ComfyUI's own `task_done`, and its arguments behind the first two.
        place: where in its client's line the end will be told.
        is_closed: whether it is known how the run ended.
    """

    run: Run
    item: QueueItem
    history: Any
    task_done: Native
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: lines.End
    is_closed: bool = False


class Ends:
    """Keeps the ends of runs, and tells each once its verdict is there. Any thread."""

    def __init__(self, queue: Any, send: Callable[[Any, Any, Any], None], forget: Callable[[str], object]) -> None:
        """`queue` is ComfyUI's own, untyped object; `send` sends at once; `forget` gets the job of each told end."""
        self._queue = queue
        self._send = send
        self._forget = forget
        #: By job, in the order in which the runs ended; changed under the queue's mutex.
        self._ends: dict[str, End] = {}
        self._lines = lines.Lines(lambda message: send(*message))
        self._assets = ThreadPoolExecutor(1, thread_name_prefix="guarded-assets")

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._ends

    def list_ids(self) -> list[str]:
        """List the jobs whose ends are not told yet."""
        return list(self._ends)

    def list_items(self) -> list[QueueItem]:
        """List what has run and is not told yet, as ComfyUI lists what runs."""
        if _is_acting.get():
            return []
        return [end.item for end in list(self._ends.values())]

    def put_off(self, message: Message) -> bool:
        """Keep a message back behind an end of its client's that cannot be told yet; False: send it at once."""
        return self._lines.put_off(message)

    def let_go(
        self,
        run: Run,
        item_id: Any,
        history: Any,
        task_done: Native,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> End:
        """Take a run out of what ComfyUI runs. `item_id` is ComfyUI's number for it."""
        place = self._lines.add_end(run.client_id)
        with self._queue.mutex:
            item = self._queue.currently_running.pop(item_id, None)
            if item is None:  # a pack has taken it out
                item = report.restore(run.item)
            end = End(run, item, history, task_done, args, kwargs, place)
            self._ends[run.job_id] = end
        return end

    def close(self, end: End, verdict: Verdict) -> None:
        """Tell how the run ended, as soon as every end before it in its client's line has been told.

        The first call counts: a job may be cancelled while it is checked.
        """
        # This lock first: ComfyUI, and packs with it, send while they hold it.
        with self._queue.mutex:
            if end.is_closed:
                return
            end.is_closed = True
            self._lines.tell(end.run.client_id, end.place, lambda: self._tell(end, verdict))

    def close_early(self, job_id: str, error: GuardError) -> bool:
        """Close the end of a job that `error` has ended meanwhile; False: its run is not over."""
        end = self._ends.get(job_id)
        if end is not None:
            self.close(end, Verdict.of(error))
        return end is not None

    def _tell(self, end: End, verdict: Verdict) -> None:
        run, args, kwargs = end.run, end.args, end.kwargs
        if run.hidden or not verdict.state.settled:  # nobody is told
            with self._queue.mutex:
                self._ends.pop(run.job_id, None)
            self._forget(run.job_id)
            return
        messages = [
            message for message in run.withheld if message[0] not in ("execution_error", "execution_interrupted")
        ]
        if verdict.code is not None:
            report.empty_outputs(end.history)
            error = report.make_execution_error(run.job_id, verdict.code, verdict.message, verdict.details)
            args, kwargs = report.put_error(args, kwargs, report.find_status(args, kwargs), error)
            messages = _choose_messages(run, error)
        try:
            for message in messages:
                try:
                    self._send(*message)
                except Exception:  # a pack's; the messages behind it tell the end
                    log.exception("an event of job %s could not be sent", run.job_id, extra={"job_id": run.job_id})
        finally:
            self._put_into_history(end, args, kwargs)
        if verdict.code is None and (register := _find_asset_register()) is not None:
            self._assets.submit(register, end.history, run.job_id)

    def _put_into_history(self, end: End, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """End the prompt as ComfyUI does; it takes it from what runs, where it is for that moment alone."""
        job_id, key = end.run.job_id, object()
        try:
            with self._queue.mutex:
                self._ends.pop(job_id, None)
                self._queue.currently_running[key] = end.item
                try:
                    end.task_done(key, end.history, *args, **kwargs)
                finally:
                    self._queue.currently_running.pop(key, None)
        finally:
            self._forget(job_id)


def _choose_messages(run: Run, error: tuple[str, dict[str, Any]]) -> list[Message]:
    """What a client hears of a run that did not succeed: one error, ComfyUI's own where there is one."""
    messages = []
    if run.claim_announcement():
        messages = [message for message in run.withheld if message[0] == "execution_error"]
        messages = messages or [(*error, run.client_id)]
    return messages + [message for message in run.withheld if message[0] == "execution_interrupted"]


def _find_asset_register() -> Callable[[Any, str], None] | None:
    """What enters the files of a success into ComfyUI's asset database, where it has one and uses it."""
    main = sys.modules["__main__"]
    seeder, collect, enter = (
        getattr(main, name, None)
        for name in ("asset_seeder", "_collect_output_absolute_paths", "register_output_files")
    )
    if seeder is None or collect is None or enter is None or seeder.is_disabled():
        return None

    def register(history: Any, job_id: str) -> None:
        """A thread of its own."""
        try:
            enter(collect(history), job_id=job_id)
        except Exception:
            about = {"job_id": job_id}
            log.warning("ComfyUI could not register the files of job %s", job_id, exc_info=True, extra=about)

    return register
