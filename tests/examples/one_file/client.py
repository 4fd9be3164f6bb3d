"""Run one job with examples/guarded.py: a process that a test may kill. Prints what it hears, then how it ended."""

import asyncio
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, os.environ["EXAMPLES"])

from guarded import Guarded, GuardedError, Update


def show(update: Update) -> None:
    print(json.dumps({"kind": update.kind, "state": update.data.get("state")}), flush=True)


async def main(url: str, key: str, order: str, graph: str, photo: str, to: str) -> None:
    async with Guarded(url, key, notice_s=0.5) as guarded:
        try:
            job = await guarded.run(
                json.loads(Path(graph).read_text()), photo=Path(photo).read_bytes(), key=order, user="7",
                metadata={"order": order}, on_update=show,
            )  # fmt: skip
            Path(to).write_bytes(await guarded.fetch(job["artifacts"][0]))
            ended = {"job_id": job["job_id"], "state": job["state"], "refund": job["refund"]}
        except GuardedError as error:
            ended = {"code": error.code, "refund": error.refund, "job_id": error.job_id}
        found = [job["job_id"] async for job in guarded.jobs(user="7", metadata={"order": order})]
    print(json.dumps({**ended, "found": found}), flush=True)


asyncio.run(main(*sys.argv[1:]))
