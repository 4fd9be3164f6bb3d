"""/guarded/fleet/stream: what the jobs that run here tell, to another box of the fleet.

A websocket. The other box sends a JSON object, once and again: the jobs that it wants to hear of by their ids, with the
`names` of what it wants, and after which message it goes on. It gets frames: a line of words, then the message.

    progress <job_id>                   JSON as in the event
    preview <job_id> <mime>             the picture
    message <job_id> <number>           what the host has sent to the job's client id, text or bytes
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Set
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from ..guard.bounds import COMMAND, read_json
from ..guard.callers.elsewhere import AT_MOST, MESSAGES, METADATA
from ..guard.errors import ForbiddenError, GuardError, NotFoundError
from ..guard.events.event import PREVIEW, PROGRESS, Event
from ..guard.job import Job
from .about import About
from .events import STALLED_S
from .pace import Going
from .table import Call, Route

log = logging.getLogger("guarded.fleet")

PATH = "/fleet/stream"
HEARTBEAT_S = 10.0
#: A box asks for at most `AT_MOST` jobs.
MAX_MESSAGE_BYTES = 2**18


async def get_stream(call: Call) -> web.StreamResponse:
    """What happens to jobs that run on this box, for another box of its fleet."""
    signatures = call.services.signatures
    if signatures is None:
        raise NotFoundError("This server tells no others what its jobs do.")
    asker = signatures.read_asker(call.request.headers, PATH)
    if asker is None:
        raise ForbiddenError("This is for the other servers of the fleet.")
    call.turn.close()
    ws = web.WebSocketResponse(heartbeat=HEARTBEAT_S, compress=False, max_msg_size=MAX_MESSAGE_BYTES)
    await ws.prepare(call.request)
    log.debug("%s listens to jobs here", asker)
    stream = _Stream(call, ws)
    try:
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                stream.follow(_read(message.data))
    except GuardError as error:
        log.warning("the stream to %s is closed: %s", asker, error)
        await ws.close(code=WSCloseCode.UNSUPPORTED_DATA)
    finally:
        stream.close()
    return ws


class _Stream:
    """The jobs that one other box listens to."""

    def __init__(self, call: Call, ws: web.WebSocketResponse) -> None:
        self._call = call
        self._ws = ws
        self._tap = call.services.sockets.taps.open(self._abort)
        #: By job and names of events: who tells them.
        self._tasks: dict[tuple[str, frozenset[str]], asyncio.Task[None]] = {}
        self._sender = asyncio.create_task(self._send_messages())
        #: By job: what takes back that its client knows previews with metadata.
        self._noted: dict[str, Callable[[], None]] = {}

    def follow(self, wanted: Mapping[str, tuple[frozenset[str], int]]) -> None:
        """Tell of these jobs, and of no others."""
        messages = {job_id: after for job_id, (names, after) in wanted.items() if MESSAGES in names}
        self._call.services.sockets.taps.listen(self._tap, messages)
        self._note_clients({job_id for job_id, (names, _after) in wanted.items() if METADATA in names})
        keys = {(job_id, names & {PROGRESS, PREVIEW}) for job_id, (names, _after) in wanted.items()}
        for key in self._tasks.keys() - keys:
            self._tasks.pop(key).cancel()
        for job_id, names in keys - self._tasks.keys():
            if names:
                self._tasks[job_id, names] = asyncio.create_task(self._tell(job_id, names))

    def _note_clients(self, job_ids: Set[str]) -> None:
        for job_id in self._noted.keys() - job_ids:
            self._noted.pop(job_id)()
        for job_id in job_ids - self._noted.keys():
            if (job := self._call.services.events.find_running(job_id)) is not None:
                self._noted[job_id] = self._call.services.sockets.note_far(job)

    def close(self) -> None:
        self._call.services.sockets.taps.close(self._tap)
        self._note_clients(frozenset())
        for task in (self._sender, *self._tasks.values()):
            task.cancel()

    async def _tell(self, job_id: str, names: frozenset[str]) -> None:
        """Tell how far one job is; a slow reader gets the latest, and not what was in between."""
        events = self._call.services.events
        with (
            contextlib.suppress(ConnectionError, GuardError),
            events.subscribe(names, job_id=job_id, hears=_hears_nothing_elsewhere) as reader,
        ):
            if PROGRESS in names and (progress := events.progress(job_id)) is not None:
                await self._send(f"progress {job_id}\n{json.dumps(progress.body())}")
            while True:
                for event in await reader.next(HEARTBEAT_S):
                    await self._send(_write(event, job_id))

    async def _send_messages(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                said = await self._tap.next()
                head = f"message {said.job_id} {said.number}\n"
                content = said.content
                await self._send(head + content if isinstance(content, str) else head.encode() + content)

    async def _send(self, frame: str | bytes) -> None:
        with Going(self._call.request, STALLED_S, given=len(frame)):
            await (self._ws.send_str(frame) if isinstance(frame, str) else self._ws.send_bytes(frame))

    def _abort(self) -> None:
        log.warning("another box cannot keep up with what the jobs here tell, and is cut off")
        if self._call.request.transport is not None:
            self._call.request.transport.abort()


def _hears_nothing_elsewhere(_job: Job) -> bool:
    return False


def _write(event: Event, job_id: str) -> str | bytes:
    if event.name == PREVIEW:
        return f"preview {job_id} {event.data['mime']}\n".encode() + base64.b64decode(str(event.data["data"]))
    return f"progress {job_id}\n{event.text}"


def _read(text: str) -> dict[str, tuple[frozenset[str], int]]:
    """What the other box wants. Raises GuardError where it is nothing of the kind."""
    wanted: Any = read_json(text.encode("utf-8", "replace"), COMMAND)
    if not isinstance(wanted, dict) or len(wanted) > AT_MOST:
        raise ForbiddenError("That is no list of jobs.")
    read = {}
    for job_id, facts in wanted.items():
        names, after = (facts.get("names"), facts.get("after")) if isinstance(facts, dict) else (None, None)
        if not (isinstance(names, list) and type(after) is int and "\n" not in job_id and " " not in job_id):
            raise ForbiddenError("That is no list of jobs.")
        read[job_id] = (frozenset(name for name in names if isinstance(name, str)), after)
    return read


ROUTES = [
    Route(
        "GET",
        PATH,
        get_stream,
        open=True,
        own_protocol=True,
        about=About({101: None}, refusals=(ForbiddenError, NotFoundError)),
    )
]
