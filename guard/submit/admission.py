"""The way in: `Admission._let_in` is the list of the steps between a request and the commit of its job.

Their order is part of the contract, for the first step that refuses decides the answer. (The routes have identified
the client before.)
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from .. import messages
from ..bounds import INLINE_BYTES, LARGE_BYTES
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
from ..faces.again import KeptFiles
from ..faces.gate import FaceGate
from ..faces.loaded import find_error
from ..faces.required import FACE_LOADER
from ..files import uploads
from ..files.cleaning import Cleaner
from ..files.names import use_owner_names
from ..files.references import References
from ..files.uploads import UploadedFile, Uploads
from ..graph import find_workflow_id, shape
from ..host import Host, Refusal, Rehearsal
from ..host_words import explain_refusal, host_body
from ..janitor.in_use import InUse
from ..job import NewJob, Webhook
from ..journal import Throttle
from ..life.health import Health
from ..life.secrets import Secrets
from ..quotas import Quotas, Taking
from ..quotas.threads import run_beside, work
from ..settings import Settings
from ..store import IdempotencyKey, Submitted
from ..wake import wrap_future
from .confinement import Confinement
from .conversion import make_converter
from .costs import Costs
from .fetch import Fetcher
from .gathering import Gathering
from .key_policies import check_kind
from .limits import Limits
from .prints import take_print
from .queue import Queue
from .request import AskedWebhook, NeedsConversionError, Prompt, Submission, parse, read_idempotency_key, write_body
from .requeues import check_requeues
from .results import Chosen, choose_results

log = logging.getLogger("guarded.admission")

#: Refusals that tell the operator that the server is too small.
_FULL = frozenset({QueueFullError.code, DiskFullError.code, ServerUnavailableError.code})


class Admission:
    """Decides which requests become jobs. Event loop; the store's thread writes them down."""

    def __init__(
        self,
        settings: Settings,
        store: Queue,
        host: Host,
        health: Health,
        faces: FaceGate,
        references: References,
        secrets: Secrets,
        clock: Clock,
        uploads: Uploads,
        limits: Limits,
        quotas: Quotas,
        in_use: InUse | None = None,
        fetcher: Fetcher | None = None,
        kept: KeptFiles | None = None,
    ) -> None:
        self._settings = settings
        self._bounds = settings.policy.bounds()
        self._costs = Costs(settings.policy, host, settings.fleet.enabled)
        self._cleaner = Cleaner(host.folders)
        self._confinement = Confinement(settings.policy, host.declaration, host.file_inputs)
        self._webhook_rules = webhook_rules.Rules(settings.webhooks)
        self._limits = limits
        self._quotas = quotas
        self._store = store
        self._host = host
        self._health = health
        self._faces = faces
        self._references = references
        self._secrets = secrets
        self._clock = clock
        self._uploads = uploads
        self._in_use = in_use or InUse(list)  # without a janitor, nothing is deleted
        self._fetcher = fetcher
        self._kept = kept
        self._gathering = Gathering(store.let_go)
        self._refusals = Throttle()

    async def admit(self, request: Submission) -> Submitted:
        """Make a job of the request, or find the one that it made before under the same idempotency key.

        Raises:
            GuardError: why not; nothing has changed.
        """
        try:
            async with AsyncExitStack() as stack:
                submitted = await self._let_in(request, stack)
        except Exception as error:
            self._report_refusal(request, error)
            raise
        except SystemExit as error:
            # Out of a node class that was asked for its inputs, say. It would end the server.
            log.exception("a prompt's node raised SystemExit", extra={"quotes_prompt": True})
            refusal = InternalError("The prompt could not be looked at.", details=f"SystemExit: {error}")
            self._report_refusal(request, refusal)
            raise refusal from error
        if not submitted.replayed:
            job, waiting = submitted.job, submitted.waiting
            position = waiting.position if waiting is not None else 0
            log.debug(
                "job %s of %s admitted, position %d", job.job_id, job.owner, position, extra={"job_id": job.job_id}
            )
        return submitted

    async def _let_in(self, request: Submission, stack: AsyncExitStack) -> Submitted:
        """Take each step in turn. `stack` ends what lasts until the job is committed or refused."""
        client = request.client
        hold = stack.enter_context(self._in_use.admission())
        with ExitStack() as undo:  # undoes what was done for a job that does not come to exist
            check_kind(request)
            self._check_size(request)
            key = await self._read_idempotency_key(request)
            if key is not None and (earlier := await wrap_future(self._store.replay(client.owner, key))) is not None:
                return earlier
            self._count_upload(request)
            self._health.check_ready()
            self._check_room(client, len(request.raw))
            if not request.by_operator:
                undo.callback(self._quotas.take_files(client, request.file_bytes))
                self._count_job(client, undo)

            prompt = await self._parse(request)
            size = len(request.raw)  # whatever walks through the prompt goes by that
            is_large = size > LARGE_BYTES
            locale = messages.choose(prompt.options.locale, request.accept_language, self._settings.messages.locale)
            names = {file.stored_as(client.owner): file.filename or file.field for file in request.files}
            stack.push(partial(self._address_refusal, client.owner, names, locale))
            if prompt.options.user is not None and not request.by_operator:
                self._limits.take_job_of_user(client, prompt.options.user)
                undo.callback(self._limits.give_job_of_user_back, client, prompt.options.user)
            if request.files:
                request = await work(size, self._rename_files, request, prompt)
            fetched: tuple[UploadedFile, ...] = ()
            if self._fetcher is not None and (sources := await work(size, self._fetcher.find, prompt.graph)):
                fetched = await stack.enter_async_context(self._fetcher.fetch_for(request, prompt, sources))
                undo.callback(self._quotas.take_files(client, await run_beside(uploads.measure, fetched)))
            names |= {file.stored_as(client.owner): file.filename for file in fetched}
            if files := (*request.files, *fetched):
                await hold.keep(prompt.graph, size)  # first, because the janitor may be deleting one of the same name
                await stack.enter_async_context(self._uploads.place(client.owner, files))
            await work(size, self._check_graph, prompt.graph, client)
            checked = await work(size, take_print, prompt.graph, is_large)
            webhook = self._choose_webhook(prompt.options.webhook, client)
            chosen = await choose_results(prompt.options.results, client, self._webhook_rules, self._clock.now_ms())
            hold_all = partial(hold.keep, prompt.graph, size)
            moved, stored = await self._references.take(prompt.graph, client, size, hold_all, names, stack)
            # Now, because validation changes the prompt as it goes.
            body = await work(size, write_body, request, prompt, moved or bool(fetched))
            await hold.keep(prompt.graph, size)  # before anything looks at the files that it names
            rehearsal = await self._rehearse(prompt, client)
            outputs = rehearsal.outputs_to_execute
            if checked is None or await work(size, take_print, prompt.graph, is_large) != checked:
                # ComfyUI replaces renamed classes, and packs may change a prompt.
                await work(size, self._check_graph, prompt.graph, client)
            opened = await self._faces.open_loaded(prompt.graph, outputs, client.owner)
            vram = await self._costs.check(prompt.graph, client, opened.media, size)
            shown = await self._faces.check_prompt(prompt.graph, outputs, prompt.options.face_check, client.owner)
            job = self._make_job(request, prompt, body, locale, webhook, outputs, chosen)
            placement = await self._costs.place(prompt.graph, vram, size)
            if stored or placement.needs:  # to copy it takes long
                job = replace(job, inputs=stored, placement=placement)
            self._keep_secrets(job, prompt, undo)
            if self._kept is not None:
                self._kept.keep(job.job_id, opened.files, shown)
                undo.callback(self._kept.forget, job.job_id)
            keep = self._host.prepare(job.job_id, rehearsal, len(body))
            takings = [] if request.by_operator else self._limits.list_takings(client, prompt.options.user)
            submitted = await self._commit(job, key, client, takings, keep)
            if not submitted.replayed:
                undo.pop_all()
            return submitted if vram is None else replace(submitted, vram=vram)

    def _check_size(self, request: Submission) -> None:
        limit = self._settings.policy.max_body_bytes
        if len(request.raw) > limit:
            raise PayloadTooLargeError(f"The body is over {limit} bytes.", extra_info={"max_body_bytes": limit})

    async def _read_idempotency_key(self, request: Submission) -> IdempotencyKey | None:
        oldest_ms = self._clock.now_ms() - int(self._settings.queue.idempotency_max_age_s * 1000)
        return await work(len(request.raw), read_idempotency_key, request, oldest_ms)

    def _count_upload(self, request: Submission) -> None:
        if request.files:
            self._limits.take_upload(request.client, request.file_bytes)

    def _check_room(self, client: Client, size: int) -> None:
        """Refuse early where the queue has no room for a body of that size; the store checks again when it commits."""
        if self._store.queued >= self._settings.queue.max_queued:
            raise QueueFullError.with_waiting(self._store.queued, self._settings.queue.max_queued)
        own, max_own = self._store.count_queued(client.owner), self._limits.max_queued(client)
        if max_own is not None and own >= max_own:
            raise QueueFullError.with_waiting(own, max_own, of="client")
        self._quotas.check_open_bytes(client, self._store.count_open_bytes(client.owner), size)

    def _count_job(self, client: Client, undo: ExitStack) -> None:
        """Count one job for the client, until `undo` takes it back.

        A refusal costs nothing, or a bot would be shut out whose users send photos without a face.
        """
        self._limits.take_job(client)
        undo.callback(self._limits.give_job_back, client)

    async def _parse(self, request: Submission) -> Prompt:
        if request.fill is None and len(request.raw) <= INLINE_BYTES:
            with suppress(NeedsConversionError):
                return parse(request.raw, self._bounds)
        convert = make_converter(self._host, self._settings.policy.max_nodes)
        return await run_beside(parse, request.raw, self._bounds, request.fill, convert)

    def _rename_files(self, request: Submission, prompt: Prompt) -> Submission:
        """Give the request's files their stored names in the prompt, and write the body anew."""
        owner = request.client.owner
        used = uploads.rename_inputs(prompt.graph, uploads.map_names(request.files, owner), self._host.file_inputs)
        for file in request.files:
            if file.stored_as(owner) not in used:
                raise InvalidRequestError(
                    f"No loader input of the prompt names the file {file.field[:100]!r}.",
                    details="In the loader, put the name of the form's field or the file's own name.",
                    extra_info={"field": file.field, "filename": file.filename},
                )
            if file.is_empty:
                error_class, node = find_error(self._host, prompt.graph, file.stored_as(owner))
                raise error_class(f"The file {file.field[:100]} is empty.", extra_info={"field": file.field, **node})
        return replace(request, raw=json.dumps(prompt.body).encode())

    def _check_graph(self, graph: Mapping[str, Any], client: Client) -> None:
        """Check it against the operator's limits, and that it stays within the client's reach."""
        self._costs.check_graph(graph, client)
        check_requeues(graph)
        self._confinement.check(graph, client)

    def _choose_webhook(self, asked: AskedWebhook | None, client: Client) -> Webhook | None:
        """The job's own, else the one that the client's key names."""
        if asked is None:
            return Webhook(client.webhook) if client.webhook else None
        self._webhook_rules.check(asked.url)
        return Webhook(asked.url, tuple(asked.events)) if asked.events else Webhook(asked.url)

    async def _rehearse(self, prompt: Prompt, client: Client) -> Rehearsal:
        """Let the host validate the prompt without queueing it."""
        rehearsal = await self._host.rehearse(host_body(prompt.body, prompt.job_id), self._find_timeout_s(prompt))
        if rehearsal.refusal is not None:
            if _is_by_face_loader(rehearsal.refusal, prompt.graph):
                await self._faces.check_prompt(prompt.graph, None, None, client.owner)  # raises the typed error
            raise explain_refusal(rehearsal.refusal, prompt.graph, self._host)
        return rehearsal

    def _find_timeout_s(self, prompt: Prompt) -> float:
        return min(prompt.options.timeout_s or math.inf, self._settings.watchdog.job_timeout_s)

    def _make_job(
        self,
        request: Submission,
        prompt: Prompt,
        body: bytes,
        locale: str,
        webhook: Webhook | None,
        outputs: tuple[str, ...],
        chosen: Chosen,
    ) -> NewJob:
        repeated = request.repeats
        return NewJob(
            job_id=prompt.job_id,
            owner=request.client.owner,
            body=body,
            created_at_ms=self._clock.now_ms(),
            timeout_s=self._find_timeout_s(prompt),
            locale=locale,
            priority=prompt.options.priority,
            order=prompt.order,
            front=prompt.front,
            client_id=prompt.client_id,
            shape=shape(prompt.graph),
            template=request.template,
            parameters=prompt.parameters if repeated is None else repeated.parameters,
            outputs_to_execute=outputs,
            metadata=prompt.options.metadata,
            has_secrets=bool(prompt.secrets),
            webhook=webhook,
            workflow_id=find_workflow_id(prompt.body),
            converted=prompt.converted if repeated is None else repeated.converted,
            user=prompt.options.user or "",
            retry_of=None if repeated is None else repeated.job_id,
            **vars(chosen),
        )

    def _keep_secrets(self, job: NewJob, prompt: Prompt, undo: ExitStack) -> None:
        """Keep them before the commit, because the job may be dispatched right after it.

        Raises ServerUnavailableError where this server runs no jobs: they do not leave it.
        """
        if prompt.secrets and not self._settings.queue.max_jobs:
            raise ServerUnavailableError("This server runs no jobs, and gives no credentials away.", retry_after_s=1)
        if self._secrets.keep(job.job_id, prompt.secrets):
            undo.callback(self._secrets.forget, job.job_id)

    async def _commit(
        self,
        job: NewJob,
        key: IdempotencyKey | None,
        client: Client,
        takings: Sequence[Taking],
        keep: Callable[[], None],
    ) -> Submitted:
        """Write the job down; `keep` is called on the store's thread as soon as it is there."""

        def follow(done: Future[Submitted]) -> None:
            # Not before: until then the id may be another job's.
            if not done.cancelled() and done.exception() is None and not done.result().replayed:
                keep()

        max_queued, max_own = self._settings.queue.max_queued, self._limits.max_queued(client)
        submitting = self._store.submit(
            job,
            max_queued,
            key,
            max_queued_of_owner=max_own,
            max_queued_of_user=self._limits.max_queued_of_user,
            max_bytes_of_owner=self._quotas.find(client, "max_open_bytes"),
            takings=takings,
            held=True,
        )
        self._gathering.add()
        submitting.add_done_callback(follow)
        with self._quotas.counting():
            return await wrap_future(submitting)

    def _address_refusal(
        self,
        owner: str,
        names: Mapping[str, str],
        locale: str,
        _type: object,
        error: BaseException | None,
        _traceback: object,
    ) -> None:
        """Put a refusal into the sender's language, with its own names for its files; for `ExitStack.push`."""
        if isinstance(error, GuardError):
            error.locale = locale
            self._cleaner.clean_error(error, owner)
            use_owner_names(error, owner, names)

    def _report_refusal(self, request: Submission, error: Exception) -> None:
        code = error.code if isinstance(error, GuardError) else InternalError.code
        if (skipped := self._refusals.take(code)) is not None:
            more = f" ({skipped} more since the last line)" if skipped else ""
            level = logging.WARNING if code in _FULL else logging.INFO
            log.log(level, "a prompt of %s was refused: %s%s", request.client.owner, code, more)


def _is_by_face_loader(refusal: Refusal, graph: Mapping[str, Any]) -> bool:
    """Whether the host refused our face loader, whose own validation looks for a face."""
    return any(graph[node_id]["class_type"] == FACE_LOADER for node_id in refusal.node_errors if node_id in graph)
