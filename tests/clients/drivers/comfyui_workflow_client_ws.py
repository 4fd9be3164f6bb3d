import asyncio
import io
import json
import tempfile

from comfyuiclient import ComfyUIClientAsync
from common import address, main


async def generate(url, graph):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(graph, file)
        file.flush()
        client = ComfyUIClientAsync(address(url), file.name)
        await client.connect()
        results = await client.generate(["SaveImage"])
        await client.close()
    for image in results.values():
        written = io.BytesIO()
        image.save(written, "PNG")
        return written.getvalue()


main(lambda url, graph: asyncio.run(generate(url, graph)))
