# Over 400 lines: the whole machine is wired in one function, where a reader sees all of it.
"""The whole machine, built and wired top to bottom in one function."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import logging
import os
from pathlib import Path

from aiohttp import web

from . import server_routes
from .agents.bridge import Bridge
from .failure import is_reachable_from_elsewhere
from .guard import journal, messages, owners, private_files, runtime
from .guard.access.access import Access, keep_current
from .guard.access.client_ids import ClientIds
from .guard.access.keys import Keys
from .guard.access.manage import KeyRing
from .guard.access.tokens import Tokens
from .guard.callers.backlog import Backlog
from .guard.callers.estimate import KINDS, Estimates
from .guard.callers.inline import Inline
from .guard.callers.jobs import Jobs
from .guard.callers.positions import Positions
from .guard.callers.served import Opener
from .guard.callers.sockets import Sockets
from .guard.client import LOCAL
from .guard.clock import Clock
from .guard.doctor import CLOSE, OPEN, TRUST_LESS, TRUSTING, Doctor
from .guard.doctor.facts import make_url
from .guard.errors import GuardError
from .guard.events.outbox import Outbox, choose_secret
from .guard.events.puts import Puts
from .guard.events.stream import Events
from .guard.events.webhook_rules import Rules
from .guard.faces.again import KeptFiles
from .guard.faces.check import FaceChecker
from .guard.faces.chooser import Chooser
from .guard.faces.gate import FaceGate
from .guard.faces.loaded import LoadedFiles
from .guard.faces.machine import FaceMachine
from .guard.faces.required import REQUIRED_BY
from .guard.files.files import Files
from .guard.files.given import Given
from .guard.files.references import References
from .guard.files.storage import Storage
from .guard.files.uploads import Uploads
from .guard.fleet import make_keys
from .guard.host import Host
from .guard.janitor import Janitor
from .guard.life import fleet
from .guard.life.alive import Alive, read_mark
from .guard.life.dispatcher import Dispatcher
from .guard.life.drain import Drain
from .guard.life.health import Health
from .guard.life.process import Process
from .guard.life.reconcile import Reconciler
from .guard.life.returns import Returns
from .guard.life.runs import Runs
from .guard.life.secrets import Secrets
from .guard.life.settle import Settler
from .guard.life.supervisor import Supervisor
from .guard.life.watchdog import Watchdog
from .guard.models.downloads import Downloads
from .guard.operators.alarms import Alarms
from .guard.operators.fleet import make_view
from .guard.operators.gpu import Gpus
from .guard.operators.machine import Machine
from .guard.operators.metrics import Exposition, Metrics
from .guard.operators.refusals import Refusals
from .guard.operators.spending import Bills
from .guard.operators.stats import Stats
from .guard.quotas import Quotas
from .guard.settings import load, read_own_texts
from .guard.signal import Signal
from .guard.store import Limits as StoreLimits
from .guard.store import Recovery, make_store
from .guard.submit.admission import Admission
from .guard.submit.fetch import Fetcher, FetchRules
from .guard.submit.limits import Limits
from .guard.submit.retry import Retries
from .guard.submit.shared_limits import keep_shared
from .guard.templates.catalogue import Templates
from .guard.warmup.entries import Prompts
from .guard.warmup.runs import WarmupRuns
from .guard.warmup.warmups import Warmups
from .server_routes.download import Downloader
from .server_routes.elsewhere import connect_boxes
from .server_routes.forward import make_forwards
from .server_routes.putting import Putter
from .server_routes.sender import Sender

log = logging.getLogger("guarded")

#: The package's templates. Those of the operator lie in `__guarded/workflows`.
TEMPLATES = Path(__file__).parent / "workflows" / "api"

#: Nothing lets the record of a job go sooner, or while a repeated request is still answered with it.
RECORDS_KEPT_S = 86400.0

#: The name under which this process holds leases. A server has one queue, so its next process takes the leases over.
HOLDER = "local"
CLOCK_DOUBTED = (
    "The machine's clock is over 30 days ahead of the newest job. For an hour after the start nothing is deleted for "
    "its age: if the clock is wrong, set it and restart."
)


def install() -> None:
    """Build the machine around ComfyUI's running server. The main thread, before the server serves.

    Where the database cannot be used it is on, refuses jobs, and tries again until it can. Whatever is raised here
    leaves the plugin off, and door.py in front of every route that must not be open then: SettingsError, and OSError
    where our own folder cannot be read.
    """
    from .host.comfyui import ComfyHost, prompt_server

    server = prompt_server()
    _build(ComfyHost(server), server.app, server.routes)


def spare_collector() -> None:
    """Take what a start has made out of Python's garbage collector's sight.

    It never ends: modules, classes and functions, 600,000 objects of ComfyUI's. The collector holds up every thread for
    a third of a second each time that it looks at them all, and ComfyUI has it look between two prompts, every ten
    seconds. What is no longer referred to goes all the same, unless it refers to itself.
    """
    gc.collect()  # what is garbage now would stay
    gc.freeze()


def _build(host: Host, application: web.Application, routes: web.RouteTableDef) -> None:
    own = host.own_directory()
    settings = load(own / "guarded.toml", os.environ)
    messages.install(read_own_texts(own), money=settings.messages.money)
    with contextlib.suppress(OSError):  # the store says best that it cannot be made
        private_files.make_folder(own)
    journal.install(settings.log)

    clock = Clock()
    keys = Keys(own, clock)
    shared = make_keys(settings.fleet)
    owners.use_key(own, shared("folders"))
    roots = [root for root in host.folders().roots().values() if root is not None]
    names = {LOCAL.owner, *(key.name for key in keys.list_all())}
    owners.take_over(roots, names)
    owners.take_over_inputs(host.input_folder(), names)
    tokens = Tokens(own, clock, shared("tokens"))
    access = Access(settings.access, keys, tokens)
    kept = StoreLimits(
        settings.store.bodies_max_age_s,
        settings.store.max_bytes,
        max(RECORDS_KEPT_S, settings.queue.idempotency_max_age_s),
        settings.janitor.unread_max_age_s,
    )
    member = fleet.make_member(settings, own, host.video_memory)
    store = make_store(settings.store.url, own, clock, settings.store.survives, kept, open_now=False, member=member)
    key_place = fleet.share_access(member, store, own, keys, tokens)
    local_secret = settings.webhooks.secret or choose_secret(own, shared("webhooks"))

    def secret_of(owner: str) -> str | None:
        return local_secret if owner == LOCAL.owner else keys.webhook_secret(owner)

    events = Events(store)
    metrics = Metrics()
    secrets = Secrets()
    client_ids = ClientIds.load(own, shared("client ids"))
    estimates = Estimates(clock)
    health = Health(host, store)
    health.hold_ready("keys unread", lambda: keys.are_unread)
    health.watch(
        "store unavailable", lambda: f"No job is taken or run: {store.trouble}.", lambda: store.trouble is not None
    )
    health.watch_admission(
        "store unavailable",
        lambda: f"No job is taken: {store.failing}.",
        lambda: store.failing is not None and store.trouble is None,
    )
    health.hold_ready("store unreadable", lambda: store.lacks_readers)
    health.warn("clock doubted", CLOCK_DOUBTED, lambda: clock.is_doubted)
    has_lost = fleet.make_has_lost(member)
    settler = Settler(store, host, secrets, client_ids, clock, settings.store.stalled_after_s, has_lost)
    stalled = "No job is let in or begins, since the job database has written nothing for a while."
    health.watch("store stalled", stalled, settler.is_stalled)
    process = Process(store.close, store.flush)
    supervisor = Supervisor(os.environ)
    watchdog = Watchdog(settings, store, host, health, settler, process, clock)
    face_classes = REQUIRED_BY if settings.faces.required_by is None else settings.faces.required_by
    quarantine = own / "quarantine"
    uploads = Uploads(settings.uploads, host.input_folder)
    uploads.tidy()
    agree = fleet.make_agree(member, store)
    given = Given()
    storage = Storage(settings, host, uploads, store, clock, health, own, metrics.count_depot, agree, member, given)
    parts = (settings, store, host, settler, watchdog, events, quarantine, keys.max_pixels_of, face_classes)
    returns = Returns(fleet.find_store(member, store), settler)
    chooser = Chooser(host.model_folders, settings.faces.detector, settings.faces.device)
    checker = FaceChecker(chooser, try_rotations=settings.faces.try_rotations, on_check=metrics.count_face_check)
    machine = FaceMachine(checker, host.file, host.input_folder)
    loaded = LoadedFiles(host, opens=settings.policy.open_files)
    kept_files = KeptFiles(loaded, machine)
    quotas = Quotas(settings.limits, has_depot=storage.depot is not None)
    runs = Runs(*parts, storage.put_all, returns, kept_files.look_again, given, quotas.files.judge)
    needs = (settings.queue, store, host, health, settler, runs, secrets, client_ids, HOLDER)
    dispatcher = Dispatcher(*needs, storage.bring, returns)
    reconciler = Reconciler(store, host, settler, runs, dispatcher)
    membership = fleet.keep_membership(member, store, host, clock, health, settler, runs, dispatcher, watchdog, own)
    janitor = Janitor(
        *(settings.janitor, store, host.folders, own, clock),
        blind_after_s=settings.queue.timeout_s,
        held=quotas.files,
        held_in_depot=quotas.files_in_depot,
        find_quotas=lambda: keys.list_file_quotas(settings.limits.max_file_bytes),
        depot=storage.depot,
        is_keeper=fleet.make_is_keeper(membership),
    )
    health.watch_disk(janitor.disk_full)
    health.watch_disk(store.full, is_own=False)
    faces = FaceGate(machine, settings.faces, loaded)
    runtime.install(runtime.Runtime(settings, host, machine))
    limits = Limits(settings.limits, clock, is_shared=member is not None)
    files = Files(host, store, storage.results, storage.inputs, given)
    references = References(host, files, storage.inputs)
    fetch_rules = FetchRules(settings.fetch, settings.policy.fetch_hosts)
    downloader = Downloader(fetch_rules, settings.fetch)
    fetcher = Fetcher(settings.fetch, fetch_rules, uploads, limits, quotas, host.file_inputs, downloader.download)
    admission = Admission(
        settings,
        store,
        host,
        health,
        faces,
        references,
        secrets,
        clock,
        uploads,
        limits,
        quotas,
        janitor.in_use,
        fetcher,
        kept_files,
    )
    jobs = Jobs(settings.queue, store, settler, events, estimates, storage.results)
    outbox = Outbox(settings.webhooks, store, secret_of, clock)
    inline = Inline(settings.results.inline_max_bytes, store, Opener(storage.results))
    sender = Sender(outbox, settings.webhooks.timeout_s, inline)
    puts = Puts(settings, store, clock)
    putter = Putter(puts, settings.results.put_timeout_s, store, Opener(storage.results))
    positions = Positions(settings.queue, store, events, estimates)
    gpus = Gpus()
    busy = Machine(gpus, clock)
    shown = (settings.queue, store, host, health, watchdog, janitor, gpus)
    fleet_view = make_view(membership, member, store, health, gpus, clock)
    exposition = Exposition(metrics, *shown, storage.count_unstored, fleet_view)
    refusals = Refusals(clock)
    alarms = Alarms(store, clock, None if member is None else lambda: member.box)
    refused: Signal[[str, str]] = Signal()
    find_card = fleet.make_find_card(membership, host)
    templates = Templates(host, settings.policy, (TEMPLATES, own / "workflows"), find_card)
    warmup_runs = WarmupRuns(settings.results, runs, watchdog, host, quarantine)
    prompts = Prompts(host, templates, own)
    warmups = Warmups(settings.warmup, store, host, health, warmup_runs, prompts, clock, own)
    stats = Stats(*shown, refusals, alarms, clock, warmups.describe, fleet_view)
    sockets = Sockets(store, host, jobs, events, client_ids, clock)
    store.changed.subscribe(quotas.files.add_results)
    for changes in (store.changed, store.arrived):
        changes.subscribe(quotas.files_in_depot.add_results)
        changes.subscribe(kept_files.follow)
    store.changed.subscribe(events.follow)
    store.arrived.subscribe(events.follow_other)
    store.found.subscribe(events.find)
    store.arrived.subscribe(settler.follow)
    store.changed.subscribe(sockets.follow)
    store.arrived.subscribe(sockets.follow_other)
    store.changed.subscribe(metrics.follow)
    store.arrived.subscribe(metrics.follow_other)
    runs.spent.subscribe(metrics.count_spent)
    refused.subscribe(metrics.count_refusal)
    refused.subscribe(refusals.count)
    quotas.refused.subscribe(metrics.count_over_quota)
    # Whoever has done it, this server or another one that shares the queue.
    followers = estimates, jobs, positions, outbox, puts, dispatcher
    for changes in (store.changed, store.arrived):
        for follower in followers:
            changes.subscribe(follower.follow)
        changes.subscribe(lambda job: host.discard(job.job_id) if job.state.settled else None)
    outbox.filled.subscribe(sender.wake)
    sender.attempted.subscribe(metrics.count_delivery)
    puts.filled.subscribe(putter.wake)
    putter.attempted.subscribe(metrics.count_put)
    outbox.given_up.subscribe(lambda delivery, why: events.alarm("webhook_given_up", why, delivery.job_id))
    events.alarmed.subscribe(alarms.note)
    if fleet_view is not None:
        fleet_view.alarmed.subscribe(events.alarm)
    watchdog.turned.subscribe(alarms.turn)
    watchdog.alarmed.subscribe(events.alarm)
    watchdog.turned.subscribe(dispatcher.supervise)
    watchdog.turned.subscribe(reconciler.turn)
    watchdog.turned.subscribe(returns.turn)
    dispatcher.alarmed.subscribe(events.alarm)
    settler.alarmed.subscribe(events.alarm)
    janitor.disk_filled.subscribe(lambda message: events.alarm("disk_full", message))
    settler.releasing.subscribe(dispatcher.expect_slot)
    settler.released.subscribe(dispatcher.wake)
    runs.held_back.subscribe(dispatcher.wake)
    settler.ending.subscribe(runs.expect_stop)  # before the watchdog, which may not know the job yet
    settler.ending.subscribe(watchdog.expect_stop)
    settler.ending.subscribe(dispatcher.expect_stop)
    watchdog.repaired.subscribe(dispatcher.wake)
    drain = Drain(health, store, dispatcher.wake, dispatcher.handing, own)
    drain.leaving.subscribe(events.end_all)
    drain.leaving.subscribe(sockets.end_all)
    drain.doing.append(storage.count_unstored)  # the box may never come back
    drain.listeners += events.count_streams, sockets.count
    alive = Alive(own, runs.are_running)
    runs.began.subscribe(lambda _job: alive.wake())
    host.listen(warmup_runs, dispatcher)
    host.listen_sockets(sockets)
    streams = connect_boxes(settings.fleet, store, membership, clock, events, sockets, runs)
    signatures = streams.signatures if streams is not None else None
    storage.join(membership, signatures)

    def take_up(recovery: Recovery) -> None:
        """The store's thread: the database is in use, and nothing has happened in it yet."""
        with contextlib.suppress(GuardError):  # the store has logged it; without them the waits are only guesses
            estimates.learn(store.list_recent_runs(KINDS).result())
        if recovery.requeued or recovery.settled or store.queued:
            log.info(
                "%d jobs wait, %d of them were running when the server ended; %d could not be repeated",
                store.queued,
                recovery.requeued,
                len(recovery.settled),
            )
        for job in recovery.settled:
            log.error("job %s failed: server_restarted", job.job_id, extra={"job_id": job.job_id})
        sender.wake()
        putter.wake()
        dispatcher.wake()

    store.opened.subscribe(take_up)
    if settings.watchdog.shutdown_grace_s:
        process.on_sigterm(drain.run, settings.watchdog.shutdown_grace_s)
    tasks: list[asyncio.Task[None]] = []  # asyncio itself keeps only weak references

    async def start(_application: web.Application) -> None:
        health.mark_serving()
        dispatcher.start()
        for endless in (faces.look_around, positions.run, sender.run, putter.run, supervisor.keep_telling, warmups.run):
            tasks.append(asyncio.create_task(endless()))
        tasks.extend([] if streams is None else [asyncio.create_task(streams.run())])
        tasks.extend(storage.start())
        tasks.append(asyncio.create_task(keep_shared(limits, store)))
        tasks.append(asyncio.create_task(keep_current(keys, access, sockets.hang_up)))
        watchdog.start()
        alive.start()
        janitor.start()
        gpus.start()
        busy.start()
        await asyncio.to_thread(doctor.remember)
        if fleet_view is not None:
            await asyncio.to_thread(fleet_view.tell_version)
        spare_collector()

    application.on_startup.append(start)
    # ComfyUI ends without telling aiohttp, so only atexit is left. Without it, too, the store loses nothing.
    atexit.register(process.close)
    atexit.register(janitor.close)  # runs before the line above, since it needs the store
    examined = (settings, os.environ, host, health, keys, janitor, chooser, templates, own, clock)
    doctor = Doctor(*examined, warmups.list_faults, membership)
    services = server_routes.Services(
        settings=settings,
        access=access,
        key_ring=KeyRing(key_place, keys, Rules(settings.webhooks), clock),
        host=host,
        admission=admission,
        fetcher=fetcher,
        retries=Retries(store, admission),
        refused=refused,
        templates=templates,
        jobs=jobs,
        events=events,
        inline=inline,
        outbox=outbox,
        health=health,
        faces=faces,
        drain=drain,
        janitor=janitor,
        uploads=uploads,
        files=files,
        stats=stats,
        machine=busy,
        bills=Bills(store, clock),
        alarms=alarms,
        limits=limits,
        quotas=quotas,
        exposition=exposition,
        doctor=doctor,
        downloads=Downloads(host, templates, os.environ, settings.janitor.floor_free_bytes, warmups.try_again),
        sockets=sockets,
        agents=Bridge(settings.policy.max_body_bytes),
        signatures=signatures,
        forwards=make_forwards(membership, member, signatures),
    )
    server_routes.register(routes, server_routes.ROUTES, services)
    if settings.native.mode == "guarded":
        backlog = Backlog(store, host, settler, jobs)
        store.opened.subscribe(lambda _recovery: backlog.load())
        store.changed.subscribe(backlog.follow)
        store.arrived.subscribe(backlog.follow)
        host.show_backlog(backlog)
    application.on_response_prepare.append(server_routes.leave_out_server)
    if settings.native.mode != "open":
        # Before ComfyUI's own middlewares, one of which answers every OPTIONS.
        application.middlewares.insert(0, server_routes.guard_native(services, server_routes.NATIVE))
    application.middlewares.insert(0, server_routes.guard_connections(application, services))
    store.serve(HOLDER, settings.watchdog.max_attempts, read_mark(own))
    log.info(
        "ComfyUI-Guarded is on: %s/guarded/ has the page; POST /guarded/prompt, %d at a time; texts for users are in "
        '"%s" where nobody asks for another language (messages.locale)',
        make_url(host.describe()),
        settings.queue.max_jobs,
        settings.messages.locale,
    )
    if settings.native.mode == "open" and is_reachable_from_elsewhere(host.describe()["listen"]):
        log.warning("%s %s", OPEN, CLOSE)
    if settings.access.trust_loopback is True and keys.has_active():
        log.warning("%s %s", TRUSTING, TRUST_LESS)
