"""What the documentation points to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)
#: `guard/job.py`, `docs/http.md`, `tests/unit`: paths from the root in backticks, and commands that begin with one.
PATH = re.compile(
    r"`(?:python3? )?((?:\.ci|\.github|agents|benchmarks|demo|deploy|docs|examples|guard|host|js|nodes|sandbox|"
    r"server_routes|tests|workflows)/[\w./-]*\w/?)(?=[ `])"
)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(#[^)\s]*)?\)")


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_the_documentation_exists(page: str) -> None:
    named = set(PATH.findall((ROOT / page).read_text(encoding="utf-8")))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_in_the_documentation_leads_to_a_heading_or_file(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    broken = []
    for file, anchor in LINK.findall(text):
        target = (ROOT / page).parent / file if file else ROOT / page
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(file + anchor)
    assert broken == []


def headings(page: Path) -> set[str]:
    """The anchors that the code host gives to a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
