"""Texts for end users: one JSON file per language, keyed by error code (and `queued*` and `waiting*` for notices).

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
    """Read a language's texts, without those that cannot be used."""
    try:
        texts = json.loads(_files()[language].read_text(encoding="utf-8"))
        if not isinstance(texts, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        log.error("the texts in %s cannot be read: %s", _files()[language].name, error)
        return {}
    if language == FALLBACK:
        return texts
    usable = {
        key: text for key, text in texts.items() if key in table(FALLBACK) and _is_usable(text, table(FALLBACK)[key])
    }
    if wrong := sorted(texts.keys() - usable.keys()):
        log.error("the texts in %s for %s cannot be used", _files()[language].name, ", ".join(wrong))
    return usable


def _is_usable(text: object, english: str) -> bool:
    """Whether what fills in the English text can fill in this one."""
    if not isinstance(text, str) or not text.strip():
        return False
    try:
        return _list_blanks(text) <= _list_blanks(english)
    except ValueError:  # a brace is not closed
        return False


def _list_blanks(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def text(key: str, locale: str, **facts: object) -> str:
    """The text for `key` in `locale` (in English where that language lacks it), with `facts` filled in."""
    language = locale if locale in languages() else FALLBACK
    template = table(language).get(key) or table(FALLBACK)[key]
    return template.format(**facts) if facts else template


def format_count(key: str, number: int, locale: str) -> str:
    """Write a number of things, as in "5 minutes", in the form that goes with the number.

    A language file has the forms in one text, `{n} minute|{n} minutes`; three of them where the language has one for
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
    """Choose a language with texts: the one asked for by name, else the best of `Accept-Language`, else the default."""
    if wanted is not None and (language := _match(wanted)):
        return language
    for _quality, tag in sorted(_parse_accepted(accept_language or ""), key=lambda pair: -pair[0]):
        if language := _match(tag):
            return language
    return default


def _match(tag: str) -> str | None:
    """Match `pt-BR` to `pt-br` where there is one, else to `pt`."""
    named = tag.strip().lower().replace("_", "-")
    return next((language for language in (named, named.split("-")[0]) if language in languages()), None)


def _parse_accepted(header: str) -> list[tuple[float, str]]:
    """Parse `ru-RU;q=0.8, en` into (quality, tag) pairs; pass over parts that make no sense, as RFC 9110 allows."""
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
