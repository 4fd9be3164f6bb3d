from comfy_toolkit import ComfyClient
from common import main


def run(url, graph):
    client = ComfyClient(url)
    assert client.is_online()
    images = client.wait_for_images(client.submit(graph), poll_interval=0.2)
    return client.download(images[0])


main(run)
