"""What there is to say of the other servers of a fleet."""

from __future__ import annotations

from collections.abc import Iterator

from ..fleet import find_differences
from ..fleet.agreed import DEPOT, SECRET, STATUS, digest
from ..settings import Settings
from .facts import Facts, Line


def check_fleet(facts: Facts, settings: Settings) -> Iterator[Line]:
    """Whether they have the settings that all must have alike."""
    if not settings.fleet.enabled or not facts.boxes:
        return
    own = digest(settings)
    differences = find_differences(own, facts.boxes)
    told = {box.box: box.status.get(STATUS) for box in facts.boxes}
    for name, boxes in differences.items():
        which = ", ".join(boxes)
        if name == SECRET:
            message = f"{which} has another {SECRET}: what one box has signed is refused by the other."
            yield Line("error", "fleet", message, "Give all boxes the same, and restart those that had another.")
        elif name == "files.url" and any(_read_depot(told[box]) != own.get(DEPOT) for box in boxes):
            message = f"{name} is not the same here as on {which}: each of them lacks the other's files."
            yield Line(
                "error", "fleet", message, "Set it alike on all boxes, and restart those that had another value."
            )
        else:
            message = f"{name} is not the same here as on {which}: what counts depends on which box is asked."
            yield Line(
                "warning", "fleet", message, "Set it alike on all boxes, and restart those that had another value."
            )
    if not differences:
        alive = sum(box.is_alive for box in facts.boxes)
        yield Line("ok", "fleet", f"{alive} boxes are alive, and have the same settings.")


def _read_depot(told: object) -> object:
    return told.get(DEPOT) if isinstance(told, dict) else None
