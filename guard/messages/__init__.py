"""What an end user reads: one JSON file per language, keyed by error code (and `queued*` for notices).

Another language is one more file in this folder.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

_FOLDER = Path(__file__).parent
FALLBACK = "en"


@functools.cache
def languages() -> frozenset[str]:
    return frozenset(path.stem for path in _FOLDER.glob("*.json"))


@functools.cache
def table(language: str) -> Mapping[str, str]:
    texts: dict[str, str] = json.loads((_FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    return texts


def text(key: str, locale: str, **facts: object) -> str:
    """The text for `key` in `locale` (English where that language lacks it), with `facts` filled in."""
    language = locale if locale in languages() else FALLBACK
    template = table(language).get(key) or table(FALLBACK)[key]
    return template.format(**facts) if facts else template


def counted(key: str, number: int, locale: str) -> str:
    """As in "5 minutes": the form that goes with the number.

    A language file has its forms in one text, `{n} minute|{n} minutes`; three of them where the language has one for
    1, 21, 31 …, one for 2 to 4, 22 to 24 … and one for all else.
    """
    forms = text(key, locale).split("|")
    if len(forms) == 3:
        tens, ones = number // 10 % 10, number % 10
        form = 2 if tens == 1 or ones == 0 or ones > 4 else 0 if ones == 1 else 1
    else:
        form = min(len(forms) - 1, int(number != 1))
    return forms[form].format(n=number)


def choose(wanted: str | None, accept_language: str | None, default: str) -> str:
    """A language we have: the one asked for by name, else the best of `Accept-Language`, else the default."""
    if wanted is not None and (language := _known(wanted)):
        return language
    for _quality, tag in sorted(_accepted(accept_language or ""), key=lambda pair: -pair[0]):
        if language := _known(tag):
            return language
    return default


def _known(tag: str) -> str | None:
    primary = tag.strip().lower().replace("_", "-").split("-")[0]
    return primary if primary in languages() else None


def _accepted(header: str) -> list[tuple[float, str]]:
    """`ru-RU;q=0.8, en` as (quality, tag) pairs; parts that make no sense are passed over, as RFC 9110 allows."""
    pairs: list[tuple[float, str]] = []
    for part in header[:200].split(","):
        tag, _, parameter = part.partition(";")
        quality = 1.0
        if parameter.strip().startswith("q="):
            try:
                quality = float(parameter.strip()[2:])
            except ValueError:
                continue
        if 0 < quality <= 1:
            pairs.append((quality, tag))
    return pairs
