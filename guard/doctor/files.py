"""The check of small files of ours that a start can do without."""

from __future__ import annotations

from collections.abc import Iterator

from ...failure import NOTE
from ...own_files import FileError, read_json
from ..janitor import marker
from ..settings import Settings
from .facts import Facts, Line

#: By file, what is without it.
_WITHOUT = {
    marker.FILE: "All files that exist now are left alone",
    "warming": "It is not known which warm-ups have ended the process",
    NOTE: "Folders and host are guessed where no server runs",
}


def check_files(facts: Facts, _settings: Settings) -> Iterator[Line]:
    for name, without in _WITHOUT.items():
        try:
            read_json(facts.own / name)
        except FileNotFoundError:
            continue
        except FileError as error:
            yield Line("warning", "files", f"{error}. {without}.", "Take it away: the next start makes another one.")
