"""Read and write ComfyUI's shapes: queue items, history results, status tuples, outputs, events. They stop here."""

from __future__ import annotations

import inspect
import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import protocol

from ...guard import host_words
from ...guard.host import Outcome, ReportedFile
from ...guard.owners import FOLDER
from ...guard.results.reported import LONGEST_TEXT, Plain, fit, fit_all
from .folders import resolve
from .patching import Native

try:
    from comfy_execution.utils import get_executing_context
except ImportError:  # before ComfyUI 0.3.45
    get_executing_context = None


log = logging.getLogger("guarded.host")

#: An item of ComfyUI's queue: (number, prompt_id, prompt, extra_data, outputs_to_execute), and since v0.8.0 a sixth
#: field with credentials. Untyped in ComfyUI.
QueueItem = tuple[Any, ...]


def find_executing_prompt() -> str | None:
    """The prompt whose node runs in this context, as ComfyUI knows it; None between nodes and in bare threads."""
    context = get_executing_context() if get_executing_context is not None else None
    return context.prompt_id if context is not None else None


def find_files(outputs: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (node id, item) for every file that outputs name, whatever the key it stands under."""
    for node_id, _items, item in _find_items(outputs):
        yield node_id, dict(item)


def _find_items(outputs: Any) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield (node id, the list that it stands in, item)."""
    if not isinstance(outputs, Mapping):
        return
    for node_id, output in outputs.items():
        if not isinstance(output, Mapping):
            continue
        for items in output.values():
            if isinstance(items, (list, tuple)):
                for item in items:
                    if isinstance(item, Mapping) and isinstance(item.get("filename"), str):
                        yield str(node_id), items, item


def make_reported_file(node_id: str, item: Mapping[str, Any]) -> ReportedFile:
    """Locate a file that a node named."""
    kind = str(item.get("type") or "output")
    filename, subfolder = item["filename"], str(item.get("subfolder") or "")
    return ReportedFile(node_id, filename, subfolder, kind, resolve(kind, subfolder, filename))


def read_outcome(
    outputs: Mapping[str, Any],
    status: Any,
    prompt: Mapping[str, Any],
    is_made: Callable[[ReportedFile], bool] = lambda _file: True,
) -> Outcome:
    """Read how a run of that prompt ended, as :func:`make_plain` has it.

    `is_made`: whether the run has made a file that a node names.
    """
    copied = _copy_lists(outputs)
    messages = dict(getattr(status, "messages", None) or ())
    cached = frozenset(map(str, (messages.get("execution_cached") or {}).get("nodes") or ()))
    files, not_made, byproducts = [], [], []
    for node_id, items, item in list(_find_items(copied)):
        file = make_reported_file(node_id, item)
        if node_id in cached or is_made(file):
            files.append(file)
            beside = [make_reported_file(node_id, each) for each in _list_byproducts(item)]
            byproducts += [each for each in beside if node_id not in cached and is_made(each)]
        else:
            items.remove(item)
            not_made.append((node_id, file.filename))
    error = messages.get("execution_error") or {}
    return Outcome(
        success=bool(getattr(status, "completed", False))
        and not messages.keys() & {"execution_error", "execution_interrupted"},
        interrupted="execution_interrupted" in messages,
        outputs=copied,
        files=tuple(files),
        not_made=tuple(not_made),
        byproducts=tuple(each for each in byproducts if each not in files),
        prompt=prompt,
        cached=cached,
        exception_type=str(error.get("exception_type", "")),
        exception_message=str(error.get("exception_message", "")),
        node_id=error.get("node_id"),
        node_type=error.get("node_type"),
    )


def _list_byproducts(item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The files that VideoHelperSuite leaves beside a film: a picture with the workflow, the film without sound, and
    the workflow for ffmpeg, in temp."""
    picture = item.get("workflow")
    if isinstance(picture, str) and picture and picture == os.path.basename(picture):
        yield {**item, "filename": picture}
        stem, suffix = os.path.splitext(item["filename"])
        if stem.endswith("-audio"):
            yield {**item, "filename": stem.removesuffix("-audio") + suffix}
        folders = str(item.get("subfolder") or "").split("/")
        own = "/".join(folders[:2]) if folders[0] == FOLDER else ""
        yield {"filename": "metadata.txt", "subfolder": own, "type": "temp"}


def _copy_lists(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Copy outputs as deep as their lists, from which what the run has not made is taken."""
    return {
        node_id: {key: list(items) if isinstance(items, list) else items for key, items in output.items()}
        if isinstance(output, Mapping)
        else output
        for node_id, output in outputs.items()
    }


class PlainReport(NamedTuple):
    """What a run reports, in JSON's own types, as `task_done` takes it; `odd` names what of it cannot be told."""

    history: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    odd: list[str]


def make_plain(history_result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PlainReport:
    """Copy what a run reports. On the worker's thread: it is as large as its nodes have made it."""
    status, about, made = find_status(args, kwargs), Plain(LONGEST_TEXT), Plain()
    told = status
    if status is not None:
        pairs = [pair for pair in status.messages or () if isinstance(pair, (tuple, list)) and len(pair) == 2]
        told = status._replace(messages=[(str(event), about.copy(data)) for event, data in pairs])
    return PlainReport(
        made.copy(history_result),
        tuple(told if value is status else value for value in args),
        {name: told if value is status else value for name, value in kwargs.items()},
        [*about.odd, *made.odd],
    )


def warn(prompt_id: Any, odd: list[str]) -> None:
    """Name what nodes reported and nobody could read."""
    if odd:
        what = "; ".join(odd)
        log.warning(
            "job %s: its nodes report what no JSON can tell; that is text, or left out: %s",
            prompt_id,
            what,
            extra={"job_id": prompt_id},
        )


def restore(item: QueueItem) -> QueueItem:
    """An item that has run, as it was put into the queue: ComfyUI notes in its nodes whether they have changed, most
    often as NaN, which is no JSON.
    """
    prompt = {
        node_id: {key: value for key, value in node.items() if key != "is_changed"} for node_id, node in item[2].items()
    }
    return (*item[:2], prompt, *item[3:])


def find_outputs(history: Any) -> Mapping[str, Any]:
    """What the nodes report of a run, by node."""
    outputs = history.get("outputs") if isinstance(history, dict) else None
    return outputs if isinstance(outputs, dict) else {}


def put_outputs(history: Any, outputs: Mapping[str, Any]) -> Any:
    """Copy what a run reports with these outputs, as the frontends take them."""
    return {**history, "outputs": fit_all(outputs)} if isinstance(history, dict) else history


def fit_executed(data: Mapping[str, Any], locate: Callable[[Any], Any]) -> dict[str, Any]:
    """Copy the data of ComfyUI's `executed`, its output such that every client can read it."""
    output = locate({"": Plain().copy(data.get("output"))})[""]
    return {**data, "output": fit(output) if isinstance(output, Mapping) else output}


def shorten_end(data: Mapping[str, Any]) -> Any:
    """Copy the data of an event that says how a run ended, its texts cut."""
    return Plain(LONGEST_TEXT).copy(data)


def empty_outputs(history_result: Any) -> None:
    """Take the outputs back, in place."""
    if isinstance(history_result, dict):
        for key in ("outputs", "meta"):
            if isinstance(history_result.get(key), dict):
                history_result[key].clear()


def find_status(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The ExecutionStatus among `task_done`'s arguments, wherever this version passes it."""
    for value in (*args, *kwargs.values()):
        if hasattr(value, "status_str") and hasattr(value, "_replace"):
            return value
    return None


def put_error(
    args: tuple[Any, ...], kwargs: dict[str, Any], status: Any, error: tuple[str, dict[str, Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy `task_done`'s arguments with a status that says error. `status` is the one that they hold."""
    if status is None:
        return args, kwargs
    messages = [pair for pair in status.messages if pair[0] != "execution_success"]
    events = [pair[0] for pair in messages]
    if "execution_error" not in events:
        # Just before an interrupt: clients written for ComfyUI wait for an error, and some do not know interrupts.
        index = events.index("execution_interrupted") if "execution_interrupted" in events else len(events)
        messages.insert(index, error)
    failed = status._replace(status_str="error", completed=False, messages=messages)
    return (
        tuple(failed if value is status else value for value in args),
        {name: failed if value is status else value for name, value in kwargs.items()},
    )


def count_item_fields(task_done: Native) -> int:
    """Count the fields of a queue item. Where there is a sixth, `task_done` takes a function that leaves it out."""
    return 6 if "process_item" in inspect.signature(task_done).parameters else 5


def make_end_arguments(queue: Any, task_done: Native, messages: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Make `task_done`'s further arguments for a prompt that its worker never gave back."""
    status = queue.ExecutionStatus(status_str="error", completed=False, messages=messages)
    # Since v0.8.0 the sixth field of an item holds credentials, which the worker takes out on the way to history.
    further = {"process_item": lambda item: (*item[:5], *item[6:])}
    accepted = inspect.signature(task_done).parameters
    return {"status": status, **{name: value for name, value in further.items() if name in accepted}}


def make_execution_error(
    job_id: str, code: str, message: str, details: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Make ComfyUI's `execution_error` event for an error of ours."""
    return "execution_error", host_words.make_execution_error(job_id, code, message, details, int(time.time() * 1000))


def read_preview(event: Any, data: Any) -> tuple[str | None, str, Callable[[], bytes]] | None:
    """Read a preview picture: its prompt, where the event says so, its media type, and how to encode it.

    None where the event is no preview. ComfyUI sends `(type, picture, longer side at most)`, and metadata beside it to
    clients that understand them.
    """
    if event == protocol.BinaryEventTypes.UNENCODED_PREVIEW_IMAGE:
        picture, metadata = data, {}
    elif event == protocol.BinaryEventTypes.PREVIEW_IMAGE_WITH_METADATA:
        picture, metadata = data
    else:
        return None
    kind, image, side = picture
    kind = "PNG" if kind == "PNG" else "JPEG"

    def encode() -> bytes:
        copy = image.copy()
        if side:
            copy.thumbnail((side, side))
        buffer = io.BytesIO()
        copy.convert("RGB").save(buffer, format=kind, quality=90)
        return buffer.getvalue()

    return metadata.get("prompt_id"), f"image/{kind.lower()}", encode
