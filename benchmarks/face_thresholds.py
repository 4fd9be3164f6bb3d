"""How sure CenterFace is of faces, and of what is none, in pictures that nobody has tuned on.

    python benchmarks/face_thresholds.py FOLDER [--part tune] [--list] [--compare | --write]

FOLDER holds `PART/KIND/*`: the parts `tune`, from which the thresholds were chosen, and `unseen`, looked at once after
that; the kind `people` has pictures in each of which a human face can be seen, every other kind pictures with none.
For each kind it prints how many pictures pass the check at each threshold. With `--list`, also the least sure of the
people and the surest of the others, by the first characters of their SHA-256. No picture leaves the folder.

`face_pictures.txt` beside this script names the pictures of docs/faces.md's table so, with their labels: `--compare`
says where a folder differs from it, `--write` writes it anew.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from _alias import register

PICTURES = Path(__file__).with_name("face_pictures.txt")
#: So many characters of a SHA-256 tell pictures apart.
DIGITS = 16
THRESHOLDS = (0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)
SHOWN = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", default=None, help="only this part (default: all)")
    parser.add_argument("--list", action="store_true")
    parser.add_argument(
        "--compare", action="store_true", help="only say where the folder differs from the table's pictures"
    )
    parser.add_argument("--write", action="store_true", help="only write the pictures' names and labels")
    options = parser.parse_args()
    if options.write:
        PICTURES.write_text(write_labels(find_labels(options.folder)))
        return
    if options.compare:
        raise SystemExit(compare(read_labels(PICTURES.read_text()), find_labels(options.folder)))
    register()
    for part in sorted(path for path in options.folder.iterdir() if path.is_dir()):
        if options.part in (None, part.name):
            print(f"\n{part.name}: pictures in which a face is found, by how sure the check must be")
            print(f"| kind | pictures | {' | '.join(f'{threshold:g}' for threshold in THRESHOLDS)} |")
            print(f"| --- | --- |{' --- |' * len(THRESHOLDS)}")
            for kind in sorted(path for path in part.iterdir() if path.is_dir()):
                report(kind, options.list)


def find_labels(folder: Path) -> dict[str, str]:
    """`part/kind` of each picture, by its name."""
    return {digest(path, DIGITS): f"{path.parts[-3]}/{path.parts[-2]}" for path in sorted(folder.glob("*/*/*"))}


def write_labels(labels: Mapping[str, str]) -> str:
    """A line `part/kind` before the names of all that have it."""
    lines = []
    for label in sorted(set(labels.values())):
        lines += [label, *sorted(name for name, each in labels.items() if each == label)]
    return "\n".join(lines) + "\n"


def read_labels(text: str) -> dict[str, str]:
    labels, label = {}, ""
    for line in text.split():
        if "/" in line:
            label = line
        else:
            labels[line] = label
    return labels


def compare(wanted: Mapping[str, str], found: Mapping[str, str]) -> int:
    """1: the folder is not that of the table."""
    for label in sorted({*wanted.values(), *found.values()}):
        missing = [name for name, each in wanted.items() if each == label and found.get(name) != label]
        more = [name for name, each in found.items() if each == label and wanted.get(name) != label]
        count = sum(each == label for each in wanted.values())
        print(
            f"{label}: {count} pictures, {len(missing)} not here, {len(more)} others", *missing[:SHOWN], *more[:SHOWN]
        )
    return int(wanted != found)


def report(folder: Path, is_listing: bool) -> None:
    seen = sorted((find_surest(path), digest(path, 12)) for path in sorted(folder.iterdir()))
    counts = (sum(confidence >= threshold for confidence, _ in seen) for threshold in THRESHOLDS)
    print(f"| {folder.name} | {len(seen)} | {' | '.join(map(str, counts))} |")
    if is_listing:
        show(seen[:SHOWN] if folder.name == "people" else seen[-SHOWN:])


def show(seen: Sequence[tuple[float, str]]) -> None:
    print("  " + ", ".join(f"{name} {confidence:.2f}" for confidence, name in seen))


def find_surest(path: Path) -> float:
    """The confidence of the surest face that is large enough for the rules, after every look that the search knows."""
    from comfyui_guarded.guard.errors import BadImageError
    from comfyui_guarded.guard.faces.check import FaceRules
    from comfyui_guarded.guard.faces.photos import PhotoLimits, open_picture
    from comfyui_guarded.guard.faces.search import MAX_PIXELS, search

    try:
        picture = open_picture(path.read_bytes(), PhotoLimits(), MAX_PIXELS, path.name)
    except BadImageError:
        return 0.0
    floor = FaceRules().min_face_fraction * min(picture.width, picture.height)
    faces = search(open_detector(), picture, min_confidence=max(THRESHOLDS))
    return max((face.confidence for face in faces if face.size >= floor), default=0.0)


_detectors = []


def open_detector():
    from comfyui_guarded.guard.faces.centerface import CenterFace

    if not _detectors:
        _detectors.append(CenterFace())
    return _detectors[0]


def digest(path: Path, digits: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:digits]


if __name__ == "__main__":
    main()
