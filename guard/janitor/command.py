"""The janitor on the command line, for cron on a machine where no server runs: the same rules, the same code."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ...own_files import find_kind
from ..cli import guard_folder, parse_age, user_folder
from ..clock import Clock
from ..host import Folders
from ..job import ROOTS
from ..settings import Settings, SettingsError, load
from ..store import StoreLockedError, StoreTooNewError, StoreUnusableError, database_path, is_postgres, make_store
from .marker import Marker
from .report import escape, summarize
from .thread import Janitor

#: ComfyUI registers these folders below `output/` for models. A server may know more; the command line cannot.
MODEL_FOLDERS = ("checkpoints", "clip", "vae", "diffusion_models", "loras")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for root in ROOTS:
        # ComfyUI deletes its temp folder when it ends, and this runs after that.
        kind = Path if root == "temp" else _existing_folder
        parser.add_argument(f"--{root}", type=kind, metavar="DIR", help=f"ComfyUI's {root} folder")
    parser.add_argument(
        "--max-age", type=parse_age, metavar="AGE", help="for all three folders: 90m, 24h, 7d (default: the settings)"
    )
    parser.add_argument(
        "--user", type=Path, metavar="DIR", help="ComfyUI's user folder, with the settings, the job database and the "
        "time of the first start; by default that of the ComfyUI that this package lies in"
    )  # fmt: skip
    parser.add_argument(
        "--keep", action="append", default=[], metavar="PATTERN", help="a pattern as in janitor.keep; may be repeated"
    )
    parser.add_argument(
        "--adopt-existing", action="store_true", help="also delete files from before the first start of this package"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be deleted, but delete nothing")


def run(
    arguments: argparse.Namespace, environment: Mapping[str, str], package: Path, say: Callable[[str], None]
) -> int:
    """Sweep once. Returns the exit status: 0, or 1 where something went wrong, 2 where it could not begin."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s")
    temp = arguments.temp
    if temp is not None and not temp.is_dir():
        say(f"{temp} does not exist: nothing to do in it")
        temp = None
    folders = Folders(arguments.output, temp, arguments.input)
    given = [path for path in (folders.output, folders.temp, folders.input) if path is not None]
    if not given:
        say("nothing to sweep: give --output, --temp or --input")
        return 2
    user = arguments.user or user_folder(package)
    own = guard_folder(user) if user is not None else None
    try:
        settings = _load_settings(own, environment, arguments)
    except SettingsError as error:
        say(f"the settings cannot be used: {error}")
        return 2
    models = [folders.output / name for name in MODEL_FOLDERS] if folders.output is not None else []
    keep = tuple(models + [path for path in (user, package) if path is not None])
    folders = Folders(folders.output, folders.temp, folders.input, keep)
    with contextlib.ExitStack() as stack:
        store = None
        try:
            # Its waiting jobs and the results that nobody has fetched are as safe as with a running server.
            url = settings.store.url
            if own is not None and (is_postgres(url) or _is_there(database_path(url, own))):
                store = stack.enter_context(contextlib.closing(make_store(url, own, Clock())))
        except StoreLockedError:
            say("a server runs on this user folder; its own janitor sweeps (POST /guarded/janitor/sweep)")
            return 2
        except (StoreTooNewError, StoreUnusableError, SettingsError) as error:
            say(str(error))
            return 2
        janitor = Janitor(
            settings.janitor,
            store,
            lambda: folders,
            own,
            Clock(),
            create_marker=not arguments.dry_run,
            on_delete=lambda path: say(f"{'would delete' if arguments.dry_run else 'deleted'} {path}"),
        )
        report = janitor.sweep(time.time(), arguments.dry_run)
    say(summarize(report))
    existing = report.kept.get("existing")
    if existing is not None and existing.files:
        say(
            f"{existing.files} files ({existing.bytes} bytes) from before the first start of this package "
            "are left alone; --adopt-existing sweeps them too"
        )
    for line in report.error_samples:
        say(f"error: {escape(line)}")
    return 1 if report.errors else 0


def _is_there(database: Path) -> bool:
    """Raises StoreUnusableError where what lies there is no file: nobody knows which results are wanted."""
    try:
        kind = find_kind(database)
    except OSError as error:
        raise StoreUnusableError(f"{database.name[:100]} cannot be used: {error.strerror}") from None
    if kind is not None:
        raise StoreUnusableError(f"{database} is {kind}, not a job database")
    return database.exists()


def _existing_folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return path


def _load_settings(own: Path | None, environment: Mapping[str, str], arguments: argparse.Namespace) -> Settings:
    settings = load(own / "guarded.toml" if own is not None else None, environment)
    janitor = settings.janitor
    changes: dict[str, object] = {"keep": (*janitor.keep, *arguments.keep)}
    if janitor.sweep_native == "ask":
        # Whoever starts this has decided, unless an operator has said on the page that such files are kept.
        changes["sweep_native"] = Marker(own, 0.0, create=False).native is not False
    if arguments.adopt_existing:
        changes["adopt_existing"] = True
    if arguments.max_age is not None:
        changes.update({f"{root}_max_age_s": arguments.max_age for root in ROOTS})
    return settings.model_copy(update={"janitor": janitor.model_copy(update=changes)})
