"""Read from a presigned address until when it is valid: as AWS, Google and Azure write that."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qsl, urlsplit

_STAMP = "%Y%m%dT%H%M%SZ"
_AZURE = ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%MZ", "%Y-%m-%d")


def read_expiry_ms(url: str) -> int | None:
    """When the address expires, in milliseconds since the epoch; None where it does not say."""
    try:
        return _read(dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)))
    except OverflowError:  # in the year 10000
        return None


def _read(query: Mapping[str, str]) -> int | None:
    for vendor in ("Amz", "Goog"):
        stamp, lasts_s = query.get(f"X-{vendor}-Date"), query.get(f"X-{vendor}-Expires", "")
        if stamp is not None and (signed := _read_time(stamp, _STAMP)) is not None and _is_number(lasts_s, 8):
            return _to_ms(signed + timedelta(seconds=int(lasts_s)))
    if "sig" in query and "se" in query:
        ends = next((at for form in _AZURE if (at := _read_time(query["se"], form)) is not None), None)
        return _to_ms(ends) if ends is not None else None
    if "Signature" in query and _is_number(query.get("Expires", ""), 11):
        return int(query["Expires"]) * 1000
    return None


def _read_time(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form).replace(tzinfo=timezone.utc)
    except ValueError:
        return None


def _is_number(text: str, digits: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= digits


def _to_ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
