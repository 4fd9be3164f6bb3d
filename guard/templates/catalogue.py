"""Know which templates there are, and what this server lacks for them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidRequestError, MissingModelError, MissingNodeError, NotFoundError, PolicyViolationError
from ..host import Host
from ..settings import PolicySettings
from .bodies import ModelFacts, WorkflowBody
from .manifest import Model, NodePack, Template, TemplateError, applies
from .parameter import Values, choose_text
from .rehearsal import read_template
from .render import choose_values, complete, estimate_vram_gib, render
from .weights import find_fault

log = logging.getLogger("guarded.templates")

#: A request for a template may have these fields beside `parameters` and `guard`, as one for a prompt may.
_OTHER_FIELDS = frozenset({"client_id", "prompt_id", "extra_data", "number", "front"})


@dataclass
class Lacking:
    """A model file that this server lacks, or cannot use: `fault` says which, as the end of a sentence about it.

    Attributes:
        templates: the names of those that need it.
        usual: one of them does with its defaults.
    """

    model: Model
    fault: str
    templates: list[str]
    usual: bool


class Templates:
    """The templates of some folders; of two with one name, the later folder's counts.

    They are read at the first use, and again where their files change. Any thread; all of this may wait for the disk.
    """

    def __init__(
        self,
        host: Host,
        policy: PolicySettings,
        folders: Sequence[Path],
        find_card: Callable[[], int | None] | None = None,
    ) -> None:
        """`find_card`: the bytes of the largest card that may run a job, if that is not only the host's."""
        self._host = host
        self._find_card = find_card or host.video_memory
        self._policy = policy
        self._folders = folders
        self._lock = threading.Lock()
        self._seen: object = None
        self._read: dict[str, Template] = {}
        self._faults: list[str] = []

    @property
    def _all(self) -> dict[str, Template]:
        """The templates as their files are now: those that have changed are read again."""
        with self._lock:
            seen = _take_print(self._folders)
            if seen != self._seen:
                self._seen, (self._read, self._faults) = seen, self._read_all([Path(each[0]) for each in seen])
            return self._read

    def _read_all(self, paths: Sequence[Path]) -> tuple[dict[str, Template], list[str]]:
        templates, faults = {}, []
        for path in paths:
            if path.suffix != ".toml":
                continue
            try:
                templates[path.stem] = read_template(path, self._policy.max_nodes)
            except TemplateError as error:
                log.error("%s; it is left out (%s)", error, path)
                faults.append(f"{error} ({path})")
        return templates, faults

    def _set_aside(self, template: Template, error: Exception) -> None:
        """Leave out a template that the host cannot be asked about, until its files change."""
        log.error("template %s is left out", template.name, exc_info=error)
        with self._lock:
            if self._read.get(template.name) is template:
                self._read = {name: each for name, each in self._read.items() if each is not template}
                self._faults = [*self._faults, f"template {template.name}: {type(error).__name__}: {error}"]

    def list_faults(self) -> list[str]:
        """Why templates are left out, in sentences that name them."""
        _ = self._all
        return self._faults

    def fill(self, name: str, body: dict[str, Any], uploaded: Collection[str] = ()) -> Values:
        """Turn the body of a request for a template into one with a `prompt`. Returns every parameter's value.

        Args:
            uploaded: names of files that came with the request; a file with a parameter's name is its value.

        Raises:
            NotFoundError: there is no such template.
            InvalidRequestError, PolicyViolationError: the parameters are wrong, see `choose_values`.
            PolicyViolationError: it needs more video memory than it may use.
            MissingNodeError, MissingModelError: this server lacks something for it.
        """
        templates = self._all
        template = templates.get(name)
        if template is None:
            raise NotFoundError(
                f"There is no template {name[:100]!r}; there are {', '.join(templates)}.",
                extra_info={"templates": list(templates)},
            )
        given = body.pop("parameters", None)
        if given is None:
            given = {}
        if not isinstance(given, dict):
            raise InvalidRequestError("parameters must be an object.", extra_info={"field": "parameters"})
        if unknown := sorted(set(body) - _OTHER_FIELDS):
            raise InvalidRequestError(
                f"A request for a template has no {', '.join(field[:100] for field in unknown)}; "
                "put the template's values into parameters.",
                extra_info={"fields": unknown},
            )
        files = {each: each for each in uploaded if each in template.manifest.parameters and given.get(each) is None}
        values = choose_values(template, {**given, **files})
        names, faults = self._find_models(template)
        self._check_host(template)
        self._check_models(template, values, names, faults)
        self._check_memory(template, values)
        body["prompt"] = render(template, values, names)
        return values

    def list_lacking(self) -> list[Lacking]:
        """The model files that templates need and this server lacks."""
        found: dict[tuple[str, str], Lacking] = {}
        for template in self._all.values():
            try:
                _names, faults = self._find_models(template)
            except Exception as error:
                self._set_aside(template, error)
                continue
            default = complete(template, {})
            for model in template.manifest.models:
                if model.file not in faults:
                    continue
                lacking = found.setdefault((model.folder, model.file), Lacking(model, faults[model.file], [], False))
                if template.name not in lacking.templates:
                    lacking.templates.append(template.name)
                lacking.usual = lacking.usual or applies(model.when, default)
        return list(found.values())

    def describe(self, locale: str) -> list[WorkflowBody]:
        """Describe every template as JSON, with what this server lacks for it."""
        described = []
        for template in self._all.values():
            try:
                described.append(self._describe(template, locale))
            except Exception as error:
                self._set_aside(template, error)
        return described

    def _describe(self, template: Template, locale: str) -> WorkflowBody:
        manifest = template.manifest
        _names, faults = self._find_models(template)
        classes = self._host.missing_classes(template.graph)
        missing_packs = _find_packs(template, classes)
        default = complete(template, {})
        missing = [model for model in manifest.models if model.file in faults and applies(model.when, default)]
        refusal = self._refuse_memory(template, default)
        too_old = self._find_too_old(template)
        return {
            "name": template.name,
            "title": choose_text(manifest.title, locale),
            "description": choose_text(manifest.description, locale),
            "parameters": [parameter.describe(name, locale) for name, parameter in manifest.parameters.items()],
            "presets": [preset.body() for preset in manifest.presets],
            "vram_gb": estimate_vram_gib(template, default) or None,
            "vram_full_gb": estimate_vram_gib(template, default, resident=1) or None,
            "comfyui": manifest.comfyui,
            "models": [
                {**describe_model(model), "when": model.when, "present": model.file not in faults}
                for model in manifest.models
            ],
            "node_packs": [
                {
                    "name": pack.name,
                    "source": pack.source,
                    "licence": pack.licence,
                    "present": pack not in missing_packs,
                }
                for pack in manifest.node_packs
            ],
            "read_at": manifest.read_at,
            "missing": {
                "models": [model.file for model in missing],
                "node_packs": [pack.name for pack in missing_packs],
                "classes": classes,
            },
            "reasons": [
                *([f"{too_old[0].upper()}{too_old[1:]}"] if too_old is not None else []),
                *(f"{_name_place(model)} {faults[model.file]}." for model in missing),
                *(f"{pack.name} is not installed, or failed to load: {pack.source}." for pack in missing_packs),
                *([f"This server lacks the node class {', '.join(classes)}."] if classes else []),
                *([refusal.message] if refusal is not None else []),
            ],
            "ready": not missing and not classes and refusal is None and too_old is None,
        }

    def _find_models(self, template: Template) -> tuple[dict[str, str], dict[str, str]]:
        """The host's names for the model files that are here; and what is wrong with those that cannot be used.

        The latter as the end of a sentence about the file.
        """
        names, faults = {}, {}
        for model in template.manifest.models:
            if (found := self._host.find_model(model.folder, model.file)) is None:
                faults[model.file] = "is missing"
                continue
            names[model.file], path = found
            if path is not None and (fault := find_fault(path, model.size_mb)) is not None:
                faults[model.file] = fault
        return names, faults

    def _check_host(self, template: Template) -> None:
        missing = self._host.missing_classes(template.graph)
        too_old = self._find_too_old(template)
        if not missing and too_old is None:
            return
        packs = _find_packs(template, missing)
        lacks = f"this server lacks the node class {', '.join(missing)}." if missing else ""
        hint = "".join(f" Install {pack.name}: {pack.source}." for pack in packs)
        raise MissingNodeError(
            f"Template {template.name}: {too_old or lacks}{hint or ' Update ComfyUI.'}",
            extra_info={
                "classes": missing,
                "node_packs": [{"name": pack.name, "source": pack.source} for pack in packs],
                **({"comfyui": template.manifest.comfyui} if too_old is not None else {}),
            },
        )

    def _find_too_old(self, template: Template) -> str | None:
        """A sentence, where the host's version is known and before the template's first."""
        needed, here = template.manifest.comfyui, str(self._host.describe()["version"])
        if not needed or not here[:1].isdigit() or _read_version(here) >= _read_version(needed):
            return None
        return f"it needs ComfyUI {needed} or later; this is {here}."

    def _check_models(
        self, template: Template, values: Values, names: Mapping[str, str], faults: Mapping[str, str]
    ) -> None:
        missing = [model for model in template.manifest.models if model.file in faults and applies(model.when, values)]
        if missing:
            places = "; ".join(
                f"{model.file} belongs in models/{model.folder}, from {model.source}"
                + ("" if model.file not in names else f" (it {faults[model.file]})")
                for model in missing
            )
            raise MissingModelError(
                f"Template {template.name}: this server lacks a model: {places}.",
                extra_info={"models": [describe_model(model) for model in missing]},
            )

    def _check_memory(self, template: Template, values: Values) -> None:
        if (refusal := self._refuse_memory(template, values)) is not None:
            raise refusal

    def _refuse_memory(self, template: Template, values: Values) -> PolicyViolationError | None:
        need = estimate_vram_gib(template, values)
        total = self._find_card()
        card = None if total is None else round(total / 2**30, 1)
        budget = self._policy.vram_budget_gb or None
        if all(limit is None or need <= limit for limit in (card, budget)):
            return None
        return PolicyViolationError(
            f"Template {template.name}: this takes about {need:g} GB of video memory; "
            f"{min(limit for limit in (card, budget) if limit is not None):g} GB may be used here.",
            extra_info={"vram_gb": need, "vram_budget_gb": budget, "vram_total_gb": card},
        )


def _read_version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0]))


def _take_print(folders: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What tells whether a file of a template has come, gone or changed: by folder, then by name."""
    seen = []
    for folder in folders:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.endswith((".toml", ".json")) and not entry.name.startswith("."):
                    seen.append(_see(entry))
    return seen


def _see(entry: os.DirEntry[str]) -> tuple[str, int, int]:
    try:
        status = entry.stat()
    except OSError:  # a link that leads nowhere, or to itself
        return entry.path, 0, 0
    return entry.path, status.st_mtime_ns, status.st_size


def _find_packs(template: Template, classes: Collection[str]) -> list[NodePack]:
    return [pack for pack in template.manifest.node_packs if set(classes) & set(pack.classes)]


def _name_place(model: Model) -> str:
    return f"models/{model.folder}/{model.file}"


def describe_model(model: Model) -> ModelFacts:
    """A model as a template's manifest tells of it."""
    return {
        "file": model.file,
        "folder": model.folder,
        "size_mb": model.size_mb,
        "source": model.source,
        "licence": model.licence,
    }
