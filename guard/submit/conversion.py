"""Take a workflow in the editor's own format where a prompt should stand, and put the prompt in its place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from ..editor.read import is_workflow
from ..editor.resolve import convert
from ..errors import InternalError, InvalidWorkflowError, NotFoundError
from ..files.names import mentions_uploads
from ..host import Host
from ..life.contain import EscapedError, contain

#: What a request has beside its prompt; a body that is a workflow itself may have these as well.
_OF_THE_REQUEST = ("client_id", "prompt_id", "extra_data", "number", "front", "partial_execution_targets")

#: A workflow holds notes, reroutes and nodes of subgraphs beside those that go into the prompt.
_WRITTEN_PER_NODE = 10

#: How long the host may take to describe one class: a pack's class may look at a slow disk.
_DESCRIBE_WITHIN_S = 30.0

#: Makes a prompt of a workflow. Any thread but the event loop's.
Convert = Callable[[Mapping[str, Any]], dict[str, Any]]


def take_workflow(body: dict[str, Any]) -> dict[str, Any] | None:
    """The workflow of a body that has one for its prompt, or is one; None where it has a prompt, or neither.

    The body then has the request's other fields only.
    """
    if is_workflow(body.get("prompt")):
        workflow = body.pop("prompt")
        assert isinstance(workflow, dict)
        return workflow
    if "prompt" in body or not is_workflow(body):
        return None
    fields = {name: body[name] for name in _OF_THE_REQUEST if name in body}
    workflow = {name: value for name, value in body.items() if name not in fields}
    body.clear()
    body.update(fields)
    return workflow


def make_converter(host: Host, max_nodes: int) -> Convert:
    """Event loop; what it makes asks the host there, and runs elsewhere."""
    loop = asyncio.get_running_loop()

    async def ask(class_type: str) -> bytes:
        try:
            return await contain(
                lambda: host.native("/object_info/{node_class}", node_class=class_type), _DESCRIBE_WITHIN_S
            )
        except NotFoundError:
            return b"{}"

    def describe(class_type: str) -> Mapping[str, Any] | None:
        try:
            raw = asyncio.run_coroutine_threadsafe(ask(class_type), loop).result()
            info = json.loads(raw).get(class_type)
        except (Exception, EscapedError) as error:
            raise InternalError(f"The server cannot describe its node class {class_type[:100]!r}.") from error
        return _hide_uploads(info) if isinstance(info, dict) else None

    def convert_workflow(workflow: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return convert(workflow, describe, max_nodes * _WRITTEN_PER_NODE)
        except RecursionError:
            raise InvalidWorkflowError(
                "The workflow is nested too deeply.", extra_info={"reason": "too_deep"}
            ) from None

    return convert_workflow


def _hide_uploads(info: dict[str, Any]) -> dict[str, Any]:
    """Take owners' folders out of the choices, the first of which may stand in for a value that the file lacks."""
    for section in (info.get("input") or {}).values():
        for declared in section.values() if isinstance(section, dict) else ():
            if not isinstance(declared, list) or not declared:
                continue
            if isinstance(declared[0], list):
                declared[0] = _leave_shared(declared[0])
            elif len(declared) > 1 and isinstance(declared[1], dict) and isinstance(declared[1].get("options"), list):
                declared[1]["options"] = _leave_shared(declared[1]["options"])
    return info


def _leave_shared(choices: list[Any]) -> list[Any]:
    return [choice for choice in choices if not (isinstance(choice, str) and mentions_uploads(choice))]
