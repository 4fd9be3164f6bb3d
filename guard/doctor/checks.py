"""The checks: each looks at some of the facts and says what is well, what is wrong and how to fix it."""

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
from pathlib import Path

from ...failure import SETTINGS, is_reachable_from_elsewhere, say
from ...own_files import find_kind
from ..access.keys import KeysError
from ..janitor.disk import list_disks
from ..settings import Settings, SettingsError, load, origins, rows
from ..store import database_path, is_postgres
from ..store.compact import COPIED_BYTES
from ..store.schema import MIGRATIONS
from .depot import examine_depot
from .facts import CLOSE, OPEN, TRUST_LESS, TRUSTING, Facts, Level, Line
from .files import check_files
from .fleet import check_fleet
from .postgres import examine_postgres
from .sizes import format_size
from .templates import check_templates, check_warmups

log = logging.getLogger("guarded.doctor")

LEVELS: tuple[Level, ...] = ("ok", "warning", "error")

FOLDER = "python custom_nodes/<folder>"
#: A clock that is before this time (October 2025) is wrong.
BUILT_S = 1_760_000_000
#: Clocks that differ by no more than this agree.
SKEW_S = 60.0
#: Characters of a setting's value that are shown.
LONGEST_VALUE = 500
SOON_MS = 7 * 86_400_000
#: Packages of requirements.txt that need a look: onnxruntime has its own check, and without the others nothing runs.
PACKAGES = ("av", "pydantic", "standardwebhooks", "prometheus-client", "nvidia-ml-py")


def examine(facts: Facts) -> list[Line]:
    """Run all checks. Waits for the disk; a check that fails says so and stops no other."""
    lines: list[Line] = []
    try:
        settings = facts.in_force or load(facts.own / "guarded.toml", facts.environment)
    except SettingsError as error:
        settings = Settings()
        if facts.off is None or facts.off.reason != str(error):  # else that check says it
            lines.append(Line("error", "start", say(str(error)), SETTINGS["en"]))
    for check in CHECKS:
        try:
            lines += check(facts, settings)
        except OSError as error:
            name = check.__name__.removeprefix("_check").strip("_")
            message = f"The disk refuses: {error.strerror or type(error).__name__}."
            lines.append(Line("error", name, message, "Let ComfyUI's user use the folder __guarded."))
        except Exception as error:
            log.exception("the check %s failed", check.__name__)
            name = check.__name__.removeprefix("_check").strip("_")
            message = f"This check failed: {type(error).__name__}: {error}"
            lines.append(Line("warning", name, message, "Please report it."))
    return lines


def _check_start(facts: Facts, _settings: Settings) -> Iterator[Line]:
    if facts.off is not None:
        what = say(facts.off.reason)
        if facts.running:
            yield Line("error", "start", f"{what} {facts.off.state}", facts.off.mend)
        else:
            yield Line("error", "start", f"The last start failed. {what}", facts.off.mend)


def _check_settings(facts: Facts, settings: Settings) -> Iterator[Line]:
    """The settings that are not at their default, and where each comes from."""
    try:
        from_where = origins(facts.own / "guarded.toml", facts.environment)
        changed = load(facts.own / "guarded.toml", facts.environment) != settings and facts.in_force is not None
    except SettingsError as error:
        # Where nothing is in force, the note of the start has said it, and no value here counts.
        if facts.in_force is not None:
            mend = "Correct it before the next start."
            yield Line(
                "error", "settings", f"The server would not start with guarded.toml as it is now: {error}.", mend
            )
        return
    for name, value, _help in rows(settings):
        if name in from_where:
            shown = json.dumps(value, ensure_ascii=False)
            shown = shown if len(shown) <= LONGEST_VALUE else f"{shown[:LONGEST_VALUE]}…"
            yield Line("ok", "settings", f"{name} = {shown}, from {from_where[name]}")
    count = sum(name not in from_where for name, _value, _help in rows(settings))
    yield Line("ok", "settings", f"{count} settings are at their defaults.")
    if changed:
        yield Line("warning", "settings", "guarded.toml has changed since the server started.", "Restart ComfyUI.")


def _check_host(facts: Facts, _settings: Settings) -> Iterator[Line]:
    host = dict(facts.host)
    if not host:
        mend = "Start ComfyUI once; until then its folders are guessed."
        yield Line("warning", "host", "No server with this package has started here yet.", mend)
        return
    when = "running" if facts.running else "as at its last start"
    python = f", Python {platform.python_version()}" if facts.running else ""
    yield Line("ok", "host", f"{host.pop('name', 'ComfyUI')} {host.pop('version', '?')}{python}, {when}")
    features = {name: value for name, value in host.items() if isinstance(value, bool)}
    has = ", ".join(name for name, value in features.items() if value) or "nothing"
    lacks = ", ".join(name for name, value in features.items() if not value) or "nothing"
    yield Line("ok", "host", f"It has: {has}. It lacks: {lacks}.")
    if features.get("replaceable_worker") is False:
        mend = 'Set watchdog.on_stuck = "restart" or "exit".'
        yield Line("warning", "host", "A worker that hangs cannot be replaced in this ComfyUI.", mend)


#: Alarms while which no job runs.
_NOTHING_RUNS = ("worker_dead", "worker_stuck", "depot_differs", "secret_differs")


def _check_alarms(facts: Facts, _settings: Settings) -> Iterator[Line]:
    mends = {
        "draining": "POST /guarded/drain?off=1 ends it.",
        "worker_dead": "Restart ComfyUI.",
        "worker_stuck": "Restart ComfyUI.",
        "clock_doubted": "Set the machine's clock (chrony, systemd-timesyncd), and restart ComfyUI.",
        "restart_failed": "Restart ComfyUI: the interpreter with which it was started is gone.",
        "boxes_differ": "Update all boxes to one version, one after the other, and restart them.",
        "clocks_differ": "Set the clocks of those machines (chrony, systemd-timesyncd).",
        "box_late": "See whether that machine and its ComfyUI run, and reach the database.",
        "depot_differs": "Set files.url as on the other boxes, and restart ComfyUI.",
        "secret_differs": "Set fleet.secret as on the other boxes, and restart ComfyUI.",
        "worker_hangs": "Restart ComfyUI when it suits: until then its memory stays taken.",
    }
    for alarm in facts.alarms:
        if alarm["code"] != "disk_full":  # the check of the disks says that
            level: Level = "error" if alarm["code"] in _NOTHING_RUNS else "warning"
            yield Line(level, "worker", alarm["message"], mends.get(alarm["code"], ""))
    if facts.running and not facts.alarms:
        yield Line("ok", "worker", "The worker serves the queue.")


def _check_packages(_facts: Facts, _settings: Settings) -> Iterator[Line]:
    missing = [name for name in PACKAGES if not _is_installed(name)]
    if missing:
        mend = f'"{sys.executable}" -m pip install {" ".join(missing)}'
        yield Line("warning", "packages", f"Not installed: {', '.join(missing)}.", mend)
    else:
        yield Line("ok", "packages", "Everything that requirements.txt asks for is installed.")


def _check_faces(facts: Facts, _settings: Settings) -> Iterator[Line]:
    faces, state = facts.faces, facts.faces["onnxruntime"]
    if faces["detector"] is None:
        mend = state["command"] or f'"{sys.executable}" -m pip install onnxruntime'
        yield Line("error", "faces", f"The server cannot look for faces: {faces['reason']}", mend)
    else:
        where = "in memory" if faces["loaded"] else "not loaded before the first check"
        yield Line(
            "ok",
            "faces",
            f"{faces['detector']} on the {faces['device'].upper()} ({faces['runtime']}), {where}. {faces['reason']}",
        )
    if state["problem"]:
        yield Line("error" if state["broken"] else "warning", "onnxruntime", state["problem"], state["command"])
    elif state["providers"]:
        packages = ", ".join(f"{name} {version}" for name, version in state["packages"].items()) or "of its own making"
        yield Line("ok", "onnxruntime", f"{packages}; it offers {', '.join(state['providers'])}.")
    else:
        yield Line("ok", "onnxruntime", "It is not installed; only InsightFace's packs need it.")


def _check_folders(facts: Facts, _settings: Settings) -> Iterator[Line]:
    for name, path in [*facts.folders.roots().items(), ("own", facts.own)]:
        if path is None:
            continue
        existing = _find_existing(path)
        if os.access(existing, os.W_OK | os.X_OK):
            yield Line("ok", "folders", f"{name}: {path} can be written.")
        else:
            mend = f"Let ComfyUI's user write there: chown -R <user> {path}"
            yield Line("error", "folders", f"{name}: {path} cannot be written.", mend)


def _check_disk(facts: Facts, settings: Settings) -> Iterator[Line]:
    rules = settings.janitor
    folders = (facts.folders.output, facts.folders.temp, facts.folders.input, facts.own)
    for disk in list_disks([path for path in folders if path is not None]):
        free, total = disk.free(), disk.total()
        room = f"{disk.path}: {format_size(free)} of {format_size(total)} free"
        mend = "POST /guarded/janitor/sweep, lower janitor.…_max_age_s, or use a larger disk."
        if free < rules.floor_free_bytes:
            yield Line("error", "disk", f"{room}, below janitor.floor_free_bytes: jobs are refused.", mend)
        elif free < rules.min_free_bytes:
            yield Line("warning", "disk", f"{room}, below janitor.min_free_bytes: the oldest files are deleted.", mend)
        else:
            yield Line("ok", "disk", f"{room}.")


def _check_janitor(facts: Facts, settings: Settings) -> Iterator[Line]:
    rules = settings.janitor
    if not rules.enabled:
        mend = "Set janitor.enabled = true, or run `… janitor` from cron."
        yield Line("warning", "janitor", "The janitor is off: old files stay until the disk is full.", mend)
    if rules.floor_free_bytes == 0:
        mend = "Leave janitor.floor_free_bytes at its default."
        yield Line("warning", "janitor", "Jobs are accepted however full the disk is.", mend)
    if facts.existing is None:
        yield Line("ok", "janitor", "The files from before the first start have not been counted yet.")
    elif facts.existing[0]:
        files, size = facts.existing
        yield Line(
            "warning",
            "janitor",
            f"{files} files ({format_size(size)}) from before the first start of this package are left alone.",
            "To let the janitor delete them: POST /guarded/janitor/adopt, or the button on the operator's page.",
        )
    elif rules.enabled:
        yield Line(
            "ok", "janitor", f"It sweeps every {rules.interval_s:g} s; no file from before the first start is left."
        )


def _check_access(facts: Facts, settings: Settings) -> Iterator[Line]:
    listen = facts.host.get("listen")
    outside = listen is not None and is_reachable_from_elsewhere(listen)
    if isinstance(facts.keys, KeysError):
        yield Line("error", "keys", f"{facts.keys}.", f"Restore it, or make new keys: {FOLDER} keys create")
        return
    now_ms = int(time.time() * 1000)
    active = [key for key in facts.keys if key.is_active(now_ms)]
    ending = [key for key in active if key.expires_at_ms is not None and key.expires_at_ms < now_ms + SOON_MS]
    expired = [key for key in facts.keys if not key.is_active(now_ms) and key.revoked_at_ms is None]
    if not active:
        level: Level = "warning" if outside or facts.keys else "ok"
        text = "Every key has expired or was revoked." if facts.keys else "There are no keys."
        mend = f"{FOLDER} keys create NAME" if level != "ok" else ""
        yield Line(level, "keys", f"{text} Only direct connections from this machine have access.", mend)
    else:
        yield Line("ok", "keys", f"Valid keys: {', '.join(sorted({key.name for key in active}))}.")
        yield from _check_loopback(settings)
    for key in ending:
        days = ((key.expires_at_ms or 0) - now_ms) / 86_400_000
        yield Line("warning", "keys", f"{key.name} ({key.key_id}) expires in {days:.1f} days.", f"{FOLDER} keys create")
    for key in expired:
        yield Line("warning", "keys", f"{key.name} ({key.key_id}) has expired.", f"{FOLDER} keys revoke {key.key_id}")
    if listen is None:
        yield Line("ok", "network", "It is not known where the server listens until it has started.")
    elif not outside:
        yield Line("ok", "network", "The server listens on this machine only.")
    else:
        yield from _check_open_network(", ".join(listen), settings)
    if settings.access.trusted_proxies and any("/0" in network for network in settings.access.trusted_proxies):
        mend = "Name your proxy's address in access.trusted_proxies."
        yield Line(
            "warning",
            "network",
            "Every address counts as a trusted proxy: anyone can forge addresses in the log.",
            mend,
        )


def _check_loopback(settings: Settings) -> Iterator[Line]:
    """There are keys."""
    trust = settings.access.trust_loopback
    if trust is True:
        yield Line("warning", "loopback", TRUSTING, TRUST_LESS)
    elif trust is False or sys.platform != "linux":
        yield Line("ok", "loopback", f"On this machine, too, a key is needed, or a link of `{FOLDER} open`.")
    else:
        yield Line("ok", "loopback", "On this machine only the user that the server runs as needs no key.")


def _check_open_network(listen: str, settings: Settings) -> Iterator[Line]:
    if settings.native.mode == "open":
        yield Line(
            "error",
            "network",
            f"The server listens on {listen}. {OPEN}",
            CLOSE,
        )
    else:
        yield Line("ok", "network", f"The server listens on {listen}; native.mode is {settings.native.mode}.")
    mend = "Put a proxy with TLS in front, on this machine or a private network."
    yield Line("warning", "network", "Keys travel unencrypted unless a proxy speaks TLS.", mend)


def _check_store(facts: Facts, settings: Settings) -> Iterator[Line]:
    if is_postgres(settings.store.url):
        yield examine_postgres(settings.store.url)
        return
    path = database_path(settings.store.url, facts.own)
    try:
        kind, is_there = find_kind(path), path.is_file()
    except OSError as error:
        yield Line("error", "store", f"The job database cannot be used: {error.strerror}.", "Correct store.url.")
        return
    if kind is not None:
        yield Line("error", "store", f"{path} is {kind}, not a job database.", "Take it away, and restart ComfyUI.")
        return
    if not is_there:
        yield Line("ok", "store", f"The first start makes {path}.")
        return
    for aside in sorted(path.parent.glob(f"{path.name}.corrupt-*")):
        if aside.suffix not in (".db-wal", ".db-shm"):
            mend = "Look for lost jobs in it, then delete it."
            yield Line("warning", "store", f"A job database that could not be read was set aside: {aside.name}.", mend)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (may_shrink,) = db.execute("PRAGMA auto_vacuum").fetchone()
            newest = "SELECT coalesce(max(created_at_ms), 0) FROM jobs"
            (newest_ms,) = db.execute(newest).fetchone() if version else (0,)
    except sqlite3.OperationalError as error:
        yield Line("warning", "store", f"{path} cannot be read now: {error}.", "Look again in a moment.")
        return
    except sqlite3.DatabaseError as error:
        mend = "Restart ComfyUI: the start saves every job that can be read, and keeps the damaged file."
        yield Line("error", "store", f"{path} is damaged: {error}.", mend)
        return
    if version > len(MIGRATIONS):
        mend = "Update this package, or give the server another user directory."
        yield Line("error", "store", f"{path} was written by a later version of this package.", mend)
        return
    # The latest writes lie in the log beside it.
    size = sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}-wal")) if file.is_file())
    limit = settings.store.max_bytes
    within = f" of {format_size(limit)} (store.max_bytes)" if limit else ""
    if may_shrink or size <= COPIED_BYTES:  # a start sees to a small one
        yield Line("ok", "store", f"{path}: {format_size(size)}{within}.")
    else:
        mend = "While no server runs, `… vacuum` mends that; a start does too once little is in it."
        yield Line("warning", "store", f"{path}: {format_size(size)}{within}; it never becomes smaller.", mend)
    ahead_s = newest_ms / 1000 - time.time()
    if ahead_s > SKEW_S:
        mend = "Set the machine's clock (chrony, systemd-timesyncd)."
        yield Line(
            "error", "clock", f"The newest job is dated {ahead_s:.0f} s in the future: the clock was set back.", mend
        )


def _check_depot(_facts: Facts, settings: Settings) -> Iterator[Line]:
    if settings.files.url:
        yield from examine_depot(settings.files)


def _check_clock(facts: Facts, _settings: Settings) -> Iterator[Line]:
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
            message = f"The disk dates new files {off_s:+.0f} s off the machine's clock: ages would be wrong."
            yield Line("error", "clock", message, "Set the clock of the machine that the disk belongs to.")
            return
    yield Line("ok", "clock", "The clock is steady and agrees with the disk's.")


CHECKS: tuple[Callable[[Facts, Settings], Iterator[Line]], ...] = (
    _check_start,
    *(_check_settings, _check_host, _check_alarms, _check_packages, _check_faces, check_templates, check_warmups),
    *(_check_folders, check_files),
    *(_check_disk, _check_janitor, _check_access, _check_store, check_fleet, _check_depot, _check_clock),
)


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _find_existing(path: Path) -> Path:
    """Find the folder itself or the nearest above it that exists."""
    return next((folder for folder in (path, *path.parents) if folder.exists()), path)
