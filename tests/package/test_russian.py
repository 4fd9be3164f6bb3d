"""What people read in Russian is Russian, and says one thing by one word."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comfyui_guarded import door, failure

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Names of programs, formats, models, licences, folders and classes, and what people type or choose as it stands.
NAMES = frozenset(
    """
    ComfyUI ComfyUI-Guarded ComfyUI's Guarded guarded guard InsightFace Python SaveImage LoadImage
    GPU HTTP- HTTP CSV JSON NaN WEBP JPEG png jpeg webp id client metadata Idempotency-Key auto raise warn on_fail
    input output temp images video user __guarded a bots photo x
    python custom_nodes keys create scope operate open pip install folder requirements.txt
    results.duration_tolerance results.max_blank_share
    guarded.toml image m r
    SDXL Qwen-Image-Edit FLUX.2 Klein LTX-2 FLUX.1 schnell's LivePortrait Z-Image Turbo Wan LoRA Lightning
    buffalo_l 9B 4B B
    Apache Community License MIT LAION GPL-3.0 Gemma Terms of Use CreativeML Open RAIL M model.safetensors
    """.split()  # noqa: SIM905
)
#: What the package's buyers asked for, word for word.
ASKED_FOR = "({running}/{max_jobs} задач)"
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.'-]*|\d+[A-Z]\b")


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from texts(part)


def russian(value: Any) -> Iterator[str]:
    """All that a table has under `ru`."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from texts(part) if key == "ru" else russian(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from russian(part)


def read_all(root: Path) -> dict[str, list[str]]:
    """Every Russian text, by where it stands."""
    tables = [
        *sorted((root / "locales" / "ru").glob("*.json")),
        root / "js/panel/ru.json",
        root / "guard/messages/ru.json",
    ]
    found = {str(path.relative_to(root)): list(texts(json.loads(path.read_text()))) for path in tables}
    for page in sorted((root / "js" / "docs").glob("*/ru.md")):
        found[str(page.relative_to(root))] = [re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)]
    for manifest in sorted((root / "workflows" / "api").glob("*.toml")):
        found[manifest.name] = list(russian(tomllib.loads(manifest.read_text())))
    for module in (failure, door):
        found[module.__name__] = list(russian(list(vars(module).values())))
    return found


def read_own_words(manifest: Path) -> set[str]:
    """The names of a template's parameters, and what may be chosen of them."""
    values = tomllib.loads(manifest.read_text())
    return {*values["parameters"], *choices(values)}


def choices(value: Any) -> set[str]:
    """What may be chosen of a template's parameters: it stays as it is in every language."""
    if isinstance(value, dict):
        listed = {each for each in value.get("choices", []) if isinstance(each, str)} | {value.get("name", "")}
        return listed.union(*(choices(part) for part in value.values()))
    return set().union(*(choices(part) for part in value)) if isinstance(value, list) else set()


def words_of(text: str) -> set[str]:
    """The words in Latin letters that are no names; what is quoted as code is one."""
    plain = re.sub(r"`[^`]*`|\{[^}]*\}|<[^>]*>", " ", text)
    return {word.strip(".'-") for word in WORD.findall(plain)} - NAMES - {""}


def test_no_english_word_is_left_in_what_people_read_in_russian(root: Path) -> None:
    read = read_all(root)
    assert len(read) > 15
    assert all(read.values()), "every one of them has texts"
    kept = {manifest.name: read_own_words(manifest) for manifest in (root / "workflows" / "api").glob("*.toml")}
    found = {(where, word) for where, said in read.items() for text in said for word in words_of(text)}
    assert {(where, word) for where, word in found if word not in kept.get(where, ())} == set()


def test_a_job_is_called_by_one_word(root: Path) -> None:
    others = [
        (where, text) for where, said in read_all(root).items() for text in said
        if re.search("задач", text.replace(ASKED_FOR, ""), re.IGNORECASE)
    ]  # fmt: skip
    assert others == []


def told_codes(root: Path) -> Iterator[tuple[str, str]]:
    """(kind of text, code) of each alarm and problem that some code of ours can raise."""
    kinds = {"watch": "problem", "watch_admission": "problem", "hold_ready": "problem", "warn": "alarm"}
    for path in [root / "app.py", *(root / "guard").rglob("*.py"), *(root / "host").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            called, code = ast.unparse(node.func), node.args[0].value
            if re.search(r"(?:^|\.)_?alarm(?:ed)?$", called) and isinstance(code, str):
                yield "alarm", code
            name = called.rpartition(".")[2]
            if called.rpartition(".")[0].endswith("health") and name in kinds and isinstance(code, str):
                yield kinds[name], code.replace(" ", "_")
                if name != "hold_ready":
                    yield "alarm", code.replace(" ", "_")
    yield "alarm", "worker_hangs"
    for name in re.findall(r'^    "([a-z ]+)": "', (root / "guard/life/health.py").read_text(), re.MULTILINE):
        yield "alarm", name.replace(" ", "_")
        yield "problem", name.replace(" ", "_")


def test_every_alarm_and_every_problem_has_a_text(root: Path) -> None:
    told = set(told_codes(root))
    assert {("alarm", "store_unavailable"), ("alarm", "policy_violation"), ("problem", "warming_up")} <= told
    for language in ("en", "ru"):
        table = json.loads((root / "js" / "panel" / f"{language}.json").read_text())
        assert {f"{kind}_{code}" for kind, code in told} - set(table) == set(), language


def test_what_is_said_of_a_licence_is_said_in_russian(root: Path) -> None:
    english, said = (json.loads((root / "js" / "panel" / f"{language}.json").read_text()) for language in ("en", "ru"))
    script = (root / "js/panel/texts.js").read_text()
    remarks = dict(re.findall(r'^    "([^"]+)": "(licence_\w+)",$', script, re.MULTILINE))
    assert remarks == {text: key for key, text in english.items() if key.startswith("licence_")}
    found = set()
    for manifest in (root / "workflows" / "api").glob("*.toml"):
        found |= set(re.findall(r'^licence = "(.*)"$', manifest.read_text(), re.MULTILINE))
    assert len(found) > 5
    for licence in found:
        told = licence
        for remark, key in remarks.items():
            told = told.replace(remark, said[key])
        assert words_of(told) == set(), licence
