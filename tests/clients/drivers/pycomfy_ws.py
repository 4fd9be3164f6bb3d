import io

from common import main
from pycomfy import ComfyAPI, Workflow


def run(url, graph):
    with ComfyAPI(url) as client:
        images = Workflow(client=client, workflow_data=graph).execute()
    written = io.BytesIO()
    images[0].save(written, "PNG")
    return written.getvalue()


main(run)
