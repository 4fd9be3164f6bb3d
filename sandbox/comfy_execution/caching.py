"""What a node's result depends on, and the results that are remembered between prompts."""

import hashlib
import itertools
import logging
from collections import OrderedDict
from typing import Any

import nodes
from comfy_execution.graph import DynamicPrompt
from comfy_execution.graph_utils import is_link
from comfy_execution.node_call import CacheEntry, get_input_data, map_over_lists, resolve

_unique = itertools.count()


class CacheKeySetInputSignature:
    """The key of every node of one prompt: its class, constants and IS_CHANGED, and those of its ancestors.

    Inputs that the class does not know are part of the key. NaN, and what cannot be known, equals nothing.
    """

    def __init__(self, prompt_id: str, dynprompt: DynamicPrompt) -> None:
        self.prompt_id = prompt_id
        self.dynprompt = dynprompt
        self.keys: dict[str, str] = {}
        self._being_made: set[str] = set()

    async def add_all(self) -> None:
        for node_id in self.dynprompt.all_node_ids():
            await self.key_of(node_id)

    async def key_of(self, node_id: str) -> str:
        if node_id in self.keys:
            return self.keys[node_id]
        if not self.dynprompt.has_node(node_id) or node_id in self._being_made:
            return _never_again()
        self._being_made.add(node_id)
        parts = await self.get_immediate_node_signature(self.dynprompt, node_id)
        self._being_made.discard(node_id)
        self.keys[node_id] = hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()
        return self.keys[node_id]

    async def get_immediate_node_signature(self, dynprompt: DynamicPrompt, node_id: str) -> list[Any]:
        node = dynprompt.get_node(node_id)
        class_def = nodes.NODE_CLASS_MAPPINGS[node["class_type"]]
        parts: list[Any] = [node["class_type"], _freeze(await self._is_changed(node_id))]
        if getattr(class_def, "NOT_IDEMPOTENT", False) or _takes_unique_id(class_def):
            parts.append(node_id)
        for name, value in sorted(node["inputs"].items()):
            frozen = (await self.key_of(value[0]), value[1]) if is_link(value) else _freeze(value)
            parts.append((name, frozen))
        return parts

    async def _is_changed(self, node_id: str) -> Any:
        """IS_CHANGED's answers, kept in the node itself: ComfyUI shows them in the PNG's prompt, too."""
        node = self.dynprompt.get_node(node_id)
        class_def = nodes.NODE_CLASS_MAPPINGS[node["class_type"]]
        if not hasattr(class_def, "IS_CHANGED"):
            return False
        if "is_changed" not in node:
            data = get_input_data(node["inputs"], class_def, node_id)
            try:
                calls = await map_over_lists(self.prompt_id, node_id, class_def, data, "IS_CHANGED")
                node["is_changed"] = await resolve(calls)
            except Exception as error:
                logging.warning("IS_CHANGED of node %s: %s", node_id, error)
                node["is_changed"] = float("nan")
        return node["is_changed"]


class OutputCache:
    """Results by key.

    `max_entries` 0 remembers the nodes of the last prompt only. ComfyUI's default comes to the same: it drops
    what the running prompt does not use unless more memory is free than most machines have. A positive
    `max_entries` forgets the least recently used; `enabled` False remembers nothing.
    """

    def __init__(self, max_entries: int = 0, enabled: bool = True) -> None:
        self.max_entries = max_entries
        self.enabled = enabled
        self.entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self.keys: dict[str, str] = {}
        self._is_tidy = False

    def set_prompt(self, keys: CacheKeySetInputSignature) -> None:
        self.keys = keys.keys
        self._is_tidy = False

    def drop_unused(self) -> None:
        """Forget what the running prompt does not use.

        The default policy does so when the first node has run: a prompt that fails before that leaves the
        results of the one before it, as in ComfyUI.
        """
        if self._is_tidy or self.max_entries:
            return
        used = set(self.keys.values())
        for key in [key for key in self.entries if key not in used]:
            del self.entries[key]
        self._is_tidy = True

    def get(self, node_id: str) -> CacheEntry | None:
        key = self.keys.get(node_id)
        if key is None or key not in self.entries:
            return None
        self.entries.move_to_end(key)
        return self.entries[key]

    def set(self, node_id: str, entry: CacheEntry) -> None:
        if not self.enabled:
            return
        self.entries[self.keys[node_id]] = entry
        while self.max_entries and len(self.entries) > self.max_entries:
            self.entries.popitem(last=False)


def _takes_unique_id(class_def: Any) -> bool:
    return "UNIQUE_ID" in class_def.INPUT_TYPES().get("hidden", {}).values()


def _never_again() -> str:
    return f"unique-{next(_unique)}"


def _freeze(value: Any) -> Any:
    """The value in a form whose `repr` is equal exactly when the value is."""
    if isinstance(value, float) and value != value:
        return _never_again()
    if isinstance(value, dict):
        return [(name, _freeze(item)) for name, item in sorted(value.items())]
    if isinstance(value, list | tuple):
        return [_freeze(item) for item in value]
    return value if isinstance(value, int | float | str | bytes | None) else _never_again()
