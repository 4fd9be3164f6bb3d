import functools
import io

from comfy_script import runtime
from common import main

load = functools.cache(runtime.load)


def run(url, graph):
    load(url)
    from comfy_script.runtime import nodes

    with runtime.Workflow(wait=True) as workflow:
        made = {}
        for node_id, node in graph.items():
            inputs = {
                name: made[value[0]] if isinstance(value, list) else value for name, value in node["inputs"].items()
            }
            made[node_id] = getattr(nodes, node["class_type"])(**inputs)
    for result in workflow.task.wait():
        if result is not None:
            written = io.BytesIO()
            result[0].save(written, "PNG")
            return written.getvalue()


main(run)
