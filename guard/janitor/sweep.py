"""One pass over the roots: delete what is too old."""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from ..errors import GuardError
from .folder import HANDLES, Folder
from .hidden import Hidden
from .in_use import InUse, fold, make_keys
from .known import Known, wait_for
from .records import Records
from .report import SAMPLES, Report, Tally, escape
from .rules import Root, Rules
from .walk import Candidate, Visitor, Walk

log = logging.getLogger("guarded.janitor")

#: Forget this many jobs in one commit, so that other commits wait a few ms at most.
FORGET = 200
#: So many folders are remembered that a sweep has deleted something from.
THINNED = 10_000
#: So many prompts of open jobs are asked for at once.
BODIES = 1000


class Stopped(Exception):
    """The server is ending."""


class Sweep:
    """One pass; use once. The janitor's thread, or the command line."""

    def __init__(
        self,
        rules: Rules,
        *,
        now_s: float,
        past_until_s: float,
        report: Report,
        in_use: InUse,
        records: Records | None,
        stopped: Callable[[], bool] = lambda: False,
        on_delete: Callable[[str], None] | None = None,
        handles: bool = HANDLES,
        blind_after_s: float = math.inf,
        native: bool = True,
        thinned: dict[str, None] | None = None,
    ) -> None:
        """
        Args:
            native: also delete what no job has made, outside temp.
            thinned: the folders that sweeps have deleted something from, so that those are ours to delete.
            past_until_s: leave alone what was modified and created before that time; 0: nothing.
            blind_after_s: when nobody has been able to read the job database for so long, do without: every job that
                waits in it is overdue by then, and needs no file any more.
        """
        self.rules = rules
        self.now_s = now_s
        self._past_until_s = past_until_s
        self.report = report
        self.in_use = in_use
        self._records = records
        self._stopped = stopped
        self._on_delete = on_delete
        self.handles = handles
        self._blind_after_s = blind_after_s
        self._is_blind = False
        self._debug = log.isEnabledFor(logging.DEBUG)
        unread_since_ms = int((now_s - rules.settings.unread_max_age_s) * 1000)
        self.known = Known(records, unread_since_ms, native)
        self.dry_run = report.dry_run
        given = {} if thinned is None else thinned
        self._thinned = dict(given) if report.dry_run else given
        self.by_age = _ByAge(now_s, self)
        #: What a dry run would have freed so far, by device.
        self.pretended: dict[int, int] = {}

    def run(self, *more: Callable[[Sweep], None], forgets: bool = True) -> None:
        """Sweep, and then do `more`, as long as it is known what is in use. Then forget jobs that ended long ago.

        Raises Stopped, and GuardError where the store cannot say what is in use; then nothing is deleted.
        """
        with self.in_use.sweep():
            try:
                self._learn_what_is_in_use()
            except GuardError as error:
                if self._records is None or self._records.unreadable_s < self._blind_after_s:
                    raise
                self._is_blind = True
                self.known.go_blind()
                self.report.add_error("", error)
            for root in self.rules.roots:
                # Inputs are uploaded for jobs that are yet to come.
                if not (self._is_blind and "input" in root.names):
                    self.walk(root, self.by_age)
                    hidden = Hidden(self.by_age, self.rules, self.report, self._past_until_s, self.handles)
                    for paths in self.known.list_made(root, BODIES):
                        self.check_stopped()
                        hidden.sweep(root, paths)
            for go_on in more if not self._is_blind else ():
                go_on(self)
        if forgets and not self._is_blind:
            self._forget()

    def longest_age_s(self, max_age_s: float) -> float:
        """The age that counts. Without the database, any file may be a result that nobody has fetched."""
        settings = self.rules.settings
        return max(max_age_s, settings.settle_s, settings.unread_max_age_s if self._is_blind else 0.0)

    @contextmanager
    def informed(self) -> Iterator[None]:
        """Know during the block what is in use. Raises GuardError where the store cannot say."""
        with self.in_use.sweep():
            self._learn_what_is_in_use()
            yield

    def walk(self, root: Root, visitor: Visitor, report: Report | None = None, below: str = "") -> None:
        """Walk the root, or the folder `below` in it alone."""
        walk = Walk(
            self.rules,
            visitor,
            report or self.report,
            past_until_s=self._past_until_s,
            check_stopped=self.check_stopped,
            handles=self.handles,
        )
        walk.run(root, below)

    # What is in use. -----------------------------------------------------------------------------------------

    def _learn_what_is_in_use(self) -> None:
        if self._records is None:
            return
        self.known.learn()
        after = 0
        while numbers := wait_for(self._records.list_open_numbers(after, BODIES)):
            self.check_stopped()
            bodies, dealt = wait_for(self._records.read_bodies(numbers))
            for body in bodies:
                self.in_use.add_stored(body)
            after = numbers[dealt - 1]

    # Deleting. -----------------------------------------------------------------------------------------------

    def remove_folder(self, root: Root, parent: Folder, name: str, path: str) -> bool:
        """Remove a folder only while it is empty: a job that has just written into it makes that fail."""
        # `a/` is in use where a prompt names `a/b`: a node may be about to write there.
        keys = [*self._keys(root, path), f"{fold(path)}/"]
        with self.in_use.about_to_delete(lambda: keys):
            if self.in_use.names_any(keys):
                return False
            if not self.dry_run:
                try:
                    parent.rmdir(name)
                except FileNotFoundError:
                    return True
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        self.report.add_error(f"{root.name}/{path}", error)
                    return False
        self.report.folders += 1
        self._thinned.pop(f"{root.name}/{path}", None)
        self._note_thinned(root, path.rpartition("/")[0])
        self.announce(root.name, path + "/")
        return True

    def may_remove(self, root: Root, path: str) -> bool:
        """Whether an empty folder is ours: a person's may be empty for good reasons."""
        return self.known.sweeps_all(root, path) or f"{root.name}/{path}" in self._thinned

    def _note_thinned(self, root: Root, path: str) -> None:
        if len(self._thinned) >= THINNED:
            self._thinned.clear()  # then some empty folders stay
        self._thinned[f"{root.name}/{path}"] = None

    def delete(
        self, root: Root, folder: Folder, prefix: str, candidates: Sequence[Candidate], tally: Tally | None = None
    ) -> bool:
        """Delete the files unless something holds them; return whether all are gone. `tally` counts them once more."""
        in_use, report = self.in_use, self.report
        deleted = report.deleted.setdefault(root.name, Tally())
        before, files = deleted.bytes, deleted.files
        empty = True
        # Some nodes read a whole folder of inputs. And an input is uploaded again under its old name.
        inputs = "input" in root.names
        around = [key for path in _folders_above(prefix) for key in self._keys(root, path)] if inputs else []

        def doomed() -> Iterable[str]:
            yield from around
            for file in candidates:
                yield from self._keys(root, prefix + file.name)

        with in_use.about_to_delete(doomed):
            if in_use.names_any(around):
                for file in candidates:
                    report.keep("in_use", file.bytes)
                return False
            for file in candidates:
                if self.is_named(root, prefix, file.name):
                    empty = report.keep("in_use", file.bytes)
                    continue
                if not report.dry_run:
                    try:
                        if inputs and folder.stat(file.name).st_mtime != file.modified_s:
                            empty = report.keep("young", file.bytes)
                            continue
                        folder.unlink(file.name)
                    except OSError as error:
                        empty &= report.add_file_error(f"{root.name}/{prefix}{file.name}", error)
                        continue
                deleted.add(file.bytes)
                if tally is not None:
                    tally.add(file.bytes)
                if self._debug or report.dry_run or self._on_delete is not None:
                    self.announce(root.name, prefix + file.name)
        if deleted.files > files:
            self._note_thinned(root, prefix.rstrip("/"))
        if report.dry_run:
            device = folder.identity[0]
            self.pretended[device] = self.pretended.get(device, 0) + deleted.bytes - before
        return empty

    def is_named(self, root: Root, prefix: str, name: str) -> bool:
        """Whether an open job names the file."""
        return self.in_use.may_name(name) and self.in_use.names_any(self._keys(root, prefix + name))

    def _keys(self, root: Root, path: str) -> list[str]:
        return [key for name in root.names for key in make_keys(name, path, root.absolute)]

    def announce(self, root: str, path: str) -> None:
        """Tell of a file that has gone, or would have."""
        full = f"{root}/{path}"
        if self._debug:
            log.debug("%s %s", "would delete" if self.dry_run else "deleted", escape(full))
        if self.dry_run and len(self.report.samples) < SAMPLES:
            self.report.samples.append(escape(full))
        if self._on_delete is not None:
            self._on_delete(escape(full))

    # The guard's own rows. -----------------------------------------------------------------------------------

    def _forget(self) -> None:
        if self._records is None or self.dry_run:
            return
        before_ms = int((self.now_s - self.rules.settings.history_max_age_s) * 1000)
        while True:
            forgotten = wait_for(self._records.forget(before_ms, FORGET))
            self.report.jobs += forgotten
            if forgotten < FORGET:
                return
            self.check_stopped()
            time.sleep(0.01)  # the queue's own commits come first

    def check_stopped(self) -> None:
        """Call it between batches. Others need no pause: each look at a file releases the interpreter anyway."""
        if self._stopped():
            raise Stopped


class _ByAge:
    """Deletes what is older than its folder's age."""

    def __init__(self, now_s: float, sweep: Sweep) -> None:
        self._now_s = now_s
        self._sweep = sweep

    def cutoff_s(self, max_age_s: float | None) -> float:
        return float("-inf") if max_age_s is None else self._now_s - self._sweep.longest_age_s(max_age_s)

    def visit(
        self, root: Root, folder: Folder, prefix: str, candidates: list[Candidate], max_age_s: float | None
    ) -> bool:
        known, keep = self._sweep.known, self._sweep.report.keep
        unread = known.find_unread(root, prefix, candidates)
        native = known.find_native(root, prefix, candidates)
        for file in candidates if unread or native else ():
            if (path := prefix + file.name) in unread or path in native:
                keep("native" if path in native else "unread", file.bytes)
        held = unread | native
        free = [file for file in candidates if prefix + file.name not in held] if held else candidates
        return self._sweep.delete(root, folder, prefix, free) and not held

    def remove_folder(self, root: Root, parent: Folder, name: str, path: str) -> bool:
        return self._sweep.may_remove(root, path) and self._sweep.remove_folder(root, parent, name, path)


def _folders_above(prefix: str) -> list[str]:
    """`a`, `a/b` for `a/b/`."""
    parts = prefix.rstrip("/").split("/") if prefix else []
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]
