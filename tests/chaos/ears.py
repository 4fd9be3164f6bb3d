"""A listener on every channel on which a server tells how a job ended. Each notes what it heard, and what was on disk.

A channel that says less than another is held to what it says: ComfyUI's own routes know an error, but not its code.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from chaos.faults import Books
from contract.client import TERMINAL, Client, Job
from contract.sse import Reader
from contract.test_webhooks import Receiver, secret_of

POLL_S = 0.06
#: What a request meets that is cut off by a kill, or made before the next process listens.
CUT = (aiohttp.ClientError, OSError, asyncio.TimeoutError, json.JSONDecodeError)

_LOGGED = re.compile(r"\[guarded\] job (\S+)(?: of \S+)? (succeeded|failed|cancelled|started)\b")


@dataclass(frozen=True)
class Heard:
    """That a job has ended, as one channel said it."""

    channel: str
    job_id: str
    #: None where a channel says only that it is over.
    good: bool | None
    on_disk: str | None
    at_s: float
    #: state, code, refund and the files' hashes, where the channel has them
    facts: tuple[Any, ...] | None = None

    @property
    def false(self) -> bool:
        """Whether the database did not hold it at that moment."""
        return self.on_disk not in TERMINAL or (self.good is not None and self.good != (self.on_disk == "succeeded"))


def facts_of(job: Job) -> tuple[Any, ...]:
    code = job["error"]["code"] if job["error"] else None
    return (job["state"], code, job["refund"], tuple(each["sha256"] for each in job["artifacts"]))


def native_goodness(entry: dict[str, Any]) -> bool:
    """An entry of ComfyUI's history: a client takes its outputs, or else believes its status."""
    return bool(entry["status"]["completed"]) or entry["status"]["status_str"] == "success" or any(entry["outputs"])


@dataclass
class Ears:
    """All channels of one server, for the length of one schedule; the server may die and come back meanwhile."""

    client: Client
    books: Books
    #: Whether ComfyUI's own queue shows the guard's jobs, too.
    merged: bool
    #: Whether this ComfyUI has `/api/jobs`.
    jobs_api: bool
    client_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    heard: list[Heard] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    #: The jobs of this schedule, by id: those that were let in, and those of whose submit no answer came.
    known: dict[str, bool] = field(default_factory=dict)
    #: Those that can be asked about by a webhook.
    hooked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.receiver = Receiver(secret_of(self.client.base))
        self.receiver.answer = self._webhook
        self._log_at = self.client.host.log.stat().st_size
        self._missing: dict[str, int] = {}
        self._waiting: dict[str, asyncio.Task[None]] = {}

    # What is heard. ------------------------------------------------------------------------------------------

    def hear(self, channel: str, job_id: str, good: bool | None, facts: tuple[Any, ...] | None = None) -> None:
        if job_id in self.known:
            self.heard.append(Heard(channel, job_id, good, self.books.state(job_id), time.monotonic(), facts))

    def hear_job(self, channel: str, job: Job) -> None:
        if job["state"] in TERMINAL:
            self.hear(channel, job["job_id"], job["state"] == "succeeded", facts_of(job))

    def has_heard(self, channel: str, job_id: str) -> bool:
        return any(heard.channel == channel and heard.job_id == job_id for heard in self.heard)

    def _open(self, channel: str) -> list[str]:
        return [job_id for job_id in self.known if not self.has_heard(channel, job_id)]

    # The channels. -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Ears]:
        await self.receiver.start()
        ready = [asyncio.Event() for _ in range(3)]
        tasks = [
            asyncio.create_task(each)
            for each in (
                self._socket("/ws", ready[0]),
                self._socket("/guarded/ws", ready[1]),
                self._stream(ready[2]),
                self._again(self._read_log),
                *map(self._again, self._polls()),
            )
        ]
        try:
            await asyncio.gather(*(event.wait() for event in ready))
            yield self
        finally:
            tasks += self._waiting.values()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self.wrong += [repr(each) for each in results if isinstance(each, Exception)]
            await self.receiver.stop()

    def follow(self, job_id: str, *, answered: bool, hooked: bool) -> None:
        """From now on, listen to what is said of this job."""
        self.known[job_id] = answered
        if hooked:
            self.hooked.add(job_id)
        if job_id not in self._waiting:
            self._waiting[job_id] = asyncio.create_task(self._follow(job_id))

    def forget(self, job_id: str) -> None:
        """It was refused."""
        self.known.pop(job_id, None)
        self.hooked.discard(job_id)

    async def _again(self, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            with contextlib.suppress(*CUT):
                await look()
            await asyncio.sleep(POLL_S)

    async def _socket(self, path: str, ready: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(*CUT):
                async with self.client.session.ws_connect(
                    f"{self.client.host.url}{path}?clientId={self.client_id}", max_msg_size=0
                ) as ws:
                    async for message in ws:
                        ready.set()
                        if message.type is aiohttp.WSMsgType.TEXT:
                            event = json.loads(message.data)
                            self._told_on_socket(path, event["type"], event["data"])
            await asyncio.sleep(POLL_S)

    def _told_on_socket(self, path: str, kind: str, data: dict[str, Any]) -> None:
        if kind == "guarded" and data["event"] == "state":
            self.hear_job(f"{path} guarded", data)
            return
        job_id = str(data.get("prompt_id"))
        if kind == "execution_success":
            self.hear(path, job_id, True)
        elif kind in ("execution_error", "execution_interrupted"):
            self.hear(path, job_id, False)
        elif kind == "executing" and data["node"] is None:
            self.hear(f"{path} over", job_id, None)
        elif kind == "executed" and has_files(data.get("output")):
            self.hear(f"{path} files", job_id, True)
        elif kind == "execution_start" and self.has_heard(path, job_id):
            self.wrong.append(f"{path} said that {job_id} starts after it had said how it ended")

    async def _stream(self, ready: asyncio.Event) -> None:
        reader = Reader(self.client.session, f"{self.client.host.url}/guarded/events?wait=0")
        async for _told in reader.events():
            pass  # nothing but the id after which it goes on
        ready.set()
        following = Reader(self.client.session, f"{self.client.host.url}/guarded/events")
        following.last_id = reader.last_id
        while True:
            with contextlib.suppress(*CUT):
                async with aclosing(following.events()) as events:
                    async for told in events:
                        if told.name == "state":
                            self.hear_job("SSE", told.data)
            await asyncio.sleep(POLL_S)

    async def _follow(self, job_id: str) -> None:
        """What somebody hears who waits for each change of this job's state, and who reads its own stream."""
        await asyncio.gather(self._wait_for(job_id), self._stream_of(job_id))

    async def _wait_for(self, job_id: str) -> None:
        state = "queued"
        while not self.has_heard("?wait", job_id):
            with contextlib.suppress(*CUT):
                answer = await self.client.request("GET", f"/guarded/jobs/{job_id}?wait=5&state={state}")
                if answer.status == 200:
                    state = answer.json["state"]
                    self.hear_job("?wait", answer.json)
                    continue
            await asyncio.sleep(POLL_S)

    async def _stream_of(self, job_id: str) -> None:
        reader = Reader(self.client.session, f"{self.client.host.url}/guarded/jobs/{job_id}/events")
        while not self.has_heard("SSE of the job", job_id):
            with contextlib.suppress(*CUT):
                async with aclosing(reader.events()) as events:
                    async for told in events:
                        if told.name == "state":
                            self.hear_job("SSE of the job", told.data)
            await asyncio.sleep(POLL_S)

    async def _webhook(self, request: web.Request, _earlier: int) -> web.StreamResponse:
        told = self.receiver.got[-1]
        self.hear_job("webhook", told.data)
        return web.Response(status=204)

    async def _read_log(self) -> None:
        with open(self.client.host.log, "rb") as file:
            file.seek(self._log_at)
            new, newline, _ = file.read().rpartition(b"\n")
        self._log_at += len(new) + len(newline)
        for line in new.decode(errors="replace").splitlines():
            if (said := _LOGGED.search(line)) and said[1] in self.known:
                if said[2] != "started":
                    self.hear("log", said[1], said[2] == "succeeded")
                elif self.has_heard("log", said[1]):
                    self.wrong.append(f"the log says that {said[1]} has started after it said how it ended")

    def _polls(self) -> Iterable[Callable[[], Awaitable[None]]]:
        yield self._poll_jobs
        yield self._poll_history
        yield self._poll_native_history
        yield lambda: self._poll_listed("/guarded/api/jobs")
        yield lambda: self._poll_queue("/guarded/queue")
        if self.jobs_api:
            yield lambda: self._poll_listed("/api/jobs")
        if self.merged:
            yield lambda: self._poll_queue("/queue")

    async def _get(self, path: str) -> Any:
        """None where the server says that it cannot answer now."""
        answer = await self.client.request("GET", path)
        return answer.json if answer.status == 200 else None

    async def _poll_jobs(self) -> None:
        for job_id in self._open("poll"):
            if (job := await self._get(f"/guarded/jobs/{job_id}")) is not None:
                self.hear_job("poll", job)

    async def _poll_history(self) -> None:
        for job_id in self._open("/guarded/history"):
            for entry in (await self._get(f"/guarded/history/{job_id}") or {}).values():
                self.hear("/guarded/history", job_id, native_goodness(entry), facts_of(entry["guard"]))

    async def _poll_native_history(self) -> None:
        for job_id in self._open("/history"):
            for entry in (await self._get(f"/history/{job_id}") or {}).values():
                self.hear("/history", job_id, native_goodness(entry))

    async def _poll_listed(self, path: str) -> None:
        if self._open(path) and (listed := await self._get(path)) is not None:
            for job in listed["jobs"]:
                if job["status"] in ("completed", "failed", "cancelled") and not self.has_heard(path, job["id"]):
                    self.hear(path, job["id"], job["status"] == "completed")

    async def _poll_queue(self, path: str) -> None:
        """A job that is no longer in the queue has ended, for whoever watches that alone."""
        waited_for = [job_id for job_id in self._open(path) if self.known[job_id]]
        if not waited_for or (queue := await self._get(path)) is None:
            return
        there = {row[1] for row in queue["queue_running"] + queue["queue_pending"]}
        for job_id in waited_for:
            self._missing[path + job_id] = 0 if job_id in there else self._missing.get(path + job_id, 0) + 1
            # Once, it may have been on its way from one place to the next.
            if self._missing[path + job_id] > 1:
                self.hear(path, job_id, None)


def has_files(output: Any) -> bool:
    return any(
        isinstance(item, dict) and "filename" in item
        for items in (output or {}).values()
        if isinstance(items, list)
        for item in items
    )
