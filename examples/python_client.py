"""One generation on a guarded ComfyUI, from the photo to the file. For scripts; telegram_bot.py shows a bot.

    pip install aiohttp
    python python_client.py photo.jpg
    python python_client.py photo.jpg --workflow my_workflow_api.json --to result.png

The workflow is in ComfyUI's API format. Its LoadImage nodes get the photo. guarded.py must lie beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from guarded import Guarded, GuardedError, Update

SERVER = os.environ.get("GUARDED_URL", "http://127.0.0.1:8188")
KEY = os.environ.get("GUARDED_KEY", "")
#: How long to wait for a server that is busy or does not answer.
PATIENCE_S = 120.0


def show(update: Update) -> None:
    if update.text:
        print(update.text, file=sys.stderr)
    elif update.kind in ("state", "progress"):
        print(update.data.get("state", ""), update.data.get("percent", ""), file=sys.stderr)


async def generate(workflow: dict[str, Any], photo: bytes) -> bytes:
    async with Guarded(SERVER, KEY, busy_s=PATIENCE_S, away_s=PATIENCE_S) as guarded:
        locale = os.environ.get("LANG", "en")[:2]
        job = await guarded.run(workflow, photo=photo, locale=locale, key=str(uuid.uuid4()), on_update=show)
        return await guarded.fetch(job["artifacts"][0])


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
    try:
        given.to.write_bytes(asyncio.run(generate(workflow, given.photo.read_bytes())))
    except GuardedError as error:
        sys.exit(error.user_message or str(error))
    print(given.to)


if __name__ == "__main__":
    main()
