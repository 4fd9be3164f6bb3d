"""The operator's page at /guarded/, the contract to read at /guarded/docs, and the files behind both.

The files are those that the sidebar tab in the editor is made of.

They hold no secret and ask for nothing by themselves, so a stranger may load them: the page then asks for a key.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from email.utils import formatdate
from pathlib import Path

from aiohttp import web

from ..guard.errors import NotFoundError
from ..guard.quotas.threads import run_beside
from .about import FILES, About
from .sending import answer_unchanged
from .table import Call, Route

PANEL = Path(__file__).resolve().parent.parent / "js" / "panel"

_TYPES = {".js": "text/javascript", ".css": "text/css", ".json": "application/json", ".svg": "image/svg+xml"}
_SCRIPT = re.compile(r'<script type="module">(.*?)</script>', re.DOTALL)


async def get_page(_call: Call) -> web.StreamResponse:
    """The operator's page."""
    return _answer_page("page.html")


async def get_docs(_call: Call) -> web.StreamResponse:
    """This contract as a page, to read and search."""
    return _answer_page("docs.html")


def _answer_page(name: str) -> web.StreamResponse:
    page, policy = _make_page(name)
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return web.Response(text=page, content_type="text/html", charset="utf-8", headers=headers)


async def get_page_from_below(_call: Call) -> web.StreamResponse:
    """Redirects to the page, whose own links are relative to its folder."""
    return web.Response(status=308, headers={"Location": "guarded/"})


async def get_file(call: Call) -> web.StreamResponse:
    """One of the page's files."""
    name = call.request.match_info["file"]
    suffix = Path(name).suffix
    if suffix not in _TYPES or name not in _list_names():
        raise NotFoundError(f"There is no file {name[:64]}.")
    # Whole: aiohttp would let the system send the file, and such a connection cannot be closed before it has gone.
    content, changed_s = await run_beside(_read_file, name)
    etag = f"{changed_s:x}-{len(content):x}"
    headers = {
        "Cache-Control": "no-cache",
        "Content-Type": _TYPES[suffix],
        "X-Content-Type-Options": "nosniff",
        "ETag": f'"{etag}"',
        "Last-Modified": formatdate(changed_s, usegmt=True),
    }
    unchanged = answer_unchanged(call.request, etag, headers)
    return web.Response(body=content, headers=headers) if unchanged is None else unchanged


@functools.cache
def _read_file(name: str) -> tuple[bytes, int]:
    """A file of the page's, and when it was changed."""
    return (PANEL / name).read_bytes(), int((PANEL / name).stat().st_mtime)


@functools.cache
def _list_names() -> frozenset[str]:
    return frozenset(file.name for file in PANEL.iterdir() if file.is_file())


@functools.cache
def _make_page(name: str) -> tuple[str, str]:
    """A page, and a policy that runs its few lines of script and this server's files, and nothing else."""
    page = (PANEL / name).read_text(encoding="utf-8")
    script = _SCRIPT.search(page)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    rules = (
        "default-src 'none'",
        f"script-src 'self' 'sha256-{digest}'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
    )
    policy = "; ".join(rules)
    # In the page as well: ComfyUI, started without API nodes, puts a laxer one of its own into the header.
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    return page.replace("<head>", f"<head>\n{meta}", 1), policy


ROUTES = [
    Route("GET", "/", get_page, open=True, about=About({200: "text/html"})),
    Route("GET", "/docs", get_docs, open=True, about=About({200: "text/html"})),
    Route("GET", "", get_page_from_below, open=True, about=About({308: None})),
    Route(
        "GET",
        "/panel/{file}",
        get_file,
        open=True,
        about=About(FILES, refusals=(NotFoundError,)),
    ),
]
