"""Say where a model's file is to be had: at the address in its manifest, or in its Hugging Face repository."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from ..templates.manifest import Model

HUB = "https://huggingface.co"
#: A repository, or the page of one file in it.
_REPOSITORY = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)(?:/?|/blob/main/([\w./-]+))")


class Source(NamedTuple):
    """An address, and the token that goes to its host and to no other."""

    url: str
    token: str | None = None


def find_source(model: Model, environment: Mapping[str, str]) -> Source | None:
    """Where the file is; None where only a person can get it, at `model.source`.

    As with Hugging Face's own tools, `HF_TOKEN` is the token and `HF_ENDPOINT` another address of the hub's.
    """
    hub = environment.get("HF_ENDPOINT", HUB).rstrip("/")
    url = model.url
    if not url and (repository := _REPOSITORY.fullmatch(model.source)):
        url = f"{hub}/{repository[1]}/resolve/main/{quote(repository[2] or model.file)}"
    if not url:
        return None
    is_hub = urlsplit(url).netloc in (urlsplit(HUB).netloc, urlsplit(hub).netloc)
    return Source(url, (environment.get("HF_TOKEN") or None) if is_hub else None)
