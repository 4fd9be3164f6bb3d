"""Delete the oldest files, whatever their age: where a disk is short of space, or an owner has too much."""

from __future__ import annotations

import heapq
import logging
import stat
from collections.abc import Callable, Iterable, Sequence

from .disk import Disk
from .folder import Folder, open_root
from .report import Report, Tally
from .rules import Root
from .sweep import Sweep
from .walk import Candidate

log = logging.getLogger("guarded.janitor")

#: One walk picks out this many of the oldest files (some 8 MB).
OLDEST = 20_000
#: After a sweep that could not make enough room, the next one under pressure waits at least this long.
PRESSURE_AGAIN_S = 60.0
#: … or this long, where deleting files made no room.
FRUITLESS_S = 900.0


def relieve_all(disks: Iterable[Disk], sweep: Sweep) -> None:
    """Relieve each of the disks."""
    for disk in disks:
        try:
            relieve(sweep, disk)
        except OSError as error:
            sweep.report.add_error(str(disk.path), error)


def pause_after(report: Report, gained: int) -> float:
    """Seconds to wait after a sweep that left the disk short of space; `gained`: bytes more free than before."""
    if report.oldest.bytes > 2 * max(gained, 0):
        # Somebody has the files open, or there are snapshots: going on would only cost more files.
        log.warning("the disk is short of space, but deleting %d bytes freed little", report.oldest.bytes)
        return FRUITLESS_S
    log.warning("the disk is short of space, and there is nothing more to delete")
    # A walk over millions of files takes minutes, so do not start one right after the other.
    return max(PRESSURE_AGAIN_S, 10 * report.duration_s)


def relieve(sweep: Sweep, disk: Disk) -> None:
    """Below the minimum, delete the oldest files of all roots on that disk until the target is free. Raises OSError."""
    settings = sweep.rules.settings

    def measure_free() -> int:
        return disk.free() + sweep.pretended.get(disk.device, 0)

    if not settings.min_free_bytes or measure_free() >= settings.min_free_bytes:
        return
    roots = [root for root in sweep.rules.roots if disk.holds(root.path)]
    remove_empty(sweep, roots)
    # Where deleting frees nothing (open files, snapshots), the rest must not follow.
    need = settings.target_free_bytes - measure_free()
    delete_oldest(sweep, roots, lambda freed: freed.bytes >= need or measure_free() >= settings.target_free_bytes)


def remove_empty(sweep: Sweep, roots: Sequence[Root], below: str = "") -> None:
    """Remove empty folders of the roots, or of the folder `below` in each, whatever their age. Each takes a block."""
    uncounted = Report(0, sweep.dry_run)
    for root in roots:
        sweep.walk(root, _Emptied(sweep), uncounted, below)


def delete_oldest(sweep: Sweep, roots: Sequence[Root], is_enough: Callable[[Tally], bool], below: str = "") -> None:
    """Delete the oldest files of the roots, or of the folder `below` in each, until that `is_enough`.

    Files that nobody has fetched yet go last; those that open jobs name, or that are still warm, stay.
    """
    freed = Tally()
    while not is_enough(freed):
        oldest = _Oldest(sweep, roots, sweep.now_s - sweep.rules.settings.settle_s)
        # A walk before this one has counted what this one meets.
        uncounted = Report(0, sweep.dry_run)
        for root in roots:
            sweep.walk(root, oldest, uncounted, below)
        before = freed.files
        for root, path, file in oldest.sort():
            if is_enough(freed):
                return
            sweep.check_stopped()
            _delete_at(sweep, root, path, file, freed)
        if len(oldest.heap) < OLDEST or freed.files == before or sweep.dry_run:
            return


def _delete_at(sweep: Sweep, root: Root, path: str, file: Candidate, freed: Tally) -> None:
    """Delete a file that the walk met a while ago, if it still is that one."""
    folders: list[Folder] = []
    try:
        folders.append(open_root(root.path, sweep.handles))
        for part in path.split("/")[:-1]:
            child = folders[-1].open_child(part)
            if child is None:
                return
            folders.append(child)
        status = folders[-1].stat(file.name)
        if (status.st_ino, status.st_mtime) != (file.inode, file.modified_s) or not stat.S_ISREG(status.st_mode):
            return
        already = sweep.report.oldest.files
        sweep.delete(root, folders[-1], path[: -len(file.name)], [file], sweep.report.oldest)
        if sweep.report.oldest.files > already:
            freed.add(file.bytes)
    except OSError as error:
        sweep.report.add_file_error(f"{root.name}/{path}", error)
    finally:
        for folder in folders:
            folder.close()


class _Emptied:
    """Removes empty folders in which nothing has come or gone for a while; deletes nothing else."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def cutoff_s(self, max_age_s: float | None) -> float:
        return float("-inf") if max_age_s is None else self._sweep.now_s - self._sweep.rules.settings.settle_s

    def visit(
        self, root: Root, folder: Folder, prefix: str, candidates: list[Candidate], max_age_s: float | None
    ) -> bool:
        return False

    def remove_folder(self, root: Root, parent: Folder, name: str, path: str) -> bool:
        return self._sweep.may_remove(root, path) and self._sweep.remove_folder(root, parent, name, path)


class _Oldest:
    """Picks out the oldest files, those that nobody has fetched yet last; deletes nothing."""

    def __init__(self, sweep: Sweep, roots: Sequence[Root], settled_s: float) -> None:
        self._sweep = sweep
        self._roots = {root.name: root for root in roots}
        self._settled_s = settled_s
        #: The last to delete on top: unread before read, then the newest.
        self.heap: list[tuple[bool, float, str, str, str, int, int]] = []

    def cutoff_s(self, max_age_s: float | None) -> float:
        return float("-inf") if max_age_s is None else self._settled_s

    def visit(
        self, root: Root, folder: Folder, prefix: str, candidates: list[Candidate], max_age_s: float | None
    ) -> bool:
        sweep = self._sweep
        unread = sweep.known.find_unread(root, prefix, candidates)
        native = sweep.known.find_native(root, prefix, candidates)
        gone_s = sweep.by_age.cutoff_s(max_age_s) if sweep.dry_run else float("-inf")
        for file in candidates:
            path = prefix + file.name
            gone = file.modified_s <= gone_s and path not in unread
            if gone or path in native or sweep.is_named(root, prefix, file.name):
                continue
            entry = (path not in unread, -file.modified_s, root.name, path, file.name, file.bytes, file.inode)
            if len(self.heap) < OLDEST:
                heapq.heappush(self.heap, entry)
            else:
                heapq.heappushpop(self.heap, entry)
        return False

    def remove_folder(self, root: Root, parent: Folder, name: str, path: str) -> bool:
        return False

    def sort(self) -> Iterable[tuple[Root, str, Candidate]]:
        """Yield (root, path below it, file), the first to delete first."""
        self.heap.sort(reverse=True)
        for _read, minus_modified_s, root, path, name, size, inode in self.heap:
            yield self._roots[root], path, Candidate(name, size, -minus_modified_s, inode)
