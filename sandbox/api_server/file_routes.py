"""Files in (upload) and files out (view)."""

import mimetypes
import os
from io import BytesIO
from typing import TYPE_CHECKING, Any

import folder_paths
from aiohttp import web
from PIL import Image

if TYPE_CHECKING:
    from server import PromptServer

# Send as a download what a browser would run in our origin.
ACTIVE_TYPES = {
    "text/html",
    "application/xhtml+xml",
    "text/javascript",
    "application/javascript",
    "text/css",
    "image/svg+xml",
    "application/xml",
    "text/xml",
    "message/rfc822",
}


def register(server: "PromptServer") -> None:
    routes = server.routes

    @routes.post("/upload/image")
    async def upload_image(request: web.Request) -> web.Response:
        return _store_upload(await request.post())

    @routes.get("/view")
    async def view_image(request: web.Request) -> web.StreamResponse:
        query = request.rel_url.query
        if "filename" not in query:
            return web.Response(status=404)
        filename, folder = folder_paths.annotated_filepath(query["filename"])
        if not filename or filename.startswith("/") or ".." in filename:
            return web.Response(status=400)
        folder = folder or folder_paths.get_directory_by_type(query.get("type", "output"))
        if folder is None:
            return web.Response(status=400)
        if "subfolder" in query:
            below = os.path.join(folder, query["subfolder"])
            if os.path.commonpath((os.path.abspath(below), folder)) != folder:
                return web.Response(status=403)
            folder = below
        filename = os.path.basename(filename)
        path = os.path.join(folder, filename)
        if not os.path.isfile(path):
            return web.Response(status=404)
        if "preview" in query:
            return _preview(path, filename, query["preview"], query.get("channel", ""))
        if query.get("channel") in ("rgb", "a"):
            return _channel(path, filename, query["channel"])
        return _whole(path, filename)


def _store_upload(post: Any) -> web.Response:
    image, kind = post.get("image"), post.get("type", "input")
    folder = folder_paths.get_directory_by_type(kind)
    if folder is None:
        raise ValueError(f"no such upload type: {kind}")
    if not image or not image.file or not image.filename:
        return web.Response(status=400)
    subfolder, name = post.get("subfolder", ""), image.filename
    target = os.path.join(folder, os.path.normpath(subfolder))
    path = os.path.abspath(os.path.join(target, name))
    if os.path.commonpath((folder, path)) != folder:
        return web.Response(status=400)
    os.makedirs(target, exist_ok=True)

    content = image.file.read()
    is_same = False
    if post.get("overwrite") not in ("true", "1"):
        stem, extension = os.path.splitext(name)
        copy = 0
        while os.path.exists(path) and not (is_same := _has_content(path, content)):
            copy += 1
            name = f"{stem} ({copy}){extension}"
            path = os.path.join(target, name)
    if not is_same:
        with open(path, "wb") as file:
            file.write(content)
    return web.json_response({"name": name, "subfolder": subfolder, "type": kind})


def _has_content(path: str, content: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read() == content


def _preview(path: str, filename: str, preview: str, channel: str) -> web.Response:
    """`preview` is `format` or `format;quality`."""
    kind, *rest = preview.split(";")
    if kind not in ("webp", "jpeg") or "a" in channel:
        kind = "webp"
    quality = int(rest[-1]) if rest and rest[-1].isdigit() else 90
    with Image.open(path) as image:
        shown = image.convert("RGB") if kind == "jpeg" or channel == "rgb" else image
        return _encode(shown, filename, kind, quality)


def _channel(path: str, filename: str, channel: str) -> web.Response:
    with Image.open(path) as image:
        if channel == "rgb":
            return _encode(image.convert("RGB"), filename, "png")
        alpha_only = Image.new("RGBA", image.size)
        opaque = Image.new("L", image.size, 255)
        alpha_only.putalpha(image.getchannel("A") if image.mode == "RGBA" else opaque)
        return _encode(alpha_only, filename, "png")


def _encode(image: Image.Image, filename: str, kind: str, quality: int = 90) -> web.Response:
    buffer = BytesIO()
    image.save(buffer, format=kind, quality=quality)
    headers = {"Content-Disposition": f'filename="{filename}"'}
    return web.Response(body=buffer.getvalue(), content_type=f"image/{kind}", headers=headers)


def _whole(path: str, filename: str) -> web.FileResponse:
    content_type = mimetypes.guess_type(filename)[0] or "application/octet-stream"
    quoted = filename.replace("\\", "\\\\").replace('"', '\\"')
    disposition = f'filename="{quoted}"'
    headers = {"X-Content-Type-Options": "nosniff"}
    if content_type in ACTIVE_TYPES:
        content_type, disposition = "application/octet-stream", f"attachment; {disposition}"
        headers |= {"Vary": "Sec-Fetch-Dest", "Cache-Control": "no-store"}
    headers |= {"Content-Disposition": disposition, "Content-Type": content_type}
    return web.FileResponse(path, headers=headers)
