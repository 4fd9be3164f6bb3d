"""One generation on a guarded ComfyUI, from the photo to the file. For scripts; telegram_bot.py shows a bot.

    pip install requests
    python python_client.py photo.jpg
    python python_client.py photo.jpg --workflow my_workflow_api.json --to result.png

The workflow is in ComfyUI's API format. Its LoadImage nodes get the photo.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import requests

SERVER = os.environ.get("GUARDED_URL", "http://127.0.0.1:8188")
KEY = os.environ.get("GUARDED_KEY", "")
#: How long to repeat a request to a server that is busy or does not answer.
PATIENCE_S = 120.0


class RefusedError(Exception):
    """The server refuses; the message is its text for the user."""


def request(session: requests.Session, method: str, path: str, **options: Any) -> requests.Response:
    """Send a request until it succeeds. Raises RefusedError if the server refuses for good, or for too long."""
    ends_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            answer = session.request(method, SERVER + path, timeout=(10, 90), **options)
            if answer.ok:
                return answer
            refusal = answer.json()["guard"]
            reason, again = refusal["user_message"], refusal["retryable"]
            pause_s = refusal["retry_after_s"] or 1
        except (requests.RequestException, ValueError) as error:
            reason, again, pause_s = f"The server does not answer: {error}", True, 1
        if not again or time.monotonic() > ends_s:
            raise RefusedError(reason)
        time.sleep(pause_s)


def generate(session: requests.Session, workflow: dict[str, Any], photo: bytes) -> dict[str, Any]:
    """Run a workflow on a photo, and return its settled job. Raises RefusedError."""
    answer = request(
        session,
        "POST",
        "/guarded/prompt",
        data={"prompt": json.dumps(workflow)},
        files={"photo": ("photo.jpg", photo)},
        headers={"Idempotency-Key": str(uuid.uuid4())},  # repeated after a broken connection, it is still one job
    ).json()
    if notice := answer["guard"]["user_message"]:
        print(notice, file=sys.stderr)
    job: dict[str, Any] = {"state": answer["guard"]["state"], "settled_at_ms": None}
    while not job["settled_at_ms"]:
        path = f"/guarded/jobs/{answer['prompt_id']}"
        job = request(session, "GET", path, params={"wait": 30, "state": job["state"]}).json()
        print(f"{job['state']} {(job['progress'] or {}).get('percent', '')}", file=sys.stderr)
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    default = Path(__file__).parents[1] / "workflows" / "api" / "photo_check.json"
    parser.add_argument("--workflow", type=Path, default=default)
    parser.add_argument("--to", type=Path, default=Path("result.png"))
    given = parser.parse_args()
    workflow = json.loads(given.workflow.read_text(encoding="utf-8"))
    for node in workflow.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = "photo"  # the name of the form's field
    with requests.Session() as session:
        session.headers["Accept-Language"] = os.environ.get("LANG", "en")[:2]
        if KEY:
            session.headers["Authorization"] = f"Bearer {KEY}"
        try:
            job = generate(session, workflow, given.photo.read_bytes())
            if job["error"]:
                raise RefusedError(job["error"]["user_message"])
            given.to.write_bytes(request(session, "GET", job["artifacts"][0]["url"]).content)
        except RefusedError as refused:
            sys.exit(str(refused))
    print(given.to)


if __name__ == "__main__":
    main()
