"""Listen at other boxes of the fleet, while somebody here listens to a job that runs there: see :mod:`.boxes`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Mapping
from typing import Any, Protocol, cast

import aiohttp

from ..guard.bounds import COMMAND, read_json
from ..guard.callers.elsewhere import Elsewhere, Places
from ..guard.callers.sockets import Sockets
from ..guard.clock import Clock
from ..guard.errors import GuardError
from ..guard.events.stream import Events
from ..guard.fleet import Membership, Signatures, make_keys
from ..guard.host import Progress
from ..guard.job import Job, JobState
from ..guard.journal import Throttle
from ..guard.life.runs import Runs
from ..guard.settings import FleetSettings
from ..guard.store import Member, Store
from ..guard.wake import Wake
from .boxes import HEARTBEAT_S, PATH
from .hearing import make_connector
from .table import PREFIX

log = logging.getLogger("guarded.fleet")

#: Who has begun to listen, or what has begun to run, is heard of at once, but no more often than that.
EVERY_S = 0.1
#: What nobody tells of is looked for: a socket of the host's own, another box's address.
LOOK_S = 0.5
#: A stream without jobs stays open for so long: the next one may begin there.
LINGER_S = 10.0
CONNECT_S = 5.0
#: After a stream that broke off, it is tried again.
PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
#: No message of the host's is larger: a list of all nodes of a graph, a picture of what is not finished.
MAX_FRAME_BYTES = 16 * 2**20
PROGRESS_BYTES = 2**16

Wanted = Mapping[str, Mapping[str, object]]
Socket = Any  # aiohttp's, of which some versions are generic


class FleetStore(Places, Protocol):
    """What a fleet's job store has besides."""

    member: Member


class Streams:
    """One stream to each box where a job runs that somebody here listens to. Event loop."""

    def __init__(self, elsewhere: Elsewhere, signatures: Signatures) -> None:
        self._elsewhere = elsewhere
        self.signatures = signatures
        self._wake = Wake()
        self._streams: dict[tuple[str, str], _Stream] = {}
        self._session: aiohttp.ClientSession | None = None

    def wake(self, *_who: object) -> None:
        """Somebody has begun to listen. Any thread."""
        self._wake.set()

    def follow(self, job: Job) -> None:
        """Another box has changed the job. The store's thread."""
        if job.state is JobState.RUNNING:
            self._wake.set()

    async def run(self) -> None:
        """Keep the streams that are wanted. Never ends."""
        self._elsewhere.begin()
        while True:
            await self._wake.wait(LOOK_S if self._streams or self._elsewhere.is_busy() else None)
            try:
                self._keep(await self._elsewhere.choose())
            except GuardError as error:  # the database is away: what is open stays
                log.debug("where jobs run cannot be read: %s", error)
            except Exception:
                log.exception("what other boxes tell cannot be listened to")
            await asyncio.sleep(EVERY_S)

    def _keep(self, chosen: Mapping[tuple[str, str], Wanted]) -> None:
        now_s = asyncio.get_running_loop().time()
        for place, wanted in chosen.items():
            stream = self._streams.get(place)
            if stream is None:
                stream = self._streams[place] = _Stream(self._elsewhere, *place)
                address = place[1] + PREFIX + PATH
                stream.begin(self._open_session(), address, self.signatures)
            stream.follow(wanted, now_s)
        for place in [place for place in self._streams if place not in chosen]:
            stream = self._streams[place]
            stream.follow({}, now_s)
            if stream.is_idle(now_s):
                self._streams.pop(place).close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=make_connector(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


def connect_boxes(
    settings: FleetSettings,
    store: Store,
    membership: Membership | None,
    clock: Clock,
    events: Events,
    sockets: Sockets,
    runs: Runs,
) -> Streams | None:
    """Let callers here hear of what other boxes run, and other boxes of what runs here. None: it is in no fleet."""
    key = make_keys(settings)("streams")
    if membership is None or key is None:
        return None
    fleet = cast(FleetStore, store)
    boxes, own = (lambda: membership.boxes), (lambda: fleet.member.box)
    elsewhere = Elsewhere(fleet, events, sockets, boxes, runs.list_ids, own)
    streams = Streams(elsewhere, Signatures(key, fleet.member, clock))
    events.joined.subscribe(streams.wake)
    sockets.opened.subscribe(streams.wake)
    for running in (store.arrived, store.found):
        running.subscribe(streams.follow)
    if settings.url:
        runs.began.subscribe(sockets.taps.begin)
        store.changed.subscribe(sockets.taps.follow)
        store.arrived.subscribe(sockets.taps.follow)
    return streams


class _Stream:
    """What one other box tells."""

    def __init__(self, elsewhere: Elsewhere, box: str, url: str) -> None:
        self._elsewhere = elsewhere
        self._box = box
        self._url = url
        self._wanted: Wanted = {}
        self._needed_at_s = 0.0
        self._changed = Wake()
        self._throttle = Throttle()
        self._task: asyncio.Task[None] | None = None

    def begin(self, session: aiohttp.ClientSession, address: str, signatures: Signatures) -> None:
        self._task = asyncio.create_task(self._run(session, address, signatures), name="guarded-elsewhere")

    def follow(self, wanted: Wanted, now_s: float) -> None:
        """Ask for these jobs, and no others."""
        if wanted:
            self._needed_at_s = now_s
        if _names_of(wanted) != _names_of(self._wanted):
            self._changed.set()
        self._wanted = wanted

    def is_idle(self, now_s: float) -> bool:
        return now_s > self._needed_at_s + LINGER_S

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, session: aiohttp.ClientSession, address: str, signatures: Signatures) -> None:
        pause_s = PAUSE_S
        while True:
            try:
                headers = signatures.sign(PATH, self._box)
                async with session.ws_connect(
                    address, headers=headers, heartbeat=HEARTBEAT_S, max_msg_size=MAX_FRAME_BYTES, compress=0
                ) as ws:
                    pause_s = PAUSE_S
                    await self._listen(ws)
            except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError, GuardError) as error:
                if (skipped := self._throttle.take(type(error).__name__)) is not None:
                    what = "%s cannot be listened to at %s: %s; of its jobs only the states are told (%d more before)"
                    log.warning(what, self._box, self._url, error, skipped)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _listen(self, ws: Socket) -> None:
        asking = asyncio.create_task(self._ask(ws))
        try:
            async for frame in ws:
                if frame.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                    self._take(frame.data)
        finally:
            asking.cancel()

    async def _ask(self, ws: Socket) -> None:
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            while True:
                await ws.send_str(json.dumps(self._wanted))
                await self._changed.wait()

    def _take(self, frame: str | bytes) -> None:
        """Raises ValueError or GuardError where it is nothing that a box says."""
        head: str
        content: str | bytes
        if isinstance(frame, str):
            head, _line, content = frame.partition("\n")
        else:
            raw, _gap, content = frame.partition(b"\n")
            head = raw.decode("ascii")
        kind, job_id, *rest = head.split(" ")
        if kind == "message" and len(rest) == 1 and len(rest[0]) < 19:
            self._elsewhere.take_message(job_id, int(rest[0]), content)
        elif kind == "progress" and isinstance(content, str):
            self._elsewhere.take_progress(job_id, _read_progress(content))
        elif kind == "preview" and len(rest) == 1 and isinstance(content, bytes):
            self._elsewhere.take_preview(job_id, rest[0], content)


def _names_of(wanted: Wanted) -> dict[str, object]:
    return {job_id: facts["names"] for job_id, facts in wanted.items()}


def _read_progress(text: str) -> Progress:
    if len(text) > PROGRESS_BYTES:
        raise ValueError("it tells too much of how far a job is")
    body: Any = read_json(text.encode("utf-8", "replace"), COMMAND)
    value, most, percent = (body.get(name) for name in ("value", "max", "percent"))
    if not all(isinstance(number, int | float) for number in (value, most, percent)):
        raise ValueError("it does not tell how far a job is")
    node_id, title = (None if body.get(name) is None else str(body[name]) for name in ("node_id", "node_title"))
    return Progress(value, most, node_id, title, int(percent))
