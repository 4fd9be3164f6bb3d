"""The prompt as a graph, and the order in which its nodes run."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import nodes
from comfy_execution.graph_utils import is_link


class DependencyCycleError(Exception):
    pass


class NodeNotFoundError(Exception):
    pass


class DynamicPrompt:
    """The prompt that runs. Nodes cannot expand into graphs here, so every node is its own display node."""

    def __init__(self, original_prompt: dict[str, Any]) -> None:
        self.original_prompt = original_prompt

    def get_node(self, node_id: str) -> dict[str, Any]:
        if node_id not in self.original_prompt:
            raise NodeNotFoundError(f"Node {node_id} not found")
        return self.original_prompt[node_id]

    def has_node(self, node_id: str) -> bool:
        return node_id in self.original_prompt

    def get_original_prompt(self) -> dict[str, Any]:
        return self.original_prompt

    def all_node_ids(self) -> set[str]:
        return set(self.original_prompt)

    def get_real_node_id(self, node_id: str) -> str:
        return node_id

    def get_display_node_id(self, node_id: str) -> str:
        return node_id

    def get_parent_node_id(self, node_id: str) -> str | None:
        return None


def get_input_info(
    class_def: Any, input_name: str, valid_inputs: dict[str, Any] | None = None
) -> tuple[Any, str | None, dict[str, Any] | None]:
    """Type, category and options of an input; three times None when the class has no such input."""
    valid_inputs = valid_inputs or class_def.INPUT_TYPES()
    for category in ("required", "optional", "hidden"):
        info = valid_inputs.get(category, {}).get(input_name)
        if info is not None:
            return info[0], category, info[1] if len(info) > 1 else {}
    return None, None, None


class ExecutionList:
    """What is left to run: the wanted nodes and those of their ancestors that are not cached."""

    def __init__(self, dynprompt: DynamicPrompt, is_cached: Callable[[str], bool]) -> None:
        self.dynprompt = dynprompt
        self.is_cached = is_cached
        self.waits_for: dict[str, set[str]] = {}
        self.feeds: dict[str, list[str]] = {}
        self.blocked_outside: set[str] = set()
        self._unblocked = asyncio.Event()

    def add_node(self, node_id: str) -> None:
        stack, links = [node_id], []
        while stack:
            current = stack.pop()
            if current in self.waits_for:
                continue
            self.waits_for[current] = set()
            self.feeds[current] = []
            for value in self.dynprompt.get_node(current)["inputs"].values():
                if is_link(value) and not self.is_cached(value[0]):
                    stack.append(value[0])
                    links.append((value[0], current))
        for source, target in links:
            if source not in self.waits_for[target]:
                self.waits_for[target].add(source)
                self.feeds[source].append(target)

    def is_empty(self) -> bool:
        return not self.waits_for

    async def next_node(self) -> str:
        """The node to run now; waits while only async nodes are under way.

        Raises
        ------
        DependencyCycleError
            If what is left waits for itself; its second argument is the node to blame.
        """
        while True:
            ready = [
                node_id
                for node_id, sources in self.waits_for.items()
                if not sources and node_id not in self.blocked_outside
            ]
            if ready:
                return self._pick(ready)
            if not self.blocked_outside:
                raise DependencyCycleError("Dependency cycle detected", next(iter(self.waits_for)))
            await self._unblocked.wait()
            self._unblocked.clear()

    def block(self, node_id: str) -> Callable[[], None]:
        """Keep a node from being picked until the function returned here is called."""
        self.blocked_outside.add(node_id)

        def unblock() -> None:
            self.blocked_outside.discard(node_id)
            self._unblocked.set()

        return unblock

    def complete(self, node_id: str) -> None:
        del self.waits_for[node_id]
        for target in self.feeds.pop(node_id):
            self.waits_for[target].discard(node_id)

    def _pick(self, ready: list[str]) -> str:
        """Pick the node that shows the user something soonest, as ComfyUI does."""
        for node_id in ready:
            if self._is_output(node_id) or self._is_async(node_id):
                return node_id
        for node_id in ready:
            if any(self._is_output(target) for target in self.feeds[node_id]):
                return node_id
        for node_id in ready:
            if any(self._is_output(last) for target in self.feeds[node_id] for last in self.feeds[target]):
                return node_id
        return ready[0]

    def _class_of(self, node_id: str) -> Any:
        return nodes.NODE_CLASS_MAPPINGS[self.dynprompt.get_node(node_id)["class_type"]]

    def _is_output(self, node_id: str) -> bool:
        return bool(getattr(self._class_of(node_id), "OUTPUT_NODE", False))

    def _is_async(self, node_id: str) -> bool:
        class_def = self._class_of(node_id)
        return inspect.iscoroutinefunction(getattr(class_def, class_def.FUNCTION))
