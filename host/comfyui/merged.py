"""ComfyUI's queue and history with the guard's waiting and ended jobs in them, for `native.mode = "guarded"`.

Its routes, its `status` event and its editor all ask the queue object's own methods; these are what is wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...guard.host import Backlog


class Merged:
    """Wrappers for methods of ComfyUI's queue; each is handed the native method first."""

    def __init__(self, queue: Any, backlog: Backlog, fields: int) -> None:
        """`fields`: how many an item of ComfyUI's queue has."""
        self._queue = queue
        self._backlog = backlog
        self._fields = fields
        self._deleting = False

    def install(self, wrap: Callable[[Any, str, Any], None]) -> None:
        wrap(self._queue, "get_current_queue", self._get_queue)
        if hasattr(self._queue, "get_current_queue_volatile"):
            wrap(self._queue, "get_current_queue_volatile", self._get_queue)
        wrap(self._queue, "get_tasks_remaining", self._get_tasks_remaining)
        wrap(self._queue, "get_history", self._get_history)
        wrap(self._queue, "delete_queue_item", self._delete_queue_item)
        wrap(self._queue, "wipe_queue", self._wipe_queue)
        wrap(self._queue, "delete_history_item", self._delete_history_item)
        wrap(self._queue, "wipe_history", self._wipe_history)

    def _get_queue(self, native: Any, *args: Any, **kwargs: Any) -> Any:
        running, pending = native(*args, **kwargs)
        known = {item[1] for item in (*running, *pending)}
        return running, [*pending, *self._items(known)]

    def _get_tasks_remaining(self, native: Any, *args: Any, **kwargs: Any) -> Any:
        return native(*args, **kwargs) + self._backlog.count(self._known())

    def _get_history(self, native: Any, prompt_id: Any = None, *args: Any, **kwargs: Any) -> Any:
        found = native(prompt_id, *args, **kwargs)
        if found or not isinstance(prompt_id, str) or (entry := self._backlog.history_entry(prompt_id)) is None:
            return found
        shown = kwargs.get("map_function") or (lambda entry: entry)
        return {prompt_id: shown(entry)}

    def _delete_queue_item(self, native: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        with self._queue.mutex:
            self._deleting = True  # of a last item, ComfyUI disposes by wiping the queue
            try:
                if native(function, *args, **kwargs):
                    return True
            finally:
                self._deleting = False
        for job_id in self._backlog.waiting(self._known()):
            if function(_Item(job_id, self._whole)):
                self._backlog.take_out([job_id])
                return True
        return False

    def _wipe_queue(self, native: Any, *args: Any, **kwargs: Any) -> Any:
        with self._queue.mutex:
            if self._deleting:
                return native(*args, **kwargs)
            known = self._known()
            result = native(*args, **kwargs)
        self._backlog.take_out(self._backlog.waiting(known))
        return result

    def _delete_history_item(self, native: Any, id_to_delete: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(id_to_delete, str):
            self._backlog.forget(id_to_delete)
        return native(id_to_delete, *args, **kwargs)

    def _wipe_history(self, native: Any, *args: Any, **kwargs: Any) -> Any:
        self._backlog.forget(None)
        return native(*args, **kwargs)

    def _known(self) -> set[str]:
        """What ComfyUI has itself."""
        with self._queue.mutex:
            return {item[1] for item in (*self._queue.queue, *self._queue.currently_running.values())}

    def _items(self, known: set[str]) -> list[tuple[Any, ...]]:
        return [self._item(row) for row in self._backlog.rows(known)]

    def _whole(self, job_id: str) -> tuple[Any, ...]:
        return self._item(self._backlog.row(job_id) or [0, job_id, {}, {}, []])

    def _item(self, row: list[Any]) -> tuple[Any, ...]:
        return (*row, *({} for _ in range(self._fields - len(row))))


class _Item(Sequence[Any]):
    """An item of the queue, read when more of it is looked at than its id: ComfyUI goes through all, for each id."""

    def __init__(self, job_id: str, read: Callable[[str], tuple[Any, ...]]) -> None:
        self._job_id = job_id
        self._read = read

    def __getitem__(self, index: Any) -> Any:
        return self._job_id if index == 1 else self._read(self._job_id)[index]

    def __len__(self) -> int:
        return len(self._read(self._job_id))
