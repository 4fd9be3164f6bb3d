import io
import json
import tempfile

from comfyuiclient import ComfyUIClient
from common import address, main


def run(url, graph):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(graph, file)
        file.flush()
        client = ComfyUIClient(address(url), file.name)
        client.connect()
        results = client.generate(["SaveImage"])
        client.close()
    for image in results.values():
        written = io.BytesIO()
        image.save(written, "PNG")
        return written.getvalue()


main(run)
