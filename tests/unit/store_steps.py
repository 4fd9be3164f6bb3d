"""Short ways to take a job through the store."""

import threading

from unit.fakes import LONG_S, new_job

from comfyui_guarded.guard.job import SUCCESS, JobState, Verdict

CANCELLED = Verdict(JobState.CANCELLED, "cancelled", "The job was cancelled.")


def submit(store, job_id=None, *, max_queued=10**9, key=None, **facts):
    return store.submit(new_job(job_id, **facts), max_queued, key).result(LONG_S)


def claim(store, max_jobs=1):
    claimed = store.claim("local", max_jobs).result(LONG_S)
    return claimed.job.job_id if claimed is not None else None


def claim_all(store):
    order = []
    while (job_id := claim(store, 10**9)) is not None:
        order.append(job_id)
    return order


def run_to_success(store, job_id, result=None):
    store.start(job_id).result(LONG_S)
    store.validate(job_id).result(LONG_S)
    settled = store.settle(job_id, SUCCESS, result).result(LONG_S)
    store.release(job_id).result(LONG_S)
    return settled


class Held:
    """Keeps the store's writer busy, so that what is handed in meanwhile shares one commit; with `read` its reader."""

    def __init__(self, store, way="write"):
        self._go, holding = threading.Event(), threading.Event()
        self._done = getattr(store._engine, way)(lambda _db: (holding.set(), self._go.wait(LONG_S)))
        assert holding.wait(LONG_S)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self._go.set()
        self._done.result(LONG_S)
