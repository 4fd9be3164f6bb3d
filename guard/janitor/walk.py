"""Walk a root, a folder at a time, and hand the files that may go to a visitor.

Files are streamed: what the walk remembers of them does not grow with their number.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple, Protocol

from .folder import HANDLES, Folder, open_root
from .report import Report, Tally
from .rules import Root, Rules

#: Files judged together: one look into the store for all of them, and the longest that an admission which names one
#: of them has to wait (some 10 ms).
BATCH = 1000
#: Folders nested deeper are left alone: each level holds two file handles open, of the 1,024 that Linux gives.
MAX_DEPTH = 100


class Candidate(NamedTuple):
    """A file that nothing but an open job or an owner who has not fetched it keeps."""

    name: str
    bytes: int
    modified_s: float
    inode: int


class Visitor(Protocol):
    """Decides what happens to the files that may go, and to emptied folders."""

    def cutoff_s(self, max_age_s: float | None) -> float:
        """Pass over files modified after this time."""

    def visit(
        self, root: Root, folder: Folder, prefix: str, candidates: list[Candidate], max_age_s: float | None
    ) -> bool:
        """Return whether all of them are gone. `prefix`: the folder below the root, with a slash at its end."""

    def remove_folder(self, root: Root, parent: Folder, name: str, path: str) -> bool:
        """Return whether the emptied folder `path` (below the root), called `name` in `parent`, is gone."""


class Walk:
    """One walk with one visitor; use once for each root. The thread that sweeps."""

    def __init__(
        self,
        rules: Rules,
        visitor: Visitor,
        report: Report,
        *,
        past_until_s: float,
        check_stopped: Callable[[], None],
        handles: bool = HANDLES,
    ) -> None:
        """`past_until_s`: as :class:`.sweep.Sweep` has it. `check_stopped` raises to end the walk between batches."""
        self._rules = rules
        self._visitor = visitor
        self._report = report
        self._past_until_s = past_until_s
        self._check_stopped = check_stopped
        self._handles = handles

    def run(self, root: Root, below: str = "") -> None:
        """Walk the root, or the folder `below` in it alone."""
        max_age_s = root.max_age_s
        with ExitStack() as stack:
            try:
                folder = open_root(root.path, self._handles)
                stack.callback(folder.close)
                for number, part in enumerate(parts := below.split("/") if below else []):
                    child = folder.open_child(part)
                    if child is None:
                        return
                    stack.callback(child.close)
                    folder = child
                    max_age_s = self._rules.age_s(root, "/".join(parts[: number + 1]), max_age_s)
            except FileNotFoundError:
                return
            except OSError as error:
                self._report.add_error(root.name, error)
                return
            self._walk_folder(root, folder, below, max_age_s, 0)

    def _walk_folder(self, root: Root, folder: Folder, path: str, max_age_s: float | None, depth: int) -> bool:
        """Return whether nothing is left in it. `path` is below the root, with slashes; empty for the root itself."""
        self._check_stopped()
        report, rules, visitor = self._report, self._rules, self._visitor
        prefix = f"{path}/" if path else ""
        past_until_s = self._past_until_s if root.has_past else 0.0
        cutoff_s = visitor.cutoff_s(max_age_s)
        young = report.kept.setdefault("off" if max_age_s is None else "young", Tally())
        seen = report.seen.setdefault(root.name, Tally())
        keeps_name, by_path = rules.keeps_name, rules.any_path
        batch: list[Candidate] = []
        empty = True
        try:
            with folder.scan() as entries:
                for entry in entries:
                    name = entry.name
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            if not self._walk_child(root, folder, name, prefix + name, max_age_s, depth):
                                empty = False
                            continue
                        status = entry.stat(follow_symlinks=False)
                    except OSError as error:
                        empty &= report.add_file_error(f"{root.name}/{prefix}{name}", error)
                        continue
                    size = status.st_size if status.st_nlink < 2 else 0
                    if not stat.S_ISREG(status.st_mode):
                        empty = report.keep("special", 0)
                        continue
                    seen.add(size)
                    if status.st_mtime < past_until_s and self._is_past(folder, name, status):
                        empty = report.keep("existing", size)
                    elif status.st_mtime > cutoff_s:
                        young.add(size)
                        empty = False
                    elif (by_path or keeps_name(name)) and rules.keeps(root, name, prefix + name):
                        empty = report.keep("keep", size)
                    else:
                        batch.append(Candidate(name, size, status.st_mtime, status.st_ino))
                        if len(batch) >= BATCH:
                            empty &= visitor.visit(root, folder, prefix, batch, max_age_s)
                            batch = []
                            self._check_stopped()
        except OSError as error:
            report.add_error(f"{root.name}/{path}", error)
            empty = False
        if batch:
            empty &= visitor.visit(root, folder, prefix, batch, max_age_s)
        return empty

    def _walk_child(
        self, root: Root, parent: Folder, name: str, path: str, max_age_s: float | None, depth: int
    ) -> bool:
        """Return whether the folder is gone."""
        report, rules, visitor = self._report, self._rules, self._visitor
        report.seen_folders += 1
        if rules.keeps(root, name, path) or depth >= MAX_DEPTH:
            report.skipped += 1
            return False
        folder = parent.open_child(name)
        if folder is None or rules.is_foreign(folder.identity):
            if folder is not None:
                folder.close()
            report.skipped += 1
            return False
        try:
            max_age_s = rules.age_s(root, path, max_age_s)
            # Its own time of change, before deleting in it gives it a new one.
            status = folder.status
            emptied = self._walk_folder(root, folder, path, max_age_s, depth + 1)
            past = root.has_past and status.st_mtime < self._past_until_s and self._is_past(folder, "", status)
            if not emptied or past or status.st_mtime > visitor.cutoff_s(max_age_s):
                return False
        finally:
            folder.close()
        return visitor.remove_folder(root, parent, name, path)

    def _is_past(self, folder: Folder, name: str, status: os.stat_result) -> bool:
        """Whether something modified before the first start was also created before it.

        The time of change (ctime) is never before the birth: where it lies before the first start, so does the birth.
        A file that was moved or given to another user since then is judged by its birth; where no birth is known, it
        counts as an old one.
        """
        if status.st_ctime < self._past_until_s and not hasattr(status, "st_birthtime"):
            return True
        born_s = folder.born_s(name, status)
        return born_s is None or born_s < self._past_until_s
