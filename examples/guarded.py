# Over 400 lines: a client that is copied is one file.
"""A client for ComfyUI-Guarded in one file. Copy it; it needs nothing but aiohttp.

    async with Guarded("https://gpu.example.org", key) as guarded:
        try:
            job = await guarded.run("sdxl_face", photo=data, prompt="an astronaut", key=order_id, on_update=show)
            picture = await guarded.fetch(job["artifacts"][0])
        except GuardedError as error:
            if error.refund:
                give_back(order_id)
            say(error.user_message)

Everything is repeated until it is answered: over broken connections, restarts of the server and proxies' error pages,
and after `Retry-After` while the server says "later". A repeated submit carries the same `Idempotency-Key`, so it makes
one job. Record the key before the first submit, and a process that was killed simply calls `run` again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

#: A job as `GET /guarded/jobs/{id}` shows it.
Job = dict[str, Any]


class GuardedError(Exception):
    """There is no result.

    Attributes:
        code: the server's, such as `no_face`; None where it has not answered.
        user_message: to show to the user; None where the server has not answered.
        refund: give back what was taken for the job. None where only the server knows whether there is a job.
        job_id: the job that there is all the same; its own `refund` counts.
    """

    def __init__(
        self, message: str, code: str | None, user_message: str | None, refund: bool | None, job_id: str | None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.user_message = user_message
        self.refund = refund
        self.job_id = job_id


class RefusedError(GuardedError):
    """The server refuses for good. `refund` is True where it refused a submit, and False for a `conflict`."""

    def __init__(self, status: int, refusal: Mapping[str, Any]) -> None:
        guard = refusal["guard"]
        refund = guard.get("refund")
        super().__init__(refusal["error"]["message"], guard["code"], guard["user_message"], refund, guard["job_id"])
        self.status = status
        self.extra_info: Mapping[str, Any] = refusal["error"]["extra_info"]
        self.retryable: bool = guard["retryable"]
        self.retry_after_s: float = guard["retry_after_s"] or 1.0


class BusyError(RefusedError):
    """The server says "later" for longer than the caller waits."""


class AwayError(GuardedError):
    """The server has not answered for longer than the caller waits. Only it knows whether there is a job."""

    def __init__(self, reason: str, job_id: str | None = None) -> None:
        super().__init__(f"The server does not answer: {reason}", None, None, None, job_id)


class FailedError(GuardedError):
    """The job ended without a result: it failed, or somebody cancelled it."""

    def __init__(self, job: Job) -> None:
        error = job["error"]
        super().__init__(error["message"], error["code"], error["user_message"], job["refund"], job["job_id"])
        self.job = job


@dataclass(frozen=True)
class Update:
    """What `on_update` hears.

    Attributes:
        kind: `state`, `position` and `progress`, as docs/events.md has them; `away` once the server has been gone for
            `notice_s`, and `back`.
        data: the event's; of a `state` the job.
    """

    kind: str
    data: Mapping[str, Any]

    @property
    def text(self) -> str | None:
        """What to tell the user of a place in the queue."""
        return self.data.get("user_message")


OnUpdate = Callable[[Update], Awaitable[None] | None]


class Guarded:
    """A guarded ComfyUI. One stream of events serves all jobs that are followed.

    Args:
        key: of `keys create`; none is needed on the server's own machine.
        busy_s: how long to repeat what the server answers with "later".
        away_s: how long to repeat what it does not answer; None: for ever.
        notice_s: after how long without the server to say so (`Update.kind` is `away`).
    """

    def __init__(
        self, url: str, key: str = "", *, busy_s: float = 120.0, away_s: float | None = None, notice_s: float = 15.0
    ) -> None:
        self.busy_s = busy_s
        self.away_s = away_s
        self.notice_s = notice_s
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http: aiohttp.ClientSession | None = None
        self._stream: asyncio.Task[None] | None = None
        self._followers: dict[str, set[asyncio.Queue[Update | Exception]]] = {}
        #: How often the stream has begun. What happened before that, a job itself says.
        self._streams = 0
        self._connected = asyncio.Event()
        self._gone_since_s: float | None = None

    async def __aenter__(self) -> Guarded:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            await asyncio.gather(self._stream, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    # A job's life. -----------------------------------------------------------------------------------------------

    async def run(
        self, what: str | Mapping[str, Any], *, key: str, on_update: OnUpdate | None = None, **options: Any
    ) -> Job:
        """Submit a job, follow it, and return it once it has succeeded. The arguments are those of `submit`.

        Raises:
            RefusedError, AwayError, FailedError: there is no result; `refund` says what to give back.
        """
        answer = await self.submit(what, key=key, **options)
        if on_update is not None and answer["guard"]["user_message"]:
            await _tell(on_update, Update("position", answer["guard"]))
        job = await self.follow(answer["prompt_id"], on_update)
        if job["error"]:
            raise FailedError(job)
        return job

    async def submit(
        self,
        what: str | Mapping[str, Any],
        *,
        key: str = "",
        user: str | None = None,
        locale: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        guard: Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """Submit a template by its name, or a graph in API format. Returns the answer: `prompt_id` is the job's id.

        Args:
            key: the `Idempotency-Key`. The same key and arguments return the first job.
            user: your own name for your user; users take turns.
            guard: further fields of the request's `guard`.
            parameters: the template's. What is bytes is sent as a file; a graph names it in a loader by the same name.
        """
        files = {name: value for name, value in parameters.items() if isinstance(value, (bytes, bytearray))}
        plain = {name: value for name, value in parameters.items() if name not in files}
        options = {"user": user, "locale": locale, "metadata": metadata, **(guard or {})}
        fields: dict[str, Any] = {"guard": {name: value for name, value in options.items() if value is not None}}
        if isinstance(what, str):
            path, fields["parameters"] = f"/guarded/workflows/{what}", plain
        elif plain:
            raise TypeError(f"a graph takes files only, not {', '.join(plain)}")
        else:
            path, fields["prompt"] = "/guarded/prompt", what

        def form() -> aiohttp.FormData:
            made = aiohttp.FormData()
            for name, value in fields.items():
                made.add_field(name, json.dumps(value))
            for name, data in files.items():
                made.add_field(name, bytes(data), filename=name)
            return made

        headers = {"Idempotency-Key": key or str(uuid.uuid4()), **({"Accept-Language": locale} if locale else {})}
        answer: dict[str, Any] = await self.ask("POST", path, form if files else fields, headers=headers)
        return answer

    async def follow(self, job_id: str, on_update: OnUpdate | None = None, away_s: float | None = None) -> Job:
        """Follow a job until it has settled, and return it.

        Raises:
            RefusedError: there is no such job; `code` is `not_found`.
            AwayError: the server has been away for `away_s` (by default, this client's).
        """
        away_s = self.away_s if away_s is None else away_s
        news: asyncio.Queue[Update | Exception] = asyncio.Queue()
        self._followers.setdefault(job_id, set()).add(news)
        if self._stream is None or self._stream.done():
            self._stream = asyncio.create_task(self._read_stream())
        is_away, asked_at = False, 0
        try:
            while True:
                if self._connected.is_set() and asked_at != self._streams:
                    # From here on each change comes. What happened before, the job itself says: so nothing is missed,
                    # even where the server has come back with an older database.
                    began = self._streams
                    with contextlib.suppress(AwayError):
                        news.put_nowait(Update("state", await self._get_once(job_id)))
                        asked_at = began
                try:
                    update = await asyncio.wait_for(news.get(), 1)
                except asyncio.TimeoutError:
                    is_away = await self._look_away(is_away, away_s, on_update, job_id)
                    continue
                if isinstance(update, Exception):
                    raise update
                if is_away and self._connected.is_set():
                    is_away = False
                    await _tell(on_update, Update("back", {}))
                await _tell(on_update, update)
                if update.kind == "state" and update.data["settled_at_ms"]:
                    return dict(update.data)
        finally:
            followers = self._followers[job_id]
            followers.discard(news)
            if not followers:
                del self._followers[job_id]

    async def get(self, job_id: str) -> Job:
        job: Job = await self.ask("GET", f"/guarded/jobs/{job_id}", busy_s=None)
        return job

    async def _get_once(self, job_id: str) -> Job:
        """Raises AwayError where the server goes away meanwhile: the stream then begins anew."""
        job: Job = await self.ask("GET", f"/guarded/jobs/{job_id}", busy_s=None, away_s=0)
        return job

    async def cancel(self, job_id: str) -> Job:
        """Cancel the job, unless it has ended, and return it as it is then."""
        job: Job = await self.ask("DELETE", f"/guarded/jobs/{job_id}", busy_s=None)
        return job

    async def jobs(self, **filters: Any) -> AsyncIterator[Job]:
        """Go through all jobs that match, newest first: `state=`, `user=`, `idempotency_key=`, `created_after_ms=`,
        `settled_after_ms=`, `template=` and `metadata={"order": 7}`."""
        metadata = filters.pop("metadata", {})
        query = {**filters, **{f"metadata.{name}": value for name, value in metadata.items()}, "limit": 500}
        written = {name: value if isinstance(value, str) else json.dumps(value) for name, value in query.items()}
        while True:
            page = await self.ask("GET", "/guarded/jobs", params=written, busy_s=None)
            for job in page["jobs"]:
                yield job
            if page["next"] is None:
                return
            written["before"] = str(page["next"])

    async def fetch(self, artifact: Mapping[str, Any]) -> bytes:
        """The bytes of a job's artifact: of its converted copy, where it has one.

        Those that came within an answer (`guard={"results": …}`) are not asked for again. Raises RefusedError where
        they are gone."""
        if came := (artifact.get("inline") or {}).get("base64"):
            return base64.b64decode(came)
        copy = artifact.get("converted") or {}
        data: bytes = await self.ask("GET", copy.get("url") or artifact["url"], busy_s=None)
        return data

    async def check_face(self, photo: bytes, locale: str | None = None, **options: Any) -> dict[str, Any]:
        """Ask whether a photo shows a face. Raises RefusedError with the words for the user."""
        headers = {"Content-Type": "application/octet-stream", **({"Accept-Language": locale} if locale else {})}
        found: dict[str, Any] = await self.ask("POST", "/guarded/face-check", photo, headers=headers, **options)
        return found

    # Requests. ---------------------------------------------------------------------------------------------------

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        busy_s: float | None = -1,
        away_s: float | None = -1,
    ) -> Any:
        """Send a request until it is answered, and return the JSON, or the bytes of a file.

        Args:
            body: bytes, an object to be sent as JSON, or a function that makes a form for each attempt.
            busy_s, away_s: instead of this client's; None: for ever.
        """
        busy_s = self.busy_s if busy_s == -1 else busy_s
        away_s = self.away_s if away_s == -1 else away_s
        busy_since_s, away_since_s = time.monotonic(), time.monotonic()
        pause_s = 0.5
        while True:
            data: Any = body() if callable(body) else body
            if not isinstance(data, (bytes, aiohttp.FormData, type(None))):
                data = json.dumps(data)
            try:
                async with self._session().request(
                    method, self._url + path, data=data, params=params, headers={**self._headers, **(headers or {})}
                ) as response:
                    is_json = response.content_type == "application/json"
                    answer = await (response.json() if is_json else response.read())
                    if response.status == 200:
                        return answer
                    if not is_json or "guard" not in answer:  # a proxy's page, say
                        raise aiohttp.ClientError(f"{response.status} {response.reason}")
                    status = response.status
            except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, OSError) as error:
                if away_s is not None and time.monotonic() > away_since_s + away_s:
                    raise AwayError(repr(error)) from error
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, 5)
                continue
            refused = RefusedError(status, answer)
            if not refused.retryable:
                raise refused
            away_since_s, pause_s = time.monotonic(), 0.5
            if busy_s is not None and time.monotonic() + refused.retry_after_s > busy_since_s + busy_s:
                raise BusyError(status, answer)
            await asyncio.sleep(refused.retry_after_s)

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=90)
            self._http = aiohttp.ClientSession(timeout=timeout)
        return self._http

    # The stream of events. ---------------------------------------------------------------------------------------

    async def _read_stream(self) -> None:
        """Read the events of all jobs, for as long as there is this client; a lost stream goes on where it was."""
        pause_s = 0.2
        while True:
            self._gone_since_s = self._gone_since_s or time.monotonic()
            try:
                await self._read_one_stream()
                pause_s = 0.2
            except RefusedError as error:
                if not error.retryable:
                    for news in [news for each in self._followers.values() for news in each]:
                        news.put_nowait(error)
                    return
                pause_s = error.retry_after_s
            except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, OSError):
                pass
            self._connected.clear()
            self._gone_since_s = self._gone_since_s or time.monotonic()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 5)

    async def _read_one_stream(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=45)  # it says something every 15 s
        async with self._session().get(f"{self._url}/guarded/events", headers=self._headers, timeout=timeout) as stream:
            if stream.status != 200:
                answer = await stream.json()
                raise RefusedError(stream.status, answer)
            event: dict[str, str] = {}
            async for line in _split_lines(stream.content):  # `id: …`, `event: …`, `data: …`, then an empty line
                if not self._connected.is_set():  # the server listens by the time it says something
                    self._gone_since_s = None
                    self._streams += 1
                    self._connected.set()
                name, _, value = line.decode().partition(": ")
                if name:
                    event[name] = value
                elif "data" in event:
                    data = json.loads(event["data"])
                    for news in self._followers.get(data.get("job_id"), ()):
                        news.put_nowait(Update(event.get("event", ""), data))
                    event = {}

    async def _look_away(self, is_away: bool, away_s: float | None, on_update: OnUpdate | None, job_id: str) -> bool:
        """Tell once that the server is away. Raises AwayError where it has been for too long."""
        gone_s = 0.0 if self._gone_since_s is None else time.monotonic() - self._gone_since_s
        if away_s is not None and gone_s > away_s:
            raise AwayError("it has been away for too long", job_id)
        if not is_away and gone_s > self.notice_s:
            await _tell(on_update, Update("away", {}))
            return True
        return is_away


async def _split_lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length: aiohttp's own reader refuses those of a job with much metadata."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")


async def _tell(on_update: OnUpdate | None, update: Update) -> None:
    if on_update is not None and inspect.isawaitable(told := on_update(update)):
        await told
