# Over 400 lines: one walk, whose steps share open folders and what is in use.
"""One pass over the roots: what is too old goes, and where the disk is short the oldest of the rest.

Files are streamed, a folder at a time; what is remembered of them does not grow with their number.
"""

from __future__ import annotations

import errno
import heapq
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, NamedTuple, Protocol

from ..errors import InternalError
from ..job import RESULT_ROOTS
from .disk import Disk
from .folder import HANDLES, Folder, open_root
from .in_use import InUse, fold, make_keys
from .report import SAMPLES, Report, Tally, shown
from .rules import Root, Rules

log = logging.getLogger("guarded.janitor")

#: Files judged together: one look into the store for all of them, and the longest that an admission which names one
#: of them has to wait (some 10 ms).
BATCH = 1000
#: Folders nested deeper are left alone; each level holds two file handles open, of the 1,024 that Linux gives.
MAX_DEPTH = 100
#: The oldest files that one walk under pressure picks out (some 8 MB).
OLDEST = 20_000
#: Files not fetched yet that are kept in memory (a few MB); of more, the store is asked batch by batch.
UNREAD_AT_HAND = 10_000
#: Jobs forgotten in one commit: other commits wait no longer for it than a few ms.
FORGET = 200
#: How long the sweep waits for the store's answer.
STORE_WAIT_S = 30.0


class Records(Protocol):
    """What a sweep asks of the job store: see :class:`guard.store.Store`."""

    def list_open_numbers(self) -> Future[list[int]]: ...
    def read_bodies(self, numbers: Sequence[int]) -> Future[tuple[list[bytes], int]]: ...
    def list_unread(self, since_ms: int, at_most: int) -> Future[dict[str, frozenset[str]] | None]: ...
    def select_unread(self, kind: str, paths: Sequence[str], since_ms: int) -> Future[frozenset[str]]: ...
    def forget(self, settled_before_ms: int, limit: int) -> Future[int]: ...


class Stopped(Exception):
    """The server is ending."""


class _Found(NamedTuple):
    name: str
    bytes: int
    modified_s: float
    inode: int


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
        disks: Sequence[Disk] = (),
        stopped: Callable[[], bool] = lambda: False,
        on_delete: Callable[[str], None] | None = None,
        handles: bool = HANDLES,
    ) -> None:
        """`past_until_s`: what was modified and created before that time is left alone; 0: nothing is."""
        self._rules = rules
        self._now_s = now_s
        self._past_until_s = past_until_s
        self._report = report
        self._in_use = in_use
        self._records = records
        self._disks = disks
        self._stopped = stopped
        self._on_delete = on_delete
        self._handles = handles
        self._debug = log.isEnabledFor(logging.DEBUG)
        self._unread_since_ms = int((now_s - rules.settings.unread_max_age_s) * 1000)
        self.dry_run = report.dry_run
        self.by_age = _ByAge(now_s, rules.settings.settle_s, self)
        #: Files not fetched yet by root, where they are few enough to have all of them at hand.
        self._unread: dict[str, frozenset[str]] | None = None
        #: What a dry run would have freed so far, by device.
        self._pretended: dict[int, int] = {}

    def run(self) -> None:
        """Raises Stopped, and GuardError where the store cannot say what is in use: nothing is deleted then."""
        with self._in_use.sweep():
            self._learn_what_is_in_use()
            for root in self._rules.roots:
                self._walk(root, self.by_age)
            for disk in self._disks:
                try:
                    self._relieve(disk)
                except OSError as error:
                    self._report.failed(str(disk.path), error)
        self._forget()

    # What is in use. -----------------------------------------------------------------------------------------

    def _learn_what_is_in_use(self) -> None:
        if self._records is None:
            self._unread = {}
            return
        # From now on there can only be more of files that are too young to go.
        self._unread = _answer(self._records.list_unread(self._unread_since_ms, UNREAD_AT_HAND))
        numbers = _answer(self._records.list_open_numbers())
        while numbers:
            self._check_stopped()
            bodies, dealt = _answer(self._records.read_bodies(numbers[:1000]))
            for body in bodies:
                self._in_use.add_stored(body)
            numbers = numbers[dealt:] if dealt else []

    def unread(self, root: Root, prefix: str, found: Sequence[_Found]) -> frozenset[str]:
        """Which of the files some owner has not fetched yet, as paths below `root`."""
        if self._unread == {}:
            return frozenset()
        unread: frozenset[str] = frozenset()
        for kind in root.names:
            if kind in RESULT_ROOTS:
                paths = [prefix + file.name for file in found]
                if self._unread is not None:
                    unread |= self._unread.get(kind, frozenset()).intersection(paths)
                elif self._records is not None:
                    unread |= _answer(self._records.select_unread(kind, paths, self._unread_since_ms))
        return unread

    # Walking. ------------------------------------------------------------------------------------------------

    def _walk(self, root: Root, visitor: _Visitor) -> None:
        try:
            folder = open_root(root.path, self._handles)
        except FileNotFoundError:
            return
        except OSError as error:
            self._report.failed(root.name, error)
            return
        try:
            self._folder(root, folder, "", root.max_age_s, 0, visitor)
        finally:
            folder.close()

    def _folder(
        self, root: Root, folder: Folder, path: str, max_age_s: float | None, depth: int, visitor: _Visitor
    ) -> bool:
        """Whether nothing is left in it. `path` is below the root, with slashes; empty for the root itself."""
        self._check_stopped()
        report, rules = self._report, self._rules
        prefix = f"{path}/" if path else ""
        past_until_s = self._past_until_s if root.has_past else 0.0
        cutoff_s = visitor.cutoff_s(max_age_s)
        unless_past = "off" if max_age_s is None else "young"
        young = report.kept.setdefault(unless_past, Tally())
        found = report.found.setdefault(root.name, Tally())
        keeps_name, by_path = rules.keeps_name, rules.any_path
        batch: list[_Found] = []
        empty = True
        try:
            with folder.scan() as entries:
                for entry in entries:
                    name = entry.name
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            if not self._child(root, folder, name, prefix + name, max_age_s, depth, visitor):
                                empty = False
                            continue
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        report.vanished += 1
                        continue
                    except OSError as error:
                        report.failed(f"{root.name}/{prefix}{name}", error)
                        empty = False
                        continue
                    size = status.st_size if status.st_nlink < 2 else 0
                    if not stat.S_ISREG(status.st_mode):
                        empty = self.keep("special", 0)
                        continue
                    found.files += 1
                    found.bytes += size
                    if status.st_mtime < past_until_s and self._is_past(folder, name, status):
                        empty = self.keep("existing", size)
                    elif status.st_mtime > cutoff_s:
                        young.files += 1
                        young.bytes += size
                        empty = False
                    elif (by_path or keeps_name(name)) and rules.keeps(root, name, prefix + name):
                        empty = self.keep("keep", size)
                    else:
                        batch.append(_Found(name, size, status.st_mtime, status.st_ino))
                        if len(batch) >= BATCH:
                            empty &= visitor.visit(root, folder, prefix, batch, max_age_s)
                            batch = []
                            self._check_stopped()
        except OSError as error:
            report.failed(f"{root.name}/{path}", error)
            empty = False
        if batch:
            empty &= visitor.visit(root, folder, prefix, batch, max_age_s)
        return empty

    def _child(
        self, root: Root, parent: Folder, name: str, path: str, max_age_s: float | None, depth: int, visitor: _Visitor
    ) -> bool:
        """Whether the folder is gone."""
        report, rules = self._report, self._rules
        if rules.keeps(root, name, path):
            report.skipped += 1
            return False
        if depth >= MAX_DEPTH:
            report.skipped += 1
            return False
        folder = parent.child(name)
        if folder is None or rules.is_foreign(folder.identity):
            if folder is not None:
                folder.close()
            report.skipped += 1
            return False
        try:
            max_age_s = rules.age_s(root, path, max_age_s)
            # Its own time of change, before deleting in it gives it a new one.
            status = folder.status
            emptied = self._folder(root, folder, path, max_age_s, depth + 1, visitor)
            past = root.has_past and status.st_mtime < self._past_until_s and self._is_past(folder, "", status)
            if not emptied or past or not visitor.removes_folders or status.st_mtime > visitor.cutoff_s(max_age_s):
                return False
        finally:
            folder.close()
        return self._remove_folder(root, parent, name, path)

    def _remove_folder(self, root: Root, parent: Folder, name: str, path: str) -> bool:
        """Only ever an empty one; a job that has just written into it makes that fail."""
        # `a/` is in use where a prompt names `a/b`: a node may be about to write there.
        keys = [*self._keys(root, path), f"{fold(path)}/"]
        with self._in_use.about_to_delete(lambda: keys):
            if self._in_use.names_any(keys):
                return False
            if not self._report.dry_run:
                try:
                    parent.rmdir(name)
                except FileNotFoundError:
                    return True
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        self._report.failed(f"{root.name}/{path}", error)
                    return False
        self._report.folders += 1
        self._told(root, path + "/")
        return True

    def _is_past(self, folder: Folder, name: str, status: os.stat_result) -> bool:
        """Whether something modified before the first start was created before it, too.

        The time of change (ctime) is never before the birth: where that lies before the first start, the birth does.
        A file that was moved or given to another user since then is told by its birth; where no birth is known, it
        is taken for an old one.
        """
        if status.st_ctime < self._past_until_s and not hasattr(status, "st_birthtime"):
            return True
        born_s = folder.born_s(name, status)
        return born_s is None or born_s < self._past_until_s

    def keep(self, reason: str, size: int) -> bool:
        """Counts; False, since the folder is not empty then."""
        self._report.kept.setdefault(reason, Tally()).add(size)
        return False

    # Deleting. -----------------------------------------------------------------------------------------------

    def delete(
        self, root: Root, folder: Folder, prefix: str, found: Sequence[_Found], tally: Tally | None = None
    ) -> bool:
        """Delete the files unless something holds them; whether all are gone. `tally` counts them once more."""
        in_use, report = self._in_use, self._report
        deleted = report.deleted.setdefault(root.name, Tally())
        before = deleted.bytes
        empty = True
        # Some nodes read a whole folder of inputs. And an input is uploaded again under its old name.
        inputs = "input" in root.names
        around = [key for path in _above(prefix) for key in self._keys(root, path)] if inputs else []

        def doomed() -> Iterable[str]:
            yield from around
            for file in found:
                yield from self._keys(root, prefix + file.name)

        with in_use.about_to_delete(doomed):
            if in_use.names_any(around):
                for file in found:
                    self.keep("in_use", file.bytes)
                return False
            for file in found:
                if self.is_named(root, prefix, file.name):
                    empty = self.keep("in_use", file.bytes)
                    continue
                if not report.dry_run:
                    try:
                        if inputs and folder.stat(file.name).st_mtime != file.modified_s:
                            empty = self.keep("young", file.bytes)
                            continue
                        folder.unlink(file.name)
                    except FileNotFoundError:
                        report.vanished += 1
                        continue
                    except OSError as error:
                        report.failed(f"{root.name}/{prefix}{file.name}", error)
                        empty = False
                        continue
                deleted.files += 1
                deleted.bytes += file.bytes
                if tally is not None:
                    tally.add(file.bytes)
                if self._debug or report.dry_run or self._on_delete is not None:
                    self._told(root, prefix + file.name)
        if report.dry_run:
            device = folder.identity[0]
            self._pretended[device] = self._pretended.get(device, 0) + deleted.bytes - before
        return empty

    def is_named(self, root: Root, prefix: str, name: str) -> bool:
        """Whether an open job names the file."""
        return self._in_use.may_name(name) and self._in_use.names_any(self._keys(root, prefix + name))

    def _keys(self, root: Root, path: str) -> list[str]:
        return [key for name in root.names for key in make_keys(name, path, root.absolute)]

    def _told(self, root: Root, path: str) -> None:
        full = f"{root.name}/{path}"
        if self._debug:
            log.debug("%s %s", "would delete" if self._report.dry_run else "deleted", shown(full))
        if self._report.dry_run and len(self._report.samples) < SAMPLES:
            self._report.samples.append(shown(full))
        if self._on_delete is not None:
            self._on_delete(shown(full))

    # Pressure. -----------------------------------------------------------------------------------------------

    def _relieve(self, disk: Disk) -> None:
        """Below the minimum, delete the oldest files of all roots on that disk until the target is free."""
        settings = self._rules.settings
        if not settings.min_free_bytes or self._free(disk) >= settings.min_free_bytes:
            return
        roots = [root for root in self._rules.roots if disk.holds(root.path)]
        # Where deleting frees nothing (open files, snapshots), the rest must not follow.
        need = settings.target_free_bytes - self._free(disk)
        freed = Tally()
        while need > freed.bytes and self._free(disk) < settings.target_free_bytes:
            oldest = _Oldest(self, roots, self._now_s - settings.settle_s)
            # What this walk meets has been counted by the one before.
            report, self._report = self._report, Report(0, self._report.dry_run)
            try:
                for root in roots:
                    self._walk(root, oldest)
            finally:
                self._report = report
            before = freed.files
            for root, path, file in oldest.picked():
                if freed.bytes >= need or self._free(disk) >= settings.target_free_bytes:
                    return
                self._check_stopped()
                self._delete_at(root, path, file, freed)
            if len(oldest.heap) < OLDEST or freed.files == before or self._report.dry_run:
                return

    def _free(self, disk: Disk) -> int:
        return disk.free() + self._pretended.get(disk.device, 0)

    def _delete_at(self, root: Root, path: str, file: _Found, freed: Tally) -> None:
        """Delete a file found a while ago, if it still is that one."""
        opened: list[Folder] = []
        try:
            opened.append(open_root(root.path, self._handles))
            for part in path.split("/")[:-1]:
                child = opened[-1].child(part)
                if child is None:
                    return
                opened.append(child)
            status = opened[-1].stat(file.name)
            if (status.st_ino, status.st_mtime) != (file.inode, file.modified_s) or not stat.S_ISREG(status.st_mode):
                return
            already = self._report.oldest.files
            self.delete(root, opened[-1], path[: -len(file.name)], [file], self._report.oldest)
            if self._report.oldest.files > already:
                freed.add(file.bytes)
        except FileNotFoundError:
            self._report.vanished += 1
        except OSError as error:
            self._report.failed(f"{root.name}/{path}", error)
        finally:
            for folder in opened:
                folder.close()

    # The guard's own rows. -----------------------------------------------------------------------------------

    def _forget(self) -> None:
        if self._records is None or self._report.dry_run:
            return
        before_ms = int((self._now_s - self._rules.settings.history_max_age_s) * 1000)
        while True:
            forgotten = _answer(self._records.forget(before_ms, FORGET))
            self._report.jobs += forgotten
            if forgotten < FORGET:
                return
            self._check_stopped()
            time.sleep(0.01)  # the queue's own commits come first

    def _check_stopped(self) -> None:
        """Between batches. There is no pause for others: every look at a file lets go of the interpreter anyway."""
        if self._stopped():
            raise Stopped


class _Visitor(Protocol):
    """What is done with the files that may go."""

    removes_folders: bool

    def cutoff_s(self, max_age_s: float | None) -> float:
        """Files modified after that are of no interest."""

    def visit(self, root: Root, folder: Folder, prefix: str, found: list[_Found], max_age_s: float | None) -> bool:
        """Whether all of them are gone."""


class _ByAge:
    """Deletes what is older than its folder's age."""

    removes_folders = True

    def __init__(self, now_s: float, settle_s: float, sweep: Sweep) -> None:
        self._now_s = now_s
        self._settle_s = settle_s
        self._sweep = sweep

    def cutoff_s(self, max_age_s: float | None) -> float:
        return float("-inf") if max_age_s is None else self._now_s - max(max_age_s, self._settle_s)

    def visit(self, root: Root, folder: Folder, prefix: str, found: list[_Found], max_age_s: float | None) -> bool:
        unread = self._sweep.unread(root, prefix, found)
        for file in found if unread else ():
            if prefix + file.name in unread:
                self._sweep.keep("unread", file.bytes)
        free = [file for file in found if prefix + file.name not in unread] if unread else found
        return self._sweep.delete(root, folder, prefix, free) and not unread


class _Oldest:
    """Picks out the oldest files, those that nobody has fetched yet last; deletes nothing."""

    removes_folders = False

    def __init__(self, sweep: Sweep, roots: Sequence[Root], settled_s: float) -> None:
        self._sweep = sweep
        self._roots = {root.name: root for root in roots}
        self._settled_s = settled_s
        #: The worst to delete on top: unread before read, then the newest.
        self.heap: list[tuple[bool, float, str, str, str, int, int]] = []

    def cutoff_s(self, max_age_s: float | None) -> float:
        return float("-inf") if max_age_s is None else self._settled_s

    def visit(self, root: Root, folder: Folder, prefix: str, found: list[_Found], max_age_s: float | None) -> bool:
        sweep = self._sweep
        unread = sweep.unread(root, prefix, found)
        gone_s = sweep.by_age.cutoff_s(max_age_s) if sweep.dry_run else float("-inf")
        for file in found:
            path = prefix + file.name
            if (file.modified_s <= gone_s and path not in unread) or sweep.is_named(root, prefix, file.name):
                continue
            entry = (path not in unread, -file.modified_s, root.name, path, file.name, file.bytes, file.inode)
            if len(self.heap) < OLDEST:
                heapq.heappush(self.heap, entry)
            else:
                heapq.heappushpop(self.heap, entry)
        return False

    def picked(self) -> Iterable[tuple[Root, str, _Found]]:
        """(root, path below it, file), the first to delete first."""
        self.heap.sort(reverse=True)
        for _read, minus_modified_s, root, path, name, size, inode in self.heap:
            yield self._roots[root], path, _Found(name, size, -minus_modified_s, inode)


def _above(prefix: str) -> list[str]:
    """`a`, `a/b` for `a/b/`."""
    parts = prefix.rstrip("/").split("/") if prefix else []
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def _answer(future: Future[Any]) -> Any:
    try:
        return future.result(STORE_WAIT_S)
    except FutureTimeoutError:
        raise InternalError("The job store did not answer.") from None
