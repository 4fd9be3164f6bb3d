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
from ..guard.access import Client, identify
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

log = logging.getLogger("guarded.http")

PREFIX = "/guarded"

#: Cyrillic as itself: half the bytes, and readable in a terminal.
_dumps = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class Services:
    """What the handlers call."""

    settings: Settings
    host: Host
    admission: Admission
    jobs: Jobs
    health: Health
    faces: FaceGate
    drain: Drain
    wake: Callable[[], None]
    janitor: Janitor


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
        routes.route(route.method, PREFIX + route.path)(_answering(route, services))
    known = [(re.compile(_pattern(route.path)), route.method) for route in table]

    async def unknown(request: web.Request) -> web.StreamResponse:
        path = re.sub("/+", "/", request.path).partition(PREFIX)[2]
        allowed = sorted({method for pattern, method in known if pattern.fullmatch(path)})
        if allowed:
            allow = ", ".join(allowed)
            error: GuardError = MethodNotAllowedError(
                f"{request.method} is not for this route; {allow} is.", extra_info={"allowed": allowed}
            )
            return failed(error, request, services, {"Allow": allow})
        return failed(NotFoundError(f"There is no route {request.path[:200]}."), request, services)

    routes.route("*", PREFIX)(unknown)
    routes.route("*", PREFIX + "/{rest:.*}")(unknown)


def _pattern(path: str) -> str:
    return re.sub(r"\\{(\w+)\\}", r"[^/]+", re.escape(path))


def _answering(route: Route, services: Services) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            client = identify(services.settings.access, request.remote, request.headers)
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
    if error.status == 401:
        told["WWW-Authenticate"] = "Bearer"
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
