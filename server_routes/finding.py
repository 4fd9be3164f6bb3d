"""Find the route of a request: aiohttp looks for one at each slash of a path, before any middleware hears of it.

A path of thousands of slashes takes it ten milliseconds of the event loop, and a stranger may send hundreds at once.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import hdrs, web
from aiohttp.web_urldispatcher import SystemRoute, UrlMappingMatchInfo

from .evenly import BEGUN_AT_ONCE, Turns

#: A path with more slashes waits for its turn …
_FREE_SLASHES = 16
#: … and one with more than these has no route: files lie in 32 folders at most.
MOST_SLASHES = 256


class _Refusing(SystemRoute):
    """The route of what is refused, whatever it asks for."""

    def __init__(self, refuse: Callable[[web.Request, str], web.Response], why: str) -> None:
        super().__init__(web.HTTPBadRequest())
        self._refuse = refuse
        self._why = why

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        return self._refuse(request, self._why)

    async def handle_expect_header(self, request: web.Request) -> None:
        """Nothing more of it is wanted."""


def find_evenly(
    application: web.Application, refuse: Callable[[web.Request, str], web.Response], is_ours: Callable[[str], bool]
) -> None:
    """Refuse long paths, and, where a path `is_ours`, expectations that nobody knows, as everything else is refused."""
    router = application.router
    usual = router.resolve
    turns = Turns(BEGUN_AT_ONCE)

    async def resolve(request: web.Request) -> UrlMappingMatchInfo:
        slashes = request.raw_path.count("/")
        if slashes > _FREE_SLASHES:
            if request.raw_path.partition("?")[0].count("/") > MOST_SLASHES:
                return UrlMappingMatchInfo({}, _Refusing(refuse, "The path has too many parts."))
            await turns.wait()
        expected = request.headers.get(hdrs.EXPECT)
        if expected is not None and expected.lower() != "100-continue" and is_ours(request.path):
            return UrlMappingMatchInfo({}, _Refusing(refuse, f"There is no expectation {expected!r}."))
        return await usual(request)

    router.resolve = resolve  # type: ignore[method-assign]
