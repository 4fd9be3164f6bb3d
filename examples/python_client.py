"""One generation on a guarded ComfyUI, from the photo to the file. For scripts; telegram_bot.py shows a bot.

    pip install requests
    python python_client.py photo.jpg
    python python_client.py photo.jpg --workflow my_workflow_api.json --to result.png

The workflow is in ComfyUI's API format; the node that loads the photo says `"image": "photo"`.
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
#: How long a server that is busy or away is asked again.
PATIENCE_S = 120.0


class RefusedError(Exception):
    """The server's own words for why not."""


def asked(session: requests.Session, method: str, path: str, **request: Any) -> requests.Response:
    """The answer, once there is one: a server that is away, or says "later", is asked again. Raises RefusedError."""
    ends_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            answer = session.request(method, SERVER + path, timeout=(10, 90), **request)
            if answer.ok:
                return answer
            refusal = answer.json()["guard"]
            said, again = refusal["user_message"], refusal["retryable"]
            pause_s = refusal["retry_after_s"] or 1
        except (requests.RequestException, ValueError) as error:
            said, again, pause_s = f"The server does not answer: {error}", True, 1
        if not again or time.monotonic() > ends_s:
            raise RefusedError(said)
        time.sleep(pause_s)


def generated(session: requests.Session, workflow: dict[str, Any], photo: bytes) -> dict[str, Any]:
    """The settled job of a workflow with a photo. Raises RefusedError."""
    answer = asked(
        session,
        "POST",
        "/guarded/prompt",
        data={"prompt": json.dumps(workflow)},
        files={"photo": ("photo.jpg", photo)},
        headers={"Idempotency-Key": str(uuid.uuid4())},  # sent again after a broken connection, it is still one job
    ).json()
    if notice := answer["guard"]["user_message"]:
        print(notice, file=sys.stderr)
    job: dict[str, Any] = {"state": answer["guard"]["state"], "settled_at_ms": None}
    while not job["settled_at_ms"]:
        path = f"/guarded/jobs/{answer['prompt_id']}"
        job = asked(session, "GET", path, params={"wait": 30, "state": job["state"]}).json()
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
            job = generated(session, workflow, given.photo.read_bytes())
            if job["error"]:
                raise RefusedError(job["error"]["user_message"])
            given.to.write_bytes(asked(session, "GET", job["artifacts"][0]["url"]).content)
        except RefusedError as refused:
            sys.exit(str(refused))
    print(given.to)


if __name__ == "__main__":
    main()
