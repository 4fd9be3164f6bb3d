"""Everything that app.py wires, on a fake host."""

from concurrent.futures import Future

from unit.fakes import LONG_S, FakeProcess, new_job, settings

from comfyui_guarded.guard.access.client_ids import ClientIds
from comfyui_guarded.guard.callers.estimate import Estimates
from comfyui_guarded.guard.callers.jobs import Jobs
from comfyui_guarded.guard.depot.results import Results
from comfyui_guarded.guard.events.stream import Events
from comfyui_guarded.guard.job import Kind
from comfyui_guarded.guard.life.dispatcher import Dispatcher
from comfyui_guarded.guard.life.health import Health
from comfyui_guarded.guard.life.reconcile import Reconciler
from comfyui_guarded.guard.life.returns import Returns
from comfyui_guarded.guard.life.runs import Runs
from comfyui_guarded.guard.life.secrets import Secrets
from comfyui_guarded.guard.life.settle import Settler
from comfyui_guarded.guard.life.watchdog import Watchdog
from comfyui_guarded.guard.store import Run


class Machine:
    """The test turns the wheels."""

    def __init__(self, store, host, clock, folder, face_classes=(), **sections):
        self.store, self.host, self.clock = store, host, clock
        self.settings = settings(**sections)
        self.events, self.secrets = Events(store), Secrets()
        self.health = Health(host, store)
        self.health.mark_serving()
        self.client_ids = ClientIds(b"key" * 11)
        stalled_after_s = self.settings.store.stalled_after_s
        self.settler = Settler(store, host, self.secrets, self.client_ids, clock, stalled_after_s)
        self.health.watch("store stalled", "The job database has written nothing for a while.", self.settler.is_stalled)
        self.process = FakeProcess()
        self.watchdog = Watchdog(self.settings, store, host, self.health, self.settler, self.process, clock)
        self.quarantine = folder / "quarantine"
        parts = (self.settings, store, host, self.settler, self.watchdog, self.events, self.quarantine)
        self.returns = Returns(store if hasattr(store, "put_back") else None, self.settler)
        self.runs = Runs(*parts, face_classes=face_classes, returns=self.returns)
        self.dispatcher = Dispatcher(
            self.settings.queue,
            store,
            host,
            self.health,
            self.settler,
            self.runs,
            self.secrets,
            self.client_ids,
            "local",
            returns=self.returns,
        )
        self.reconciler = Reconciler(store, host, self.settler, self.runs, self.dispatcher)
        self.estimates = Estimates(clock, [Run(Kind("", "known"), 10_000)] * 3)
        self.jobs = Jobs(self.settings.queue, store, self.settler, self.events, self.estimates, Results(host))
        store.changed.subscribe(self.estimates.follow)
        store.changed.subscribe(self.jobs.follow)
        store.changed.subscribe(self.events.follow)
        store.changed.subscribe(self.dispatcher.follow)
        self.settler.ending.subscribe(self.runs.expect_stop)
        self.settler.ending.subscribe(self.watchdog.expect_stop)
        self.settler.ending.subscribe(self.dispatcher.expect_stop)
        self.settler.releasing.subscribe(self.dispatcher.expect_slot)
        self.settler.released.subscribe(self.dispatcher.wake)
        self.runs.held_back.subscribe(self.dispatcher.wake)
        self.watchdog.turned.subscribe(self.dispatcher.supervise)
        self.watchdog.turned.subscribe(self.reconciler.turn)
        self.watchdog.turned.subscribe(self.returns.turn)
        host.listen(self.runs, self.dispatcher)

    def submit(self, **facts):
        facts.setdefault("created_at_ms", self.clock.now_ms())
        return self.store.submit(new_job(**facts), 10**6).result(LONG_S).job.job_id

    async def dispatch(self, **facts):
        job_id = self.submit(**facts)
        assert await self.dispatcher.turn()
        return job_id

    async def run(self, **facts):
        job_id = await self.dispatch(**facts)
        assert self.runs.started(job_id)
        return job_id

    def turn(self, after_s=0.0):
        """The watchdog's look, so many seconds from now."""
        return self.watchdog.turn(self.clock.monotonic_s() + after_s)

    def job(self, job_id):
        self.store.flush()
        return self.store.get(job_id).result(LONG_S)

    def ended(self, job_id):
        job = self.job(job_id)
        return job.state.value, job.verdict.code if job.verdict else None

    def leased(self):
        self.store.flush()
        return self.store.count_jobs().result(LONG_S).leased

    def finish(self, job_id, outcome):
        """What the worker does with a run that is over; waits for the verdict that the host is to tell.

        `outcome` None: the host's report of it cannot be read.
        """
        told = Future()
        if outcome is None:
            self.runs.unreadable(job_id, told.set_result)
        else:
            self.runs.finished(job_id, outcome, told.set_result)
        return told.result(LONG_S)
