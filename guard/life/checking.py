"""Check the results of runs beside the worker, which goes on with the next job."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ..depot.outcomes import PutAll, list_stored
from ..errors import CancelledError, GuardError, InternalError, ResultCorruptError
from ..host import Outcome
from ..job import SUCCESS, Artifact, Result, Verdict
from ..outgoing import AS_IT_COMES, ResultOptions
from ..results import checks, convert, judgement, metadata, quarantine, within
from ..settings import ResultsSettings
from .beside import Beside
from .check_places import CheckPlaces
from .converting import Conversions
from .namers import Namers

log = logging.getLogger("guarded.queue")

#: What tells one content of a file from a later one: device, inode, size, time of the last change.
Mark = tuple[int, int, int, int]
#: Gets the verdict on a run and its result.
Then = Callable[[Verdict, Result], None]


class _Asked(NamedTuple):
    """What else is wanted of a run's files: see :meth:`Checking.check`."""

    strips: bool
    max_pixels: int
    options: ResultOptions
    owner: str


@dataclass(frozen=True)
class Check:
    """A run to check beside the worker: see `Checking.check`."""

    job_id: str
    outcome: Outcome
    marks: dict[Path, Mark | None]
    then: Then
    asked: _Asked
    #: The owner begins nothing until it is over.
    is_alone: bool


class Checking:
    """Checks successful runs beside the worker, by turns between owners: at most `results.checks_at_once` of an owner,
    of all together twice as many and one more; 0: on the worker itself.

    A run that has no place yet waits for one, and the worker goes on. A node that gives its files a fixed name
    overwrites those of the run before. Where that is to be feared the owner begins nothing until the check is over, or,
    where others might overwrite them too, the worker waits for it.
    """

    def __init__(
        self,
        settings: ResultsSettings,
        quarantine: Path,
        *,
        syncs: bool,
        put_all: PutAll | None = None,
        holds_up: Callable[[], object] = lambda: None,
        hold_back: Callable[[frozenset[str]], object] = lambda _owners: None,
    ) -> None:
        """
        Args:
            syncs: a success waits until its files are on the disk.
            put_all: puts them into the depot, if there is one.
            holds_up: called before the worker itself checks a run.
            hold_back: see :class:`.CheckPlaces`.
        """
        self._settings = settings
        self._quarantine = quarantine
        self._syncs = syncs
        self._converter = convert.Converter(settings, quarantine.with_name(convert.FOLDER), syncs=syncs)
        self._conversions = Conversions()
        self._put_all = put_all
        self._holds_up = holds_up
        self._deposits = Conversions("guarded-depositing")
        count = 2 * settings.checks_at_once + 1
        self._places: CheckPlaces[Check] = CheckPlaces(count, settings.checks_at_once, hold_back)
        self._beside = Beside("guarded-checking", self._run_on, count)
        self._namers = Namers()
        #: The jobs whose checks have not begun, and those of them that have ended by now.
        self._to_check: set[str] = set()
        self._dropped: set[str] = set()

    def go_on(self) -> None:
        """The worker has its next job, or waits for one. The worker's thread."""
        self._beside.go_on()

    def check(
        self,
        job_id: str,
        outcome: Outcome,
        then: Then,
        go_on: Callable[[], object],
        *,
        strips: bool = False,
        max_pixels: int = 0,
        options: ResultOptions = AS_IT_COMES,
        owner: str = "",
        owner_folder: str = "",
        then_beside: Then | None = None,
    ) -> None:
        """Check a run that the host calls a success; `then` gets the verdict, on any thread, or in its place
        `then_beside` on one that has nothing else to do.

        `strips`: take the metadata out of files that pass. `max_pixels`: how many a node's pictures may have; 0: any.
        `options`: in what form the results are wanted besides; owners take turns with that. `owner_folder`: below it
        nobody else's run writes, and none of the owner's that is with the host already; empty: that is not sure.

        The worker's thread, which waits for no check but its own. Calls `go_on` as soon as the worker may have the next
        job, and before `then`.
        """
        asked = _Asked(strips, max_pixels, options, owner)
        is_alone = not self._namers.name_anew(outcome, owner)
        if not self._settings.checks_at_once or (is_alone and not _are_below(outcome, owner_folder)):
            self._holds_up()
            verdict, result = self._judge(job_id, outcome, {}, asked)
            if verdict is SUCCESS and options.format is not None:
                verdict, result = self._convert(job_id, outcome, {}, options, result)
            if verdict is SUCCESS:
                result = self._store(result)
            go_on()
            then(verdict, result)
            return
        check = Check(job_id, outcome, _mark_files(outcome), then_beside or then, asked, is_alone)
        self._namers.hold(outcome, 1)
        self._to_check.add(job_id)
        if is_alone:
            self._places.hold(owner)
        try:
            go_on()
            has_place = self._places.take(owner, check)
        except BaseException:
            self._let_go(check)
            raise
        if has_place and not self._beside.put(check):
            self._run_on(replace(check, then=then))

    def _run_on(self, check: Check | None) -> None:
        """Check this run, and then those that have waited for its place."""
        while check is not None:
            try:
                self._run(check)
            except Exception:
                log.exception("the end of a job could not be handed on")
            check = self._places.give_back(check.asked.owner)

    def drop(self, job_id: str) -> None:
        """The job has ended, and nobody wants to know any more. Any thread."""
        self._dropped.add(job_id)
        if job_id not in self._to_check:
            self._dropped.discard(job_id)

    def _run(self, check: Check) -> None:
        is_over = True
        self._to_check.discard(check.job_id)
        try:
            if check.job_id in self._dropped:
                self._dropped.discard(check.job_id)
                verdict, result = Verdict.of(CancelledError("The job has ended.")), Result()
            else:
                verdict, result = self._judge(check.job_id, check.outcome, check.marks, check.asked)
            is_over = verdict is not SUCCESS or (check.asked.options.format is None and not self._has_to_store(result))
        finally:
            if is_over:
                self._let_go(check)
        if is_over:
            check.then(verdict, result)
            return
        if check.asked.options.format is None:
            self._deposits.hand_in(check.asked.owner, lambda: self._finish_stored(check, result))
            return
        # Nobody's check waits for an encoder.
        begins_by_s = time.monotonic() + self._settings.convert_timeout_s
        self._conversions.hand_in(check.asked.owner, lambda: self._finish(check, result, begins_by_s))

    def _finish(self, check: Check, result: Result, begins_by_s: float) -> None:
        """Convert what has passed. It has waited for its turn; from `begins_by_s` on it is too late for copies."""
        try:
            verdict, result = self._convert(
                check.job_id,
                check.outcome,
                check.marks,
                check.asked.options,
                result,
                is_late=time.monotonic() >= begins_by_s,
            )
        except BaseException:
            self._let_go(check)
            raise
        if verdict is SUCCESS and self._has_to_store(result):
            self._deposits.hand_in(check.asked.owner, lambda: self._finish_stored(check, result))
            return
        self._let_go(check)
        check.then(verdict, result)

    def _finish_stored(self, check: Check, result: Result) -> None:
        """Put what has passed into the depot, as far as that goes."""
        try:
            result = self._store(result)
        finally:
            self._let_go(check)
        check.then(SUCCESS, result)

    def _let_go(self, check: Check) -> None:
        """Nobody looks at the files of that run any more."""
        self._namers.hold(check.outcome, -1)
        if check.is_alone:
            self._places.let_go(check.asked.owner)

    def _has_to_store(self, result: Result) -> bool:
        return self._put_all is not None and bool(result.artifacts)

    def _store(self, result: Result) -> Result:
        """Put the files into the depot, and note which are there, and which are not."""
        if self._put_all is None or not result.artifacts:
            return result
        unstored = self._put_all(result.artifacts)
        return replace(result, unstored=unstored, stored=list_stored(result.artifacts, unstored))

    def _judge(
        self, job_id: str, outcome: Outcome, marks: dict[Path, Mark | None], asked: _Asked
    ) -> tuple[Verdict, Result]:
        """Check the files, and set them aside where they fail. Raises nothing."""
        settings = self._settings

        def check() -> tuple[Artifact, ...]:
            artifacts = checks.check(outcome, settings)
            judgement.check_pixels(artifacts, asked.max_pixels)
            if asked.strips:
                _compare(marks)
                artifacts = metadata.strip_results(checks.result_files(outcome), artifacts)
                metadata.strip_byproducts(outcome.byproducts)
                marks.update(_mark_files(outcome) if marks else {})
            if self._syncs:
                checks.sync(outcome)
            return artifacts

        try:
            # Where nothing can hang, another thread need not be woken.
            is_quick = not self._syncs and checks.are_quick(outcome)
            artifacts = check() if is_quick else within.run_within(settings.check_timeout_s, check)
            _compare(marks)
            return SUCCESS, Result(checks.own_outputs(outcome), artifacts)
        except Exception as failure:
            return self._refuse(job_id, outcome, marks, (), failure)

    def _convert(
        self,
        job_id: str,
        outcome: Outcome,
        marks: dict[Path, Mark | None],
        options: ResultOptions,
        result: Result,
        is_late: bool = False,
    ) -> tuple[Verdict, Result]:
        """Make the copies of files that have passed; refuse files that were overwritten meanwhile. Raises nothing."""
        artifacts = result.artifacts
        try:
            artifacts = self._converter.convert(checks.result_files(outcome), artifacts, options, is_late=is_late)
            _compare(marks)
            return SUCCESS, replace(result, artifacts=artifacts)
        except Exception as failure:
            return self._refuse(job_id, outcome, marks, artifacts, failure)

    def _refuse(
        self,
        job_id: str,
        outcome: Outcome,
        marks: dict[Path, Mark | None],
        artifacts: Sequence[Artifact],
        failure: Exception,
    ) -> tuple[Verdict, Result]:
        """Set the files aside. Raises nothing."""
        if isinstance(failure, GuardError):
            error = failure
        else:
            log.error("job %s: the checks raised", job_id, exc_info=failure, extra={"job_id": job_id})
            details = f"{type(failure).__name__}: {failure}"
            error = InternalError("The result could not be checked.", details=details)
        try:
            convert.discard(checks.result_files(outcome), artifacts)
            _compare(marks)
            files = (*checks.own_files(outcome), *outcome.byproducts)
            quarantine.set_aside(files, self._quarantine / job_id, self._settings)
            self._namers.forget(outcome)
        except GuardError as overwritten:  # the file is another job's by now
            error = overwritten
        except Exception:
            log.exception("job %s: its files could not be set aside", job_id, extra={"job_id": job_id})
        return Verdict.of(error), Result()


def _are_below(outcome: Outcome, folder: str) -> bool:
    """Whether all files of the run are below that folder of a root."""
    return bool(folder) and all(
        file.path is not None and f"/{folder}/" in file.path.as_posix() for file in checks.own_files(outcome)
    )


def _mark_files(outcome: Outcome) -> dict[Path, Mark | None]:
    return {file.path: _mark(file.path) for file in checks.own_files(outcome) if file.path is not None}


def _mark(path: Path) -> Mark | None:
    """None where there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _compare(marks: Mapping[Path, Mark | None]) -> None:
    """Raises ResultCorruptError where a file is no longer the one that was marked."""
    for path, mark in marks.items():
        if mark is not None and _mark(path) != mark:
            raise ResultCorruptError(
                f"{path.name} was overwritten while it was checked.", extra_info={"filename": path.name}
            )
