# Over 400 lines: what sockets hear comes from one place, in one order.
"""Serve callers' websockets: pass on the host's messages, and tell verdicts that a client id missed.

A socket hears what the host sends to its client id. Of what the host sends to everybody, an operator hears all, and
others hear only `status`, with the count of their own jobs. Between the host's messages come `guarded` ones: the events
of the client id's jobs.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from ..access.client_ids import ClientIds
from ..bounds import COMMAND, read_json
from ..client import Client
from ..clock import Clock
from ..errors import GuardError
from ..events.event import ALARM, POSITION, PROGRESS, STATE, Event
from ..events.stream import Events
from ..files.cleaning import Cleaner
from ..host import Host
from ..job import Job, JobState
from ..owners import hide, hide_in
from ..signal import Signal
from ..store import Standing
from ..wake import LoopCaller, wrap_future
from . import as_comfyui
from .jobs import Jobs
from .socket import GOODBYE, PREVIEW_METADATA, Message, Socket, Waiting
from .taps import Taps

log = logging.getLogger("guarded.sockets")

#: Feature flags take a few hundred characters; what they hold stays as long as the socket.
FLAGS_CHARS = 4096
#: A client id without a socket can hear a verdict later for so long, and so many verdicts.
MISSED_FOR_MS = 3_600_000
MISSED_AT_MOST = 100
#: The least time between two `status` messages; one always comes before the message that ends a job.
STATUS_EVERY_S = 0.1
#: A job counts as open for its client's sockets until they were told its end, for so long at most.
END_TOLD_WITHIN_S = 5.0
#: A box has heard by then what another one of its fleet has done.
_NEWS_S = 2.0
#: The jobs' events are still read for so long after the last socket has closed.
FOLLOW_S = 15.0


class Verdicts(Protocol):
    """What the sockets ask of the job store: see :class:`guard.store.Store`."""

    def count_open(self, owner: str | None) -> int: ...
    def has_open(self, owner: str | None) -> Future[bool]: ...
    def list_missed(self, owner: str, client_id: str, since_ms: int, limit: int) -> Future[list[Job]]: ...
    def mark_heard(self, job_id: str) -> Future[None]: ...


#: Frequent messages of ComfyUI without a word of a node or a pack.
_QUOTES_NOTHING = frozenset(
    {"status", "executing", "progress", "progress_state", "execution_start", "execution_cached"}
)


class Sockets:
    """All open sockets. Event loop, except where a method says otherwise."""

    def __init__(
        self, store: Verdicts, host: Host, jobs: Jobs, events: Events, client_ids: ClientIds, clock: Clock
    ) -> None:
        self._store = store
        self._host = host
        self._cleaner = Cleaner(host.folders)
        self._jobs = jobs
        self._events = events
        self._client_ids = client_ids
        self._clock = clock
        self._loop = LoopCaller()
        self._sockets: set[Socket] = set()
        self._waiting = Waiting()
        self._by_sid: dict[str, set[Socket]] = {}
        self._status_due: asyncio.TimerHandle | None = None
        #: Jobs with a verdict on disk whose end their sockets have yet to hear, and until when to wait for that.
        self._ending: dict[str, tuple[Job, float]] = {}
        self._following: asyncio.Task[None] | None = None
        #: A socket was opened.
        self.opened: Signal[[]] = Signal()
        #: What other boxes hear of the jobs here.
        self.taps = Taps(self._sid_of)

    async def has_open(self, client: Client) -> bool:
        """Whether a job that the client sees is open, also where another server of a fleet has let it in just now.

        Some clients take a first status of 0 for the end of what they have submitted.
        """
        try:
            return await wrap_future(self._store.has_open(client.sees_only))
        except GuardError:  # it is not readable now
            return False

    def open(
        self,
        client: Client,
        client_id: str,
        abort: Callable[[], None],
        *,
        resumes: bool = False,
        has_open: bool = False,
    ) -> Socket:
        """Open a socket that hears everything from now on; call :meth:`resume` for one that `resumes`.

        `has_open`: see there; a moment ago.
        """
        self._loop.bind()
        known = client_id or uuid.uuid4().hex
        socket = Socket(client, known, self._client_ids.of(client.owner, known), abort, resumes, self._waiting)
        socket.remaining = max(here := self._remaining(client), has_open)
        if socket.remaining > here:  # it may also have ended meanwhile, which nobody would tell
            asyncio.get_running_loop().call_later(_NEWS_S, self._schedule_status)
        socket.say("status", {**_status(socket.remaining), "sid": known})
        if (node_id := self._host.executing(socket.sid)) is not None:
            socket.say("executing", {"node": node_id})
        self._sockets.add(socket)
        self._by_sid.setdefault(socket.sid, set()).add(socket)
        if self._following is None:
            self._following = asyncio.create_task(self._read_events(), name="guarded-socket-events")
        self.opened()
        return socket

    async def catch_up(self, socket: Socket) -> None:
        """Tell the verdicts that the client id missed while it had no socket, as ComfyUI would have told them."""
        since_ms = self._clock.now_ms() - MISSED_FOR_MS
        try:
            jobs = await wrap_future(
                self._store.list_missed(socket.client.owner, socket.client_id, since_ms, MISSED_AT_MOST)
            )
        except GuardError as error:
            log.warning("the verdicts that a websocket missed cannot be read: %s", error)
            jobs = []
        ends, socket.ends = socket.ends or {}, None
        for job in jobs:
            end = ends.pop(job.job_id, [])
            if any(message.verdict_of is not None for message, _is_last in end):
                self._put_all(socket, end)
                continue
            if not socket.resumes:
                socket.put(_frame(Event(STATE, functools.partial(self._jobs.describe, job, None), job, job.event_id)))
            socket.caught_up.add(job.job_id)
            for message, _is_last in _make_end(job):
                socket.put(message)
        for end in ends.values():
            self._put_all(socket, end)

    async def resume(self, socket: Socket, after: int) -> None:
        """Tell every state of the client id's jobs after the one of that number, then what happens. Never ends."""
        names, owner = (STATE, POSITION, PROGRESS), socket.client.owner

        def hears(job: Job) -> bool:
            return self._sid_of(job) == socket.sid

        with self._events.subscribe(names, owner=owner, after=after, hears=hears) as reader:
            while True:
                try:
                    events = await reader.next(FOLLOW_S)
                except GuardError as error:
                    log.warning("the events of jobs cannot be read: %s", error)
                    await asyncio.sleep(1)
                    continue
                for event in events:
                    if event.job is not None and self._sid_of(event.job) == socket.sid:
                        await socket.wait_for_room()
                        socket.put(_frame(event))
                        await asyncio.sleep(0)  # others have their turn while a long history is made

    def hang_up(self, holds: Callable[[Client], bool]) -> None:
        """Close the sockets of clients whose access has ended: `holds` says whether a client still has it."""
        for socket in self._sockets:
            if not holds(socket.client):
                socket.hang_up()

    def end_all(self) -> None:
        """The server goes: close every socket once its client has what there is. Any thread."""

        def end() -> None:
            for socket in self._sockets:
                socket.put(GOODBYE)

        self._loop.call(end)

    def count(self) -> int:
        """How many are open. Any thread."""
        return len(self._sockets)

    def close(self, socket: Socket) -> None:
        """Forget a socket whose connection has closed."""
        socket.drop()
        self._sockets.discard(socket)
        same = self._by_sid[socket.sid]
        same.discard(socket)
        if not same:
            del self._by_sid[socket.sid]
            self._host.socket_left(socket.sid)

    def hear(self, socket: Socket, text: str) -> None:
        """Take a message of the client. Like ComfyUI, ignore all but feature flags in the first one."""
        first, socket.first_word = socket.first_word, False
        if not first:
            return
        if len(text) > FLAGS_CHARS:
            return
        try:
            word = read_json(text.encode("utf-8", "replace"), COMMAND)
        except GuardError:
            return
        if isinstance(word, dict) and word.get("type") == "feature_flags":
            features = self._host.negotiate(socket.sid, word.get("data"))
            if features is not None:
                socket.say("feature_flags", features)

    def mark_sent(self, message: Message) -> None:
        """The message has left for the client: note that its verdict was heard. Does not wait for the disk."""
        if (job_id := message.verdict_of) is not None:

            def done(heard: Future[None]) -> None:
                if (error := heard.exception()) is not None:
                    log.warning(
                        "job %s: that it was heard cannot be written: %s",
                        job_id,
                        error,
                        extra={"job_id": job_id},
                    )

            self._store.mark_heard(job_id).add_done_callback(done)

    def follow(self, job: Job) -> None:
        """A new state is durable. A job that was admitted or has ended changes a count. The store's thread."""
        if self._sockets and (job.state is JobState.QUEUED or job.state.settled):
            if job.state.settled and self._sid_of(job) in self._by_sid:
                self._ending[job.job_id] = (job, self._clock.monotonic_s() + END_TOLD_WITHIN_S)
            # Where a `status` is due already, it will count this: it is due no more before it counts.
            if self._status_due is None:
                self._loop.call(self._schedule_status)

    def follow_other(self, job: Job) -> None:
        """Another server has changed the job; tell of its end what the host here does not. The store's thread."""
        self.follow(job)
        if job.state.settled and self.is_heard(job) and job.job_id not in self._host.held():
            self._loop.call(lambda: self._tell_end(job))

    def _tell_end(self, job: Job) -> None:
        self._ending.pop(job.job_id, None)
        end = _make_end(job)
        sid = self._sid_of(job) or ""
        self._host.tell_socket(sid, [message.content for message, _is_last in end])
        for socket in self._by_sid.get(sid, ()):
            if socket.ends is not None:
                socket.ends.setdefault(job.job_id, end)
            elif job.job_id not in socket.caught_up:
                self._put_all(socket, end)

    def bind(self) -> None:
        """Use the running loop: the host's own sockets may hear of jobs elsewhere before one of ours is open."""
        self._loop.bind()

    def is_heard(self, job: Job) -> bool:
        """Whether a socket here has the job's client id, one of ours or of the host's. Any thread."""
        sid = self._sid_of(job)
        return sid is not None and (sid in self._by_sid or self._host.has_socket(sid))

    def takes_metadata(self, job: Job) -> bool:
        """Whether the client with the job's id knows previews that say of which job and node they are. Event loop."""
        sid = self._sid_of(job)
        return sid is not None and self._host.find_flags(sid).get(PREVIEW_METADATA) is True

    def note_far(self, job: Job) -> Callable[[], None]:
        """Let the host's nodes find that until what is returned is called: the client is on another server."""
        sid = self._sid_of(job)
        if sid is None or sid in self._by_sid or self._host.has_socket(sid):
            return lambda: None
        self._host.negotiate(sid, {PREVIEW_METADATA: True})

        def forget() -> None:
            if sid not in self._by_sid and not self._host.has_socket(sid):
                self._host.socket_left(sid)

        return forget

    def take(self, job: Job, content: str | bytes) -> None:
        """Pass on what another server's host has sent to the job's client id."""
        sid = self._sid_of(job) or ""
        for socket in self._by_sid.get(sid, ()):
            if job.job_id not in socket.caught_up:
                socket.put(Message(content))
        self._host.tell_socket(sid, [content])

    def wants(self, sid: str | None, is_picture: bool = False) -> bool:
        """Any thread."""
        return bool(self._sockets) if sid is None else sid in self._by_sid or self.taps.wants(sid, is_picture)

    def passed(self, event: Any, data: Any, sid: str | None, message: str | bytes) -> None:
        if sid is not None:
            self._send_to_client_id(event, data, sid, message)
        elif event == "status":
            self._schedule_status()
        else:
            for socket in self._sockets:
                if socket.client.operator:
                    socket.put(Message(message))

    def _send_to_client_id(self, event: Any, data: Any, sid: str, message: str | bytes) -> None:
        prompt_id = data.get("prompt_id") if isinstance(data, dict) else None
        ends = event in ("execution_success", "execution_error") and isinstance(prompt_id, str)
        sockets, job = self._by_sid.get(sid, ()), self.taps.find(sid)
        if isinstance(message, str) and event not in _QUOTES_NOTHING:
            owners = {socket.client.owner for socket in sockets} | ({job.owner} if job is not None else set())
            for owner in owners:  # one: the client id is its owner's
                message = self._cleaner.clean_message(message, owner)
        frame = Message(hide(message) if isinstance(message, str) else message, prompt_id if ends else None)
        self.taps.say(event, data, sid, frame.content)
        is_last = event == "executing" and data.get("node") is None
        if is_last:
            self._ending.pop(str(prompt_id), None)
        for socket in sockets:
            if prompt_id in socket.caught_up:
                continue
            if socket.ends is not None and (event == "executed" or ends or is_last or prompt_id in socket.ends):
                socket.ends.setdefault(str(prompt_id), []).append((frame, is_last))
            else:
                self._put_all(socket, [(frame, is_last)])

    def _put_all(self, socket: Socket, messages: list[tuple[Message, bool]]) -> None:
        """Send messages; the last of a prompt comes with the count of those that are left."""
        for message, is_last in messages:
            if is_last:
                self._tell_status(socket, self._remaining(socket.client))
            socket.put(message)

    async def _read_events(self) -> None:
        """Read all jobs' events for all sockets, as long as there are any."""
        names = (STATE, POSITION, PROGRESS, ALARM)
        with self._events.subscribe(names, hears=lambda job: self._sid_of(job) in self._by_sid) as reader:
            while self._sockets:
                try:
                    events = await reader.next(FOLLOW_S)
                except GuardError as error:
                    log.warning("the events of jobs cannot be read: %s", error)
                    await asyncio.sleep(1)
                    continue
                for event in events:
                    self._pass_on(event)
        self._following = None

    def _pass_on(self, event: Event) -> None:
        """Send the event to the sockets that should hear it."""
        if event.job is None:
            sockets = [socket for socket in self._sockets if socket.client.operator]
        else:
            sid = self._sid_of(event.job)
            sockets = [socket for socket in self._by_sid.get(sid or "", ()) if not socket.resumes]
        if sockets:
            frame = _frame(event)
            for socket in sockets:
                socket.put(frame)

    def _sid_of(self, job: Job | Standing) -> str | None:
        return None if job.client_id is None else self._client_ids.of(job.owner, job.client_id)

    def _schedule_status(self) -> None:
        """Send `status` soon to the sockets whose count has changed."""
        if self._status_due is None:
            self._status_due = asyncio.get_running_loop().call_later(STATUS_EVERY_S, self._tell_all_status)

    def _tell_all_status(self) -> None:
        self._status_due = None
        remaining = {client: self._remaining(client) for client in {socket.client for socket in self._sockets}}
        for socket in self._sockets:
            if remaining[socket.client] != socket.remaining:
                self._tell_status(socket, remaining[socket.client])
        if self._ending:
            self._schedule_status()

    def _tell_status(self, socket: Socket, remaining: int) -> None:
        socket.remaining = remaining
        socket.say("status", _status(remaining))

    def _remaining(self, client: Client) -> int:
        """How many of the jobs that the client sees are open, as far as its sockets have been told."""
        now_s, ending = self._clock.monotonic_s(), 0
        for job, until_s in list(self._ending.values()):  # the store's thread adds to it
            if until_s < now_s or self._sid_of(job) not in self._by_sid:
                self._ending.pop(job.job_id, None)
            elif client.may_see(job.owner):
                ending += 1
        return self._store.count_open(client.sees_only) + ending


def _make_end(job: Job) -> list[tuple[Message, bool]]:
    """The messages that tell of the end of a job as ComfyUI would have told it; and whether it is the last one."""

    def make(event: str, data: Any, verdict_of: str | None = None) -> Message:
        return Message(json.dumps({"type": event, "data": data}), verdict_of)

    outputs = [
        {"node": node_id, "display_node": node_id, "output": hide_in(output), "prompt_id": job.job_id}
        for node_id, output in job.result.outputs.items()
    ]
    endings = zip(as_comfyui.list_endings(job), (job.job_id, None), strict=False)
    return [
        *((make("executed", output), False) for output in outputs),
        *((make(*told, verdict_of), False) for told, verdict_of in endings),
        (make("executing", {"node": None, "prompt_id": job.job_id}), True),
    ]


def _status(remaining: int) -> dict[str, Any]:
    return {"status": {"exec_info": {"queue_remaining": remaining}}}


def _frame(event: Event) -> Message:
    numbered = {} if event.id is None else {"id": event.id}
    return Message(json.dumps({"type": "guarded", "data": {"event": event.name, **numbered, **event.data}}))
