"""What a tool does: it asks the server as its caller, follows the job, and says what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import words
from .api import AWAY, Api, File, Refused
from .pictures import read_picture
from .tools import CANCEL, FOLLOW, LIST, RUN, WAIT_S, Tool

#: Called with a percentage and what happens at the moment.
Report = Callable[[float, str], Awaitable[None]]

#: A result shows at most so many pictures, each no larger than a model looks at; the resources have them all, whole.
_SHOWN = 8
_PREVIEW = "?preview=webp;90;1024"
_PREVIEW_BYTES = 2**22
#: The largest result that is saved, or read as a resource.
LARGEST_BYTES = 2**27
#: What a result is called where it is saved: a job's id, a number, an ending.
_SAVED = re.compile(r"[\w-]{1,100}-\d{1,9}(?:\.\w{1,10})?", re.ASCII)


@dataclass(frozen=True)
class Picture:
    """A small version of a result, to look at."""

    content: bytes
    mime: str


@dataclass
class Outcome:
    """What a tool answers: in words, as facts, and with what there is to see."""

    text: str
    facts: dict[str, Any]
    failed: bool = False
    pictures: list[Picture] = field(default_factory=list)
    #: The artifacts of a job that has succeeded.
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    job_id: str = ""


class Calls:
    """The tools of one caller.

    Args:
        report: hears of the progress.
        save: results are saved here, on the agent's machine.
        reads_paths: arguments may name pictures on the agent's machine.
    """

    def __init__(self, api: Api, report: Report, *, save: Path | None = None, reads_paths: bool = False) -> None:
        self._api = api
        self._report = report
        self._save = save
        self._reads_paths = reads_paths
        #: The job that the call is about, once there is one: whatever fails after that, the agent is told it.
        self.job_id: str | None = None

    async def call(self, tool: Tool, arguments: Mapping[str, Any]) -> Outcome:
        """Do what the tool is for. The arguments have its schema. Raises Refused."""
        if tool.name == FOLLOW.name:
            return await self._follow(arguments["job_id"], arguments.get("wait_s", WAIT_S))
        if tool.name == CANCEL.name:
            job = await self._api.cancel(arguments["job_id"])
            self.job_id = arguments["job_id"]
            return await self._describe(job)
        if tool.name == LIST.name:
            return await self._list(**arguments)
        return await self._submit(tool, dict(arguments))

    async def _submit(self, tool: Tool, given: dict[str, Any]) -> Outcome:
        options = {name: given.pop(name) for name in tool.options & given.keys()}
        files: list[File] = []
        if tool.name == RUN.name:
            named = given.pop("files", {})
            for name, value in named.items():
                file = await asyncio.to_thread(read_picture, name, value, reads_paths=self._reads_paths)
                if file is None:
                    raise Refused(
                        "bad_image",
                        f"{name} is no picture that could be sent: name it in the graph itself.",
                        refund=True,
                    )
                files.append(file)
            fields: dict[str, Any] = {"prompt": given["prompt"]}
        else:
            for name in sorted(tool.files & given.keys()):
                file = await asyncio.to_thread(read_picture, name, given[name], reads_paths=self._reads_paths)
                if file is not None:
                    files.append(file)
                    del given[name]
            fields = {"parameters": given}
        if "user" in options:
            fields["guard"] = {"user": options["user"]}
        key = options.get("idempotency_key") or str(uuid.uuid4())
        try:
            answer = await self._api.submit(tool.template, fields, files, key)
        except Refused as refused:
            if refused.code == AWAY:
                refused.details = f"Nobody knows whether there is a job. Its idempotency_key is {key}."
            raise
        job_id = answer.get("prompt_id")
        if not isinstance(job_id, str):
            raise Refused(AWAY, "The server does not say which job it has made.",
                          details=f"Its idempotency_key is {key}.", retryable=True)  # fmt: skip
        self.job_id = job_id
        return await self._follow(job_id, options.get("wait_s", WAIT_S))

    async def _follow(self, job_id: str, wait_s: float) -> Outcome:
        job: dict[str, Any] = {}
        async for job in self._api.follow(job_id, wait_s):
            self.job_id = job_id
            if job["settled_at_ms"] is None:
                percent = job["progress"]["percent"] if job["progress"] is not None else 0
                await self._report(percent or 0, words.describe_job(job).partition("\n")[0])
        return await self._describe(job)

    async def _describe(self, job: dict[str, Any]) -> Outcome:
        outcome = Outcome(words.describe_job(job), words.pick_facts(job), job_id=job["job_id"])
        outcome.failed = job["error"] is not None and job["state"] != "cancelled"
        if job["state"] != "succeeded":
            return outcome
        outcome.artifacts = job["artifacts"]
        for artifact in job["artifacts"][:_SHOWN]:
            if artifact["kind"] == "image":
                with contextlib.suppress(
                    Refused
                ):  # no longer there, or no picture for previews: the facts say what was
                    outcome.pictures.append(Picture(*await self._api.fetch(artifact["url"] + _PREVIEW, _PREVIEW_BYTES)))
        if self._save is not None:
            saved = [await self._keep(self._save, job["job_id"], artifact) for artifact in job["artifacts"]]
            outcome.facts["saved"] = saved
            outcome.text += "".join(f"\nSaved as {path}" for path in saved)
        return outcome

    async def _keep(self, folder: Path, job_id: str, artifact: Mapping[str, Any]) -> str:
        content, _mime = await self._api.fetch(artifact["url"], LARGEST_BYTES)
        name = name_result(job_id, artifact)

        def write() -> str:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / name
            path.write_bytes(content)
            return str(path.absolute())

        try:
            return await asyncio.to_thread(write)
        except OSError as error:
            raise Refused(
                "disk_full", f"The result cannot be saved in {folder}: {error}", job_id=job_id, retryable=True
            ) from error

    async def _list(self, state: str | None = None, limit: int = 10, before: int | None = None) -> Outcome:
        body = await self._api.list_jobs(state=state, limit=int(limit), before=before and int(before))
        lines = [words.describe_job(job).partition("\n")[0] for job in body["jobs"]]
        facts = {"jobs": [words.pick_facts(job) for job in body["jobs"]], "next": body["next"]}
        if body["next"] is not None:
            lines.append(f"There are more: call again with before={body['next']}.")
        return Outcome("\n".join(lines) or "There are no such jobs.", facts)


def name_result(job_id: str, artifact: Mapping[str, Any]) -> str:
    """What a result is called where it is saved. Raises Refused: the server must not choose another folder by it."""
    name = f"{job_id}-{artifact['index']}{Path(artifact['filename']).suffix}"
    if _SAVED.fullmatch(name) is None:
        raise Refused(
            "internal_error", f"The server calls a result {name[:100]!r}, and it is not saved.", job_id=job_id
        )
    return name
