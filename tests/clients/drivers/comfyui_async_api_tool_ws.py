import asyncio

import aiohttp
from comfyui_async_api_tool import ComfyClient
from common import main


async def stream(url, graph):
    async with aiohttp.ClientSession() as session:
        # After an error it looks for a result until this time is over: 300 s by default, on any ComfyUI.
        client = ComfyClient(session, url, fetch_image_timeout=3)
        async for event in client.run(graph):
            if event["type"] == "error":
                raise RuntimeError(event["msg"])
            if event["type"] == "image":
                return event["data"]


main(lambda url, graph: asyncio.run(stream(url, graph)))
