"""Texts for end users: one JSON file per language, keyed by error code (and `queued*` for notices).

To add a language, add a file such as `de.json` or `pt-br.json`. A text that it lacks, or has a mistake in, is shown in
English.
"""

from __future__ import annotations

import functools
import json
import logging
import string
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger("guarded.messages")

_FOLDER = Path(__file__).parent
FALLBACK = "en"


@functools.cache
def _files() -> dict[str, Path]:
    return {path.stem.lower(): path for path in _FOLDER.glob("*.json")}


@functools.cache
def languages() -> frozenset[str]:
    return frozenset(_files())


@functools.cache
def table(language: str) -> Mapping[str, str]:
    """Every sound text of a language."""
    try:
        texts = json.loads(_files()[language].read_text(encoding="utf-8"))
        if not isinstance(texts, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        log.error("the texts in %s cannot be read: %s", _files()[language].name, error)
        return {}
    if language == FALLBACK:
        return texts
    sound = {
        key: text for key, text in texts.items() if key in table(FALLBACK) and _is_sound(text, table(FALLBACK)[key])
    }
    if wrong := sorted(texts.keys() - sound.keys()):
        log.error("the texts in %s for %s cannot be used", _files()[language].name, ", ".join(wrong))
    return sound


def _is_sound(text: object, english: str) -> bool:
    """Whether it can be filled in with what the English text is filled in with."""
    if not isinstance(text, str) or not text.strip():
        return False
    try:
        return _blanks(text) <= _blanks(english)
    except ValueError:  # a brace that nothing closes
        return False


def _blanks(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def text(key: str, locale: str, **facts: object) -> str:
    """The text for `key` in `locale` (English where that language lacks it), with `facts` filled in."""
    language = locale if locale in languages() else FALLBACK
    template = table(language).get(key) or table(FALLBACK)[key]
    return template.format(**facts) if facts else template


def format_count(key: str, number: int, locale: str) -> str:
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
    """`pt-BR` is `pt-br` where we have that, else `pt`."""
    named = tag.strip().lower().replace("_", "-")
    return next((language for language in (named, named.split("-")[0]) if language in languages()), None)


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
