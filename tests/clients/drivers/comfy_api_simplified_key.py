import os

from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper
from common import main


def run(url, graph):
    client = ComfyApiWrapper(url, user="any", password=os.environ["KEY"])
    return next(iter(client.queue_and_wait_images(ComfyWorkflowWrapper(graph), "SaveImage").values()), None)


main(run)
