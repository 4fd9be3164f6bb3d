"""Show the guard's waiting and ended jobs in ComfyUI's queue and history, for `native.mode = "guarded"`.

ComfyUI's routes, its `status` event and its editor all call the queue object's own methods, so these are wrapped.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import execution

from ...guard.host import Backlog
from .patching import Native, wrap_method
from .report import QueueItem

log = logging.getLogger("guarded.host")

#: Of the jobs that ended without having run, so many are in ComfyUI's history, the last ones: a cleared queue would
#: fill it. Whoever asks for another one by its id gets it all the same.
ADDED = 200


#: So many ends are told at once.
TOLD_AT_ONCE = 20


class BacklogView:
    """Wrap the methods of ComfyUI's queue that read it and delete from it.

    They run on the event loop or, as `get_tasks_remaining` does, on whatever thread sends a `status`.
    """

    def __init__(
        self,
        queue: Any,
        backlog: Backlog,
        fields: int,
        list_held: Callable[[], Collection[str]],
        is_deleting: Callable[[], bool],
    ) -> None:
        """`queue` is ComfyUI's own, untyped object; `fields` says how many its items have.

        `list_held` gives the ids of the prompts that ComfyUI has, those that are being ended among them. `is_deleting`
        says, under the queue's lock, whether one prompt is being deleted: ComfyUI deletes the last one by wiping all.
        """
        self._queue = queue
        self._backlog = backlog
        self._fields = fields
        self._list_held = list_held
        self._is_deleting = is_deleting
        #: The jobs whose end is still to be told, and how; and whether that is under way. Some at a time: a cleared
        #: queue would take all of the event loop's helper threads, and the store's reader.
        self._unrun: deque[tuple[str, Callable[[], None]]] = deque()
        self._is_telling = False
        #: The jobs that were added to ComfyUI's history. Event loop.
        self._added: deque[str] = deque()
        self._lock = threading.Lock()

    def install(self) -> None:
        """Patch. The main thread, once."""
        wrap_method(self._queue, "get_current_queue", self._get_queue)
        if hasattr(self._queue, "get_current_queue_volatile"):
            wrap_method(self._queue, "get_current_queue_volatile", self._get_queue)
        wrap_method(self._queue, "get_tasks_remaining", self._get_tasks_remaining)
        wrap_method(self._queue, "get_history", self._get_history)
        wrap_method(self._queue, "delete_queue_item", self._delete_queue_item)
        wrap_method(self._queue, "wipe_queue", self._wipe_queue)
        wrap_method(self._queue, "delete_history_item", self._delete_history_item)
        wrap_method(self._queue, "wipe_history", self._wipe_history)

    def _get_queue(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        with self._queue.mutex:  # else a job that is just being queued would be in neither
            running, pending = native(*args, **kwargs)
            known = {*self._list_held(), *(item[1] for item in (*running, *pending))}
        return running, [*pending, *self._make_items(known)]

    def _get_tasks_remaining(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        return native(*args, **kwargs) + self._backlog.count(self._list_held())

    def _get_history(self, native: Native, prompt_id: Any = None, *args: Any, **kwargs: Any) -> Any:
        entries = native(prompt_id, *args, **kwargs)
        if entries or not isinstance(prompt_id, str) or (entry := self._backlog.history_entry(prompt_id)) is None:
            return entries
        convert = kwargs.get("map_function")
        return {prompt_id: convert(entry) if convert else entry}

    def _delete_queue_item(self, native: Native, function: Any, *args: Any, **kwargs: Any) -> Any:
        if native(function, *args, **kwargs):
            return True
        for job_id in self._list_meant(function):
            if function(_LazyItem(job_id, self._read_item)):
                self._backlog.take_out([job_id])
                return True
        return False

    def _wipe_queue(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        with self._queue.mutex:
            if self._is_deleting():
                return native(*args, **kwargs)
            known = self._list_held()
            with self._spare_keys():
                result = native(*args, **kwargs)
        self._backlog.take_out([each for each in self._backlog.waiting(known) if not self._backlog.is_of_a_key(each)])
        return result

    @contextmanager
    def _spare_keys(self) -> Iterator[None]:
        """Keep the jobs of owners with keys out of what is cleared. Under the queue's lock."""
        queue, is_of_a_key = self._queue, self._backlog.is_of_a_key
        spared = [item for item in queue.queue if is_of_a_key(item[1])]
        queue.queue = [item for item in queue.queue if not is_of_a_key(item[1])]
        try:
            yield
        finally:
            queue.queue = [*queue.queue, *spared]
            heapq.heapify(queue.queue)
            if spared:
                queue.server.queue_updated()  # it has told everybody that there are fewer

    def _delete_history_item(self, native: Native, id_to_delete: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(id_to_delete, str):
            self._backlog.forget(id_to_delete)
        return native(id_to_delete, *args, **kwargs)

    def _wipe_history(self, native: Native, *args: Any, **kwargs: Any) -> Any:
        self._backlog.forget(None)
        return native(*args, **kwargs)

    def tell_end(self, job_id: str, tell: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Put a settled job that ComfyUI never ran into its history, and then `tell`: clients read the history as soon
        as they have heard of the end. Any thread; `tell` is called on the event loop.
        """
        with self._lock:
            self._unrun.append((job_id, tell))
            is_telling, self._is_telling = self._is_telling, True
        if not is_telling:
            asyncio.run_coroutine_threadsafe(self._tell_ends(), loop)

    async def _tell_ends(self) -> None:
        while True:
            with self._lock:
                if not self._unrun:
                    self._is_telling = False
                    return
                passing = len(self._unrun) - ADDED  # so many would be put out of the history by those behind them
                some = [self._unrun.popleft() for _ in range(min(len(self._unrun), TOLD_AT_ONCE))]
            if passing < len(some):
                entries = await asyncio.to_thread(self._read_entries, [job_id for job_id, _tell in some])
            else:
                entries = [None] * len(some)
                await asyncio.sleep(0)
            for (job_id, tell), entry in zip(some, entries, strict=True):
                try:
                    if entry is not None:
                        self._add_to_history(job_id, entry)
                    tell()
                except Exception:
                    log.exception("the end of job %s could not be told", job_id, extra={"job_id": job_id})

    def _read_entries(self, job_ids: Sequence[str]) -> list[Mapping[str, Any] | None]:
        """Not for the event loop: reads the store."""
        entries: list[Mapping[str, Any] | None] = []
        for job_id in job_ids:
            entry: Mapping[str, Any] | None = None
            try:
                entry = self._backlog.history_entry(job_id)
            except Exception:
                log.exception("job %s cannot be shown in ComfyUI's history", job_id, extra={"job_id": job_id})
            entries.append(entry)
        return entries

    def _add_to_history(self, job_id: str, entry: Mapping[str, Any]) -> None:
        with self._queue.mutex:
            history = self._queue.history
            if job_id not in history:
                history[job_id] = {**entry, "prompt": tuple(entry["prompt"])}
                self._added.append(job_id)
            if len(self._added) > ADDED:
                history.pop(self._added.popleft(), None)
            # ComfyUI takes one entry out for each prompt that has run, and no more.
            while len(history) > getattr(execution, "MAXIMUM_HISTORY_SIZE", 10_000):
                del history[next(iter(history))]

    def _list_meant(self, function: Any) -> list[str]:
        """The waiting jobs that `function` may say yes to. ComfyUI and most packs compare the id with one of theirs:
        then the others need not be looked at.
        """
        held, asked = self._list_held(), _AskedForId()
        try:
            says_yes = function(asked)
        except Exception:  # it looks at more
            says_yes = True
        if says_yes:
            return self._backlog.waiting(held)
        return [job_id for job_id in asked.id.compared if job_id in self._backlog and job_id not in held]

    def _make_items(self, known: Collection[str]) -> list[QueueItem]:
        return [self._make_item(row) for row in self._backlog.rows(known)]

    def _read_item(self, job_id: str) -> QueueItem:
        return self._make_item(self._backlog.row(job_id) or [0, job_id, {}, {}, []])

    def _make_item(self, row: list[Any]) -> QueueItem:
        return (*row, *({} for _ in range(self._fields - len(row))))


class _LazyItem(Sequence[Any]):
    """Read an item of the backlog only when ComfyUI looks at more than its id, as it goes through all of them."""

    def __init__(self, job_id: str, read: Callable[[str], QueueItem]) -> None:
        self._job_id = job_id
        self._read = read

    def __getitem__(self, index: Any) -> Any:
        return self._job_id if index == 1 else self._read(self._job_id)[index]

    def __len__(self) -> int:
        return len(self._read(self._job_id))


class _AnyId:
    """In place of an id: notes which ones it is compared with."""

    __hash__ = None  # type: ignore[assignment]  # whoever looks it up in a set would learn nothing

    def __init__(self) -> None:
        self.compared: list[str] = []

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            raise TypeError("not an id")
        self.compared.append(other)
        return False


class _AskedForId(Sequence[Any]):
    """An item that has nothing but its id."""

    def __init__(self) -> None:
        self.id = _AnyId()

    def __getitem__(self, index: Any) -> Any:
        if index != 1:
            raise LookupError(index)
        return self.id

    def __len__(self) -> int:
        raise TypeError("of an id alone")
