"""What the doctor looks at, and a note of each start that tells the command line of folders and host."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from ...failure import NOTE
from ...own_files import read_json
from .. import private_files
from ..access.keys import Key, KeysError, read
from ..host import Folders, Host
from ..life.health import AlarmBody
from ..settings import Settings
from ..store import Box

log = logging.getLogger("guarded.doctor")


#: As the log says it at start, too.
OPEN = "ComfyUI's own routes are open to anyone who can reach this server, past every key and limit."
CLOSE = 'Set native.mode = "guarded" or "closed", or start ComfyUI with --listen 127.0.0.1.'
TRUSTING = (
    "access.trust_loopback is true: whatever a tunnel or proxy on this machine passes on as its own is the operator."
)
TRUST_LESS = 'Set access.trust_loopback = "auto" or false.'

Level = Literal["ok", "warning", "error"]


class LineBody(TypedDict):
    """What the doctor thinks of one thing, and how to mend it."""

    level: Level
    check: str
    message: str
    mend: str


@dataclass(frozen=True)
class Line:
    """What one check says; `mend`: how to fix what is wrong."""

    level: Level
    check: str
    message: str
    mend: str = ""

    def body(self) -> LineBody:
        """As JSON."""
        return {"level": self.level, "check": self.check, "message": self.message, "mend": self.mend}


@dataclass(frozen=True)
class Off:
    """Why the package is off, as :class:`failure.Failure` has it."""

    reason: str
    mend: str
    state: str


@dataclass(frozen=True)
class Facts:
    """All that the checks look at.

    Attributes:
        own: our own folder, with settings, keys and the job database.
        in_force: the running server's settings; None for the command line, which reads the settings itself.
        host: as :meth:`Host.describe` has it; empty where no server has started here yet.
        running: whether a server runs on `own`.
        keys: every key; in place of them, why the file cannot be used.
        faces: as :meth:`Chooser.facts` has them.
        templates: as :meth:`Templates.describe` has them.
        template_faults: as :meth:`Templates.list_faults` has them.
        warmup_faults: as :meth:`Warmups.list_faults` has them; None where no server runs.
        existing: files and bytes from before the first start that the janitor leaves alone; None: not counted yet.
        alarms: of the running server.
        off: why the last start failed, which left the package off; None where it did not.
        server_ms: the running server's clock, which goes on steadily when somebody sets the machine's.
        boxes: those of its fleet.
    """

    own: Path
    environment: Mapping[str, str]
    in_force: Settings | None
    host: Mapping[str, Any]
    folders: Folders
    running: bool
    keys: Sequence[Key] | KeysError
    faces: Mapping[str, Any]
    templates: Sequence[Mapping[str, Any]]
    existing: tuple[int, int] | None
    template_faults: Sequence[str] = ()
    warmup_faults: Sequence[str] | None = None
    alarms: Sequence[AlarmBody] = field(default_factory=list)
    off: Off | None = None
    server_ms: int | None = None
    boxes: Sequence[Box] = ()


class _Listening(TypedDict):
    """What :func:`make_url` reads of the host."""

    listen: NotRequired[list[str] | None]
    port: NotRequired[Annotated[int, Field(ge=0, le=65535)] | None]


def _check_host(host: dict[str, Any]) -> dict[str, Any]:
    _HOST.validate_python(host)
    return host


class _Note(TypedDict):
    host: Annotated[dict[str, Any], AfterValidator(_check_host)]
    output: str | None
    temp: str | None
    input: str | None
    models: list[str]


_HOST, _NOTE, _OFF = TypeAdapter(_Listening), TypeAdapter(_Note), TypeAdapter(Off)


def remember(own: Path, host: Host) -> None:
    """Note what only the running host knows. A disk that cannot take it is a matter for other checks."""
    folders = host.folders()
    note = {
        "host": host.describe(),
        **{root: _to_text(path) for root, path in folders.roots().items()},
        "models": [str(path) for path in host.model_folders()],
    }
    try:
        private_files.write(own / NOTE, json.dumps(note).encode())
    except OSError as error:
        log.warning("%s cannot be written: %s", NOTE, error)


def read_keys(own: Path) -> list[Key] | KeysError:
    """Read the keys as the next start would."""
    try:
        return read(own)
    except KeysError as error:
        return error


def recall(own: Path) -> tuple[dict[str, Any], Folders, list[Path]] | None:
    """Recall host, roots and model folders as of the last start; None where there was none, or its note is gone."""
    try:
        note = _NOTE.validate_python(read_json(own / NOTE))
        roots = (note["output"], note["temp"], note["input"])
        for path in (*filter(None, roots), *note["models"]):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                os.lstat(path)  # of a name that no file can have, the note is not ours
        output, temp, source = (Path(root) if root else None for root in roots)
        return dict(note["host"]), Folders(output, temp, source), [Path(path) for path in note["models"]]
    except (OSError, ValueError):
        return None


def recall_off(own: Path) -> Off | None:
    """Recall why the last start failed; None where it did not, or its note is gone."""
    try:
        return _OFF.validate_python(read_json(own / NOTE)["off"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _to_text(path: Path | None) -> str | None:
    return str(path) if path is not None else None


def make_url(host: Mapping[str, Any]) -> str:
    """Where this machine reaches the server; `host`: as Host.describe."""
    addresses = [address for address in host.get("listen") or () if address not in ("0.0.0.0", "::")]
    address = next((one for one in addresses if ":" not in one), "127.0.0.1")
    return f"http://{address}:{host.get('port') or 8188}"
