"""/guarded/fleet/results/{job_id}/{index}/{which}: a result that the depot lacks as yet, for another box.

What a box asks is signed, and is for that one file. It gets a part of it (`Range`), from this box's disk alone. Threads
of their own read that: those of asyncio may all be waiting for other boxes, which then would wait for this one.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

from aiohttp import hdrs, web

from ..guard.depot.holders import PART_BYTES, make_path
from ..guard.errors import ForbiddenError, InvalidRequestError, NotFoundError
from .about import About
from .table import Call, Route

_READERS = ThreadPoolExecutor(4, "guarded-held")


async def get_held(call: Call) -> web.StreamResponse:
    """A part of a file of a job that was run on this box; `which`: `original` or `copy`."""
    signatures = call.services.signatures
    if signatures is None:
        raise NotFoundError("This server keeps nothing for others.")
    job_id, index, which = (call.request.match_info[name] for name in ("job_id", "index", "which"))
    if signatures.read_asker(call.request.headers, make_path(job_id, index, which)) is None:
        raise ForbiddenError("This is for the other servers of the fleet.")
    call.turn.close()
    begin, end = _read_range(call.request)
    jobs = call.services.jobs
    file = await jobs.find_file(job_id, int(index), is_copy=which == "copy")
    loop = asyncio.get_running_loop()
    part = await loop.run_in_executor(_READERS, jobs.read_here, file, begin, end - begin) if file is not None else None
    if part is None:
        raise NotFoundError("The file is not here.")
    data, modified_s = part
    return web.Response(status=206, body=data, headers={hdrs.LAST_MODIFIED: formatdate(int(modified_s), usegmt=True)})


def _read_range(request: web.Request) -> tuple[int, int]:
    try:
        asked = request.http_range
    except ValueError:
        asked = slice(None)
    if asked.start is None or asked.stop is None or not 0 <= asked.stop - asked.start <= PART_BYTES:
        raise InvalidRequestError("A part of the file must be asked for.")
    return asked.start, asked.stop


ROUTES = [
    Route(
        "GET",
        make_path("{job_id}", "{index}", "{which}"),
        get_held,
        open=True,
        own_protocol=True,
        about=About({206: None}, refusals=(ForbiddenError, InvalidRequestError, NotFoundError)),
    )
]
