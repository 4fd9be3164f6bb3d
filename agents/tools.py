"""What each tool takes, as JSON Schema: one tool for each template, and those for jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

Schema = dict[str, Any]

#: A tool waits so long for its job by default: below the minute after which many clients give up.
WAIT_S = 50
LONGEST_WAIT_S = 600
PREFIX = "make_"
#: Characters of a picture in an argument; the server's own bounds are tighter.
PICTURE_CHARS = 2**26

_STATES = ("queued", "dispatched", "running", "validating", "succeeded", "failed", "cancelled")

_WAIT: Schema = {
    "type": "number",
    "minimum": 0,
    "maximum": LONGEST_WAIT_S,
    "default": WAIT_S,
    "description": "How many seconds to wait for the result. A job that takes longer goes on by itself; follow_job "
    "waits for it again.",
}
_JOB_ID: Schema = {
    "type": "string",
    "pattern": "^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$",
    "description": "The job_id that the tool which made the job has answered.",
}
_OPTIONS: dict[str, Schema] = {
    "wait_s": _WAIT,
    "idempotency_key": {
        "type": "string",
        "minLength": 1,
        "maxLength": 200,
        "pattern": "^[!-~]+$",
        "description": "A name of your own for this one picture. The same key with the same arguments never makes a "
        "second job: give one, and a call whose answer was lost can be repeated.",
    },
    "user": {
        "type": "string",
        "minLength": 1,
        "maxLength": 64,
        "description": "Your name for the user whom the job is for, where you serve several. Users take turns.",
    },
}


@dataclass(frozen=True)
class Tool:
    """A tool as it is listed.

    Attributes:
        template: the name of the template that it fills in; None for the others.
        files: parameters that are pictures or other files.
        options: arguments that are the job's, and no parameters of the template.
    """

    name: str
    title: str
    description: str
    schema: Schema
    template: str | None = None
    files: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()
    reads_only: bool = False


def _schema(properties: Mapping[str, Schema], required: list[str]) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}


FOLLOW = Tool(
    "follow_job",
    "Wait for a job",
    "Wait for a job until it has ended or wait_s is over. Answers with its pictures, with its error and whether it is "
    "refunded, or with its place in the queue. Tells progress meanwhile.",
    _schema({"job_id": _JOB_ID, "wait_s": _WAIT}, ["job_id"]),
    reads_only=True,
)
CANCEL = Tool(
    "cancel_job",
    "Cancel a job",
    "Cancel a job that waits or runs; it is refunded. A job that has ended stays as it is. Only this cancels a job: to "
    "stop waiting for one does not.",
    _schema({"job_id": _JOB_ID}, ["job_id"]),
)
LIST = Tool(
    "list_jobs",
    "List jobs",
    "Your jobs, newest first, with their states, errors and refunds.",
    _schema(
        {
            "state": {"type": "string", "enum": list(_STATES), "description": "Only jobs in this state."},
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": 100,
                "default": 10,
                "description": "At most so many.",
            },
            "before": {
                "type": "integer",
                "minimum": 1,
                "maximum": 2**53,
                "description": "The `next` of the page before, for the page after it.",
            },
        },
        [],
    ),
    reads_only=True,
)
RUN = Tool(
    "run_workflow",
    "Run a graph of your own",
    "Run a ComfyUI graph in API format (node id → class_type and inputs). Use this only where no other tool makes what "
    "is wanted.",
    _schema(
        {
            "prompt": {"type": "object", "description": "The graph, as ComfyUI's Export (API) writes it."},
            "files": {
                "type": "object",
                "maxProperties": 20,
                "propertyNames": {"pattern": "^[A-Za-z][A-Za-z0-9_]{0,63}$"},
                "additionalProperties": {"type": "string", "minLength": 1, "maxLength": PICTURE_CHARS},
                "description": "Pictures for its loaders, which name them by these names. {pictures}",
            },
            **_OPTIONS,
        },
        ["prompt"],
    ),
    options=frozenset(_OPTIONS),
)


def make_tools(templates: list[dict[str, Any]], *, reads_paths: bool) -> list[Tool]:
    """All tools of a server with these templates; `reads_paths`: a picture may be a path on the agent's machine."""
    pictures = _explain_pictures(reads_paths)
    tools: dict[str, Tool] = {}
    for template in templates:
        tool = _make_tool(template, pictures)
        tools.setdefault(tool.name, tool)
    run = dict(RUN.schema["properties"])
    run["files"] = {**run["files"], "description": run["files"]["description"].format(pictures=pictures)}
    return [*tools.values(), replace(RUN, schema=_schema(run, ["prompt"])), FOLLOW, CANCEL, LIST]


def _explain_pictures(reads_paths: bool) -> str:
    path = "a path on this machine, " if reads_paths else ""
    return (
        f"Give {path}the picture itself as a data: URL (data:image/jpeg;base64,…), an https: address, "
        "or the name of a file that the server has."
    )


def _make_tool(template: Mapping[str, Any], pictures: str) -> Tool:
    parameters: list[Mapping[str, Any]] = template["parameters"]
    own = {each["name"]: _describe_parameter(each, pictures) for each in parameters}
    missing = [name for names in template["missing"].values() for name in names]
    lacks = f" This server lacks {', '.join(missing)} for it, and refuses it until its operator installs that."
    return Tool(
        PREFIX + re.sub(r"[^A-Za-z0-9_-]", "_", template["name"])[:58],
        template["title"],
        f"{template['description']} Answers with the picture, or with why there is none.{lacks if missing else ''}",
        # A template's own parameter has the better claim to a name.
        _schema({**_OPTIONS, **own}, [each["name"] for each in parameters if each["required"]]),
        template=template["name"],
        files=frozenset(each["name"] for each in parameters if each["type"] == "file"),
        options=frozenset(_OPTIONS.keys() - own.keys()),
    )


def _describe_parameter(parameter: Mapping[str, Any], pictures: str) -> Schema:
    kind, told = parameter["type"], parameter["help"]
    schema: Schema
    if kind in ("integer", "seed", "number"):
        schema = {"type": "number" if kind == "number" else "integer"}
        schema["minimum"], schema["maximum"] = parameter["min"], parameter["max"]
        if step := parameter.get("step"):
            told = f"{told} {parameter['min']} plus a multiple of {step}."
    elif kind == "boolean":
        schema = {"type": "boolean"}
    elif kind == "choice":
        schema = {"type": "string", "enum": parameter["choices"]}
    elif kind == "file":
        schema = {"type": "string", "minLength": 1, "maxLength": PICTURE_CHARS}
        told = f"{told} {pictures}"
    else:
        schema = {"type": "string", "maxLength": parameter["max_length"]}
    if parameter["default"] is not None:
        schema["default"] = parameter["default"]
    return {**schema, "description": told}
