"""What those who wait for a commit are told, at once or as soon as it is known how it ended."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..errors import GuardError
from ..wake import together
from .threads import Batch

Done = list[tuple[Future[Any], Any]]
Refusals = list[tuple[Future[Any], GuardError]]


@dataclass
class Unsure:
    """A commit whose answer was lost: its number, and what to do once it is known that it succeeded."""

    number: int
    batch: Batch
    tell: Callable[[bool], None]
    #: Whether it is in the database; None: nobody knows yet.
    is_kept: bool | None = None
    #: Those who wait were told that it is not known.
    is_refused: bool = False


class Told(OSError):
    """An error of the engine, as it may be logged and told."""

    def __init__(self, text: str, sqlstate: str | None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


def announce_late(
    publish: Callable[[bool], None],
    is_late: bool,
    done: Done,
    refusals: Refusals,
) -> None:
    with together():
        publish(is_late)
        answer(done, refusals)


def answer(done: Done, refusals: Refusals) -> None:
    for future, refusal in refusals:
        if not future.done():
            future.set_exception(refusal)
    for future, result in done:
        if not future.done():
            future.set_result(result)
