"""What a server answers whose guard cannot start: to everybody where it was to be shut, else under our prefix alone.

It needs Python and aiohttp, which the server has, and nothing of ours that could be what is broken. It finds ComfyUI's
modules where ComfyUI has put them, since our own seam may not load.
"""

from __future__ import annotations

import contextlib
import functools
import html
import json
import logging
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from . import failure
from .failure import Failure, Text
from .own_files import FileError

log = logging.getLogger("guarded")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]

_OURS = re.compile(r"(/+api)?/+guarded(/|$)")
#: What asks for a job.
_SUBMITS = re.compile(r"(/+api)?(/+guarded(/+api)?(/+workflows/+[^/]+|/+prompt)|/+prompt)/*$")
_RETRY_AFTER_S = 10

_TITLE: Text = {"en": "ComfyUI-Guarded is off", "ru": "ComfyUI-Guarded выключен"}
_WHY: Text = {"en": "What is wrong", "ru": "Что случилось"}
_HOW: Text = {"en": "How to mend it", "ru": "Как исправить"}
_SHUT: Text = {
    "en": "Until then every route of this server answers 503, so that nobody gets in past its keys.",
    "ru": "До тех пор сервер на любой запрос отвечает кодом 503, чтобы никто не вошел в обход ключей.",
}
_RUNS_ON: Text = {
    "en": "ComfyUI runs without it: whoever reaches this server can use it, and no job is guarded, checked or "
    "refunded.",
    "ru": "ComfyUI работает без него: сервером может пользоваться любой, кто до него доберется, а очереди, проверок и "
    "возвратов нет.",
}
#: As guard/messages has it, which may be what cannot be read.
USER_MESSAGE: Text = {
    "en": "The generation server is not available. Please try again later.",
    "ru": "Сервер генерации недоступен. Попробуйте позже.",
}


def explain(error: Exception) -> tuple[Middleware, bool]:
    """Say why the package cannot start, and make what answers in place of every route that must not be open.

    Returns that, and whether the rest of the package may be loaded all the same. The main thread; it blocks.
    """
    own, listen = _find_own_directory(), _read_listen()
    why = failure.describe(error, own, os.environ, listen)
    log.error("%s %s %s", why.message, why.state, why.mend["en"])
    if own is not None:
        with contextlib.suppress(Exception):  # without it the doctor knows less
            failure.note(own, why, _gather_facts(listen))
    is_told = isinstance(error, (OSError, FileError)) or type(error).__name__ == "SettingsError"
    return functools.partial(_answer, why), is_told


async def _answer(why: Failure, request: web.Request, handler: Handler) -> web.StreamResponse:
    """Event loop."""
    if why.shut is None and _OURS.match(request.path) is None:
        return await handler(request)
    language = _choose_language(request.headers.get("Accept-Language", ""))
    headers = {"Retry-After": str(_RETRY_AFTER_S), "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if "text/html" in request.headers.get("Accept", ""):
        headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
        page = _make_page(why, language)
        return web.Response(status=503, text=page, content_type="text/html", charset="utf-8", headers=headers)
    body = json.dumps(
        _make_body(why, language, request.method == "POST" and _SUBMITS.match(request.path) is not None),
        ensure_ascii=False,
    )
    return web.Response(status=503, text=body, content_type="application/json", headers=headers)


def _make_body(why: Failure, language: str, of_submit: bool) -> dict[str, Any]:
    """In the shape of every refusal."""
    return {
        "error": {
            "type": "server_unavailable",
            "message": failure.say(why.told),
            "details": why.mend["en"],
            "extra_info": {"off": True, "shut": why.shut is not None},
        },
        "node_errors": {},
        "guard": {
            "code": "server_unavailable",
            "user_message": USER_MESSAGE[language],
            **({"refund": True} if of_submit else {}),
            "retryable": True,
            "retry_after_s": float(_RETRY_AFTER_S),
            "job_id": None,
        },
    }


def _make_page(why: Failure, language: str) -> str:
    title = html.escape(_TITLE[language])
    state = _RUNS_ON if why.shut is None else _SHUT
    rest = (
        f"<h2>{_WHY[language]}</h2>\n<p><code>{html.escape(why.told)}</code></p>\n"
        f"<h2>{_HOW[language]}</h2>\n<p>{html.escape(why.mend[language])}</p>\n<p>{html.escape(state[language])}</p>"
    )
    return (
        f'<!doctype html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="dark light">\n<title>{title}</title>\n</head>\n'
        f"<body>\n<h1>{title}</h1>\n{rest}\n</body>\n</html>\n"
    )


def _choose_language(accepted: str) -> str:
    tags = (part.strip()[:2].lower() for part in accepted[:200].split(","))
    return next((tag for tag in tags if tag in USER_MESSAGE), "en")


def _find_own_directory() -> Path | None:
    """As host/comfyui/folders.py has it. None where ComfyUI does not say."""
    try:
        paths = sys.modules["folder_paths"]
        system_user = getattr(paths, "get_system_user_directory", None)
        return Path(system_user("guarded") if system_user else os.path.join(paths.get_user_directory(), "__guarded"))
    except Exception:
        return None


def _read_listen() -> list[str]:
    """The addresses that ComfyUI will listen on; empty where it does not say."""
    try:
        return str(sys.modules["comfy.cli_args"].args.listen).split(",")
    except Exception:
        return []


def _gather_facts(listen: list[str]) -> dict[str, Any]:
    """What the doctor's command has to know of this server, as guard/doctor/facts.py writes it."""
    paths, arguments = sys.modules["folder_paths"], sys.modules["comfy.cli_args"].args
    version = getattr(sys.modules.get("comfyui_version"), "__version__", "unknown")
    return {
        "host": {
            "name": getattr(sys.modules.get("server"), "HOST_NAME", "ComfyUI"),
            "version": version,
            "listen": listen,
            "port": getattr(arguments, "port", None),
        },
        "output": paths.get_output_directory(),
        "temp": paths.get_temp_directory(),
        "input": paths.get_input_directory(),
        "models": [paths.models_dir],
    }
