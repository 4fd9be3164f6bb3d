"""Give jobs the shapes in which ComfyUI shows its prompts: queue rows, history entries, `/api/jobs`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from ..files.names import owner_folder, strip_owner_folder
from ..graph import find_workflow_id
from ..host_words import make_execution_error
from ..job import OPEN, Job, JobBody, JobState
from ..owners import hide, renew
from ..results.reported import fit_all
from ..store import Entry, Head
from .bodies import ExecutionError, HistoryEntry, HistoryStatus, ListedJob, ListedJobInFull, Status

RUNNING = frozenset({JobState.RUNNING, JobState.VALIDATING})
#: The statuses of `/api/jobs`, and the states that each stands for.
STATUSES: dict[Status, frozenset[JobState]] = {
    "pending": OPEN - RUNNING,
    "in_progress": RUNNING,
    "completed": frozenset({JobState.SUCCEEDED}),
    "failed": frozenset({JobState.FAILED}),
    "cancelled": frozenset({JobState.CANCELLED}),
}

#: ComfyUI's page shows these kinds of output, and files with these endings under any kind.
_SHOWN = frozenset({"images", "video", "audio", "3d", "text"})
_MODELS = (".obj", ".fbx", ".gltf", ".glb", ".usdz")
_TEXTS = (".txt", ".md", ".json")
_LONGEST_TEXT = 1024


def row(entry: Entry) -> list[Any]:
    """`[number, prompt_id, prompt, extra_data, outputs_to_execute]`, the prompt as its owner sent it.

    A prompt that is gone is an empty graph, which ComfyUI's page and other clients bear.
    """
    job = entry.job
    if entry.body is None:
        return bare_row(job.job_id, head(job))
    body = renew(entry.body)
    stored = json.loads(body)
    if owner_folder(job.owner).encode() in body:
        stored = strip_owner_folder(stored, job.owner)
    return _row(job.job_id, head(job), stored.get("prompt", {}), stored.get("extra_data") or {})


def head(job: Job) -> Head:
    return job.number, job.created_at_ms, job.client_id, job.outputs_to_execute, job.owner


def bare_row(job_id: str, about: Head) -> list[Any]:
    """The same without the prompt."""
    return _row(job_id, about, {}, {})


def _row(job_id: str, about: Head, prompt: Mapping[str, Any], extra_data: Mapping[str, Any]) -> list[Any]:
    number, created_at_ms, client_id, outputs_to_execute, _owner = about
    extra_data = {**extra_data, "create_time": created_at_ms}
    if client_id is not None:
        extra_data["client_id"] = client_id
    return [number, job_id, prompt, extra_data, list(outputs_to_execute)]


def queue(entries: list[Entry]) -> Iterable[tuple[str, Iterator[list[Any]]]]:
    """The members of ComfyUI's `/queue`."""
    for key, shows_running in (("queue_running", True), ("queue_pending", False)):
        yield key, (row(entry) for entry in entries if (entry.job.state in RUNNING) is shows_running)


def history_entry(entry: Entry, body: JobBody) -> HistoryEntry:
    """A settled job as an entry of ComfyUI's history, even if ComfyUI never ran it. `body`: the job as JSON."""
    job = entry.job
    prompt = row(entry)
    shown: HistoryEntry = {
        "prompt": prompt,
        "outputs": fit_all(job.result.outputs),
        "status": _status(job),
        "meta": {
            node_id: {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
            for node_id in job.result.outputs
            if node_id in prompt[2]
        },
        "guard": body,
    }
    if entry.body is None:
        shown["prompt_gone"] = True
    return shown


def item(job: Job, workflow_id: str | None) -> ListedJob:
    """A job as `/api/jobs` lists it."""
    outputs = list(_outputs(fit_all(job.result.outputs))) if job.state.settled else []
    listed: ListedJob = {
        "id": job.job_id,
        "status": next(name for name, states in STATUSES.items() if job.state in states),
        "priority": job.number,
        "create_time": job.created_at_ms,
        "outputs_count": sum("content" not in output for output in outputs),
        "previewable_outputs_count": sum(_rank(output) < 4 and "content" not in output for output in outputs),
    }
    if job.state.settled:
        if job.started_at_ms is not None:
            listed["execution_start_time"] = job.started_at_ms
        if job.settled_at_ms is not None:
            listed["execution_end_time"] = job.settled_at_ms
        if (error := _execution_error(job)) is not None:
            listed["execution_error"] = error
        if (preview := _preview(outputs)) is not None:
            listed["preview_output"] = preview
    if workflow_id is not None:
        listed["workflow_id"] = workflow_id
    return listed


def item_in_full(entry: Entry) -> ListedJobInFull:
    """A job as `/api/jobs/{id}` answers it."""
    _number, _id, prompt, extra_data, _outputs_to_execute = row(entry)
    workflow_id = find_workflow_id({"extra_data": extra_data})
    listed: ListedJobInFull = {**item(entry.job, workflow_id)}  # type: ignore[typeddict-item]  # mypy asks for all keys
    if entry.job.state.settled:
        listed["outputs"] = fit_all(entry.job.result.outputs)
        listed["execution_status"] = _status(entry.job)
        listed["workflow"] = {"prompt": prompt, "extra_data": extra_data}
        if entry.body is None:
            listed["prompt_gone"] = True
    return listed


def ending(job: Job) -> tuple[str, Mapping[str, Any]]:
    """How a settled job ended, as ComfyUI's event and its data."""
    if (error := _execution_error(job)) is not None:
        return "execution_error", error
    return "execution_success", {"prompt_id": job.job_id, "timestamp": job.settled_at_ms}


def list_endings(job: Job) -> list[tuple[str, Mapping[str, Any]]]:
    """What tells a client the end of a settled job: of a run that was interrupted the error, and then that."""
    event, data = ending(job)
    ran = job.started_at_ms is not None
    return [
        (event, data),
        *([("execution_interrupted", _interruption(job, data))] if ran and _was_interrupted(job) else ()),
    ]


def _was_interrupted(job: Job) -> bool:
    return job.state is JobState.CANCELLED or (job.verdict is not None and job.verdict.code == "interrupted")


def _interruption(job: Job, error: Mapping[str, Any]) -> Mapping[str, Any]:
    node = {name: error[name] for name in ("node_id", "node_type", "executed")}
    return {"prompt_id": job.job_id, "timestamp": job.settled_at_ms, **node}


def _status(job: Job) -> HistoryStatus:
    succeeded = job.state is JobState.SUCCEEDED
    return {
        "status_str": "success" if succeeded else "error",
        "completed": succeeded,
        "messages": list(_messages(job)),
    }


def _messages(job: Job) -> Iterator[list[Any]]:
    """Pairs of event and data. An interrupted job has an error first: some clients do not know interrupts."""
    if job.started_at_ms is not None:
        yield ["execution_start", {"prompt_id": job.job_id, "timestamp": job.started_at_ms}]
    event, data = ending(job)
    yield [event, data]
    if _was_interrupted(job):
        yield ["execution_interrupted", _interruption(job, data)]


def _execution_error(job: Job) -> ExecutionError | None:
    verdict = job.verdict
    if verdict is None or verdict.code is None:
        return None
    message = hide(verdict.message)
    error = make_execution_error(job.job_id, verdict.code, message, verdict.details, job.settled_at_ms)
    return cast(ExecutionError, error)


def _outputs(outputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every output that ComfyUI counts or could show, with its node and its kind."""
    for node_id, output in outputs.items():
        for kind, values in output.items() if isinstance(output, dict) else ():
            if kind == "animated" or not isinstance(values, list):
                continue
            for value in values:
                if isinstance(value, dict):
                    yield {"mediaType": kind, **value, "nodeId": node_id}
                elif isinstance(value, str) and value.lower().endswith(_MODELS):
                    model = {"filename": value, "type": "output", "subfolder": "", "mediaType": "3d"}
                    yield {**model, "nodeId": node_id}
                elif kind == "text":
                    text = str(value)
                    cut = {"truncated": True} if len(text) > _LONGEST_TEXT else {}
                    yield {"content": text[:_LONGEST_TEXT], **cut, "nodeId": node_id, "mediaType": kind}


def _rank(output: Mapping[str, Any]) -> int:
    """What ComfyUI's page shows first: 0 a saved file, 1 a temporary one, 2 a text file, 3 a text; 4 not at all."""
    name = str(output.get("filename", "")).lower()
    if "content" in output:
        return 3
    if output["mediaType"] == "text" or name.endswith(_TEXTS):
        return 2
    media = str(output.get("format") or "").startswith(("video/", "audio/"))
    if output["mediaType"] in _SHOWN or media or name.endswith(_MODELS):
        return 0 if output.get("type") == "output" else 1
    return 4


def _preview(outputs: list[dict[str, Any]]) -> dict[str, Any] | None:
    best = min(outputs, key=_rank, default=None)
    return best if best is not None and _rank(best) < 4 else None
