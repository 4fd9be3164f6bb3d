import asyncio

import requests
from comfyui_mcp.argument_parser import ArgsComfyUI
from comfyui_mcp.workflow_utils import call_workflow
from common import address, main


def run(url, graph):
    settings = ArgsComfyUI(host=address(url), queue_check_interval=1, max_wait_time=60)
    results = asyncio.run(call_workflow(settings, graph))
    answer = requests.get(str(results[0].filename), timeout=30)
    answer.raise_for_status()
    return answer.content


main(run)
