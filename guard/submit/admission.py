"""The way in: everything that happens before a job exists.

In this order: body limits, idempotency replay, room in the queue, the client's rate, shape, policy, the files that it
names, the host's own validation, faces, and the commit, which looks at the room and the idempotency key once more.
(Who asks, the routes have settled before.)
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from asyncio import wrap_future
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .. import messages
from ..client import Client
from ..clock import Clock
from ..errors import (
    DiskFullError,
    GuardError,
    InternalError,
    InvalidRequestError,
    PayloadTooLargeError,
    QueueFullError,
    ServerUnavailableError,
)
from ..events import webhook_rules
from ..faces.gate import FaceGate
from ..faces.required import FACE_LOADER
from ..files import uploads
from ..files.names import show_as_seen
from ..files.references import References
from ..files.uploads import Uploads
from ..graph import shape
from ..host import Host, Refusal
from ..host_words import host_body, refused
from ..janitor.in_use import Hold, InUse
from ..job import NewJob, Webhook
from ..journal import Throttle
from ..life.health import Health
from ..life.secrets import SECRET_NAMES, Secrets
from ..settings import Settings
from ..store import IdempotencyKey, Store, Submitted
from .limits import Limits
from .policy import Policy
from .request import PARSED_AT_ONCE_BYTES, AskedWebhook, Prompt, Submission, idempotency, parse

log = logging.getLogger("guarded.admission")

#: Refusals that tell the operator that the server is too small.
_FULL = frozenset({QueueFullError.code, DiskFullError.code, ServerUnavailableError.code})


class Admission:
    """Lets jobs in. Event loop; the store's thread does the writing."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        host: Host,
        health: Health,
        faces: FaceGate,
        references: References,
        secrets: Secrets,
        clock: Clock,
        uploads: Uploads,
        limits: Limits,
        in_use: InUse | None = None,
    ) -> None:
        self._settings = settings
        self._policy = Policy(settings.policy)
        self._webhook_rules = webhook_rules.Rules(settings.webhooks)
        self._limits = limits
        self._store = store
        self._host = host
        self._health = health
        self._faces = faces
        self._references = references
        self._secrets = secrets
        self._clock = clock
        self._uploads = uploads
        #: Without a janitor, nothing is deleted.
        self._in_use = in_use or InUse(list)
        self._refused: Callable[[str], None] = lambda _code: None
        self._refusals = Throttle()

    def on_refusal(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the error code of each prompt that is not let in."""
        self._refused = listener

    async def admit(self, request: Submission) -> Submitted:
        """The job that the request made, or had made before under the same idempotency key.

        Raises:
            GuardError: why not; nothing has changed.
        """
        try:
            with self._in_use.admission() as hold:
                submitted = await self._admit(request, hold)
        except Exception as error:
            code = error.code if isinstance(error, GuardError) else InternalError.code
            self._refused(code)
            if (skipped := self._refusals.take(code)) is not None:
                more = f" ({skipped} more since the last line)" if skipped else ""
                level = logging.WARNING if code in _FULL else logging.INFO
                log.log(level, "a prompt of %s was refused: %s%s", request.client.owner, code, more)
            raise
        if not submitted.replayed:
            self._tell(submitted)
        return submitted

    def _tell(self, submitted: Submitted) -> None:
        job, waiting, slots = submitted.job, submitted.waiting, self._settings.queue.max_jobs
        about = {"job_id": job.job_id}
        if waiting is not None and waiting.position + waiting.running > slots:
            said = "job %s of %s admitted; it waits, %d of %d slots are taken, position %d"
            log.warning(said, job.job_id, job.owner, waiting.running, slots, waiting.position, extra=about)
        else:
            log.info("job %s of %s admitted", job.job_id, job.owner, extra=about)

    async def _admit(self, request: Submission, hold: Hold) -> Submitted:
        settings = self._settings
        if len(request.raw) > settings.policy.max_body_bytes:
            raise PayloadTooLargeError(
                f"The body is over {settings.policy.max_body_bytes} bytes.",
                extra_info={"max_body_bytes": settings.policy.max_body_bytes},
            )
        key = idempotency(request, self._clock.now_ms() - int(settings.queue.idempotency_max_age_s * 1000))
        if key is not None:
            earlier = await wrap_future(self._store.replay(request.client.owner, key))
            if earlier is not None:
                return earlier
        if request.files:
            self._limits.take_upload(request.client, request.file_bytes)
        self._health.check_ready()
        if self._store.queued >= settings.queue.max_queued:
            raise QueueFullError.with_waiting(self._store.queued, settings.queue.max_queued)
        own, max_own = self._store.queued_of(request.client.owner), self._limits.max_queued(request.client)
        if max_own is not None and own >= max_own:
            raise QueueFullError.with_waiting(own, max_own, of_owner=True)
        # Given back where no job comes of it: a bot whose users send photos without a face is not to be shut out.
        self._limits.take_job(request.client)
        made = False
        try:
            submitted = await self._parsed(request, key, hold)
            made = not submitted.replayed
            return submitted
        finally:
            if not made:
                self._limits.give_job_back(request.client)

    async def _parsed(self, request: Submission, key: IdempotencyKey | None, hold: Hold) -> Submitted:
        settings = self._settings
        if request.fill is not None or len(request.raw) > PARSED_AT_ONCE_BYTES:
            prompt = await asyncio.to_thread(parse, request.raw, settings.policy.max_depth, request.fill)
        else:
            prompt = parse(request.raw, settings.policy.max_depth)
        locale = messages.choose(prompt.options.locale, request.accept_language, settings.messages.locale)
        try:
            if not request.files:
                return await self._admitted(request, prompt, key, locale, hold)
            request = self._renamed(request, prompt)
            await hold.keep(prompt.graph)  # before they come: the janitor may be about to delete one of the same name
            async with self._uploads.placed(request.client.owner, request.files):
                return await self._admitted(request, prompt, key, locale, hold)
        except GuardError as error:
            error.locale = locale
            owner = request.client.owner
            show_as_seen(error, owner, {file.stored_as(owner): file.filename or file.field for file in request.files})
            raise

    def _webhook(self, asked: AskedWebhook | None, client: Client) -> Webhook | None:
        """The job's own, else the one that the client's key names."""
        if asked is None:
            return Webhook(client.webhook) if client.webhook else None
        self._webhook_rules.check(asked.url)
        return Webhook(asked.url, tuple(asked.events)) if asked.events else Webhook(asked.url)

    def _renamed(self, request: Submission, prompt: Prompt) -> Submission:
        """The request with its files under their stored names, in the prompt too."""
        stored = uploads.names(request.files, request.client.owner)
        used = uploads.rename(prompt.graph, stored, self._host.file_inputs)
        for file in request.files:
            if file.stored_as(request.client.owner) not in used:
                raise InvalidRequestError(
                    f"No loader input of the prompt names the file {file.field[:100]!r}.",
                    details="Where the loader names its file, give the name of the form's field or the file's own.",
                    extra_info={"field": file.field, "filename": file.filename},
                )
        return replace(request, raw=json.dumps(prompt.body).encode())

    async def _admitted(
        self, request: Submission, prompt: Prompt, key: IdempotencyKey | None, locale: str, hold: Hold
    ) -> Submitted:
        settings = self._settings
        self._policy.check(prompt.graph)
        webhook = self._webhook(prompt.options.webhook, request.client)
        moved = await self._references.settle(prompt.graph, request.client)
        # Now, since validation changes the prompt as it goes.
        body = _kept(request, prompt, moved)
        # Before anything looks at the files that it names.
        await hold.keep(prompt.graph)
        rehearsal = await self._host.rehearse(host_body(prompt.body, prompt.job_id))
        if rehearsal.refusal is not None:
            if _by_face_loader(rehearsal.refusal, prompt.graph):
                await self._faces.check_prompt(prompt.graph, None, None)  # says it with the typed error
            raise refused(rehearsal.refusal, prompt.graph, self._host)
        # Once more: ComfyUI replaces node classes that have a new name, and packs may change a prompt on its way in.
        self._policy.check(prompt.graph)
        await self._faces.check_prompt(prompt.graph, rehearsal.outputs_to_execute, prompt.options.face_check)
        new = NewJob(
            job_id=prompt.job_id,
            owner=request.client.owner,
            body=body,
            created_at_ms=self._clock.now_ms(),
            timeout_s=min(prompt.options.timeout_s or math.inf, settings.watchdog.job_timeout_s),
            locale=locale,
            priority=prompt.options.priority,
            order=prompt.order,
            front=prompt.front,
            client_id=prompt.client_id,
            shape=shape(prompt.graph),
            template=request.template,
            parameters=prompt.parameters,
            outputs_to_execute=rehearsal.outputs_to_execute,
            metadata=prompt.options.metadata,
            has_secrets=bool(prompt.secrets),
            webhook=webhook,
        )
        # There before the commit, since the job may be dispatched right after it.
        kept = self._secrets.keep(new.job_id, prompt.secrets)
        made = False
        try:
            max_own = self._limits.max_queued(request.client)
            submitted = await wrap_future(
                self._store.submit(new, settings.queue.max_queued, key, max_queued_of_owner=max_own)
            )
            made = not submitted.replayed
            return submitted
        finally:
            if kept and not made:
                self._secrets.forget(new.job_id)


def _by_face_loader(refusal: Refusal, graph: Mapping[str, Any]) -> bool:
    """Whether the host refused a node of ours that looks for a face in its own validation."""
    return any(graph[node_id]["class_type"] == FACE_LOADER for node_id in refusal.node_errors if node_id in graph)


def _kept(request: Submission, prompt: Prompt, moved: bool) -> bytes:
    """What goes to disk: the body as it came, unless a template made the prompt, or it holds secrets or names files
    of the sender's own (`moved`)."""
    if not prompt.secrets and not moved and request.fill is None:
        return request.raw
    body = prompt.body
    if prompt.secrets:
        body = {**body, "extra_data": {k: v for k, v in body["extra_data"].items() if k not in SECRET_NAMES}}
    return json.dumps(body).encode()
