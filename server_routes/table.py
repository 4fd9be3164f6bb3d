"""The route table, and the one way in which every handler answers and fails."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ..guard import messages
from ..guard.access import Access, Client
from ..guard.access import Request as Asking
from ..guard.admission import Admission
from ..guard.drain import Drain
from ..guard.errors import (
    ForbiddenError,
    GuardError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    PayloadTooLargeError,
)
from ..guard.faces.gate import FaceGate
from ..guard.health import Health
from ..guard.host import Host
from ..guard.janitor import Janitor
from ..guard.jobs import Jobs
from ..guard.settings import Settings
from ..guard.stats import Stats
from ..guard.uploads import Uploads

log = logging.getLogger("guarded.http")

PREFIX = "/guarded"

#: Cyrillic as itself: half the bytes, and readable in a terminal.
_dumps = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Services:
    """What the handlers call."""

    settings: Settings
    access: Access
    host: Host
    admission: Admission
    jobs: Jobs
    health: Health
    faces: FaceGate
    drain: Drain
    wake: Callable[[], None]
    janitor: Janitor
    uploads: Uploads
    stats: Stats


@dataclass(frozen=True)
class Call:
    """One request, and who makes it."""

    services: Services
    request: web.Request
    client: Client

    @property
    def locale(self) -> str | None:
        """The language the request asks for; None leaves the choice to the job."""
        header = self.request.headers.get("Accept-Language")
        return messages.choose(None, header, "") or None


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """`open` routes answer without a key, and then with the bare status; `operate` ones want an operator."""

    method: str
    path: str
    handler: Handler
    open: bool = False
    operate: bool = False


def register(routes: web.RouteTableDef, table: list[Route], services: Services) -> None:
    """Add the table to the host's routes, and typed answers for whatever else is asked under our prefix."""
    for route in table:
        routes.route(route.method, PREFIX + route.path)(answering(route, services))
    known = [(pattern(route.path), route.method) for route in table]

    async def unknown(request: web.Request) -> web.StreamResponse:
        try:
            identified(request, services)
        except GuardError as error:
            return failed(error, request, services)
        path = own_path(request.path).removeprefix(PREFIX)
        allowed = sorted({method for like, method in known if like.fullmatch(path)})
        if allowed:
            allow = ", ".join(allowed)
            error: GuardError = MethodNotAllowedError(
                f"{request.method} is not for this route; {allow} is.", extra_info={"allowed": allowed}
            )
            return failed(error, request, services, {"Allow": allow})
        return failed(NotFoundError(f"There is no route {request.path[:200]}."), request, services)

    routes.route("*", PREFIX)(unknown)
    routes.route("*", PREFIX + "/{rest:.*}")(unknown)


def pattern(path: str) -> re.Pattern[str]:
    """What matches a path of the table, its variable parts as groups."""
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path)))


def answering(route: Route, services: Services) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The route as aiohttp calls it: who asks, then the handler, and one way to fail."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            client = identified(request, services)
        except GuardError as error:
            if not route.open:
                return failed(error, request, services)
            client = Client("", operator=False)
        try:
            if route.operate and not client.operator:
                raise ForbiddenError("This is for operators.")
            return await route.handler(Call(services, request, client))
        except GuardError as error:
            return failed(error, request, services)
        except web.HTTPRequestEntityTooLarge:
            limit = services.settings.policy.max_body_bytes
            return failed(
                PayloadTooLargeError("The body is too large.", extra_info={"max_body_bytes": limit}), request, services
            )
        except web.HTTPException as error:
            return failed(InvalidRequestError(error.reason), request, services)
        except (ConnectionError, TimeoutError):
            raise  # the caller has gone; there is nobody to answer
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return failed(InternalError("The guard failed on this request; its log has more."), request, services)

    return answer


def identified(request: web.Request, services: Services) -> Client:
    """Who makes this request. Raises UnauthorizedError, ForbiddenError."""
    token = request.query.get("token") if "token=" in request.query_string else None
    path = own_path(request.path)
    return services.access.identify(Asking(request.method, path, request.remote, request.headers, token))


def own_path(path: str) -> str:
    """The path as the table has it: without ComfyUI's mirror prefix, and without doubled slashes."""
    return re.sub("^/api(?=/)", "", re.sub("/+", "/", path))


def failed(
    error: GuardError, request: web.Request, services: Services, headers: dict[str, str] | None = None
) -> web.Response:
    """The one error answer."""
    locale = error.locale or messages.choose(
        None, request.headers.get("Accept-Language"), services.settings.messages.locale
    )
    told = dict(headers or {})
    if error.retry_after_s is not None:
        told["Retry-After"] = str(max(round(error.retry_after_s), 1))
    if error.status in (401, 403):
        address = services.access.address(request.remote, request.headers)
        log.info("%s for %s %.200r from %s: %s", error.status, request.method, request.path, address, error.message)
    if error.status == 401:
        told.setdefault("WWW-Authenticate", "Bearer")
    return answered(error.body(locale), told, error.status or 500)


def number(call: Call, name: str, default: float, low: float, high: float) -> float:
    """A number from the query string. Raises InvalidRequestError."""
    raw = call.request.query.get(name)
    if raw is None:
        return default
    try:
        value = float(raw)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise InvalidRequestError(f"{name} must be a number from {low:g} to {high:g}.", extra_info={"field": name})
    return value


def answered(body: Any, headers: dict[str, str] | None = None, status: int = 200) -> web.Response:
    text = _dumps(body)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair: a file name that is no UTF-8, say
            text = json.dumps(body)
    return web.Response(text=text, headers=headers, status=status, content_type="application/json")
