"""Settings that all boxes of a fleet must have alike: each box tells the others digests of its own, and no values.

A digest is drawn with a key that comes from the fleet's secret, so that nobody who reads the table can guess a value.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..settings import Settings
from ..store.members import Box
from .secret import derive

#: The name of it in a box's status.
STATUS = "settings"
SECRET = "fleet.secret"
#: Beside the digests of settings, one of where the depot is, as whoever it is asked.
DEPOT = "depot"
#: In a box's status: since when it is one, by its own clock.
SINCE = "since_ms"

#: What goes by the box's own card, disk, network or place; of a section, all.
MAY_DIFFER = frozenset(
    {
        *("queue.max_jobs", "log", "warmup", "store.url", "store.survives", "fleet.url", SECRET),
        *("watchdog.native_timeout_s", "watchdog.interrupt_grace_s", "watchdog.inject", "watchdog.on_stuck"),
        *("watchdog.max_disowned", "watchdog.gil_hang_s", "watchdog.free_memory", "watchdog.on_gpu_fault"),
        *("watchdog.shutdown_grace_s", "results.checks_at_once", "results.quarantine_max_bytes"),
        *("faces.detector", "faces.device", "faces.at_once", "limits.max_connections", "fetch.at_once"),
        *("janitor.enabled", "janitor.interval_s", "janitor.folders", "janitor.keep", "janitor.adopt_existing"),
        *("janitor.sweep_native", "janitor.settle_s", "janitor.quarantine_max_age_s", "janitor.min_free_bytes"),
        *("janitor.target_free_bytes", "janitor.floor_free_bytes", "access.trust_loopback", "access.trusted_proxies"),
    }
)
_DIGITS = 12


def digest(settings: Settings) -> dict[str, str]:
    """Digests of the settings that must agree and are not left at their defaults; and one of the secret."""
    secret = settings.fleet.secret
    key, defaults = derive(secret, "settings"), Settings()

    def draw(name: str, value: Any) -> str:
        text = json.dumps([name, value], sort_keys=True).encode()
        return hmac.new(key, text, hashlib.sha256).hexdigest()[:_DIGITS]

    told = {SECRET: derive(secret, "name of the secret").hex()[:_DIGITS]}
    told.update((name, draw(name, value)) for name, value in _list(settings, defaults))
    if url := settings.files.url:
        before, slashes, rest = url.partition("://")
        place, slash, path = rest.partition("/")
        told[DEPOT] = draw(DEPOT, f"{before}{slashes}{place.rpartition('@')[2]}{slash}{path}")
    return told


def find_differences(own: Mapping[str, str], boxes: Iterable[Box]) -> dict[str, list[str]]:
    """By the names of settings: the live boxes that have another value than this one. `own`: as :func:`digest`.

    With another secret nothing else can be compared. What only another version of this package knows is left out.
    """
    known = {f"{section}.{name}" for section, fields in _fields() for name in fields}
    differences: dict[str, list[str]] = {}
    for box in boxes:
        told = box.status.get(STATUS)
        if not box.is_alive or not isinstance(told, dict):
            continue
        names = [SECRET] if told.get(SECRET) != own.get(SECRET) else sorted({*own, *told} & known)
        for name in names:
            if told.get(name) != own.get(name):
                differences.setdefault(name, []).append(box.box)
    return differences


def list_other_secrets(own: str, boxes: Sequence[Box]) -> list[str]:
    """The live boxes that came before the one of that name and have another secret: it is to give way."""
    return _list_before(own, boxes, lambda here, other: "" != other.secret != here.secret)


def list_other_depots(own: str, boxes: Sequence[Box]) -> list[str]:
    """The live boxes that came before the one of that name and keep their files elsewhere: it is to give way."""
    return _list_before(own, boxes, lambda here, other: other.secret == here.secret and other.depot != here.depot)


def _list_before(own: str, boxes: Sequence[Box], differs: Callable[[_Place, _Place], bool]) -> list[str]:
    here = next((box for box in boxes if box.box == own), None)
    if here is None or (place := _read_place(here)) is None:
        return []
    others = [(box, _read_place(box)) for box in boxes if box.is_alive and box.box != own]
    return sorted(
        box.box
        for box, other in others
        if other is not None and (other.since_ms, box.box) < (place.since_ms, own) and differs(place, other)
    )


class _Place(NamedTuple):
    """Since when a box is there; its secret and its depot, by their digests."""

    since_ms: float
    secret: str
    depot: str


def _read_place(box: Box) -> _Place | None:
    """None where it does not tell."""
    told, since_ms = box.status.get(STATUS), box.number(SINCE)
    if not isinstance(told, dict) or since_ms is None:
        return None
    return _Place(since_ms, str(told.get(SECRET, "")), str(told.get(DEPOT, "")))


def _list(settings: Settings, defaults: Settings) -> Iterable[tuple[str, Any]]:
    for section, fields in _fields():
        values, usual = (getattr(each, section).model_dump(mode="json") for each in (settings, defaults))
        for name in fields:
            full = f"{section}.{name}"
            if not {section, full} & MAY_DIFFER and values[name] != usual[name]:
                yield full, values[name]


def _fields() -> Iterable[tuple[str, Iterable[str]]]:
    defaults = Settings()
    return [(section, type(getattr(defaults, section)).model_fields) for section in Settings.model_fields]
