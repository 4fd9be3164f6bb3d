from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper
from common import main


def run(url, graph):
    images = ComfyApiWrapper(url).queue_and_wait_images(ComfyWorkflowWrapper(graph), "SaveImage")
    return next(iter(images.values()), None)


main(run)
