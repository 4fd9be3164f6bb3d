"""GET /guarded_faults/heart: the longest time for which the event loop has not turned since the last such request."""

import asyncio
import threading
import time
from pathlib import Path

import server
from aiohttp import web

BEAT_S = 0.005


class Heart:
    """Beats on the event loop. A beat counts as late only by what this process has worked meanwhile: what other
    processes take of the machine is not this one's stall."""

    def __init__(self) -> None:
        self.stall_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._beat(), name="guarded-faults-heart")

    async def _beat(self) -> None:
        while True:
            wall_s, worked_s = time.monotonic(), time.process_time()
            await asyncio.sleep(BEAT_S)
            late_s = time.monotonic() - wall_s - BEAT_S
            self.stall_s = max(self.stall_s, min(late_s, time.process_time() - worked_s))


_heart = Heart()


@server.PromptServer.instance.routes.get("/guarded_faults/heart")
async def get_heart(_request: web.Request) -> web.Response:
    _heart.begin()
    stall_s, _heart.stall_s = _heart.stall_s, 0.0
    files = Path("/proc/self/fd")
    count = len(list(files.iterdir())) if files.is_dir() else 0
    return web.json_response({"stall_s": stall_s, "threads": threading.active_count(), "files": count})
