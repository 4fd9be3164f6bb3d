"""The rooms of the house: each says what it is for, none is a cupboard, and no file is a hall without a reason."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("agents", "guard", "host", "server_routes", "nodes")

#: More lines than a reader takes in at once. A longer file begins with `# Over 400 lines: ` and the reason.
LINES = 400
FLAT = 20
FILES = 3
WORDS = 5


def rooms(*layers: str) -> list[str]:
    """Every package below the layers, as a path from the root."""
    found = [path.parent.relative_to(ROOT) for layer in layers for path in (ROOT / layer).rglob("__init__.py")]
    return sorted(room.as_posix() for room in found)


def python_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("room", rooms(*LAYERS))
def test_every_room_says_in_a_sentence_what_it_is_for(room: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    sentence = text.split("\n\n")[0]
    assert len(sentence.split()) >= WORDS
    assert sentence.endswith((".", ":", "?"))


@pytest.mark.parametrize("room", [room for room in rooms(*LAYERS) if room not in LAYERS])
def test_no_room_is_a_cupboard(room: str) -> None:
    files = [path for path in (ROOT / room).iterdir() if path.is_file()]
    assert len(files) >= FILES


def test_the_ground_of_guard_stays_small() -> None:
    """A file that only one room uses belongs into that room."""
    flat = sorted(path.name for path in (ROOT / "guard").glob("*.py") if path.name != "__init__.py")
    assert len(flat) <= FLAT, flat


def test_a_long_file_gives_its_reason_in_the_first_line() -> None:
    long = {}
    for name in python_files():
        if name.startswith("tests/"):
            continue  # a list of cases may be as long as it likes
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        if len(lines) > LINES and not lines[0].startswith("# Over 400 lines: "):
            long[name] = len(lines)
    assert long == {}
