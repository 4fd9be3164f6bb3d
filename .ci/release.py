"""Check that a tag, pyproject.toml and CHANGELOG.md name the same version, and print the changelog's notes for it.

`python .ci/release.py v1.2.3`; from Python 3.11 on it needs nothing else.
"""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


def notes(tag: str, pyproject: str, changelog: str) -> str:
    """What CHANGELOG.md says about the version of `tag`.

    Raises ValueError where the three do not agree, the version has no date or no notes, or notes are left under
    Unreleased: they would belong to no version.
    """
    version = tag.removeprefix("v")
    if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
        raise ValueError(f"the tag {tag} is not of the form v1.2.3")
    if (written := tomllib.loads(pyproject)["project"]["version"]) != version:
        raise ValueError(f"the tag says {version}, pyproject.toml says {written}")
    # [before the first heading, heading, text, heading, text, …]
    _, *parts = re.split(r"^## (.*)$", changelog, flags=re.M)
    sections = [(heading, text.strip()) for heading, text in zip(parts[::2], parts[1::2], strict=True)]
    if sections and sections[0][0] == "[Unreleased]":
        if sections[0][1]:
            raise ValueError("CHANGELOG.md has notes under Unreleased: move them under the version")
        del sections[0]
    if not sections or not re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", sections[0][0]):
        raise ValueError(f"the newest version in CHANGELOG.md must be headed `## [{version}] - YYYY-MM-DD`")
    # Links for the headings stand at the end of the file, not in the notes.
    if not (text := re.sub(r"^\[[^\]]+\]: \S+\n?", "", sections[0][1], flags=re.M).strip()):
        raise ValueError(f"CHANGELOG.md says nothing about {version}")
    return text


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    files = ((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CHANGELOG.md"))
    try:
        sys.stdout.write(notes(sys.argv[1], *files) + "\n")
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
