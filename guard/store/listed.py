"""Read jobs for lists. A page has a size as well as a length, and what is large of a job is not whole in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ..job import Job
from .database import Database, look_up
from .rows import COLUMNS, read_job

#: The jobs of one page take so many bytes at most, as the longest of our answers shows them; one job always fits.
PAGE_BYTES = 8 * 2**20
#: … and so many are read for it.
READ_BYTES = 4 * PAGE_BYTES
#: What a reader of the events gets at once: there may be many, and whoever does not read on keeps it.
CHANGES_BYTES = 2**17
#: What a job's nodes reported, its parameters and the details of its verdict are whole in a list up to this size each.
WHOLE_BYTES = 16 * 2**10
#: Of a longer one, texts are cut to this length; where that does not help, only the files are left.
TEXT_CHARS = 1000
#: What an answer says of any job.
_JOB_BYTES = 1000

_NAMES = COLUMNS.split(", ")
_RESULT, _VERDICT, _PARAMETERS = (_NAMES.index(name) for name in ("result", "verdict", "parameters"))
_OTHERS = tuple(_NAMES.index(name) for name in ("metadata", "outputs_to_execute", "results", "puts"))


class Page:
    """One page of a list, as it fills."""

    def __init__(self, most_bytes: int | None = None) -> None:
        self.left = PAGE_BYTES if most_bytes is None else most_bytes
        self._unread = READ_BYTES
        self._is_empty = True

    def take(self, row: tuple[Any, ...]) -> Job | None:
        """The job of a row of `COLUMNS`, without what is large of it; None where the page has no room for it."""
        size = sum(len(row[column] or "") for column in (_RESULT, _VERDICT, _PARAMETERS, *_OTHERS))
        if not self._is_empty and size > self._unread:
            return None
        job = read_job(row)
        shortened: dict[str, Any] = {}
        if len(row[_RESULT] or "") > WHOLE_BYTES and _is_long(job.result.outputs):
            shortened["result"] = job.result.evolve(outputs=shorten_outputs(job.result.outputs, WHOLE_BYTES))
        if len(row[_PARAMETERS]) > WHOLE_BYTES:
            shortened["parameters"] = _shorten_object(job.parameters)
        if job.verdict is not None and len(row[_VERDICT]) > WHOLE_BYTES:
            shortened["verdict"] = job.verdict.evolve(details=_shorten_object(job.verdict.details))
        if shortened:
            job = job.evolve(**shortened, shortened=True)
        told = _JOB_BYTES + sum(len(row[column] or "") for column in _OTHERS) + _measure(job, row)
        if not self._is_empty and told > self.left:
            return None
        self._unread -= size
        self.left -= told
        self._is_empty = False
        return job

    def read(self, db: Database, numbers: Iterable[int]) -> list[Job]:
        """The first of the jobs of these numbers, as far as there is room."""
        jobs = []
        for row in look_up(db, COLUMNS, "jobs", "number", list(numbers)):
            if (job := self.take(row)) is None:
                break
            jobs.append(job)
        return jobs


def _measure(job: Job, row: tuple[Any, ...]) -> int:
    if not job.shortened:
        # ComfyUI's history shows outputs and verdict twice.
        return 2 * len(row[_RESULT] or "") + 2 * len(row[_VERDICT] or "") + len(row[_PARAMETERS])
    artifacts = [artifact.body(job.job_id) for artifact in job.result.artifacts]
    details = job.verdict.details if job.verdict is not None else {}
    return len(json.dumps([job.result.outputs, job.result.outputs, artifacts, details, details, job.parameters]))


def _is_long(value: Any) -> bool:
    return len(json.dumps(value)) > WHOLE_BYTES


def _shorten_object(value: dict[str, Any]) -> dict[str, Any]:
    short: dict[str, Any] = cut_texts(value, TEXT_CHARS)
    return {} if _is_long(short) else short


def shorten_outputs(outputs: dict[str, Any], most_bytes: int) -> dict[str, Any]:
    """The outputs with their texts cut; where these are still longer than `most_bytes`, the files among them."""
    short: dict[str, Any] = cut_texts(outputs, TEXT_CHARS)
    for shorter in (short, keep_files(outputs)):
        if len(json.dumps(shorter)) <= most_bytes:
            return shorter
    return {}  # names can be long as well


def cut_texts(value: Any, most_chars: int) -> Any:
    """Copy JSON with its long texts cut; each says how long it was."""
    if isinstance(value, str) and len(value) > most_chars:
        return f"{value[:most_chars]}… ({len(value)} characters)"
    if isinstance(value, dict):
        return {key: cut_texts(item, most_chars) for key, item in value.items()}
    if isinstance(value, list):
        return [cut_texts(item, most_chars) for item in value]
    return value


def keep_files(outputs: dict[str, Any]) -> dict[str, Any]:
    """The files among ComfyUI's outputs, without what nodes say of them in keys of their own."""
    kept: dict[str, Any] = {}
    for node_id, output in outputs.items():
        for key, items in output.items() if isinstance(output, dict) else ():
            files = [
                {name: item[name] for name in ("filename", "subfolder", "type") if name in item}
                for item in (items if isinstance(items, list) else ())
                if isinstance(item, dict) and "filename" in item
            ]
            if files:
                kept.setdefault(node_id, {})[key] = files
    return kept
