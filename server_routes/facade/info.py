"""What the server has: node classes, embeddings, memory. ComfyUI's own answers, without other owners' files."""

from __future__ import annotations

import asyncio
import json
import mimetypes
import os
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from ...guard.bounds import LARGE_BYTES
from ...guard.client import LOCAL
from ...guard.errors import NotFoundError
from ...guard.files.names import mentions_uploads, owner_folder
from ...guard.quotas import Kind
from ..about import About
from ..table import Call, Route, make_at_length, respond

#: Option of an input → the media types of the uploads that its choice offers.
_UPLOADS = {
    "image_upload": ("image/",),
    "video_upload": ("video/",),
    "audio_upload": ("audio/", "video/"),
    "file_upload": ("",),
}


#: What clients choose by: the machine, not what runs on it.
_SHOWN = frozenset({"os", "ram_total", "ram_free"})


#: By owner: ComfyUI's last answer, the owner's uploads, and what it was shown of the two, of so many owners. To make it
#: takes a tenth of a second in which nothing else runs.
_last_shown: dict[str, tuple[bytes, list[str], bytes]] = {}
_SHOWN_TO = 4
#: ComfyUI's last answer to a key, and when that was.
FRESH_S = 1.0
_read: tuple[float, bytes] = (-FRESH_S, b"")
_reading = asyncio.Lock()


async def get_object_info(call: Call) -> web.StreamResponse:
    """Every node class and its inputs."""
    await call.turn.take(Kind.LARGE)
    raw = await _read_object_info(call)
    return await _answer_object_info(call, raw)


async def _read_object_info(call: Call) -> bytes:
    """ComfyUI's answer, which takes it tenths of a second on the event loop: for keys once in `FRESH_S` at most."""
    global _read
    if call.client.operator:
        return await call.services.host.native("/object_info")
    async with _reading:
        read_s, raw = _read
        if time.monotonic() >= read_s + FRESH_S:
            raw = await call.services.host.native("/object_info")
            _read = time.monotonic(), raw
        return raw


async def get_object_info_of(call: Call) -> web.StreamResponse:
    """One node class; empty where there is none."""
    node_class = call.request.match_info["node_class"]
    return await _answer_object_info(
        call, await call.services.host.native("/object_info/{node_class}", node_class=node_class)
    )


async def get_embeddings(call: Call) -> web.StreamResponse:
    """The names of the embeddings."""
    return _pass_on(await call.services.host.native("/embeddings"))


async def get_system_stats(call: Call) -> web.StreamResponse:
    """Memory and devices; to operators also versions and the command line."""
    stats = json.loads(await call.services.host.native("/system_stats"))
    if not call.client.operator and isinstance(stats.get("system"), dict):
        stats["system"] = {name: _blank(name, value) for name, value in stats["system"].items()}
    return respond(stats)


def _blank(name: str, value: Any) -> Any:
    """What a key may see of an entry: of the command line, which holds paths, of versions, by which known faults are
    looked up, and of what is not known here nothing but the type, which clients check."""
    return value if name in _SHOWN else type(value)() if value is not None else None


async def _answer_object_info(call: Call, raw: bytes) -> web.StreamResponse:
    if call.client.owner == LOCAL.owner:
        return _pass_on(raw)
    owner = call.client.owner
    own = await call.services.files.list_uploads(call.client)
    if len(raw) <= LARGE_BYTES:
        return _pass_on(await make_at_length(lambda: _write_limited(raw, owner_folder(owner), own)))
    if (last := _last_shown.get(owner)) is None or last[:2] != (raw, own):
        shown = await make_at_length(lambda: _write_limited(raw, owner_folder(owner), own))
        _last_shown.pop(owner, None)
        _last_shown[owner] = last = raw, own, shown
        if len(_last_shown) > _SHOWN_TO:
            del _last_shown[next(iter(_last_shown))]
    return _pass_on(last[2])


def _write_limited(raw: bytes, folder: str, own: list[str]) -> bytes:
    return json.dumps(_limit_choices(json.loads(raw), folder, own)).encode()


def _pass_on(raw: bytes) -> web.Response:
    return web.Response(body=raw, content_type="application/json", charset="utf-8")


def _limit_choices(info: dict[str, Any], folder: str, own: list[str]) -> dict[str, Any]:
    """Take other owners' folders out of every choice, and add the caller's own uploads to those of loaders."""
    for node in info.values():
        for section in (node.get("input") or {}).values():
            for declared in section.values() if isinstance(section, dict) else ():
                if isinstance(declared, list) and declared:
                    _limit_input(declared, folder, own)
    return info


def _limit_input(declared: list[Any], folder: str, own: list[str]) -> None:
    options = declared[1] if len(declared) > 1 and isinstance(declared[1], dict) else {}
    wanted = [kind for name, kinds in _UPLOADS.items() if options.get(name) for kind in kinds]
    choose = _make_chooser(
        folder, [name for name in own if _is_a(name, wanted)] if "image_folder" not in options else []
    )
    if isinstance(declared[0], list):
        declared[0] = choose(declared[0])
    elif isinstance(options.get("options"), list):
        options["options"] = choose(options["options"])


def _make_chooser(folder: str, added: list[str]) -> Callable[[list[Any]], list[Any]]:
    def choose(choices: list[Any]) -> list[Any]:
        shown = [
            item.removeprefix(f"{folder}/") if isinstance(item, str) else item
            for item in choices
            if not isinstance(item, str) or not mentions_uploads(item) or item.startswith(f"{folder}/")
        ]
        known = {item for item in shown if isinstance(item, str)}
        return [*shown, *(name for name in added if name not in known)]

    return choose


def _is_a(name: str, kinds: list[str]) -> bool:
    kind = mimetypes.guess_type(name)[0] or ("image/webp" if os.path.splitext(name)[1] == ".webp" else "")
    return any(kind.startswith(wanted) for wanted in kinds)


ROUTES = [
    Route("GET", "/object_info", get_object_info, about=About({200: dict[str, Any]})),
    Route(
        "GET",
        "/object_info/{node_class}",
        get_object_info_of,
        about=About({200: dict[str, Any]}, refusals=(NotFoundError,)),
    ),
    Route("GET", "/embeddings", get_embeddings, about=About({200: list[str]})),
    Route("GET", "/system_stats", get_system_stats, about=About({200: dict[str, Any]})),
]
