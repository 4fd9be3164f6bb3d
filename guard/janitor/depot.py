"""Sweep the depot: by the ages of the folders, by when each file was put in, or put in again."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ..depot import Depot, make_key
from ..depot.objects import Stored
from ..depot.outcomes import list_files
from ..quotas import FILE_BYTES
from ..store.kept import Kept
from .known import wait_for
from .records import Records
from .report import Report, Tally
from .sweep import BODIES, Sweep

log = logging.getLogger("guarded.janitor")

#: The name of the depot in reports.
NAME = "depot"
#: So many files are asked about at once.
_AT_ONCE = 500
#: Of an owner with too much, so many are looked at in one go.
_OLDEST = 20_000
#: What has been on its way in for so long was broken off.
_BROKEN_S = 86400.0


class DepotSweep:
    """Deletes what nothing needs any more. The janitor's thread."""

    def __init__(self, depot: Depot, records: Records) -> None:
        self._depot = depot
        self._records = records

    def run(self, sweep: Sweep) -> None:
        """Go through all files once, as long as it is known what is in use.

        What an open job names stays, whatever its age, and so does a result that its owner has not fetched; so does
        what is younger than the age of results or, for what was ever an input, of inputs. Raises Stopped, and
        GuardError where the store or the depot does not answer: then the rest stays until the next sweep.
        """
        self._depot.look()  # which tells the time there: ages go by that
        if self._depot.is_away:
            log.warning("the depot is not swept: it is away")
            return
        report, settings = sweep.report, sweep.rules.settings
        now_s = sweep.now_s + (self._depot.skew_s or 0.0)
        shortest_s = sweep.longest_age_s(min(settings.output_max_age_s, settings.input_max_age_s))
        old: list[Stored] = []
        for number, file in enumerate(self._depot.list_all()):
            if not number % _AT_ONCE:
                sweep.check_stopped()
            report.seen.setdefault(NAME, Tally()).add(file.bytes)
            if now_s - file.modified_s < shortest_s:
                report.keep("young", file.bytes)
            else:
                old.append(file)
        if not sweep.dry_run:
            self._depot.tidy(now_s - _BROKEN_S)
            self._forget_gone(sweep)
        if not old:
            return
        unread = self._list_unread(int((sweep.now_s - settings.unread_max_age_s) * 1000), sweep)
        for start in range(0, len(old), _AT_ONCE):
            sweep.check_stopped()
            some = old[start : start + _AT_ONCE]
            inputs = wait_for(self._records.select_inputs([file.key for file in some]))
            for file in some:
                is_input = file.key in inputs
                age_s = sweep.longest_age_s(settings.input_max_age_s if is_input else settings.output_max_age_s)
                if now_s - file.modified_s < age_s:
                    report.keep("young", file.bytes)
                elif file.key in unread:
                    report.keep("unread", file.bytes)
                else:
                    self._delete(file, sweep, now_s - age_s)

    def _forget_gone(self, sweep: Sweep) -> None:
        """Forget whose the files were that somebody else has deleted: those that are left would be gone by now."""
        settings = sweep.rules.settings
        longest_s = max(settings.input_max_age_s, settings.output_max_age_s, settings.unread_max_age_s)
        before_ms = (sweep.now_s - sweep.longest_age_s(longest_s) - _BROKEN_S) * 1000
        while before_ms > 0 and wait_for(self._records.forget_kept_before(int(before_ms), _AT_ONCE)) == _AT_ONCE:
            sweep.check_stopped()

    def count(self, owner: str) -> int:
        """How many bytes the depot has of the owner, `FILE_BYTES` for each file with them. Raises GuardError."""
        return wait_for(self._records.count_kept([owner])).get(owner, 0)

    def delete_oldest(self, owner: str, over: int, sweep: Sweep) -> None:
        """Delete what the depot has of the owner until it is so many bytes less: those that were fetched go first.

        What an open job names stays, and what was put in last. Raises Stopped, and GuardError where the store or the
        depot does not answer.
        """
        self._depot.look()
        if self._depot.is_away:
            return
        tally, settle_s = sweep.report.oldest, sweep.rules.settings.settle_s
        before_ms = int((sweep.now_s - settle_s) * 1000)
        for file in wait_for(self._records.list_oldest_kept(owner, before_ms, _OLDEST)):
            if tally.bytes + FILE_BYTES * tally.files >= over:
                return
            sweep.check_stopped()
            self._let_go(owner, file, sweep, sweep.now_s + (self._depot.skew_s or 0.0) - settle_s)

    def _let_go(self, owner: str, file: Kept, sweep: Sweep, before_s: float) -> None:
        """Delete a file of the owner's, or only forget that it is its, where others have it, too."""
        with sweep.in_use.about_to_delete(lambda: [f"/{file.key}"]):
            if sweep.in_use.may_name(file.key):
                sweep.report.keep("in_use", file.bytes)
                return
            newest = None if file.is_shared else self._depot.stat(file.key)
            if newest is not None and newest.modified_s >= before_s:
                sweep.report.keep("young", file.bytes)
                return
            if newest is not None:
                self._depot.delete(file.key)
            wait_for(self._records.forget_kept(owner, file.key))
        sweep.report.deleted.setdefault(NAME, Tally()).add(file.bytes)
        sweep.report.oldest.add(file.bytes)
        sweep.announce(NAME, file.key)

    def _list_unread(self, since_ms: int, sweep: Sweep) -> set[str]:
        """The files of jobs whose owners have not fetched all of them."""
        unread: set[str] = set()
        after = 0
        while found := wait_for(self._records.list_unread_files(since_ms, after, BODIES)):
            sweep.check_stopped()
            for after, artifacts in found:  # noqa: B007
                unread.update(make_key(file.sha256, file.filename) for file, _is_copy in list_files(artifacts))
        return unread

    def _delete(self, file: Stored, sweep: Sweep, before_s: float) -> None:
        report: Report = sweep.report

        def doomed() -> Iterable[str]:
            yield f"/{file.key}"

        with sweep.in_use.about_to_delete(doomed):
            if sweep.in_use.may_name(file.key):
                report.keep("in_use", file.bytes)
                return
            if not report.dry_run:
                newest = self._depot.stat(file.key)
                if newest is None:
                    report.vanished += 1
                    return
                if newest.modified_s >= before_s:  # put in again meanwhile, perhaps by another box
                    report.keep("young", file.bytes)
                    return
                self._depot.delete(file.key)
                wait_for(self._records.forget_uploads(file.key))
        report.deleted.setdefault(NAME, Tally()).add(file.bytes)
        sweep.announce(NAME, file.key)
