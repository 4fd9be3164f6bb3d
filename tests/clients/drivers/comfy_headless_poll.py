from comfy_headless.client import ComfyClient
from common import main


def run(url, graph):
    with ComfyClient(base_url=url) as client:
        entry = client.wait_for_completion(client.queue_prompt(graph), timeout=60)
        for output in entry["outputs"].values():
            for image in output.get("images", ()):
                return client.get_image(image["filename"], image["subfolder"], image["type"])


main(run)
