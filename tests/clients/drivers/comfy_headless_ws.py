import asyncio

from comfy_headless.websocket_client import ComfyWSClient
from common import main


async def wait(url, graph):
    async with ComfyWSClient(base_url=url) as client:
        prompt_id = await client.queue_prompt(graph)
        progress = await client.wait_for_completion(prompt_id, timeout=60)
        if progress.status != "completed":
            raise RuntimeError(progress.status)
        entry = (await client.get_history(prompt_id))[prompt_id]
        for output in entry["outputs"].values():
            for image in output.get("images", ()):
                return await client.get_image(image["filename"], image["subfolder"], image["type"])


main(lambda url, graph: asyncio.run(wait(url, graph)))
