"""`native.mode`: who may use ComfyUI's own paths. Installed in `guarded` and `closed` only."""

from __future__ import annotations

import logging
import re

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ..guard.client import LOCAL
from ..guard.errors import ForbiddenError, GuardError, InvalidRequestError, ServerUnavailableError
from ..guard.journal import Throttle
from .connections import Connections, find_bound, watch_requests
from .evenly import pace_pings
from .facade.ws import get_ws
from .finding import find_evenly
from .reading import read_sockets_evenly
from .table import PREFIX, Route, Services, compile_path, identify, make_handler, refuse, strip_mirror

log = logging.getLogger("guarded.http")

_unreadable = Throttle()
_BROWSERS_ASK = 'Basic realm="ComfyUI-Guarded", charset="UTF-8"'


def guard_connections(application: web.Application, services: Services) -> Middleware:
    """Bound the connections, and make the middleware that goes before all others."""
    connections = Connections(application, find_bound(services.settings.limits.max_connections))
    connections.watch()
    pace_pings()
    application.on_response_prepare.append(read_sockets_evenly)

    def refuse_full(request: web.Request) -> web.Response | None:
        try:
            if identify(request, services).operator:
                return None
        except GuardError as error:
            return refuse(error, request, services)
        full = ServerUnavailableError("All connections of this server are taken.", retry_after_s=5)
        return refuse(full, request, services)

    def refuse_unreadable(request: web.Request, why: str) -> web.Response:
        if (skipped := _unreadable.take(str(request.remote))) is not None:
            more = f" ({skipped} more since the last)" if skipped else ""
            log.info("400 for a request that cannot be read, from %s: %r%s", request.remote, why, more)
        return refuse(InvalidRequestError("The request cannot be read.", details=why), request, services)

    connections.answer_unreadable(refuse_unreadable)
    find_evenly(
        application,
        lambda request, why: refuse(InvalidRequestError(why), request, services),
        lambda path: f"{strip_mirror(path)}/".startswith(f"{PREFIX}/"),
    )
    # One owner's requests that wait leave room for everybody else's.
    services.quotas.held_at_most = max(min(services.quotas.held_at_most, connections.bound // 2), 1)
    timeout_s = services.settings.limits.body_timeout_s
    return watch_requests(connections, refuse_full, lambda request, why: refuse(why, request, services), timeout_s)


def guard_native(services: Services, twins: list[Route]) -> Middleware:
    """Make a middleware that keeps strangers off every path but ours, files and other packs' routes included.

    Args:
        twins: our routes that answer in place of ComfyUI's of the same path.
    """
    rows = [(route, compile_path(route.path), make_handler(route, services)) for route in twins]
    closed = services.settings.native.mode == "closed"
    keeps_files_elsewhere = bool(services.settings.files.url)
    is_in_fleet = services.settings.fleet.enabled

    def find_twin(request: web.Request) -> tuple[Route, Handler] | None:
        path = re.sub("/+", "/", request.path)
        method = "GET" if request.method == "HEAD" else request.method
        for wanted in (path, re.sub("^/api(?=/)", "", path)):
            for route, like, answer in rows:
                if route.method == method and (parts := like.fullmatch(wanted)):
                    request.match_info.update(parts.groupdict())
                    return route, answer
        return None

    def choose_handler(request: web.Request, handler: Handler) -> Handler:
        """The handler that answers. Raises UnauthorizedError, ForbiddenError."""
        if closed:
            if not _is_local(request, services):
                raise ForbiddenError("Only /guarded is open here.")
            return handler
        client = identify(request, services)
        twin = find_twin(request)
        # The editor on this machine goes through ours to submit alone; in a fleet for all that another box may have to
        # answer. Its websocket stays ComfyUI's own, since packs talk to it.
        if twin is not None and (
            client is not LOCAL or twin[0].submits or (is_in_fleet and twin[0].handler is not get_ws)
        ):
            return twin[1]
        if not client.operator:
            raise ForbiddenError("This is for operators.")
        return handler

    @web.middleware
    async def native(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_ours(request):
            return await handler(request)
        try:
            answer = choose_handler(request, handler)
        except GuardError as error:
            asks = "text/html" in request.headers.get("Accept", "")
            headers = {"WWW-Authenticate": _BROWSERS_ASK} if asks else None
            twin = find_twin(request)
            return refuse(error, request, services, headers, of_submit=twin is not None and twin[0].submits)
        response = await answer(request)
        if response.status == 404 and answer is handler and keeps_files_elsewhere:
            twin = find_twin(request)
            if twin is not None and twin[0].path == "/view":  # another box may have made it
                return await twin[1](request)
        return response

    return native


def _is_local(request: web.Request, services: Services) -> bool:
    try:
        return identify(request, services) is LOCAL
    except GuardError:
        return False


def _is_ours(request: web.Request) -> bool:
    """Whether the route is ours, however the path is spelled."""
    resource = request.match_info.route.resource
    canonical = resource.canonical if resource is not None else ""
    return re.match(f"(/api)?/({{slashes}})?{PREFIX[1:]}(/|$)", canonical) is not None
