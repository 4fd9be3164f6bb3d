"""The pictures that are named beside docs/faces.md's table are those that it counts."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: The table's rows, in order.
LABELS = [
    f"{part}/{kind}" for part in ("tune", "unseen") for kind in ("people", "animals", "dolls", "drawings", "things")
]


def test_each_label_has_as_many_pictures_as_the_table_counts_and_no_picture_two_labels() -> None:
    rows = re.findall(r"^\| (?:people|animals|dolls|drawings|things)[^|]*\| (\d+) \|", text("docs/faces.md"), re.M)
    named = re.split(r"^(\w+/\w+)\n", text("benchmarks/face_pictures.txt"), flags=re.M)[1:]
    pictures = {label: block.split() for label, block in zip(named[::2], named[1::2], strict=True)}
    assert [len(pictures[label]) for label in LABELS] == [int(row) for row in rows]
    everyone = [name for block in pictures.values() for name in block]
    assert len(set(everyone)) == len(everyone) == 1353
    assert all(re.fullmatch(r"[0-9a-f]{16}", name) for name in everyone)


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")
