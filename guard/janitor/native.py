"""Whether sweeps take what no job has made: by the setting, or by the operator's word."""

from __future__ import annotations

import logging
from typing import Literal

from ..errors import InvalidRequestError
from ..settings import JanitorSettings
from .bodies import NativeBody
from .marker import Marker
from .report import Report, Tally

log = logging.getLogger("guarded.janitor")


class Native:
    """Knows the answer, and how many such files are old enough. Any thread."""

    def __init__(self, settings: JanitorSettings, marker: Marker) -> None:
        self._settings = settings
        self._marker = marker
        self._counted: tuple[int, int] | None = None

    @property
    def sweep(self) -> bool | Literal["ask"]:
        """`ask`: nobody has said so yet, so they are kept."""
        if self._settings.sweep_native != "ask":
            return self._settings.sweep_native
        return "ask" if self._marker.native is None else self._marker.native

    def decide(self, sweep: bool) -> None:
        """Take the operator's word, for good. Writes a file: not for the event loop.

        Raises:
            InvalidRequestError: the setting says one or the other.
            ServerUnavailableError: it could not be written; nothing has changed.
        """
        if (set_to := self._settings.sweep_native) != "ask":
            raise InvalidRequestError(f"janitor.sweep_native is {str(set_to).lower()}; only there it can be changed.")
        self._marker.decide(sweep)
        log.info("janitor: what no job has made is %s from now on", "deleted when it is old" if sweep else "kept")

    def note(self, report: Report) -> None:
        """Take the figures of a rehearsed sweep."""
        kept = report.kept.get("native", Tally())
        self._counted = kept.files, kept.bytes

    def body(self) -> NativeBody:
        """As JSON."""
        sweep = self.sweep
        files, size = (None, None) if sweep is True or self._counted is None else self._counted
        return {"sweep": sweep, "by_setting": self._settings.sweep_native != "ask", "files": files, "bytes": size}

    def describe(self) -> str:
        """What is swept and when, in one line for the log of a start."""
        settings = self._settings
        if not settings.enabled:
            return "the janitor is off: old files stay (janitor.enabled)"
        ages = settings.output_max_age_s, settings.temp_max_age_s, settings.input_max_age_s
        output, temp, given = (f"{age / 3600:g} h" for age in ages)
        which = {
            True: "whoever made it",
            False: "of output and input only what jobs made or brought",
            "ask": "of output and input only what jobs made or brought, as long as nobody has decided on the rest",
        }
        ages_said = f"output after {output}, temp after {temp}, input after {given}"
        return f"the janitor deletes {ages_said}: {which[self.sweep]} (janitor.sweep_native)"
