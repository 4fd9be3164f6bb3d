"""Texts for end users: one JSON file per language, keyed by error code (and `queued*` and `waiting*` for notices).

To add a language, add a file such as `de.json` or `pt-br.json`. A text that it lacks, or has a mistake in, is shown in
English. An operator's own texts lie in `__guarded/messages`, under the same names and keys: they count before ours,
and a mistake in one is told at the start.

`{refunded}` in a text is where a job's end says that the money is back, in the words of the text `refunded`. A refusal
does not say that: it knows nothing of what was paid.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...own_files import FileError, read_json

log = logging.getLogger("guarded.messages")

_FOLDER = Path(__file__).parent
FALLBACK = "en"

#: Where a text has the sentence about the money.
_REFUNDED = "{refunded}"
_LANGUAGE = re.compile("[a-z]{2,3}(-[a-z0-9]{2,8})*")

#: Texts by language. What a request's end says changes at the start only.
Texts = Mapping[str, Mapping[str, str]]


class TextsError(ValueError):
    """An operator's own texts cannot be used; the message names file, text and fault."""


@dataclass(frozen=True)
class _Installed:
    own: Texts
    money: bool


_installed = _Installed({}, True)


def install(own: Texts, *, money: bool = True) -> None:
    """Show these texts before ours, and say of refunds or not. At the start."""
    global _installed
    _installed = _Installed(own, money)


def read_own(folder: Path) -> Texts:
    """Read the texts of an operator: `ru.json` and the like in that folder, if it is there.

    Raises:
        TextsError: a file that is no language's, no JSON object of texts, has a text that we do not know, or one that
            cannot be filled in.
    """
    own: dict[str, Mapping[str, str]] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.exists() else []
        for path in paths:
            language = _name_language(path)
            own[language] = _check_own(f"{folder.name}/{path.name}", read_json(path))
    except FileError as error:
        raise TextsError(f"{folder.name}/{error}") from None
    except OSError as error:
        raise TextsError(f"the texts in {folder.name} cannot be read: {error.strerror}") from None
    return own


def _name_language(path: Path) -> str:
    language = path.stem.lower().replace("_", "-")
    if path.suffix != ".json" or not _LANGUAGE.fullmatch(language):
        raise TextsError(f"{path.parent.name}/{path.name}: texts are in files such as ru.json or pt-br.json")
    return language


def _check_own(name: str, texts: Any) -> Mapping[str, str]:
    if not isinstance(texts, dict):
        raise TextsError(f"{name} is not a JSON object")
    for key, text in texts.items():
        if key not in table(FALLBACK):
            raise TextsError(f"{name}: there is no text {key[:100]!r}")
        if not _is_usable(text, table(FALLBACK)[key]):
            blanks = ", ".join(f"{{{blank}}}" for blank in sorted(_list_blanks(table(FALLBACK)[key]))) or "nothing"
            raise TextsError(f"{name}: {key} must be a text that leaves room for {blanks} at most")
    return texts


@functools.cache
def _files() -> dict[str, Path]:
    return {path.stem.lower(): path for path in _FOLDER.glob("*.json")}


@functools.cache
def _our_languages() -> frozenset[str]:
    return frozenset(_files())


def languages(own: Texts | None = None) -> frozenset[str]:
    """The languages with texts: ours, and the operator's (by default, those in force)."""
    return _our_languages() | frozenset(_installed.own if own is None else own)


@functools.cache
def table(language: str) -> Mapping[str, str]:
    """Read our texts of a language, without those that cannot be used."""
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
    template = _without_money(_find(key, locale))
    return template.format(**facts) if facts else template


def text_of_end(code: str, locale: str) -> str:
    """The text for a job that ended with that code: it says, where `messages.money` is on, that the money is back."""
    template = _find(code, locale)
    if not _installed.money:
        return _without_money(template)
    if _REFUNDED not in template:
        template += f" {_REFUNDED}"
    return template.replace(_REFUNDED, _find("refunded", locale))


def _without_money(template: str) -> str:
    return re.sub(r"\s*{refunded}", "", template).strip() if _REFUNDED in template else template


def _find(key: str, locale: str) -> str:
    for language in (locale, FALLBACK):
        if key in (own := _installed.own.get(language, {})):
            return own[key]
        if language in _our_languages() and key in (ours := table(language)):
            return ours[key]
    raise KeyError(key)


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
    if not accept_language:
        return default
    for _quality, tag in sorted(_parse_accepted(accept_language), key=lambda pair: -pair[0]):
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
