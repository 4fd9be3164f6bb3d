import asyncio
import os

import aiohttp
from comfyui_async_api_tool import ComfyClient
from common import main


async def stream(url, graph):
    headers = {"Authorization": f"Bearer {os.environ['KEY']}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        client = ComfyClient(session, url, fetch_image_timeout=3)
        async for event in client.run(graph):
            if event["type"] == "error":
                raise RuntimeError(event["msg"])
            if event["type"] == "image":
                return event["data"]


main(lambda url, graph: asyncio.run(stream(url, graph)))
