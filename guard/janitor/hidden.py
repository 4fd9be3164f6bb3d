"""Sweep what jobs have made under names that a walk passes over, since they begin with a dot."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from contextlib import ExitStack

from ..owners import FOLDER
from .folder import HANDLES, open_root
from .report import Report
from .rules import Root, Rules
from .walk import Candidate, Visitor


class Hidden:
    """Hands those files to a visitor, as a walk would. The thread that sweeps."""

    def __init__(
        self, visitor: Visitor, rules: Rules, report: Report, past_until_s: float, handles: bool = HANDLES
    ) -> None:
        """`past_until_s`: leave alone what was modified before that time."""
        self._visitor = visitor
        self._rules = rules
        self._report = report
        self._past_until_s = past_until_s
        self._handles = handles

    def sweep(self, root: Root, made: Iterable[str]) -> None:
        """`made`: files below the root that jobs have made."""
        for path in made:
            # Owners' folders are walked with all that is in them.
            is_hidden = "/." in f"/{path}" and not path.startswith(f"{FOLDER}/")
            if is_hidden and not self._rules.keeps_made(root, path):
                try:
                    self._look_at(root, path)
                except FileNotFoundError:
                    pass  # it has been deleted already
                except OSError as error:
                    self._report.add_file_error(f"{root.name}/{path}", error)

    def _look_at(self, root: Root, path: str) -> None:
        *parts, name = path.split("/")
        with ExitStack() as stack:
            folders = [open_root(root.path, self._handles)]
            stack.callback(folders[0].close)
            max_age_s = root.max_age_s
            for number, part in enumerate(parts):
                child = folders[-1].open_child(part)
                if child is None:
                    return
                stack.callback(child.close)
                folders.append(child)
                if self._rules.is_foreign(child.identity):
                    return
                max_age_s = self._rules.age_s(root, "/".join(parts[: number + 1]), max_age_s)
            status = folders[-1].stat(name)
            is_due = self._past_until_s <= status.st_mtime <= self._visitor.cutoff_s(max_age_s)
            if not is_due or not stat.S_ISREG(status.st_mode):
                return
            file = Candidate(name, status.st_size if status.st_nlink < 2 else 0, status.st_mtime, status.st_ino)
            is_gone = self._visitor.visit(root, folders[-1], path[: -len(name)], [file], max_age_s)
            # The walk does not come to these folders either.
            while is_gone and parts and "/." in f"/{'/'.join(parts)}":
                folders.pop()
                is_gone = self._visitor.remove_folder(root, folders[-1], parts[-1], "/".join(parts))
                parts.pop()
