"""The web server: sockets, events, and the routes that `api_server` fills in."""

import asyncio
import errno
import io
import json
import logging
import os
import struct
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import aiohttp
import execution
import nodes
from aiohttp import web
from api_server import file_routes, info_routes, job_routes, prompt_routes
from comfy.cli_args import args
from comfy_api import feature_flags
from PIL import Image, ImageOps
from protocol import BinaryEventTypes

#: Format, picture, and the longest side that it may have.
Preview = tuple[str, Image.Image, int | None]

WEB_ROOT = os.path.join(os.path.dirname(os.path.realpath(__file__)), "web")


async def send_socket_catch_exception(function: Callable[[Any], Awaitable[None]], message: Any) -> None:
    try:
        await function(message)
    except (aiohttp.ClientError, ConnectionError) as error:
        logging.warning("send error: %s", error)


def _encode(preview: Preview) -> bytes:
    kind, image, max_size = preview
    if max_size is not None:
        image = ImageOps.contain(image, (max_size, max_size))
    file = io.BytesIO()
    image.save(file, format=kind, quality=95, compress_level=1)
    return file.getvalue()


class PromptServer:
    """The one server of this process; plugins reach it as `PromptServer.instance`."""

    instance: ClassVar["PromptServer"]

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        PromptServer.instance = self
        self.loop = loop
        self.supports = ["custom_nodes_from_web"]
        self.prompt_queue = execution.PromptQueue(self)
        self.messages: asyncio.Queue[tuple[Any, Any, Any]] = asyncio.Queue()
        self.client_session: aiohttp.ClientSession | None = None
        self.number = 0
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.sockets_metadata: dict[str, dict[str, Any]] = {}
        self.client_id: str | None = None
        self.last_node_id: str | None = None
        self.last_prompt_id: str | None = None
        self.on_prompt_handlers: list[Callable[[Any], Any]] = []
        self.web_root = WEB_ROOT
        self.app = web.Application(client_max_size=round(args.max_upload_size * 1024 * 1024), middlewares=[])
        self.routes = web.RouteTableDef()
        self.routes.get("/ws")(self.websocket_handler)
        for module in (info_routes, file_routes, job_routes, prompt_routes):
            module.register(self)

    async def setup(self) -> None:
        self.client_session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))

    def add_routes(self) -> None:
        """Put every route into the application, and a second time below /api."""
        mirrored = web.RouteTableDef()
        for route in self.routes:
            if isinstance(route, web.RouteDef):
                mirrored.route(route.method, "/api" + route.path, **route.kwargs)(route.handler)
        self.app.add_routes(mirrored)
        self.app.add_routes(self.routes)
        for name, folder in nodes.EXTENSION_WEB_DIRS.items():
            self.app.add_routes([web.static("/extensions/" + name, folder)])
        # Last, and for every path, so that a POST to an unknown path is a 405 and not a 404, as in ComfyUI.
        self.app.add_routes([web.static("/", self.web_root)])

    async def websocket_handler(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        sid = request.rel_url.query.get("clientId", "") or uuid.uuid4().hex
        self.sockets[sid] = ws
        self.sockets_metadata[sid] = {"feature_flags": {}}
        try:
            await self.send("status", {"status": self.get_queue_info(), "sid": sid}, sid)
            if self.client_id == sid and self.last_node_id is not None:
                await self.send("executing", {"node": self.last_node_id}, sid)
            is_first = True
            async for message in ws:
                if message.type is aiohttp.WSMsgType.TEXT:
                    is_first = not await self._heard(sid, message.data, is_first) and is_first
        finally:
            # By name, not by socket: an old socket that closes evicts the one that replaced it.
            self.sockets.pop(sid, None)
            self.sockets_metadata.pop(sid, None)
        return ws

    async def _heard(self, sid: str, text: str, is_first: bool) -> bool:
        """Take a client's message, and say whether it was JSON. Only feature flags, if sent first, matter."""
        try:
            data = json.loads(text)
            if is_first and data.get("type") == "feature_flags":
                self.sockets_metadata[sid]["feature_flags"] = data.get("data", {})
                await self.send("feature_flags", feature_flags.get_server_features(), sid)
            return True
        except json.JSONDecodeError:
            logging.warning("Invalid JSON received from client %s", sid)
        except Exception as error:
            logging.error("Error processing WebSocket message: %s", error)
        return False

    def get_queue_info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": self.prompt_queue.get_tasks_remaining()}}

    async def send(self, event: Any, data: Any, sid: str | None = None) -> None:
        if event == BinaryEventTypes.UNENCODED_PREVIEW_IMAGE:
            await self.send_image(data, sid=sid)
        elif event == BinaryEventTypes.PREVIEW_IMAGE_WITH_METADATA:
            await self.send_image_with_metadata(*data, sid=sid)
        elif isinstance(data, bytes | bytearray):
            await self.send_bytes(event, data, sid)
        else:
            await self.send_json(event, data, sid)

    async def send_image(self, image_data: Preview, sid: str | None = None) -> None:
        """Send four bytes that name the format, and the picture."""
        kind = struct.pack(">I", 2 if image_data[0] == "PNG" else 1)
        await self.send_bytes(BinaryEventTypes.PREVIEW_IMAGE, kind + _encode(image_data), sid)

    async def send_image_with_metadata(
        self, image_data: Preview, metadata: dict[str, Any], sid: str | None = None
    ) -> None:
        """Send the length of a JSON text, that text, which describes the picture, and the picture."""
        metadata["image_type"] = "image/png" if image_data[0] == "PNG" else "image/jpeg"
        description = json.dumps(metadata).encode()
        message = struct.pack(">I", len(description)) + description + _encode(image_data)
        await self.send_bytes(BinaryEventTypes.PREVIEW_IMAGE_WITH_METADATA, message, sid)

    def encode_bytes(self, event: int, data: bytes | bytearray) -> bytearray:
        if not isinstance(event, int):
            raise RuntimeError(f"Binary event types must be integers, got {event}")
        return bytearray(struct.pack(">I", event)) + data

    async def send_bytes(self, event: int, data: bytes | bytearray, sid: str | None = None) -> None:
        message = self.encode_bytes(event, data)
        for ws in self._receivers(sid):
            await send_socket_catch_exception(ws.send_bytes, message)

    async def send_json(self, event: str, data: Any, sid: str | None = None) -> None:
        message = {"type": event, "data": data}
        for ws in self._receivers(sid):
            await send_socket_catch_exception(ws.send_json, message)

    def _receivers(self, sid: str | None) -> list[web.WebSocketResponse]:
        # A sid that cannot be hashed raises here, in the publish loop: that ends the process, as in ComfyUI.
        if sid is None:
            return list(self.sockets.values())
        return [self.sockets[sid]] if sid in self.sockets else []

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        """Send from any thread: to one client, or to every socket when `sid` is None."""
        self.loop.call_soon_threadsafe(self.messages.put_nowait, (event, data, sid))

    def queue_updated(self) -> None:
        self.send_sync("status", {"status": self.get_queue_info()})

    async def publish_loop(self) -> None:
        while True:
            await self.send(*await self.messages.get())

    def send_progress_text(self, text: bytes | bytearray | str, node_id: str, sid: str | None = None) -> None:
        body = text.encode() if isinstance(text, str) else text
        name = str(node_id).encode()
        self.send_sync(3, struct.pack(">I", len(name)) + name + body, sid)

    def add_on_prompt_handler(self, handler: Callable[[Any], Any]) -> None:
        self.on_prompt_handlers.append(handler)

    def trigger_on_prompt(self, json_data: Any) -> Any:
        """Let every handler change the body. Their exceptions are swallowed: a handler cannot refuse."""
        for handler in self.on_prompt_handlers:
            try:
                json_data = handler(json_data)
            except Exception:
                logging.warning("an on_prompt handler failed", exc_info=True)
        return json_data

    async def start(
        self, address: str, port: int, verbose: bool = True, call_on_start: Callable[..., None] | None = None
    ) -> None:
        await self.start_multi_address([(address, port)], call_on_start, verbose)

    async def start_multi_address(
        self,
        addresses: list[tuple[str, int]],
        call_on_start: Callable[..., None] | None = None,
        verbose: bool = True,
    ) -> None:
        runner = web.AppRunner(self.app, access_log=None)
        await runner.setup()
        self.address, self.port = addresses[0]
        for address, port in addresses:
            try:
                await web.TCPSite(runner, address, port).start()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                logging.error("Port %d is already in use on address %s", port, address)
                raise SystemExit(1) from error
            shown = f"[{address}]" if ":" in address else address
            if verbose:
                logging.info("To see the GUI go to: http://%s:%d", shown, port)
        if call_on_start is not None:
            call_on_start("http", self.address, self.port)
