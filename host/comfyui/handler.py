"""Call ComfyUI's own handlers, above all that of POST /prompt, without a socket.

Whatever ComfyUI and other packs do to a prompt on its way in (node replacement, on_prompt handlers, new checks) then
happens to guarded jobs too.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import logging
import reprlib
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict, MultiDictProxy
from yarl import URL

from ...guard.bounds import read_shortened
from ...guard.errors import NotFoundError, clip, clip_all
from ...guard.host import Refusal
from ...guard.life.contain import EscapedError, OverdueError, catch, contain
from ...guard.quotas.threads import work
from .patching import Native, is_of_host

log = logging.getLogger("guarded.host")

#: Takes a request; most are coroutines. Other packs put anything here.
Handler = Callable[..., Any]

#: Of a prompt that ComfyUI would answer with status 500.
FAILED = "ComfyUI failed on this prompt."

#: So much is read of each text in a refusal, which quotes whole values: more than is passed on.
_READ_BYTES = 2000
#: Whether this task validates a prompt for us; those that it starts inherit the answer.
_contained: contextvars.ContextVar[bool] = contextvars.ContextVar("guarded_contained", default=False)
_UNTOLD = object()
#: The body for which other packs have had their say in this task.
_told: contextvars.ContextVar[object] = contextvars.ContextVar("guarded_told", default=_UNTOLD)


class NativePrompt:
    """Show prompts to the handler in the server's route table, which another pack may have wrapped. Event loop."""

    def __init__(self, prompt_server: Any) -> None:
        self._server = prompt_server
        self._handler: Handler | None = None
        #: Whether it is ComfyUI's own.
        self._is_own = False
        self._tell: Native | None = None

    def install(self) -> None:
        """Patch. The main thread, once."""
        server = self._server
        replaced: Native | None = vars(server).get("trigger_on_prompt")

        def trigger_on_prompt(body: Any, *args: Any, **kwargs: Any) -> Any:
            if _told.get() is body:
                return body
            if replaced is not None:
                return replaced(body, *args, **kwargs)
            return type(server).trigger_on_prompt(server, body, *args, **kwargs)

        self._tell = server.trigger_on_prompt = trigger_on_prompt

    def tell(self, body: dict[str, Any]) -> tuple[bool, Any]:
        """Let other packs have their say, with which ComfyUI's own handler begins: (True, what they make of the body).

        (False, the body), and nobody has had a say, where a pack has replaced that handler. Raises EscapedError.
        """
        self._find()
        if self._tell is None or self._server.trigger_on_prompt is not self._tell or not self._is_own:
            return False, body
        token = _contained.set(True)
        try:
            return True, self._tell(body)
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            log.warning("ComfyUI failed on a prompt", exc_info=True, extra={"quotes_prompt": True})
            raise EscapedError(f"{type(raised).__name__}: {raised}") from raised
        finally:
            _contained.reset(token)

    def _find(self) -> Handler:
        if self._handler is None:
            # Look for it at the first prompt, when every pack has had its chance to replace it.
            self._handler = _find_handler(self._server, "POST", "/prompt")
            self._is_own = is_of_host(self._handler)
            _contain_tasks(asyncio.get_running_loop())
        return self._handler

    async def call(self, body: dict[str, Any], timeout_s: float | None, *, is_told: bool = False) -> Refusal | None:
        """Hand a `/prompt` body to the handler; None where it accepts the prompt. `is_told`: it is what `tell` gave.

        Raises EscapedError where the handler raised what would have ended the server or our own task, and OverdueError
        where it does not end in time.
        """
        handler = self._find()
        try:
            request = _Request("POST", "/prompt", self._server.app, body)
            response = await contain(partial(_handle, handler, request, body if is_told else _told.get()), timeout_s)
        except web.HTTPException as raised:
            return Refusal("refused", raised.reason, clip(raised.text or ""), {}, {})
        except OverdueError:
            raise
        except EscapedError:
            log.warning("ComfyUI failed on a prompt", exc_info=True, extra={"quotes_prompt": True})
            raise
        except Exception as raised:
            # The route would answer 500: a node class or another pack failed on the prompt.
            log.warning("ComfyUI failed on a prompt", exc_info=True, extra={"quotes_prompt": True})
            details = clip(f"{type(raised).__name__}: {raised}")
            return Refusal("exception_during_validation", FAILED, details, {}, {})
        # It quotes the values that are wrong, all of them.
        answer = await work(len(response.body), read_shortened, response.body, _READ_BYTES) if response.body else {}
        error, node_errors = answer.get("error"), _clip_node_errors(answer.get("node_errors") or {})
        if response.status == 200 and error is None and not node_errors:
            return None
        if response.status == 200:
            return _refuse_part(node_errors)
        if not isinstance(error, dict):
            return Refusal("refused", clip(str(error or "ComfyUI refused the prompt.")), "", {}, node_errors)
        return Refusal(
            str(error.get("type", "refused")),
            clip(str(error.get("message", "ComfyUI refused the prompt."))),
            clip(str(error.get("details", ""))) or _join_errors(node_errors),
            error.get("extra_info") or {},
            node_errors,
        )


async def call_native_get(prompt_server: Any, path: str, match_info: dict[str, str]) -> bytes:
    """The body of ComfyUI's answer to a GET. Raises NotFoundError where it has no such route, or finds nothing.

    Event loop.
    """
    try:
        handler = _find_handler(prompt_server, "GET", path)
    except LookupError:
        raise NotFoundError(f"This server has no {path}.") from None
    response = handler(_Request("GET", path, prompt_server.app, match_info=match_info))
    if inspect.isawaitable(response):  # the handler of /embeddings is a plain function
        response = await response
    if response.status != 200:
        raise NotFoundError(f"This server finds nothing under {path}.")
    return bytes(response.body)


async def _handle(handler: Handler, request: _Request, told: object) -> Any:
    """In a task of its own."""
    _contained.set(True)
    _told.set(told)
    return await handler(request)


def _contain_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Contain the tasks that validation starts, for async nodes: asyncio ends the loop where one raises SystemExit."""
    native = loop.get_task_factory()

    def make(loop: asyncio.AbstractEventLoop, work: Any, /, **options: Any) -> Any:
        if _contained.get():
            work = catch(work)
        if native is not None:
            return native(loop, work, **options)
        return asyncio.Task(work, loop=loop, **options)

    loop.set_task_factory(make)


def _find_handler(prompt_server: Any, method: str, path: str) -> Handler:
    for route in prompt_server.routes:
        if isinstance(route, web.RouteDef) and (route.method, route.path) == (method, path):
            return route.handler
    raise LookupError(f"ComfyUI has no handler for {method} {path}")


def _refuse_part(node_errors: dict[str, Any]) -> Refusal:
    """Refuse a prompt that ComfyUI would run without the outputs that failed, and call a success."""
    dropped = sorted({output for entry in node_errors.values() for output in entry.get("dependent_outputs", ())})
    return Refusal(
        "prompt_outputs_failed_validation",
        f"Part of the prompt failed validation; output {', '.join(dropped)} would be left out.",
        _join_errors(node_errors),
        {"outputs": dropped},
        node_errors,
    )


def _clip_node_errors(node_errors: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI quotes a whole value, however long, in its details and as `received_value`."""
    for entry in node_errors.values():
        for error in entry.get("errors", ()):
            info = error.get("extra_info")
            if isinstance(info, dict) and isinstance(info.get("received_value"), (list, dict)):
                info["received_value"] = clip(reprlib.repr(info["received_value"]))
    clipped: dict[str, Any] = clip_all(node_errors)
    return clipped


def _join_errors(node_errors: dict[str, Any]) -> str:
    """Put the errors of single nodes into one text, for people who read only the message."""
    return "\n".join(
        f"{entry.get('class_type')} {node_id}: {error.get('message')}: {error.get('details')}"
        for node_id, entry in node_errors.items()
        for error in entry.get("errors", ())
    )


class _Request:
    """Stand in for a request, with what a handler may sensibly look at."""

    content_type = "application/json"
    remote = "127.0.0.1"

    def __init__(
        self,
        method: str,
        path: str,
        app: web.Application,
        body: dict[str, Any] | None = None,
        match_info: dict[str, str] | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.can_read_body = body is not None
        self._body = body
        self.app = app
        self.headers = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json"}))
        self.rel_url = self.url = URL(path)
        self.query: MultiDictProxy[str] = MultiDictProxy(MultiDict())
        self.match_info = match_info or {}
        self.cookies: dict[str, str] = {}
        self._kept: dict[Any, Any] = {}

    async def json(self, **_kwargs: Any) -> dict[str, Any] | None:
        return self._body

    async def text(self) -> str:
        return json.dumps(self._body)

    async def read(self) -> bytes:
        return (await self.text()).encode()

    def get(self, key: Any, default: Any = None) -> Any:
        return self._kept.get(key, default)

    def __getitem__(self, key: Any) -> Any:
        return self._kept[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._kept[key] = value
