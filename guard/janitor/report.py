"""What a sweep did, or would have done."""

from __future__ import annotations

from dataclasses import dataclass, field

from .bodies import SweepBody, TallyBody

#: Paths and errors that a report quotes.
SAMPLES = 20


@dataclass
class Tally:
    files: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.files += 1
        self.bytes += size

    def body(self) -> TallyBody:
        """As JSON."""
        return {"files": self.files, "bytes": self.bytes}


@dataclass
class Report:
    """What one sweep did; with `dry_run`, what it would have done.

    Attributes:
        seen: by root, every file that was looked at, before anything was deleted.
        seen_folders: below the roots, or below the folder that was walked.
        deleted: by root. A file with a second name elsewhere (a hard link) frees nothing and counts no bytes.
        kept: by reason: `young`; `existing`, there before the first start; `keep`, a pattern; `in_use`, named by an
            open job; `unread`, not fetched yet; `native`, made by no job, where such are not swept; `off`; `special`,
            links and what is no file. Of files that are too young for the sweep it does not say whether anything else
            keeps them too.
        oldest: those of `deleted` that went because the disk was short.
        skipped: folders not entered: foreign (models, other roots), mounts, links to folders, too deep.
        vanished: gone before the sweep came to them.
        jobs: settled jobs forgotten.
        samples: the first few paths, of a dry run only.
    """

    started_at_ms: int
    dry_run: bool
    duration_s: float = 0.0
    seen: dict[str, Tally] = field(default_factory=dict)
    seen_folders: int = 0
    deleted: dict[str, Tally] = field(default_factory=dict)
    oldest: Tally = field(default_factory=Tally)
    folders: int = 0
    kept: dict[str, Tally] = field(default_factory=dict)
    skipped: int = 0
    vanished: int = 0
    jobs: int = 0
    errors: int = 0
    error_samples: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)

    @property
    def files(self) -> int:
        return sum(tally.files for tally in self.deleted.values())

    @property
    def bytes(self) -> int:
        return sum(tally.bytes for tally in self.deleted.values())

    def keep(self, reason: str, size: int) -> bool:
        """Count a file that stays; False, since its folder is not empty then."""
        self.kept.setdefault(reason, Tally()).add(size)
        return False

    def add_error(self, what: str, error: object) -> None:
        """Count an error; `what`: the path that it is about; "" for none."""
        self.errors += 1
        if len(self.error_samples) < SAMPLES:
            said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            self.error_samples.append(f"{escape(what)}: {said}" if what else said)

    def add_file_error(self, path: str, error: OSError) -> bool:
        """Count a file that could not be handled; return whether it is gone, which is no error."""
        if isinstance(error, FileNotFoundError):
            self.vanished += 1
            return True
        self.add_error(path, error)
        return False

    def body(self) -> SweepBody:
        """As JSON."""

        def tallies(by_name: dict[str, Tally]) -> dict[str, TallyBody]:
            return {name: tally.body() for name, tally in by_name.items() if tally.files}

        return {
            "started_at_ms": self.started_at_ms,
            "duration_s": round(self.duration_s, 3),
            "dry_run": self.dry_run,
            "files": self.files,
            "bytes": self.bytes,
            "folders": self.folders,
            "jobs": self.jobs,
            "deleted": tallies(self.deleted),
            "oldest": self.oldest.body(),
            "kept": tallies(self.kept),
            "skipped": self.skipped,
            "vanished": self.vanished,
            "errors": self.errors,
            "error_samples": self.error_samples,
            "samples": self.samples,
        }


def escape(path: str) -> str:
    """Make a path fit for a terminal, a log line and JSON, whatever bytes are in it."""
    printable = path.isprintable() and not any("\ud800" <= letter <= "\udfff" for letter in path)
    return path if printable else ascii(path)[1:-1]


def summarize(report: Report) -> str:
    """Sum a sweep up in one line, for a log or a terminal."""
    verb = "would delete" if report.dry_run else "deleted"
    kept = ", ".join(f"{tally.files} {reason}" for reason, tally in sorted(report.kept.items()) if tally.files)
    parts = [f"{verb} {report.files} files ({report.bytes} bytes) and {report.folders} empty folders"]
    if report.oldest.files:
        parts.append(f"{report.oldest.files} of them because the disk is short of space")
    if report.jobs:
        parts.append(f"forgot {report.jobs} jobs")
    if kept:
        parts.append(f"kept {kept}")
    if report.errors:
        parts.append(f"{report.errors} errors, the first: {report.error_samples[0]}")
    return f"janitor: {'; '.join(parts)}; {report.duration_s:.1f} s"
