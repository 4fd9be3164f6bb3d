"""The HTTP routes, as a tool asks them: with its caller's key, and with one way to fail."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp

#: The code of a failure that the server has not told: it was not there.
AWAY = "server_away"

#: A submit is repeated so often where no answer comes; its Idempotency-Key makes one job of all of them.
_TRIES = 4
_PAUSE_S = 1.0
#: A job is asked after so often, by a request that is answered earlier if the state changes.
_POLL_S = 1.0


class Refused(Exception):
    """There is no such answer.

    Attributes:
        code: the server's, such as `no_face`, or AWAY.
        user_message: for the user, in the user's language.
        refund: whether what was taken for the job goes back; None where nothing was asked for that costs anything, or
            nobody knows whether there is a job.
        job_id: the job that there is all the same.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        details: str = "",
        user_message: str = "",
        retryable: bool = False,
        retry_after_s: float | None = None,
        refund: bool | None = None,
        job_id: str | None = None,
        extra_info: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details
        self.user_message = user_message
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.refund = refund
        self.job_id = job_id
        self.extra_info = dict(extra_info or {})


@dataclass(frozen=True)
class Reach:
    """Where a server is, and as whom it is asked.

    Attributes:
        headers: go with every request; the key is one of them.
        check_tls: False for the server's own address, for which no certificate is made out.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    check_tls: bool = True


@dataclass(frozen=True)
class File:
    """A file that goes with a submit, as a part of its form."""

    name: str
    content: bytes
    mime: str


@asynccontextmanager
async def open_session() -> AsyncIterator[aiohttp.ClientSession]:
    """One pool of connections for all callers; it keeps no cookies."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=90)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as http:
        yield http


class Api:
    """The routes of one server, for one caller."""

    def __init__(self, http: aiohttp.ClientSession, reach: Reach) -> None:
        self._http = http
        self._reach = reach

    async def list_templates(self) -> list[dict[str, Any]]:
        body = await self._ask("GET", "/guarded/workflows")
        return list(body["workflows"])

    async def submit(
        self, template: str | None, fields: Mapping[str, Any], files: list[File], idempotency_key: str
    ) -> dict[str, Any]:
        """Ask for a job of a template, or of a graph where there is none; asks again where no answer comes."""
        path = "/guarded/prompt" if template is None else f"/guarded/workflows/{quote(template, safe='')}"
        for attempt in range(_TRIES):
            try:
                return await self._ask("POST", path, fields, files, headers={"Idempotency-Key": idempotency_key})
            except Refused as refused:
                if refused.code != AWAY or attempt == _TRIES - 1:
                    raise
            await asyncio.sleep(_PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    async def get_job(self, job_id: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        return _check_job(job_id, await self._ask("GET", _path(job_id), query=query))

    async def cancel(self, job_id: str) -> dict[str, Any]:
        return _check_job(job_id, await self._ask("DELETE", _path(job_id)))

    async def list_jobs(self, **query: Any) -> dict[str, Any]:
        given = {name: str(value) for name, value in query.items() if value is not None}
        return await self._ask("GET", "/guarded/jobs", query=given)

    async def follow(self, job_id: str, wait_s: float) -> AsyncIterator[dict[str, Any]]:
        """The job, again and again, the last time once it has settled or `wait_s` is over.

        A server that goes away meanwhile is waited for: it does not lose the job.
        """
        ends_s = time.monotonic() + wait_s
        job = await self.get_job(job_id)
        while True:
            yield job
            rest_s = ends_s - time.monotonic()
            if job["settled_at_ms"] is not None or rest_s <= 0:
                return
            query = {"wait": f"{min(rest_s, _POLL_S):.3f}", "state": job["state"]}
            try:
                job = await self.get_job(job_id, query)
            except Refused as refused:
                if not refused.retryable or time.monotonic() >= ends_s:
                    raise
                await asyncio.sleep(_PAUSE_S)

    async def fetch(self, path: str, most_bytes: int) -> tuple[bytes, str]:
        """A file and its media type. Raises Refused where it is larger."""
        try:
            async with self._request("GET", path) as response:
                if response.status != 200:
                    raise _read_refusal(response.status, await response.read())
                content = bytearray()
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > most_bytes:
                        raise Refused("payload_too_large", f"The file is over {most_bytes} bytes.")
                return bytes(content), response.content_type
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise _away(error) from error

    async def _ask(
        self,
        method: str,
        path: str,
        fields: Mapping[str, Any] | None = None,
        files: list[File] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        body: Any = None
        if files:
            body = aiohttp.FormData()
            for name, value in (fields or {}).items():
                body.add_field(name, json.dumps(value))
            for file in files:
                body.add_field(file.name, io.BytesIO(file.content), filename=file.name, content_type=file.mime)
        elif fields is not None:
            body = io.BytesIO(json.dumps(fields).encode())  # aiohttp sends bytes of such a size all at once
        try:
            async with self._request(method, path, data=body, params=query, headers=headers) as response:
                raw = await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise _away(error) from error
        if response.status != 200:
            raise _read_refusal(response.status, raw)
        answer = read_answer(raw)
        if not isinstance(answer, dict):
            raise _away("what answers there is no ComfyUI-Guarded")
        return answer

    def _request(
        self, method: str, path: str, *, data: Any = None, params: Any = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        if not path.startswith("/"):  # after the host it would name another one, which would get the key
            raise _away("it names a file that is not its own")
        return self._http.request(
            method,
            self._reach.url.rstrip("/") + path,
            data=data,
            params=params,
            headers={**self._reach.headers, **(headers or {})},
            allow_redirects=False,  # a redirect would take the key elsewhere
            ssl=self._reach.check_tls,
        )


def read_answer(raw: bytes) -> Any:
    """JSON; None where it is none. Half of a pair of surrogates, which no message can carry, becomes U+FFFD."""
    try:
        return _mend(json.loads(raw))
    except (ValueError, RecursionError):
        return None


def _mend(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_mend(name): _mend(item) for name, item in value.items()}
    return [_mend(item) for item in value] if isinstance(value, list) else value


def _check_job(job_id: str, job: dict[str, Any]) -> dict[str, Any]:
    """Raises Refused where the answer is about something else: a proxy may have mixed two up."""
    if job.get("job_id") != job_id or "settled_at_ms" not in job:
        raise Refused(AWAY, "What answers does not speak of that job.", retryable=True, job_id=job_id)
    return job


def _path(job_id: str) -> str:
    return f"/guarded/jobs/{quote(job_id, safe='')}"


def _away(why: object) -> Refused:
    return Refused(AWAY, f"The server does not answer ({str(why)[:200] or type(why).__name__}).", retryable=True)


def _read_refusal(status: int, raw: bytes) -> Refused:
    try:
        body = read_answer(raw)
        error, guard = body["error"], body["guard"]
        return Refused(
            guard["code"],
            error["message"],
            details=error["details"],
            user_message=guard["user_message"],
            retryable=guard["retryable"],
            retry_after_s=guard["retry_after_s"],
            refund=guard.get("refund"),
            job_id=guard["job_id"],
            extra_info=error["extra_info"],
        )
    except (ValueError, KeyError, TypeError):  # a proxy's page
        return _away(f"HTTP {status}")
