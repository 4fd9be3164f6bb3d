"""A start that failed: what is wrong, how to mend it, and whether the server must stay shut.

It needs nothing but Python, since anything else may be what is missing. The log, the door and the doctor take their
words from here, so that they say the same.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import own_files

#: Each start writes this file into our own folder; the doctor's command reads it.
NOTE = "last_start.json"

_MODE = "GUARDED_NATIVE__MODE"
#: A mode that is not `open`, also where quotes or an equals sign were forgotten; no part of a path or a file name.
_SHUT = re.compile(r"(?<![\w./-])(?:guarded|closed)(?![\w./-])", re.IGNORECASE)
#: A section or a key of its own, not a comment.
_FLEET = re.compile(r"^[ \t]*\[?[ \t]*fleet[ \t]*[\].=]", re.MULTILINE)
#: Folders are for the log, not for whoever asks.
_FOLDERS = re.compile(r"(?:[A-Za-z]:)?[/\\](?:[^/\\\s'\":]+[/\\])+")

Text = Mapping[str, str]

SETTINGS: Text = {
    "en": "Correct it in guarded.toml or in the environment, and restart ComfyUI.",
    "ru": "Исправьте это в guarded.toml или в переменных окружения и перезапустите ComfyUI.",
}
_PACKAGE: Text = {
    "en": "Install what is missing with ComfyUI's own Python (-m pip install -r "
    "custom_nodes/<folder>/requirements.txt), and restart ComfyUI.",
    "ru": "Установите недостающее тем Python, на котором работает ComfyUI: "
    "-m pip install -r custom_nodes/<folder>/requirements.txt; затем перезапустите ComfyUI.",
}
_FOLDER: Text = {
    "en": "The user that ComfyUI runs as must be able to read and write the folder __guarded in ComfyUI's user folder, "
    "and its disk needs room. Then restart ComfyUI.",
    "ru": "Пользователь, от имени которого работает ComfyUI, должен иметь право читать папку __guarded в папке user "
    "и писать в нее, а на диске должно быть место. Затем перезапустите ComfyUI.",
}
_FILE: Text = {
    "en": "Mend that file in the folder __guarded in ComfyUI's user folder, or take it away, and restart ComfyUI.",
    "ru": "Исправьте этот файл в папке __guarded в папке user или уберите его и перезапустите ComfyUI.",
}
_MEMORY: Text = {
    "en": "Give the machine more memory or swap, and restart ComfyUI.",
    "ru": "Добавьте машине памяти или раздел подкачки и перезапустите ComfyUI.",
}
_OTHER: Text = {
    "en": "ComfyUI's log has the traceback. Install this package and its requirements again, and restart ComfyUI; if "
    "that does not help, report it.",
    "ru": "Подробности в журнале ComfyUI. Установите этот пакет и его зависимости заново и перезапустите ComfyUI. "
    "Если не поможет, сообщите нам.",
}


@dataclass(frozen=True)
class Failure:
    """Why the package is off.

    Attributes:
        reason: for the operator: the log and the doctor.
        told: the same for whoever asks over HTTP, without values and folders.
        shut: why no route may answer; None where ComfyUI goes on without us.
    """

    reason: str
    told: str
    mend: Text
    shut: str | None

    @property
    def message(self) -> str:
        return say(self.reason)

    @property
    def state(self) -> str:
        """What that means for ComfyUI, for the log and the doctor."""
        if self.shut is not None:
            return f"Every route answers 503: {self.shut}."
        return "ComfyUI runs without it, with native.mode open: whoever reaches this server can use it."


def say(reason: str) -> str:
    """The one sentence for it."""
    return f"ComfyUI-Guarded is OFF: {reason.rstrip('.')}."


def describe(error: BaseException, own: Path | None, environment: Mapping[str, str], listen: Iterable[str]) -> Failure:
    """Judge a failed start. `own` is None where our own folder is not known, `listen` is empty where that is not.

    Blocks: it reads the settings again.
    """
    is_setting = type(error).__name__ == "SettingsError"
    reason = str(error) if is_setting or isinstance(error, own_files.FileError) else f"{type(error).__name__}: {error}"
    told = str(getattr(error, "told", "a setting")) if is_setting else _FOLDERS.sub("…/", reason)[:500]
    if is_setting:
        mend = SETTINGS
    elif isinstance(error, ImportError):
        mend = _PACKAGE
    elif isinstance(error, own_files.FileError):
        mend = _FILE
    elif isinstance(error, OSError):
        mend = _FOLDER
    else:
        mend = _MEMORY if isinstance(error, MemoryError) else _OTHER
    return Failure(reason, told, mend, find_reason_to_shut(own, environment, listen, settings_fail=is_setting))


def find_reason_to_shut(
    own: Path | None, environment: Mapping[str, str], listen: Iterable[str], *, settings_fail: bool
) -> str | None:
    """Why a server whose guard failed must answer nobody; None where it may go on. In doubt it must not."""
    mode, is_asked_for = _find_mode(own, environment)
    if mode is None:
        return f"guarded.toml cannot be read, and {_MODE} does not say which mode is wanted"
    if mode != "open":
        return f"native.mode is {mode!r}"
    try:
        if own is None or os.path.lexists(own / "keys.json") or not _can_look_into(own):
            return "there are keys, or it cannot be seen whether there are"
    except OSError:
        return "it cannot be seen whether there are keys"
    if _may_be_fleet(own, environment):
        return "this is one server of a fleet, whose keys cannot be seen from here"
    listen = list(listen)
    if settings_fail and not is_asked_for and (not listen or is_reachable_from_elsewhere(listen)):
        return "the settings cannot be used, and other machines reach this server"
    return None


def _can_look_into(folder: Path) -> bool:
    try:
        os.listdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _may_be_fleet(own: Path, environment: Mapping[str, str]) -> bool:
    """Whether the settings have something to say of a fleet."""
    if any(name.upper().startswith("GUARDED_FLEET") for name in environment):
        return True
    try:
        return _FLEET.search(own_files.read_bytes(own / "guarded.toml").decode(errors="replace")) is not None
    except OSError:
        return False  # its mode was asked for by name all the same


def _find_mode(own: Path | None, environment: Mapping[str, str]) -> tuple[str | None, bool]:
    """The mode that is wanted, and whether somebody has asked for it by name. None: it cannot be told.

    A name or a file with a mistake in it counts for what it seems to mean: `GUARDED_NATIVE_MODE=closed`.
    """
    ours = {name.upper(): value for name, value in environment.items() if name.upper().startswith("GUARDED_")}
    for name, value in ours.items():
        if name != _MODE and _SHUT.fullmatch(value.strip().strip("\"'")):
            return value, True
    if _MODE in ours:
        return ours[_MODE], True
    try:
        raw = own_files.read_bytes(own / "guarded.toml") if own is not None else None
    except FileNotFoundError:
        return "open", False
    except OSError:
        raw = None  # a link to nothing, say: the disk with the settings is not there
    if own is None or raw is None:
        return None, False
    text = raw.decode(errors="replace")
    native = _read_native(own / "guarded.toml", text)
    if native is not None and "mode" in native:
        return str(native["mode"]), True
    found = _SHUT.search(re.sub("#.*", "", text))
    return (found[0], True) if found else ("open", False)


def _read_native(path: Path, text: str) -> Mapping[str, Any] | None:
    """The section `native` of the settings; None where they are no TOML, or there is nothing to read it with."""
    try:
        native = own_files.parse_toml(path, text).get("native", {})
    except (ImportError, own_files.FileError):
        return None
    return native if isinstance(native, dict) else {"mode": native}


def is_reachable_from_elsewhere(listen: Iterable[str]) -> bool:
    """Whether other machines reach a server that listens on these addresses."""
    return not all(host == "localhost" or _is_loopback(host) for host in listen)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip()).is_loopback
    except ValueError:
        return False


def note(own: Path, failure: Failure, facts: Mapping[str, Any]) -> None:
    """Leave the doctor's command a note: `facts` as `guard.doctor.facts` has them. A disk that refuses is ignored."""
    off = {"reason": failure.reason, "mend": failure.mend["en"], "state": failure.state}
    part = own / f"{NOTE}.part"
    try:
        own.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # nobody waits for whoever might read a pipe
        with open(part, "x", encoding="utf-8") as file:
            json.dump({**facts, "off": off}, file)
        os.replace(part, own / NOTE)
    except OSError:
        pass
