"""The judgements: each looks at some of the facts and says what it thinks, with a mend where something is wrong."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..access.addresses import is_reachable_from_elsewhere
from ..janitor.disk import disks
from ..settings import Settings, SettingsError, load, origins, rows
from ..store import database_path
from ..store.schema import MIGRATIONS
from .facts import Facts, Level, LineBody

log = logging.getLogger("guarded.doctor")

LEVELS: tuple[Level, ...] = ("ok", "warning", "error")

FOLDER = "python custom_nodes/<folder>"
#: Nothing here was made before that.
BUILT_S = 1_760_000_000
#: Clocks that differ by no more agree.
SKEW_S = 60.0
SOON_MS = 7 * 86_400_000
#: Of requirements.txt; onnxruntime has a check of its own, and without the others nothing would run.
PACKAGES = ("av", "filelock", "pydantic", "standardwebhooks", "prometheus-client", "nvidia-ml-py")


@dataclass(frozen=True)
class Line:
    level: Level
    check: str
    message: str
    mend: str = ""

    def body(self) -> LineBody:
        """As JSON."""
        return {"level": self.level, "check": self.check, "message": self.message, "mend": self.mend}


def lines(facts: Facts) -> list[Line]:
    """Everything the doctor has to say. Waits for the disk; a check that stumbles says so and harms no other."""
    found: list[Line] = []
    try:
        settings = facts.in_force or load(facts.own / "guarded.toml", facts.environment)
    except SettingsError as error:
        settings = Settings()
        mend = "Correct it there; until then ComfyUI runs without the guard."
        found.append(Line("error", "settings", f"They cannot be used: {error}.", mend))
    for check in CHECKS:
        try:
            found += check(facts, settings)
        except Exception as error:
            log.exception("the check %s failed", check.__name__)
            said = f"This could not be looked at: {type(error).__name__}: {error}"
            found.append(Line("warning", check.__name__.strip("_"), said, "Please report it."))
    return found


def _settings(facts: Facts, settings: Settings) -> Iterator[Line]:
    """Those that are not at their default, and who has set them."""
    try:
        from_where = origins(facts.own / "guarded.toml", facts.environment)
        changed = facts.in_force is not None and load(facts.own / "guarded.toml", facts.environment) != settings
    except SettingsError as error:
        if facts.in_force is not None:
            mend = "Correct it before the next start."
            yield Line(
                "error", "settings", f"The server would not start with guarded.toml as it is now: {error}.", mend
            )
        return
    for name, value, _help in rows(settings):
        if name in from_where:
            yield Line("ok", "settings", f"{name} = {json.dumps(value, ensure_ascii=False)}, from {from_where[name]}")
    count = sum(name not in from_where for name, _value, _help in rows(settings))
    yield Line("ok", "settings", f"{count} settings have their defaults.")
    if changed:
        yield Line("warning", "settings", "guarded.toml has changed since the server started.", "Restart ComfyUI.")


def _host(facts: Facts, _settings: Settings) -> Iterator[Line]:
    told = dict(facts.host)
    if not told:
        mend = "Start ComfyUI once; until then its folders are guessed."
        yield Line("warning", "host", "No server with this package has started here yet.", mend)
        return
    when = "running" if facts.running else "as at its last start"
    python = f", Python {platform.python_version()}" if facts.running else ""
    yield Line("ok", "host", f"{told.pop('name', 'ComfyUI')} {told.pop('version', '?')}{python}, {when}")
    features = {name: value for name, value in told.items() if isinstance(value, bool)}
    has = ", ".join(name for name, value in features.items() if value) or "nothing"
    lacks = ", ".join(name for name, value in features.items() if not value) or "nothing"
    yield Line("ok", "host", f"Found in it: {has}; not found: {lacks}.")
    if features.get("replaceable_worker") is False:
        mend = 'Set watchdog.on_stuck = "restart" or "exit".'
        yield Line("warning", "host", "A worker that hangs cannot be replaced in this ComfyUI.", mend)


def _alarms(facts: Facts, _settings: Settings) -> Iterator[Line]:
    mends = {
        "draining": "POST /guarded/drain?off=1 ends it.",
        "worker_dead": "Restart ComfyUI.",
        "worker_stuck": "Restart ComfyUI.",
        "worker_hangs": "Restart ComfyUI when it suits: until then its memory stays taken.",
    }
    for alarm in facts.alarms:
        if alarm["code"] != "disk_full":  # the disks have lines of their own
            level: Level = "error" if alarm["code"] in ("worker_dead", "worker_stuck") else "warning"
            yield Line(level, "worker", alarm["message"], mends.get(alarm["code"], ""))
    if facts.running and not facts.alarms:
        yield Line("ok", "worker", "It serves the queue.")


def _packages(_facts: Facts, _settings: Settings) -> Iterator[Line]:
    missing = [name for name in PACKAGES if not _installed(name)]
    if missing:
        mend = f'"{sys.executable}" -m pip install {" ".join(missing)}'
        yield Line("warning", "packages", f"Not installed: {', '.join(missing)}.", mend)
    else:
        yield Line("ok", "packages", "What requirements.txt asks for is installed.")


def _faces(facts: Facts, _settings: Settings) -> Iterator[Line]:
    told, state = facts.faces, facts.faces["onnxruntime"]
    if told["detector"] is None:
        mend = state["command"] or "Install requirements.txt with ComfyUI's Python."
        yield Line("error", "faces", f"No face can be looked for: {told['reason']}", mend)
    else:
        where = "in memory" if told["loaded"] else "loaded at the first check"
        yield Line("ok", "faces", f"{told['detector']} on the {told['device'].upper()}, {where}. {told['reason']}")
    if state["problem"]:
        yield Line("error" if state["broken"] else "warning", "onnxruntime", state["problem"], state["command"])
    else:
        packages = ", ".join(f"{name} {version}" for name, version in state["packages"].items()) or "not installed"
        yield Line("ok", "onnxruntime", f"{packages}; it offers {', '.join(state['providers']) or 'nothing'}.")


def _templates(facts: Facts, _settings: Settings) -> Iterator[Line]:
    for template in facts.templates:
        check = f"template {template['name']}"
        missing = set(template["missing"]["models"])
        for model in template["models"]:
            if model["file"] in missing:
                mend = f"Put it into models/{model['folder']}, from {model['source']}."
                yield Line("warning", check, f"The model {model['file']} is missing.", mend)
        for pack in template["node_packs"]:
            if pack["name"] in template["missing"]["node_packs"]:
                yield Line("warning", check, f"The node pack {pack['name']} is missing.", f"Install {pack['source']}.")
        if not missing and not template["missing"]["node_packs"]:
            unseen = " Whether its node packs are, only a running server can tell." if template["node_packs"] else ""
            ready = "Its models are there." if not facts.running else "Everything for it is there."
            yield Line("ok", check, ready + (unseen if not facts.running else ""))


def _folders(facts: Facts, _settings: Settings) -> Iterator[Line]:
    for name, path in [*facts.folders.roots().items(), ("own", facts.own)]:
        if path is None:
            continue
        there = _nearest(path)
        if os.access(there, os.W_OK | os.X_OK):
            yield Line("ok", "folders", f"{name}: {path} can be written.")
        else:
            mend = f"Give ComfyUI's user the right to write there: chown -R <user> {path}"
            yield Line("error", "folders", f"{name}: {path} cannot be written.", mend)


def _disk(facts: Facts, settings: Settings) -> Iterator[Line]:
    rules = settings.janitor
    folders = (facts.folders.output, facts.folders.temp, facts.folders.input, facts.own)
    for disk in disks([path for path in folders if path is not None]):
        free, total = disk.free(), disk.total()
        said = f"{disk.path}: {_size(free)} of {_size(total)} free"
        mend = "POST /guarded/janitor/sweep, lower janitor.…_max_age_s, or a larger disk."
        if free < rules.floor_free_bytes:
            yield Line("error", "disk", f"{said}, below janitor.floor_free_bytes: no job is let in.", mend)
        elif free < rules.min_free_bytes:
            yield Line("warning", "disk", f"{said}, below janitor.min_free_bytes: the oldest files go.", mend)
        else:
            yield Line("ok", "disk", f"{said}.")


def _janitor(facts: Facts, settings: Settings) -> Iterator[Line]:
    rules = settings.janitor
    if not rules.enabled:
        mend = "Set janitor.enabled = true, or run `… janitor` from cron."
        yield Line("warning", "janitor", "It is off: old files stay until the disk is full.", mend)
    if rules.floor_free_bytes == 0:
        mend = "Leave janitor.floor_free_bytes at its default."
        yield Line("warning", "janitor", "Jobs are let in however full the disk is.", mend)
    if facts.existing is None:
        yield Line("ok", "janitor", "What was there before the first start has not been counted yet.")
    elif facts.existing[0]:
        files, size = facts.existing
        yield Line(
            "warning",
            "janitor",
            f"{files} files ({_size(size)}) were there before this package first started and are left alone.",
            "If they may go: POST /guarded/janitor/adopt, or the button on the operator's page.",
        )
    elif rules.enabled:
        yield Line("ok", "janitor", f"It sweeps every {rules.interval_s:g} s; nothing from before its time is left.")


def _access(facts: Facts, settings: Settings) -> Iterator[Line]:
    listen = facts.host.get("listen")
    outside = listen is not None and is_reachable_from_elsewhere(listen)
    if facts.keys is None:
        yield Line("error", "keys", "keys.json cannot be read.", f"Restore it, or make new keys: {FOLDER} keys create")
        return
    now_ms = int(time.time() * 1000)
    active = [key for key in facts.keys if key.is_active(now_ms)]
    ending = [key for key in active if key.expires_at_ms is not None and key.expires_at_ms < now_ms + SOON_MS]
    expired = [key for key in facts.keys if not key.is_active(now_ms) and key.revoked_at_ms is None]
    if not active:
        level: Level = "warning" if outside or facts.keys else "ok"
        text = "Each of them has expired or was revoked." if facts.keys else "There are none."
        mend = f"{FOLDER} keys create NAME" if level != "ok" else ""
        yield Line(level, "keys", f"{text} Only direct connections from this machine are let in.", mend)
    else:
        yield Line("ok", "keys", f"Those that count: {', '.join(sorted({key.name for key in active}))}.")
    for key in ending:
        days = ((key.expires_at_ms or 0) - now_ms) / 86_400_000
        yield Line("warning", "keys", f"{key.name} ({key.key_id}) expires in {days:.1f} days.", f"{FOLDER} keys create")
    for key in expired:
        yield Line("warning", "keys", f"{key.name} ({key.key_id}) has expired.", f"{FOLDER} keys revoke {key.key_id}")
    if listen is None:
        yield Line("ok", "network", "Where the server listens is not known until it has started.")
    elif not outside:
        yield Line("ok", "network", "The server listens on this machine only.")
    else:
        yield from _outside(", ".join(listen), settings)
    if settings.access.trusted_proxies and any("/0" in network for network in settings.access.trusted_proxies):
        mend = "Name your proxy's address in access.trusted_proxies."
        yield Line("warning", "network", "Every address counts as a trusted proxy: the log may be told anything.", mend)


def _outside(listen: str, settings: Settings) -> Iterator[Line]:
    if settings.native.mode == "open":
        yield Line(
            "error",
            "network",
            f"The server listens on {listen}, and ComfyUI's own routes are open: whoever reaches them needs no key, "
            "sees everybody's prompts and pictures, and goes past every limit.",
            'Set native.mode = "guarded" or "closed", or start ComfyUI with --listen 127.0.0.1.',
        )
    else:
        yield Line("ok", "network", f"The server listens on {listen}; native.mode is {settings.native.mode}.")
    mend = "Put a proxy with TLS in front, on this machine or a private network."
    yield Line("warning", "network", "Keys travel unencrypted unless a proxy speaks TLS.", mend)


def _store(facts: Facts, settings: Settings) -> Iterator[Line]:
    path = database_path(settings.store.url, facts.own)
    if not path.is_file():
        yield Line("ok", "store", f"{path} is made at the first start.")
        return
    for aside in sorted(path.parent.glob(f"{path.name}.corrupt-*")):
        if aside.suffix not in (".db-wal", ".db-shm"):
            mend = "Look for lost jobs in it, and delete it."
            yield Line("warning", "store", f"A job database that could not be read was set aside: {aside.name}.", mend)
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (newest_ms,) = db.execute("SELECT coalesce(max(created_at_ms), 0) FROM jobs").fetchone() if version else (0,)
    if version > len(MIGRATIONS):
        mend = "Update this package, or give the server another user directory."
        yield Line("error", "store", f"{path} was written by a later version of this package.", mend)
        return
    # What was written last lies in the log beside it.
    size = sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}-wal")) if file.is_file())
    yield Line("ok", "store", f"{path}: {_size(size)}.")
    ahead_s = newest_ms / 1000 - time.time()
    if ahead_s > SKEW_S:
        mend = "Set the machine's clock (chrony, systemd-timesyncd)."
        yield Line(
            "error", "clock", f"The newest job is dated {ahead_s:.0f} s in the future: the clock was set back.", mend
        )


def _clock(facts: Facts, _settings: Settings) -> Iterator[Line]:
    mend = "Set the machine's clock (chrony, systemd-timesyncd), and restart ComfyUI."
    now_s = time.time()
    if now_s < BUILT_S:
        yield Line("error", "clock", f"The machine thinks it is {time.strftime('%Y-%m-%d', time.gmtime(now_s))}.", mend)
        return
    if facts.server_ms is not None and abs(facts.server_ms / 1000 - now_s) > SKEW_S:
        off_s = now_s - facts.server_ms / 1000
        yield Line("warning", "clock", f"The machine's clock was set by {off_s:+.0f} s since the server started.", mend)
        return
    if facts.own.is_dir() and os.access(facts.own, os.W_OK):
        with tempfile.NamedTemporaryFile(dir=facts.own, prefix=".doctor-") as probe:
            off_s = os.fstat(probe.fileno()).st_mtime - time.time()
        if abs(off_s) > SKEW_S:
            said = f"The disk dates new files {off_s:+.0f} s off the machine's clock: ages would be wrong."
            yield Line("error", "clock", said, "Set the clock of the machine that the disk belongs to.")
            return
    yield Line("ok", "clock", "It agrees with itself and with the disk's.")


CHECKS: tuple[Callable[[Facts, Settings], Iterator[Line]], ...] = (
    *(_settings, _host, _alarms, _packages, _faces, _templates, _folders),
    *(_disk, _janitor, _access, _store, _clock),
)


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _nearest(path: Path) -> Path:
    """The folder itself, or the one in which it would be made."""
    return next((folder for folder in (path, *path.parents) if folder.exists()), path)


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
