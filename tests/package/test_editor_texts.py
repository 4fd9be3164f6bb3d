"""What ComfyUI's editor says of our nodes, and what the panel says, in both languages."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

LANGUAGES = ("en", "ru")
ROOMS = ("main", "nodeDefs", "commands", "settings")


def node_classes() -> dict[str, Any]:
    return dict(importlib.import_module("comfyui_guarded.nodes").NODE_CLASS_MAPPINGS)


def display_names() -> dict[str, str]:
    return dict(importlib.import_module("comfyui_guarded.nodes").NODE_DISPLAY_NAME_MAPPINGS)


def inputs(node: Any) -> dict[str, Any]:
    types = node.INPUT_TYPES()
    return {**types.get("required", {}), **types.get("optional", {})}


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def texts(value: Any, path: str = "") -> dict[str, str]:
    """Every text by its path."""
    if isinstance(value, str):
        return {path: value}
    return {key: text for name, part in value.items() for key, text in texts(part, f"{path}/{name}").items()}


def test_every_input_of_every_node_has_a_tooltip() -> None:
    bare = [
        f"{key}.{name}"
        for key, node in node_classes().items()
        for name, spec in inputs(node).items()
        if len(spec) < 2 or not spec[1].get("tooltip")
    ]
    assert bare == []


def test_the_english_texts_are_those_of_the_nodes(root: Path) -> None:
    names = display_names()
    expected = {
        key: {
            "display_name": names[key],
            "description": node.DESCRIPTION,
            "inputs": {name: {"name": name, "tooltip": spec[1]["tooltip"]} for name, spec in inputs(node).items()},
            "outputs": {
                str(index): {"name": name, "tooltip": tooltip}
                for index, (name, tooltip) in enumerate(
                    zip(getattr(node, "RETURN_NAMES", node.RETURN_TYPES), node.OUTPUT_TOOLTIPS, strict=True)
                )
            },
        }
        for key, node in node_classes().items()
    }
    assert read(root / "locales" / "en" / "nodeDefs.json") == expected


@pytest.mark.parametrize("room", ROOMS)
def test_both_languages_have_the_same_texts(root: Path, room: str) -> None:
    english, russian = (texts(read(root / "locales" / language / f"{room}.json")) for language in LANGUAGES)
    assert set(english) == set(russian)
    assert all(text.strip() for text in [*english.values(), *russian.values()])


def test_the_panel_says_everything_in_both_languages(root: Path) -> None:
    english, russian = (read(root / "js" / "panel" / f"{language}.json") for language in LANGUAGES)
    assert set(english) == set(russian)
    for table, forms in ((english, {"one", "other"}), (russian, {"one", "few", "many", "other"})):
        for key, text in table.items():
            assert isinstance(text, str) or set(text) == forms, key
    for key, text in english.items():
        placeholders = [set(re.findall(r"\{(\w+)\}", one)) for one in texts(text).values()]
        for one in texts(russian[key]).values():
            assert set(re.findall(r"\{(\w+)\}", one)) in placeholders, key


def test_the_panel_asks_only_for_texts_that_are_there(root: Path) -> None:
    english = read(root / "js" / "panel" / "en.json")
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in sorted((root / "js").rglob("*.js")))
    asked = set(re.findall(r"""\bt\("(\w+)[",)]""", scripts))
    assert len(asked) > 50
    assert asked - set(english) == set()
    # The other way round: texts that nothing asks for any more. Some keys are put together: `state_${…}`.
    begun = tuple(re.findall(r"`(\w+_)\$\{", scripts))
    named = set(re.findall(r'"(\w+)"', scripts))
    assert [key for key in english if key not in asked | named and not key.startswith(begun)] == []


def test_no_text_uses_the_letter_that_the_others_do_without(root: Path) -> None:
    for path in [*(root / "locales").rglob("*.json"), root / "js" / "panel" / "ru.json", *(root / "js").rglob("*.md")]:
        assert not re.search("[ёЁ]", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_is_documented(root: Path, language: str) -> None:
    for key, node in node_classes().items():
        page = root / "js" / "docs" / key / f"{language}.md"
        assert page.is_file(), page
        text = page.read_text(encoding="utf-8")
        missing = [name for name in inputs(node) if f"`{name}`" not in text]
        assert missing == [], page
        title = read(root / "locales" / language / "nodeDefs.json")[key]["display_name"]
        assert text.startswith(f"# {title}\n"), page


def test_only_documents_of_nodes_that_there_are(root: Path) -> None:
    assert {path.name for path in (root / "js" / "docs").iterdir()} == set(node_classes())
