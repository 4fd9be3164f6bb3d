"""The MCP server: it lists the tools and results, calls the tools, and answers every failure with a type."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import mcp_types as types
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError

from ..guard.errors import clip
from . import words
from .api import Api, Reach, Refused, open_session
from .calls import LARGEST_BYTES, Calls, Outcome
from .tools import Tool, make_tools

log = logging.getLogger("guarded.mcp")

_INSTRUCTIONS = (
    "Tools that make pictures on a ComfyUI server. Each make_… tool starts a job and waits for it; a job that takes "
    "longer goes on by itself, and follow_job waits for it again. A job ends once: with its files, or with an error "
    "and a refund. Give an idempotency_key of your own for each picture, and repeat a call whose answer was lost."
)
_ARTIFACT = re.compile(r"guarded://jobs/([^/]+)/artifacts/([0-9]{1,5})")
_JOB = re.compile(r"guarded://jobs/([^/]+)")
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
#: The results of so many jobs are listed among the resources.
_LISTED = 50
_NOT_FOUND = -32002

_Context = Any


def make_server(
    find_reach: Callable[[Any], Reach],
    *,
    reads_paths: bool = False,
    save: Path | None = None,
) -> Server[aiohttp.ClientSession]:
    """The server.

    Args:
        find_reach: finds whom to ask, and as whom, by the HTTP request that a message came with (None over stdio).
        reads_paths, save: pictures may be named by paths on this machine, and results are saved there.
    """

    @asynccontextmanager
    async def lifespan(_server: Server[aiohttp.ClientSession]) -> AsyncIterator[aiohttp.ClientSession]:
        async with open_session() as http:
            yield http

    def reach(context: _Context) -> Api:
        return Api(context.lifespan_context, find_reach(context.request))

    async def find_tools(api: Api) -> list[Tool]:
        return make_tools(await api.list_templates(), reads_paths=reads_paths)

    async def list_tools(context: _Context, _params: object) -> types.ListToolsResult:
        with _told():
            tools = await find_tools(reach(context))
        return types.ListToolsResult(tools=[_describe_tool(tool) for tool in tools])

    async def call_tool(context: _Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        calls: Calls | None = None
        try:
            api = reach(context)
            tool = next((tool for tool in await find_tools(api) if tool.name == params.name), None)
            if tool is None:
                raise Refused("not_found", f"There is no tool {clip(params.name)!r}.")
            arguments = params.arguments or {}
            _check(tool, arguments)
            calls = Calls(api, _Progress(context).report, save=save, reads_paths=reads_paths)
            return _answer(await calls.call(tool, arguments))
        except Refused as error:
            refused = error
        except Exception:
            log.exception("the tool %.100r failed", params.name, extra={"quotes_prompt": True})
            refused = Refused("internal_error", "The tool failed; the log has more.", retryable=True)
        if calls is not None and calls.job_id is not None:
            refused.job_id, refused.refund = refused.job_id or calls.job_id, None
        return _answer(Outcome(*words.describe_refusal(refused), failed=True))

    async def list_resources(context: _Context, _params: object) -> types.ListResourcesResult:
        with _told():
            jobs = (await reach(context).list_jobs(state="succeeded", limit=_LISTED))["jobs"]
        return types.ListResourcesResult(
            resources=[
                types.Resource(**_describe_artifact(job["job_id"], artifact))
                for job in jobs
                for artifact in job["artifacts"]
            ]
        )

    async def list_templates(_context: _Context, _params: object) -> types.ListResourceTemplatesResult:
        job = "guarded://jobs/{job_id}"
        return types.ListResourceTemplatesResult(
            resource_templates=[
                types.ResourceTemplate(
                    name="job", uri_template=job, mime_type="application/json", description="A job as it stands."
                ),
                types.ResourceTemplate(
                    name="result",
                    uri_template=f"{job}/artifacts/{{index}}",
                    description="A file that the job has made, whole.",
                ),
            ]
        )

    async def read_resource(context: _Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        uri = str(params.uri)
        with _told():
            return types.ReadResourceResult(contents=[await _read(reach(context), uri)])

    server = Server(
        "comfyui-guarded",
        title="ComfyUI-Guarded",
        instructions=_INSTRUCTIONS,
        lifespan=lifespan,
        get_tool_input_schema=lambda _name: None,  # the tools check their arguments themselves
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )
    server.middleware.clear()  # its traces would go to whatever collects ComfyUI's
    return server


class _Progress:
    """Tells a call's progress, which must grow with each message."""

    def __init__(self, context: _Context) -> None:
        self._context = context
        self._told: tuple[float, str] = (-1.0, "")

    async def report(self, percent: float, message: str) -> None:
        last, said = self._told
        if message == said and percent <= last:
            return
        value = max(percent, last + 0.001)
        self._told = (value, message)
        await self._context.session.report_progress(value, 100.0, message)


@contextmanager
def _told() -> Iterator[None]:
    """What is refused in the block is an error of the protocol, with the facts as its data."""
    try:
        yield
    except Refused as refused:
        text, facts = words.describe_refusal(refused)
        is_gone = refused.code in ("not_found", "artifact_gone")
        raise MCPError(_NOT_FOUND if is_gone else types.INTERNAL_ERROR, text, facts) from None


def _check(tool: Tool, arguments: dict[str, Any]) -> None:
    """Raises Refused where the arguments do not have the tool's schema."""
    error = best_match(Draft202012Validator(tool.schema).iter_errors(arguments))
    if error is None:
        return
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = ", ".join(tool.schema["properties"])
        message = f"There is no such argument; {tool.name} takes {known}."
    else:
        wanted = {"type": "must be of type", "enum": "must be one of", "required": "must be there:"}
        asks = wanted.get(str(error.validator), f"breaks its {error.validator}:")
        message = f"{asks} {clip(json.dumps(error.validator_value), 500)}"
    raise Refused(
        "invalid_request",
        f"{clip(where, 100)}: {message}" if where else message,
        extra_info={"field": where[:200]},
        refund=True if tool.template is not None else None,
    )


def _describe_tool(tool: Tool) -> types.Tool:
    hints = types.ToolAnnotations(read_only_hint=tool.reads_only, destructive_hint=False, open_world_hint=False)
    return types.Tool(
        name=tool.name, title=tool.title, description=tool.description, input_schema=tool.schema, annotations=hints
    )


def _describe_artifact(job_id: str, artifact: dict[str, Any]) -> dict[str, Any]:
    return {
        "uri": words.name_artifact(job_id, artifact["index"]),
        "name": artifact["filename"],
        "description": f"{artifact['kind']} of job {job_id}",
        "size": artifact["bytes"],
    }


def _answer(outcome: Outcome) -> types.CallToolResult:
    content: list[types.ContentBlock] = [types.TextContent(type="text", text=outcome.text)]
    for picture in outcome.pictures:
        data = base64.b64encode(picture.content).decode()
        content.append(types.ImageContent(type="image", data=data, mime_type=picture.mime))
    for artifact in outcome.artifacts:
        content.append(types.ResourceLink(type="resource_link", **_describe_artifact(outcome.job_id, artifact)))
    return types.CallToolResult(content=content, structured_content=outcome.facts, is_error=outcome.failed)


async def _read(api: Api, uri: str) -> types.TextResourceContents | types.BlobResourceContents:
    result, job = _ARTIFACT.fullmatch(uri), _JOB.fullmatch(uri)
    job_id = (result or job or [None, ""])[1]
    if not _JOB_ID.fullmatch(job_id or ""):
        raise Refused("not_found", f"There is no resource {clip(uri)!r}.")
    if result is None:
        text = json.dumps(await api.get_job(job_id or ""), ensure_ascii=False)
        return types.TextResourceContents(uri=uri, mime_type="application/json", text=text)
    content, mime = await api.fetch(f"/guarded/jobs/{job_id}/artifacts/{result[2]}", LARGEST_BYTES)
    return types.BlobResourceContents(uri=uri, mime_type=mime, blob=base64.b64encode(content).decode())
