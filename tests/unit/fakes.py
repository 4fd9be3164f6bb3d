"""A scripted host, a store whose disk can be made to fail, and short ways to make jobs and settings."""

import asyncio
import json
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn

from comfyui_guarded.guard.cost.values import Media
from comfyui_guarded.guard.errors import DiskFullError
from comfyui_guarded.guard.faces.loaded import Opened
from comfyui_guarded.guard.faces.required import Wanted
from comfyui_guarded.guard.files.uploads import Uploads
from comfyui_guarded.guard.host import (
    Backlog,
    Declared,
    Folders,
    HostListener,
    Names,
    Refusal,
    Rehearsal,
    SocketListener,
    Supplier,
)
from comfyui_guarded.guard.job import NewJob
from comfyui_guarded.guard.settings import Settings, UploadsSettings
from comfyui_guarded.guard.store import SqliteStore
from comfyui_guarded.guard.store.table_store import TableStore
from comfyui_guarded.guard.weight import ModelWeight

#: Answers to wait for; long, so that only a hang reaches it.
LONG_S = 180.0


class SetClock:
    """Time as the test says it is."""

    def __init__(self, at_ms: int) -> None:
        self.ms = at_ms

    def now_ms(self) -> int:
        return self.ms

    def aging_ms(self) -> int:
        return self.ms

    def compare(self, newest_ms: int) -> None:
        pass

    def monotonic_s(self) -> float:
        return self.ms / 1000


async def until(holds: Callable[[], object]) -> None:
    for _ in range(int(LONG_S / 0.005)):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


GRAPH: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


def settings(**sections: dict[str, Any]) -> Settings:
    """The defaults, with some of them changed: `settings(queue={"max_jobs": 2})`."""
    return Settings.model_validate(sections)


def uploads(input_folder: Callable[[], Path], **limits: int) -> Uploads:
    return Uploads(UploadsSettings.model_validate(limits), input_folder)


def new_id() -> str:
    return str(uuid.uuid4())


def new_job(job_id: str | None = None, owner: str = "bot", **facts: Any) -> NewJob:
    defaults: dict[str, Any] = {
        "body": json.dumps({"prompt": GRAPH}).encode(),
        "created_at_ms": 1_000,
        "timeout_s": 600.0,
        "locale": "en",
    }
    return NewJob(job_id=job_id or new_id(), owner=owner, **{**defaults, **facts})


class FakeHost:
    """Says what it was told to say, and remembers what it was asked."""

    def __init__(self) -> None:
        self.alive = True
        self.rehearsal = Rehearsal(None, ("2",))
        self.missing: list[str] = []
        #: Node class → the types of its inputs.
        self.types: dict[str, dict[str, str]] = {}
        #: Node class → (type, name) of its outputs.
        self.outputs: dict[str, tuple[tuple[str, str], ...]] = {}
        #: Node class → its inputs that name files.
        self.declared: dict[str, dict[str, Names]] = {"LoadImage": {"image": Names.FILE}}
        #: What `dispatch` answers: a refusal, an exception to raise, or None for "queued".
        self.answer: Refusal | BaseException | None = None
        #: Runs while `dispatch` is under way.
        self.during_dispatch: Callable[[str], Awaitable[None]] | None = None
        self.during_rehearsal: Callable[[], Awaitable[None]] | None = None
        self.rehearsed: list[dict[str, Any]] = []
        self.dispatched: list[tuple[str, str, dict[str, Any]]] = []
        #: The jobs that it has something kept for, those that were put in front, and what runs meanwhile.
        self.ready: set[str] = set()
        self.put_first: list[tuple[str, str]] = []
        self.during_put: Callable[[str], object] | None = None
        #: The worker has let go of a prompt, and has not asked for the next.
        self.between = False
        #: For how long the worker has been away, and whether a prompt waits in the host's own queue.
        self.away_s = 0.0
        self.waits = False
        #: The prompts that it has; a test takes them out.
        self.holds: set[str] = set()
        self.forgotten: list[str] = []
        self.stopped: list[str] = []
        self.announced: list[tuple[str, str | None, str]] = []
        self.shown_on_nodes: list[tuple[str, dict[str, Any]]] = []
        self.listener: HostListener | None = None
        self.places = Folders(None, None, None)
        self.injected: list[str] = []
        #: What `replace_worker` was asked to leave behind (None: a dead one), and its answer.
        self.replaced: list[tuple[str | None, str]] = []
        self.can_replace = True
        self.hung = 0
        self.queue_changes = 0
        self.running_nodes: dict[str, str] = {}
        self.native_sockets: dict[str, list[str | bytes]] = {}
        #: What clients said that they can do, by the id that the host knows.
        self.flags: dict[str, Any] = {}
        self.freed = 0
        #: Model file → how the host lists it; `None` in place of all: whatever is asked for is there.
        self.models: dict[str, str] | None = None
        #: Where model files lie; those that are not here are taken for whole.
        self.model_files: dict[str, Path] = {}
        self.vram_bytes: int | None = None
        #: Model file → what it takes.
        self.weights: dict[str, ModelWeight] = {}

    def listen(self, listener: HostListener, supplier: Supplier) -> None:
        self.listener, self.supplier = listener, supplier

    def prepare(self, job_id: str, rehearsal: Rehearsal, size: int) -> Callable[[], None]:
        return lambda: self.ready.add(job_id)

    def is_ready(self, job_id: str) -> bool:
        return job_id in self.ready

    def discard(self, job_id: str) -> None:
        self.ready.discard(job_id)

    def put(self, job_id: str, client_id: str, folder: str) -> bool:
        if self.during_put is not None:
            self.during_put(job_id)
        if isinstance(self.answer, BaseException):
            raise self.answer
        if job_id not in self.ready:
            return False
        self.put_first.append((job_id, client_id))
        self.holds.add(job_id)
        return True

    def is_between(self) -> bool:
        return self.between

    async def rehearse(self, body: dict[str, Any], timeout_s: float) -> Rehearsal:
        self.rehearsed.append(json.loads(json.dumps(body)))
        if self.during_rehearsal is not None:
            await self.during_rehearsal()
        return self.rehearsal

    async def dispatch(
        self,
        job_id: str,
        client_id: str,
        body: dict[str, Any],
        folder: str,
        *,
        first: bool = False,
        hidden: bool = False,
    ) -> Refusal | None:
        self.dispatched.append((job_id, client_id, json.loads(json.dumps(body))))
        if self.during_dispatch is not None:
            await self.during_dispatch(job_id)
        if isinstance(self.answer, BaseException):
            raise self.answer
        if self.answer is None:
            self.holds.add(job_id)
        return self.answer

    def held(self) -> frozenset[str]:
        return frozenset(self.holds)

    def let_go(self, job_id: str) -> None:
        self.forgotten.append(job_id)

    def stop(self, job_id: str) -> None:
        self.stopped.append(job_id)

    def inject(self, prompt_id: str) -> bool:
        self.injected.append(prompt_id)
        return True

    def has_waiting(self) -> bool:
        return self.waits

    def worker_away_s(self) -> float:
        return self.away_s

    def replace_worker(self, prompt_id: str | None, error: Any) -> bool:
        """As the seam does it: the prompt is closed, so that the listener hears of its release."""
        if not self.can_replace:
            return False
        self.replaced.append((prompt_id, error.code))
        self.alive = True
        if prompt_id is not None:
            self.holds.discard(prompt_id)
            self.hung += 1
            assert self.listener is not None
            listener = self.listener
            if any(prompt_id == job_id for job_id, _client, _body in self.dispatched):
                listener.left_behind(prompt_id, error, lambda _verdict: None)
                listener.released(prompt_id)
            else:
                listener.native_finished(prompt_id)
        return True

    def hung_workers(self) -> int:
        return self.hung

    def free_memory(self) -> None:
        self.freed += 1

    def announce(self, job_id: str, client_id: str | None, error: Any, was_interrupted: bool = False) -> None:
        self.announced.append((job_id, client_id, error.code))

    def show_on_node(self, node_id: str, facts: dict[str, Any]) -> None:
        self.shown_on_nodes.append((node_id, facts))

    def show_backlog(self, backlog: Backlog) -> None:
        self.backlog = backlog

    def queue_changed(self) -> None:
        self.queue_changes += 1

    def listen_sockets(self, listener: SocketListener) -> None:
        self.sockets = listener

    def executing(self, sid: str) -> str | None:
        return self.running_nodes.get(sid)

    def find_flags(self, sid: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.flags.get(sid, {})
        return found

    def negotiate(self, sid: str, flags: Any) -> dict[str, Any] | None:
        self.flags[sid] = flags
        return {"supports_preview_metadata": True}

    def socket_left(self, sid: str) -> None:
        self.flags.pop(sid, None)

    def mark_names(self, name_box: Any) -> None:
        self.name_box = name_box

    def has_socket(self, sid: str) -> bool:
        return sid in self.native_sockets

    def tell_socket(self, sid: str, messages: Any) -> None:
        if sid in self.native_sockets:
            self.native_sockets[sid] += messages

    def declaration(self, class_type: str) -> Declared:
        return Declared(self.types.get(class_type, {}), self.outputs.get(class_type, ()))

    def file_inputs(self, class_type: str) -> dict[str, Names]:
        return self.declared.get(class_type, {})

    async def native(self, path: str, **match_info: str) -> bytes:
        raise AssertionError("the core does not ask for it")

    def missing_classes(self, prompt: Any) -> list[str]:
        return self.missing

    def find_model(self, folder: str, file: str) -> tuple[str, Path | None] | None:
        name = file if self.models is None else self.models.get(file)
        return (name, self.model_files.get(file)) if name is not None else None

    def weigh_model(self, name: str) -> ModelWeight | None:
        return self.weights.get(name)

    def video_memory(self) -> int | None:
        return self.vram_bytes

    def worker_alive(self) -> bool:
        return self.alive

    def file(self, kind: str, subfolder: str, filename: str) -> Path | None:
        """As the seam does it: where it really lies, if that is inside."""
        root = getattr(self.places, kind, None)
        if root is None:
            return None
        base, path = Path(os.path.realpath(root)), Path(os.path.realpath(root / subfolder / filename))
        return path if base in path.parents else None

    def folders(self) -> Folders:
        return self.places

    def input_folder(self) -> Path:
        assert self.places.input is not None, "nobody looks at pictures here"
        return self.places.input

    def model_folders(self) -> list[Path]:
        return []

    def own_directory(self) -> Path:
        raise AssertionError("the core does not ask for it")

    def describe(self) -> dict[str, Any]:
        return {"name": "fake", "version": "0"}


class FakeFaces:
    """A face gate that says what it was told to say, and remembers what it was asked."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.media: dict[str, Media] = {}
        self.asked: list[tuple[Any, Any, Any]] = []

    async def open_loaded(self, graph: Any, outputs: Any, owner: str) -> Opened:
        return Opened(self.media, ())

    async def check_prompt(self, graph: Any, outputs: Any, asked: Any, owner: str) -> tuple[Wanted, ...]:
        self.asked.append((graph, outputs, asked))
        if self.error is not None:
            raise self.error
        return ()


class Gone(BaseException):
    """The fake process has ended; nothing of ours may catch this."""


class FakeProcess:
    """Says how the process would have ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self.armed_s: list[float] = []
        #: Why a restart fails, if it does, and how the last one did.
        self.fails: str | None = None
        self.failure: str | None = None

    def restart(self, reason: str) -> None:
        self.ended.append(("restart", reason))
        if self.fails is None:
            raise Gone
        self.failure = self.fails

    def exit(self, reason: str) -> NoReturn:
        self.ended.append(("exit", reason))
        raise Gone

    def end_if_silent(self, after_s: float) -> None:
        self.armed_s.append(after_s)


class Failing(TableStore):
    """The real store; the operations named in `failing` find the disk full."""

    failing: frozenset[str] = frozenset()

    def _failed(self) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(DiskFullError("The disk with the job database is full."))
        return future

    def start(self, *args: Any, **kwargs: Any) -> Any:
        return self._failed() if "start" in self.failing else super().start(*args, **kwargs)

    def validate(self, *args: Any, **kwargs: Any) -> Any:
        return self._failed() if "validate" in self.failing else super().validate(*args, **kwargs)

    def settle(self, *args: Any, **kwargs: Any) -> Any:
        return self._failed() if "settle" in self.failing else super().settle(*args, **kwargs)

    def release(self, *args: Any, **kwargs: Any) -> Any:
        return self._failed() if "release" in self.failing else super().release(*args, **kwargs)

    def flush(self, timeout_s: float = LONG_S) -> bool:
        """Return once everything handed in is done, and everybody told."""
        # Twice, for what a callback handed in meanwhile.
        return super().flush(timeout_s) and super().flush(timeout_s)


class FailingStore(Failing, SqliteStore):
    pass
