"""Call a node: gather its inputs, map its function over lists, and take its answer apart."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import nodes
from comfy_execution.graph import DynamicPrompt, get_input_info
from comfy_execution.graph_utils import is_link
from comfy_execution.utils import CurrentNodeContext

InputLists = dict[str, Any]


class CacheEntry(NamedTuple):
    """A node's result: `ui` as it stands in history (`meta` and `output`), `outputs` one list per slot."""

    ui: dict[str, Any] | None
    outputs: list[Any]


def get_input_data(
    inputs: dict[str, Any],
    class_def: Any,
    node_id: str,
    cached: Callable[[str], CacheEntry | None] | None = None,
    dynprompt: DynamicPrompt | None = None,
    extra_data: dict[str, Any] | None = None,
) -> InputLists:
    """Every input as a list of values. Without `cached`, links count as None: only constants are known.

    A constant that the class does not declare is left out, so it is never passed to the node (but it is part
    of the cache key); a link that the class does not declare is passed, and the node will complain.
    """
    valid_inputs = class_def.INPUT_TYPES()
    data: InputLists = {}
    for name, value in inputs.items():
        _, category, options = get_input_info(class_def, name, valid_inputs)
        if is_link(value) and not (options or {}).get("rawLink", False):
            entry = cached(value[0]) if cached else None
            known = entry is not None and value[1] < len(entry.outputs)
            data[name] = entry.outputs[value[1]] if entry is not None and known else (None,)
        elif category is not None:
            data[name] = [value]

    extra_data = extra_data or {}
    hidden = {
        "PROMPT": dynprompt.get_original_prompt() if dynprompt else {},
        "DYNPROMPT": dynprompt,
        "EXTRA_PNGINFO": extra_data.get("extra_pnginfo"),
        "UNIQUE_ID": node_id,
        "AUTH_TOKEN_COMFY_ORG": extra_data.get("auth_token_comfy_org"),
        "API_KEY_COMFY_ORG": extra_data.get("api_key_comfy_org"),
        "COMFY_USAGE_SOURCE": extra_data.get("comfy_usage_source"),
    }
    for name, kind in valid_inputs.get("hidden", {}).items():
        if kind in hidden:
            data[name] = [hidden[kind]]
    return data


async def map_over_lists(
    prompt_id: str, node_id: str, obj: Any, data: InputLists, function: str, interruptible: bool = False
) -> list[Any]:
    """Call the function once per list element (the shorter lists repeat their last).

    An async function that did not end at once stands in the answer as its task.
    """
    if getattr(obj, "INPUT_IS_LIST", False):
        calls: list[tuple[dict[str, Any], int | None]] = [(data, 0)]
    elif longest := max(map(len, data.values()), default=0):
        calls = [({name: v[min(i, len(v) - 1)] for name, v in data.items()}, i) for i in range(longest)]
    else:
        calls = [({}, None)]

    method = getattr(obj, function)
    is_async = inspect.iscoroutinefunction(method)
    results: list[Any] = []
    for kwargs, index in calls:
        if interruptible:
            nodes.before_node_execution()
        if is_async:
            task = asyncio.create_task(_call_async(method, prompt_id, node_id, index, kwargs))
            await asyncio.sleep(0)  # many async nodes end without really waiting
            results.append(task.result() if task.done() else task)
        else:
            with CurrentNodeContext(prompt_id, node_id, index):
                results.append(method(**kwargs))
    return results


async def _call_async(method: Any, prompt_id: str, node_id: str, index: int | None, kwargs: dict[str, Any]) -> Any:
    with CurrentNodeContext(prompt_id, node_id, index):
        return await method(**kwargs)


def pending_tasks(results: list[Any]) -> list[asyncio.Task[Any]]:
    return [result for result in results if isinstance(result, asyncio.Task) and not result.done()]


async def resolve(results: list[Any]) -> list[Any]:
    """Await every task among the results; raise the first exception of one."""
    if tasks := pending_tasks(results):
        await asyncio.wait(tasks)
    return unwrap(results)


def unwrap(results: list[Any]) -> list[Any]:
    return [result.result() if isinstance(result, asyncio.Task) else result for result in results]


def split_returns(returns: list[Any], obj: Any) -> tuple[list[Any], dict[str, list[Any]]]:
    """Output slots (each a list over the calls) and the ui of what a node returned."""
    slots, uis = [], []
    for value in returns:
        if not isinstance(value, dict):
            slots.append(value)
            continue
        if "ui" in value:
            uis.append(value["ui"])
        if "result" in value:
            slots.append(value["result"])
    ui = {name: [item for one in uis for item in one[name]] for name in uis[0]} if uis else {}
    return _merge(slots, obj) if slots else [], ui


def _merge(slots: list[Any], obj: Any) -> list[Any]:
    flat = getattr(obj, "OUTPUT_IS_LIST", None) or [False] * len(slots[0])
    return [
        [item for call in slots for item in call[i]] if flat[i] else [call[i] for call in slots]
        for i in range(len(slots[0]))
    ]
