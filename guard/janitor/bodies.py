"""What the janitor answers, as JSON."""

# Without `from __future__ import annotations`: compiling each annotation from its text would make a start slower.
from typing import Literal

from typing_extensions import TypedDict


class TallyBody(TypedDict):
    """Files, and their bytes together."""

    files: int
    bytes: int


class SweepBody(TypedDict):
    """What one sweep did; with `dry_run`, what it would have done."""

    started_at_ms: int
    duration_s: float
    dry_run: bool
    files: int
    bytes: int
    folders: int
    jobs: int
    deleted: dict[str, TallyBody]
    oldest: TallyBody
    kept: dict[str, TallyBody]
    skipped: int
    vanished: int
    errors: int
    error_samples: list[str]
    samples: list[str]


class DiskBody(TypedDict):
    """A disk: `full` lets no job in, `short` deletes the oldest files first."""

    path: str
    total_bytes: int
    free_bytes: int
    state: Literal["ok", "short", "full"]


class SweepTotals(TypedDict):
    """What the sweeps since the start have done together."""

    sweeps: int
    files: int
    bytes: int
    jobs: int
    errors: int


class DatabaseBody(TypedDict):
    """The job database: its file, what of it is free, the log beside it; the prompts that were deleted since the
    start."""

    bytes: int
    free_bytes: int
    log_bytes: int
    max_bytes: int
    deleted_prompts: int
    deleted_bytes: int


class NativeBody(TypedDict):
    """Files that no job has made: whether sweeps take them (`ask`: not before an operator has said so), and how many
    are old enough, outside temp; null until they are counted, and where they are swept."""

    sweep: bool | Literal["ask"]
    by_setting: bool
    files: int | None
    bytes: int | None


class JanitorBody(TypedDict):
    """How the janitor stands; `sweeps` are the last ones, newest first."""

    enabled: bool
    sweeping: bool
    first_start_ms: int
    adopted: bool
    native: NativeBody
    next_sweep_at_ms: int | None
    disks: list[DiskBody]
    database: DatabaseBody | None
    totals: SweepTotals
    sweeps: list[SweepBody]


class RoomBody(TypedDict):
    """The disk of a root."""

    total_bytes: int
    free_bytes: int


class CountBody(TypedDict):
    """The files of a root, and what the next sweep would free by age. Null until they are counted."""

    files: int | None
    bytes: int | None
    would_free_files: int | None
    would_free_bytes: int | None


class RootBody(RoomBody, CountBody):
    """A root: its disk, its files, and what the next sweep would free by age. Null until the files are counted."""
