from comfy_toolkit import ComfyClient
from common import main


def run(url, graph):
    client = ComfyClient(url)
    return client.download(client.submit_and_track(graph)["images"][0])


main(run)
