"""The checks of the templates, and of what is to run before the first job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..settings import Settings
from .facts import Facts, Line

#: The package's own templates: of one that nobody has set up, nothing is amiss.
SHIPPED = {path.stem for path in (Path(__file__).parents[2] / "workflows" / "api").glob("*.json")}


def check_warmups(facts: Facts, settings: Settings) -> Iterator[Line]:
    if not settings.warmup.runs or facts.warmup_faults is None:
        return
    for fault in facts.warmup_faults:
        mend = "Correct warmup.runs, or what it lacks, and restart: until then the first such job waits for its models."
        yield Line("warning", "warm-up", fault, mend)
    if not facts.warmup_faults:
        yield Line("ok", "warm-up", f"{len(settings.warmup.runs)} runs at the start and after models were freed.")


def check_templates(facts: Facts, _settings: Settings) -> Iterator[Line]:
    for fault in facts.template_faults:
        yield Line("error", "templates", f"Left out: {fault}", "Mend it; `templates check FILE` says whether it is.")
    for template in facts.templates:
        check = f"template {template['name']}"
        missing = set(template["missing"]["models"])
        if template["name"] in SHIPPED and missing and not any(model["present"] for model in template["models"]):
            message = f"It is not set up: none of its {len(template['models'])} models is here."
            yield Line("ok", check, message, "To use it: docs/deploy.md.")
            continue
        for model in template["models"]:
            if model["file"] in missing:
                mend = f"Put it into models/{model['folder']}, from {model['source']}."
                yield Line("warning", check, f"The model {model['file']} is missing.", mend)
        for pack in template["node_packs"]:
            if pack["name"] in template["missing"]["node_packs"]:
                yield Line("warning", check, f"The node pack {pack['name']} is missing.", f"Install {pack['source']}.")
        if not missing and not template["missing"]["node_packs"]:
            unseen = " Only a running server can tell whether its node packs are." if template["node_packs"] else ""
            message = "Its models are installed." if not facts.running else "Everything that it needs is installed."
            yield Line("ok", check, message + (unseen if not facts.running else ""))
