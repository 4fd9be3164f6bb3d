"""`models` on the command line: what a template needs, with sizes and licences, and the download of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..cli import guard_folder, user_folder
from ..templates.manifest import Model, Template, TemplateError, applies
from ..templates.render import complete
from .fetch import FetchError, fetch
from .sources import find_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    for name, about in (
        ("list", "what a template needs, with sizes and licences, and what is here"),
        ("fetch", "download what is not here, by Hugging Face's HF_TOKEN where a model wants one"),
    ):
        action = actions.add_parser(name, help=about)
        action.add_argument("template", metavar="TEMPLATE", help="the template's name: sdxl")
        action.add_argument("--models", type=Path, metavar="DIR", help="ComfyUI's models folder")
        action.add_argument("--user", type=Path, metavar="DIR", help="ComfyUI's user folder, for templates of your own")
        action.add_argument(
            "--all", action="store_true", help="also models that are needed only where parameters are not the defaults"
        )


def run(
    arguments: argparse.Namespace, environment: Mapping[str, str], package: Path, say: Callable[[str], None]
) -> int:
    """The exit status: 0, 1 where a model could not be had, 2 where the command could not begin."""
    comfyui = package.parent.parent
    models = arguments.models or comfyui / "models"
    user = arguments.user or user_folder(package)
    folders = [package / "workflows" / "api", *([guard_folder(user) / "workflows"] if user is not None else [])]
    paths = [folder / f"{arguments.template}.toml" for folder in reversed(folders)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        say(f"there is no template {arguments.template!r}")
        return 2
    if not models.is_dir():
        say(f"{models} does not exist: name ComfyUI's models folder with --models DIR")
        return 2
    try:
        template = Template.read(path)
    except TemplateError as error:
        say(str(error))
        return 2
    missing = list(_list_missing(template, models, arguments.all, say))
    if arguments.action == "list":
        return 0
    failed = 0
    for model in missing:
        source = find_source(model, environment)
        if source is None:
            say(f"{model.file}: get it by hand from {model.source}")
            failed = 1
            continue
        target = models / model.folder / model.file
        try:
            fetch(source, target, size_mb=model.size_mb, sha256=model.sha256, progress=_Bar(model.file).show)
        except FetchError as error:
            say(f"{model.file}: {error}")
            failed = 1
        else:
            say(f"{model.file}: here, in {target.parent}")
    return failed


def _list_missing(template: Template, models: Path, wants_all: bool, say: Callable[[str], None]) -> Iterable[Model]:
    usual = complete(template, {})
    for model in template.manifest.models:
        if not wants_all and not applies(model.when, usual):
            continue
        is_here = (models / model.folder / model.file).is_file()
        say(f"{model.file}: {model.size_mb} MB, {model.licence}{' (here)' if is_here else ''}")
        if not is_here:
            yield model


class _Bar:
    """How far a download is, on a terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown = -1

    def show(self, have: int, total: int) -> None:
        percent = 100 * have // total if total else 0
        if percent != self._shown and sys.stderr.isatty():
            self._shown = percent
            end = "\n" if have == total else ""
            sys.stderr.write(f"\r{self._name}: {percent} % of {total // 1_000_000} MB{end}")
            sys.stderr.flush()
