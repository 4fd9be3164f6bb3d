"""The route table, and the one way in which every handler answers and fails."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ..agents.bridge import Bridge
from ..guard import messages
from ..guard.access.access import Access
from ..guard.access.access import Request as Asking
from ..guard.access.manage import KeyRing
from ..guard.callers.inline import Inline
from ..guard.callers.interleave import interleave
from ..guard.callers.jobs import Jobs
from ..guard.callers.sockets import Sockets
from ..guard.client import Client
from ..guard.doctor import Doctor
from ..guard.errors import (
    ForbiddenError,
    GuardError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    PayloadTooLargeError,
)
from ..guard.events.outbox import Outbox
from ..guard.events.stream import Events
from ..guard.faces.gate import FaceGate
from ..guard.files.files import Files
from ..guard.files.uploads import Uploads
from ..guard.fleet import Signatures
from ..guard.janitor import Janitor
from ..guard.journal import Throttle
from ..guard.life.drain import Drain
from ..guard.life.health import Health
from ..guard.models.downloads import Downloads
from ..guard.operators.alarms import Alarms
from ..guard.operators.machine import Machine
from ..guard.operators.metrics import Exposition
from ..guard.operators.spending import Bills
from ..guard.operators.stats import Stats
from ..guard.quotas import Quotas, Turn
from ..guard.quotas.threads import SharedThreads, find_whose, working_for
from ..guard.settings import Settings
from ..guard.signal import Signal
from ..guard.submit.admission import Admission
from ..guard.submit.fetch import Fetcher
from ..guard.submit.limits import Limits
from ..guard.submit.retry import Retries
from ..guard.templates.catalogue import Templates
from .about import About
from .connections import ANSWERED_BY_US, OWNER, UNTIL_SENT
from .pace import Coming

log = logging.getLogger("guarded.http")

T = TypeVar("T")

PREFIX = "/guarded"

#: One line a second for each address: whoever has no key can cause as many as he likes.
_refused = Throttle()

_MAKERS = SharedThreads(2, "guarded-making")

_JSON = {"Content-Type": "application/json; charset=utf-8"}

#: Leaves Cyrillic as it is: half the bytes, and readable in a terminal.
_dumps = json.JSONEncoder(ensure_ascii=False).encode


class HostAnswers(Protocol):
    """What the routes ask of the host; `Host` says more of each."""

    async def native(self, path: str, **match_info: str) -> bytes: ...

    def file(self, kind: str, subfolder: str, filename: str) -> Path | None: ...
    def missing_classes(self, prompt: Mapping[str, Any]) -> list[str]: ...
    def model_folders(self) -> list[Path]: ...
    def find_model(self, folder: str, file: str) -> tuple[str, Path | None] | None: ...


class Answer(Protocol):
    """What another box has answered to a prompt."""

    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


class Forwarding(Protocol):
    """Who forwards prompts to other boxes: see :class:`.forward.Forwards`."""

    async def forward(self, call: Call, raw: bytes, template: str, refusal: GuardError) -> Answer | None: ...


@dataclass(frozen=True)
class Services:
    """What the handlers call.

    Attributes:
        refused: announces each job that is not let in: the error code, and who asked ("" where nobody knows).
        signatures: those of the other servers of a fleet, where this one tells them what its jobs do.
        forwards: gives them the prompts that this one lacks something for.
    """

    settings: Settings
    access: Access
    key_ring: KeyRing
    host: HostAnswers
    admission: Admission
    fetcher: Fetcher
    retries: Retries
    refused: Signal[[str, str]]
    templates: Templates
    jobs: Jobs
    events: Events
    inline: Inline
    outbox: Outbox
    health: Health
    faces: FaceGate
    drain: Drain
    janitor: Janitor
    uploads: Uploads
    files: Files
    stats: Stats
    machine: Machine
    bills: Bills
    alarms: Alarms
    limits: Limits
    quotas: Quotas
    exposition: Exposition
    doctor: Doctor
    downloads: Downloads
    sockets: Sockets
    agents: Bridge
    signatures: Signatures | None = None
    forwards: Forwarding | None = None


@dataclass(frozen=True)
class Call:
    """One request, its caller, and its share of what the caller may ask for at once."""

    services: Services
    request: web.Request
    client: Client
    turn: Turn

    @property
    def locale(self) -> str | None:
        """The language that the request asks for; None leaves the choice to the job."""
        header = self.request.headers.get("Accept-Language")
        return messages.choose(None, header, "") or None


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """One row of the table.

    Attributes:
        open: it answers without a key, and then with the bare status.
        operate: it wants an operator.
        submits: it asks for a job. Its refusals say whether what was taken for that goes back, and the headers of its
            answers how many jobs the client may still ask for.
        about: for the contract; a test says where it is missing.
        is_mirror: the same route stands under a shorter path, too, and the contract has it there.
        own_protocol: its messages are those of a protocol that the contract does not describe.
    """

    method: str
    path: str
    handler: Handler
    open: bool = False
    operate: bool = False
    submits: bool = False
    about: About | None = None
    is_mirror: bool = False
    own_protocol: bool = False


def register(routes: web.RouteTableDef, table: list[Route], services: Services) -> None:
    """Add the table to the host's routes, and a typed refusal for every other request under our prefix."""
    known = [(compile_path(route.path), route.method, make_handler(route, services)) for route in table]
    for route, (_like, _method, answer) in zip(table, known, strict=True):
        routes.route(route.method, PREFIX + route.path)(answer)

    async def refuse_unknown(request: web.Request) -> web.StreamResponse:
        path = strip_mirror(request.path).removeprefix(PREFIX)
        method = "GET" if request.method == "HEAD" else request.method
        for like, wanted, answer in known:
            # Some clients join a base URL and a path with a slash too many.
            if "//" in request.path and wanted == method and (parts := like.fullmatch(path)):
                request.match_info.update(parts.groupdict())
                return await answer(request)
        try:
            identify(request, services)
        except GuardError as error:
            return refuse(error, request, services)
        allowed = sorted({method for like, method, _answer in known if like.fullmatch(path)})
        if allowed:
            allow = ", ".join(allowed)
            wrong_method = MethodNotAllowedError(
                f"{request.method} is not for this route; {allow} is.", extra_info={"allowed": allowed}
            )
            return refuse(wrong_method, request, services, {"Allow": allow})
        return refuse(NotFoundError(f"There is no route {request.path[:200]}."), request, services)

    routes.route("*", PREFIX)(refuse_unknown)
    routes.route("*", PREFIX + "/{rest:.*}")(refuse_unknown)
    routes.route("*", f"/{{slashes:/+}}{PREFIX[1:]}/{{rest:.*}}")(refuse_unknown)


def compile_path(path: str) -> re.Pattern[str]:
    """A pattern for a path of the table, its variable parts as groups."""
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path)))


def make_handler(route: Route, services: Services) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The route as aiohttp calls it: it identifies the caller, calls the handler, and has one way to fail."""

    def say_no(error: GuardError, request: web.Request) -> web.Response:
        if route.submits:
            services.refused(error.code, request.get(OWNER, ""))
        return refuse(error, request, services, of_submit=route.submits)

    async def answer(request: web.Request) -> web.StreamResponse:
        request[ANSWERED_BY_US] = True
        try:
            client = identify(request, services)
        except GuardError as error:
            if not route.open:
                return say_no(error, request)
            client = Client("", operator=False)
        request[OWNER] = client.owner
        try:
            turn = await services.quotas.begin_request(client)
        except GuardError as error:
            return say_no(error, request)
        services.drain.requests += 1

        def over() -> None:
            turn.close()
            services.drain.requests -= 1

        turn.end, turn.is_vain = lambda: _hang_up(request), lambda: _is_gone(request)
        coming = Coming(request, services.settings.limits.body_timeout_s)
        try:
            if _is_gone(request):
                return web.Response(status=400)  # unread: the client did not wait for the turn
            if route.operate and not client.operator:
                raise ForbiddenError("This is for operators.")
            # What asks for a job gets it, whoever waits for the answer.
            is_vain = (lambda: False) if route.submits else turn.is_vain
            with working_for(client.owner, is_vain):
                response = await route.handler(Call(services, request, client, turn))
        except GuardError as error:
            response = say_no(error, request)
        except web.HTTPRequestEntityTooLarge:
            response = say_no(refuse_size(services.settings.policy.max_body_bytes), request)
        except web.HTTPException as error:
            response = say_no(InvalidRequestError(error.reason), request)
        except (HttpProcessingError, web.RequestPayloadError) as error:  # not the gzip that it says it is, cut off, …
            response = say_no(InvalidRequestError("The body cannot be read.", details=str(error)), request)
            response.force_close()
        except (ConnectionError, TimeoutError, asyncio.TimeoutError):
            if coming.too_slow:
                response = say_no(InvalidRequestError("The body came in too slowly."), request)
                response.force_close()
            elif _is_gone(request):
                return web.Response(status=400)  # unread; an error would be a traceback in the log each time
            else:
                raise  # ends the connection, in the middle of an answer
        except Exception:
            log.exception("%s %.200r failed", request.method, request.path, extra={"quotes_prompt": True})
            bug = InternalError("The guard failed on this request; its log has more.")
            response = say_no(bug, request)
        finally:
            coming.end()
            if (until_sent := request.get(UNTIL_SENT)) is not None:
                until_sent.callback(over)
            else:
                over()
        if route.submits and not response.prepared:
            response.headers.update(services.limits.header_fields(client))
        return response

    return answer


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def refuse_size(max_bytes: int) -> PayloadTooLargeError:
    """The refusal of a body that is too large."""
    return PayloadTooLargeError(f"The body is over {max_bytes} bytes.", extra_info={"max_body_bytes": max_bytes})


def identify(request: web.Request, services: Services) -> Client:
    """The caller of this request. Raises UnauthorizedError, ForbiddenError."""
    token = request.query.get("token") if "token=" in request.query_string else None
    path = strip_mirror(request.path)
    version = (request.version.major, request.version.minor)
    asking = Asking(request.method, path, request.remote, request.headers, token, version, request.transport)
    return services.access.identify(asking)


def strip_mirror(path: str) -> str:
    """The path as the table has it: without ComfyUI's mirror prefix, and without doubled slashes."""
    if "//" in path:
        path = re.sub("/+", "/", path)
    return path.removeprefix("/api") if path.startswith("/api/") else path


def refuse(
    error: GuardError,
    request: web.Request,
    services: Services,
    headers: dict[str, str] | None = None,
    *,
    of_submit: bool = False,
) -> web.Response:
    """Answer with an error, in the one shape of all refusals."""
    wanted = request.headers.get("Accept-Language")
    locale = error.locale or messages.choose(None, wanted, services.settings.messages.locale)
    request[ANSWERED_BY_US] = True
    told = dict(headers or {})
    if error.retry_after_s is not None:
        told["Retry-After"] = str(max(math.ceil(error.retry_after_s), 1))
    if error.status in (401, 403):
        address = services.access.find_address(request.remote, request.headers)
        if (skipped := _refused.take(f"{error.status} {address}")) is not None:
            more = f" ({skipped} more since the last)" if skipped else ""
            what = request.method, request.path, address, error.message
            log.info("%s for %.20s %.200r from %s: %s%s", error.status, *what, more)
    if error.status == 401:
        told.setdefault("WWW-Authenticate", "Bearer")
    return respond(error.body(locale, of_submit=of_submit), told, error.status or 500)


async def respond_at_length(members: Iterable[tuple[str, Any]]) -> web.Response:
    """The same for a long object, by its members; an iterator among the values becomes an array.

    Another thread makes and writes it, item by item, as everybody waits while one is written. Nothing of an item is
    kept but its text: Python's garbage collector holds up everybody as well.
    """

    def write() -> web.Response:
        texts = [f"{_write(key)}: {_write_value(value)}" for key, value in interleave(members)]
        return web.Response(text=f"{{{', '.join(texts)}}}", content_type="application/json")

    return await make_at_length(write)


async def make_at_length(make: Callable[[], T]) -> T:
    """Make what takes megabytes, and waits for nothing, on few threads: what C's allocator frees stays with each."""
    return await _MAKERS.run(find_whose(), make)


def _write_value(value: Any) -> str:
    return f"[{', '.join(map(_write, interleave(value)))}]" if isinstance(value, Iterator) else _write(value)


def _write(body: Any) -> str:
    text = _dumps(body)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair: a file name that is no UTF-8, say
            text = json.dumps(body)
    return text


def respond(body: Any, headers: dict[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(body=_write(body).encode(), headers={**_JSON, **(headers or {})}, status=status)
