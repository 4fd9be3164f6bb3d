"""The queue, and the executor that runs one prompt of it."""

import asyncio
import copy
import heapq
import logging
import threading
import time
import traceback
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, NamedTuple

import comfy.model_management
import nodes
from comfy_execution.caching import CacheKeySetInputSignature, OutputCache
from comfy_execution.graph import DependencyCycleError, DynamicPrompt, ExecutionList
from comfy_execution.node_call import CacheEntry, get_input_data, map_over_lists, pending_tasks, split_returns, unwrap
from comfy_execution.progress import (
    WebUIProgressHandler,
    add_progress_handler,
    get_progress_state,
    reset_progress_state,
)
from comfy_execution.validation import full_type_name, validate_prompt

__all__ = ["SENSITIVE_EXTRA_DATA_KEYS", "CacheType", "PromptExecutor", "PromptQueue", "validate_prompt"]

SENSITIVE_EXTRA_DATA_KEYS = ("auth_token_comfy_org", "api_key_comfy_org")
MAXIMUM_HISTORY_SIZE = 10000


class CacheType(Enum):
    CLASSIC = 0
    LRU = 1
    NONE = 2
    RAM_PRESSURE = 3


class _Run:
    """One prompt on its way through the executor."""

    def __init__(self, prompt_id: str, dynprompt: DynamicPrompt, extra_data: dict[str, Any]) -> None:
        self.prompt_id = prompt_id
        self.dynprompt = dynprompt
        self.extra_data = extra_data
        self.executed: set[str] = set()
        self.entries: dict[str, CacheEntry] = {}
        self.ui: dict[str, dict[str, Any]] = {}
        self.async_calls: dict[str, list[Any]] = {}
        self.order: ExecutionList


class PromptExecutor:
    """Runs prompts one after the other, on the worker's thread, with a cache of its own."""

    def __init__(self, server: Any, cache_type: CacheType | bool = False, cache_args: dict | None = None) -> None:
        self.server = server
        self.cache_type = cache_type
        self.cache_args = cache_args or {}
        self.history_result: dict[str, Any]
        self.reset()

    def reset(self) -> None:
        max_entries = self.cache_args.get("lru", 0) if self.cache_type is CacheType.LRU else 0
        self.outputs = OutputCache(max_entries, enabled=self.cache_type is not CacheType.NONE)
        self.objects: dict[tuple[str, str], Any] = {}
        self.status_messages: list[tuple[str, dict[str, Any]]] = []
        self.success = True

    def add_message(self, event: str, data: dict[str, Any], broadcast: bool) -> None:
        """Record a status message and send it to the prompt's client; without one, only if `broadcast`."""
        data = {**data, "timestamp": int(time.time() * 1000)}
        self.status_messages.append((event, data))
        if self.server.client_id is not None or broadcast:
            self.server.send_sync(event, data, self.server.client_id)

    def execute(
        self,
        prompt: dict,
        prompt_id: str,
        extra_data: dict | None = None,
        execute_outputs: list | None = None,
    ) -> None:
        asyncio.run(self.execute_async(prompt, prompt_id, extra_data, execute_outputs))

    async def execute_async(
        self,
        prompt: dict,
        prompt_id: str,
        extra_data: dict | None = None,
        execute_outputs: list | None = None,
    ) -> None:
        extra_data = extra_data if extra_data is not None else {}
        nodes.interrupt_processing(False)
        self.server.client_id = extra_data.get("client_id")
        self.status_messages = []
        self.add_message("execution_start", {"prompt_id": prompt_id}, broadcast=False)

        run = _Run(prompt_id, DynamicPrompt(prompt), extra_data)
        reset_progress_state(prompt_id, run.dynprompt)
        add_progress_handler(WebUIProgressHandler(self.server))
        keys = CacheKeySetInputSignature(prompt_id, run.dynprompt)
        await keys.add_all()
        self.outputs.set_prompt(keys)
        if self.cache_type is CacheType.CLASSIC:
            self.outputs.drop_unused()
        self.objects = {
            (node_id, kind): obj
            for (node_id, kind), obj in self.objects.items()
            if node_id in prompt and prompt[node_id]["class_type"] == kind
        }
        for node_id in prompt:
            if (entry := self.outputs.get(node_id)) is not None:
                run.entries[node_id] = entry
        cached = {"nodes": list(run.entries), "prompt_id": prompt_id}
        self.add_message("execution_cached", cached, broadcast=False)

        run.order = ExecutionList(run.dynprompt, run.entries.__contains__)
        for node_id in execute_outputs or []:
            run.order.add_node(node_id)
        if await self._run_nodes(run):
            self._announce_cached_intermediates(run)
            self.add_message("execution_success", {"prompt_id": prompt_id}, broadcast=False)
        self.history_result = {
            "outputs": {node_id: ui["output"] for node_id, ui in run.ui.items()},
            "meta": {node_id: ui["meta"] for node_id, ui in run.ui.items()},
        }
        self.server.last_node_id = None

    async def _run_nodes(self, run: _Run) -> bool:
        while not run.order.is_empty():
            try:
                node_id = await run.order.next_node()
            except DependencyCycleError as error:
                self._fail(run, error.args[1], error, "graph.DependencyCycleError", error.args[0], {})
                return False
            data: dict[str, Any] = {}
            try:
                done = await self._run_node(run, node_id, data)
            except comfy.model_management.InterruptProcessingException:
                self.success = False
                self._announce_interrupt(run, node_id)
                return False
            except Exception as error:
                self.success = False
                logging.exception("node %s of prompt %s failed", node_id, run.prompt_id)
                self._fail(run, node_id, error, full_type_name(type(error)), f"{error}\n{_tips(error)}", data)
                return False
            self.success = True
            self.outputs.drop_unused()
            if done:
                run.order.complete(node_id)
        return True

    async def _run_node(self, run: _Run, node_id: str, data: dict[str, Any]) -> bool:
        """Run one node, or take it from the cache; False while an async one is still under way."""
        progress = get_progress_state()
        # Look again: an equal node of this very prompt may have run since the start.
        if (entry := run.entries.get(node_id) or self.outputs.get(node_id)) is not None:
            run.entries[node_id] = entry
            self._announce_cached(run, node_id, entry)
            progress.finish_progress(node_id)
            return True

        node = run.dynprompt.get_node(node_id)
        class_def = nodes.NODE_CLASS_MAPPINGS[node["class_type"]]
        if node_id in run.async_calls:
            returns = unwrap(run.async_calls.pop(node_id))
        else:
            progress.start_progress(node_id)
            data.update(
                get_input_data(node["inputs"], class_def, node_id, run.entries.get, run.dynprompt, run.extra_data)
            )
            self._announce_executing(run, node_id)
            obj = self.objects.get((node_id, node["class_type"]))
            if obj is None:
                obj = self.objects[node_id, node["class_type"]] = class_def()
            returns = await map_over_lists(run.prompt_id, node_id, obj, data, obj.FUNCTION, interruptible=True)
            if tasks := pending_tasks(returns):
                run.async_calls[node_id] = returns
                unblock = run.order.block(node_id)
                gathered = asyncio.gather(*tasks, return_exceptions=True)
                gathered.add_done_callback(lambda _: unblock())
                return False

        outputs, ui = split_returns(returns, class_def)
        if ui:
            self._announce_executed(run, node_id, ui)
        entry = CacheEntry(run.ui.get(node_id), outputs)
        run.entries[node_id] = entry
        self.outputs.set(node_id, entry)
        progress.finish_progress(node_id)
        run.executed.add(node_id)
        return True

    def _announce_executing(self, run: _Run, node_id: str) -> None:
        if self.server.client_id is not None:
            self.server.last_node_id = node_id
            self._send("executing", {"node": node_id, "display_node": node_id, "prompt_id": run.prompt_id})

    def _announce_executed(self, run: _Run, node_id: str, ui: dict[str, Any]) -> None:
        meta = {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
        run.ui[node_id] = {"meta": meta, "output": ui}
        if self.server.client_id is not None:
            payload = {"node": node_id, "display_node": node_id, "output": ui, "prompt_id": run.prompt_id}
            self._send("executed", payload)

    def _announce_cached(self, run: _Run, node_id: str, entry: CacheEntry) -> None:
        """A cached output node names its old files again, whether or not they still exist."""
        if entry.ui is not None:
            run.ui[node_id] = entry.ui
        if self.server.client_id is not None:
            output = (entry.ui or {}).get("output")
            payload = {"node": node_id, "display_node": node_id, "output": output, "prompt_id": run.prompt_id}
            self._send("executed", payload)

    def _announce_cached_intermediates(self, run: _Run) -> None:
        for node_id, entry in run.entries.items():
            class_def = nodes.NODE_CLASS_MAPPINGS[run.dynprompt.get_node(node_id)["class_type"]]
            if node_id not in run.executed and getattr(class_def, "HAS_INTERMEDIATE_OUTPUT", False):
                self._announce_cached(run, node_id, entry)

    def _send(self, event: str, data: dict[str, Any]) -> None:
        self.server.send_sync(event, data, self.server.client_id)

    def _blame(self, run: _Run, node_id: str) -> dict[str, Any]:
        return {
            "prompt_id": run.prompt_id,
            "node_id": node_id,
            "node_type": run.dynprompt.get_node(node_id)["class_type"],
            "executed": list(run.executed),
        }

    def _announce_interrupt(self, run: _Run, node_id: str) -> None:
        logging.info("Processing interrupted")
        self.add_message("execution_interrupted", self._blame(run, node_id), broadcast=True)

    def _fail(self, run: _Run, node_id: str, error: Exception, kind: str, message: str, data: dict[str, Any]) -> None:
        if comfy.model_management.is_oom(error):
            comfy.model_management.unload_all_models()
        facts = {
            "exception_message": message,
            "exception_type": kind,
            "traceback": traceback.format_tb(error.__traceback__),
            "current_inputs": {name: [_printable(value) for value in values] for name, values in data.items()},
            "current_outputs": list(run.dynprompt.all_node_ids()),
        }
        self.add_message("execution_error", self._blame(run, node_id) | facts, broadcast=False)


def _printable(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | bool | str) else str(value)


def _tips(error: Exception) -> str:
    is_oom = comfy.model_management.is_oom(error)
    return "This error means you ran out of memory on your GPU." if is_oom else ""


class PromptQueue:
    """Prompts that wait, run and have run. Items are (number, id, prompt, extra_data, outputs, sensitive)."""

    class ExecutionStatus(NamedTuple):
        status_str: Literal["success", "error"]
        completed: bool
        messages: list[Any]

    def __init__(self, server: Any) -> None:
        self.server = server
        self.mutex = threading.RLock()
        self.not_empty = threading.Condition(self.mutex)
        self.task_counter = 0
        self.queue: list[tuple] = []
        self.currently_running: dict[int, tuple] = {}
        self.history: dict[str, dict[str, Any]] = {}
        self.flags: dict[str, Any] = {}

    def put(self, item: tuple) -> None:
        # Two items of equal number and id make the heap compare prompts, a TypeError, as in ComfyUI.
        with self.mutex:
            heapq.heappush(self.queue, item)
            self.server.queue_updated()
            self.not_empty.notify()

    def get(self, timeout: float | None = None) -> tuple[tuple, int] | None:
        with self.not_empty:
            while not self.queue:
                self.not_empty.wait(timeout=timeout)
                if timeout is not None and not self.queue:
                    return None
            item = heapq.heappop(self.queue)
            item_id = self.task_counter
            # History will show this copy. An item that is nested too deep kills the worker here.
            self.currently_running[item_id] = copy.deepcopy(item)
            self.task_counter += 1
            self.server.queue_updated()
            return item, item_id

    def task_done(
        self,
        item_id: int,
        history_result: dict[str, Any],
        status: "PromptQueue.ExecutionStatus | None",
        process_item: Callable[[tuple], tuple] | None = None,
    ) -> None:
        with self.mutex:
            prompt = self.currently_running.pop(item_id)
            if len(self.history) > MAXIMUM_HISTORY_SIZE:
                del self.history[next(iter(self.history))]
            if process_item is not None:
                prompt = process_item(prompt)
            shown = copy.deepcopy(status._asdict()) if status is not None else None
            self.history[prompt[1]] = {"prompt": prompt, "outputs": {}, "status": shown} | history_result
            self.server.queue_updated()

    def get_current_queue(self) -> tuple[list[tuple], list[tuple]]:
        with self.mutex:
            return list(self.currently_running.values()), copy.deepcopy(self.queue)

    def get_current_queue_volatile(self) -> tuple[list[tuple], list[tuple]]:
        """Like `get_current_queue`, but without the costly copy: callers must not change the items."""
        with self.mutex:
            return list(self.currently_running.values()), list(self.queue)

    def interrupt_if_running(self, prompt_id: str) -> bool:
        with self.mutex:
            if not any(item[1] == prompt_id for item in self.currently_running.values()):
                return False
            nodes.interrupt_processing()
            return True

    def get_tasks_remaining(self) -> int:
        with self.mutex:
            return len(self.queue) + len(self.currently_running)

    def wipe_queue(self) -> None:
        with self.mutex:
            self.queue = []
            self.server.queue_updated()

    def delete_queue_item(self, function: Callable[[tuple], bool]) -> bool:
        """Take the first item for which `function` is true out of the queue."""
        with self.mutex:
            for index, item in enumerate(self.queue):
                if function(item):
                    if len(self.queue) == 1:
                        self.wipe_queue()
                    else:
                        del self.queue[index]
                        heapq.heapify(self.queue)
                    self.server.queue_updated()
                    return True
        return False

    def get_history(
        self,
        prompt_id: str | None = None,
        max_items: int | None = None,
        offset: int = -1,
        map_function: Callable[[dict], dict] | None = None,
    ) -> dict[str, dict[str, Any]]:
        with self.mutex:
            if prompt_id is not None:
                if prompt_id not in self.history:
                    return {}
                entry = self.history[prompt_id]
                return {prompt_id: map_function(entry) if map_function else copy.deepcopy(entry)}
            if offset < 0 and max_items is not None:
                offset = len(self.history) - max_items
            ids = list(self.history)[max(offset, 0) :]
            if max_items is not None:
                ids = ids[: max(max_items, 1)]
            return {key: map_function(self.history[key]) if map_function else self.history[key] for key in ids}

    def wipe_history(self) -> None:
        with self.mutex:
            self.history = {}

    def delete_history_item(self, id_to_delete: str) -> None:
        with self.mutex:
            self.history.pop(id_to_delete, None)

    def set_flag(self, name: str, data: Any) -> None:
        with self.mutex:
            self.flags[name] = data
            self.not_empty.notify()

    def get_flags(self, reset: bool = True) -> dict[str, Any]:
        with self.mutex:
            flags = self.flags
            if reset:
                self.flags = {}
            return flags if reset else flags.copy()
