"""What a user of the client writes that openapi-python-client makes of the contract: submit a form with a photo, wait
for the job, save its artifact. Arguments: the server, the photo, where to save the result.
"""

import json
import os
import sys
from pathlib import Path

from guarded_client import AuthenticatedClient
from guarded_client.api.artifacts import get_artifact
from guarded_client.api.jobs import get_job
from guarded_client.api.prompt import post_prompt
from guarded_client.models import ErrorCode, Job, JobState, PromptForm, PromptRequest, Refusal, Submitted
from guarded_client.types import File

ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


def submit(client: AuthenticatedClient, photo: Path) -> str:
    """The id of the job."""
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "photo"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "generated"}},
    }
    form = PromptForm(prompt=json.dumps(prompt), guard=json.dumps({"metadata": {"chat": 7}}))
    with photo.open("rb") as file:
        form["photo"] = File(payload=file, file_name=photo.name, mime_type="image/png")
        submitted = post_prompt.sync(client=client, body=form, idempotency_key="one")
    assert isinstance(submitted, Submitted), submitted
    return submitted.prompt_id


def wait(client: AuthenticatedClient, job_id: str) -> Job:
    while True:
        job = get_job.sync(job_id, client=client, wait=30)
        assert isinstance(job, Job), job
        if job.state in ENDED:
            return job


def main(url: str, photo: str, saved: str) -> None:
    client = AuthenticatedClient(base_url=url, token=os.environ["KEY"], timeout=60)
    job = wait(client, submit(client, Path(photo)))
    assert (job.state, job.error, job.refund) == (JobState.SUCCEEDED, None, False), job
    assert job.metadata.to_dict() == {"chat": 7}, job
    artifact = get_artifact.sync(job.job_id, str(job.artifacts[0].index), client=client)
    assert isinstance(artifact, File), artifact
    Path(saved).write_bytes(artifact.payload.read())

    wrong = {"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}
    refusal = post_prompt.sync(client=client, body=PromptRequest.from_dict(wrong))
    assert isinstance(refusal, Refusal), refusal
    assert refusal.guard.code is ErrorCode.MISSING_NODE, refusal


main(*sys.argv[1:])
