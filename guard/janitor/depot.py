"""Sweep the depot: by the ages of the folders, by when each file was put in, or put in again."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ..depot import Depot, make_key
from ..depot.objects import Stored
from ..depot.outcomes import list_files
from .known import wait_for
from .records import Records
from .report import Report, Tally
from .sweep import BODIES, Sweep

log = logging.getLogger("guarded.janitor")

#: The name of the depot in reports.
NAME = "depot"
#: So many files are asked about at once.
_AT_ONCE = 500
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
