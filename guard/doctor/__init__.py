"""Examine the installation: what is set, missing or unsafe, and how to fix it.

`facts` collects what there is to know, also without a server, `checks` judges it (`postgres`, `depot`
and others their part), `command` is the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from typing_extensions import TypedDict

from ..access.keys import Keys, KeysError
from ..clock import Clock
from ..faces.chooser import Chooser
from ..fleet import Membership
from ..host import Host
from ..janitor import Janitor
from ..life.health import Health
from ..settings import Settings
from ..templates.catalogue import Templates
from .facts import CLOSE, OPEN, TRUST_LESS, TRUSTING, Facts, LineBody, read_keys, remember

__all__ = ["CLOSE", "OPEN", "TRUSTING", "TRUST_LESS", "Doctor"]


class DoctorBody(TypedDict):
    """A line for each thing that the doctor has looked at."""

    lines: list[LineBody]


class Doctor:
    """The doctor of a running server. Everything here waits for the disk: not for the event loop."""

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str],
        host: Host,
        health: Health,
        keys: Keys,
        janitor: Janitor,
        chooser: Chooser,
        templates: Templates,
        own: Path,
        clock: Clock,
        list_warmup_faults: Callable[[], list[str]] = list,
        membership: Membership | None = None,
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._host = host
        self._health = health
        self._keys = keys
        self._janitor = janitor
        self._chooser = chooser
        self._templates = templates
        self._own = own
        self._clock = clock
        self._list_warmup_faults = list_warmup_faults
        self._membership = membership

    def remember(self) -> None:
        """Write down what only a running server knows, for the command line."""
        remember(self._own, self._host)

    def body(self) -> DoctorBody:
        """As JSON: a line for each thing that was looked at."""
        from .checks import examine  # a start should not wait for its imports

        facts = Facts(
            own=self._own,
            environment=self._environment,
            in_force=self._settings,
            host=self._host.describe(),
            folders=self._host.folders(),
            running=True,
            keys=found if isinstance(found := read_keys(self._own), KeysError) else self._keys.list_all(),
            faces=self._chooser.facts(),
            templates=self._templates.describe("en"),
            template_faults=self._templates.list_faults(),
            warmup_faults=self._list_warmup_faults(),
            existing=self._janitor.existing(),
            alarms=self._health.alarms(),
            server_ms=self._clock.now_ms(),
            boxes=self._membership.boxes if self._membership is not None else (),
        )
        return {"lines": [line.body() for line in examine(facts)]}
