"""Where the depot is: what `files.url` says of it, and how it is shown without the secret."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import url2pathname

from ..settings import SettingsError, hide_password

if TYPE_CHECKING:
    from obstore.store import LocalStore, S3Store

PACKAGE = '"obstore>=0.9,<1"'
_PIP = "-m pip install"
_WANTED = "file:///<folder> or s3://<bucket>/<prefix>?endpoint=<address>&region=<name>"


@dataclass(frozen=True)
class Address:
    """A folder, or a bucket with a prefix. `shown` is for people; without `access` the environment names the user."""

    shown: str
    folder: Path | None = None
    bucket: str = ""
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    access: str = ""
    secret: str = field(default="", repr=False)

    def hide(self, text: object) -> str:
        """The first line of a text, without the secret."""
        line = str(text).strip().split("\n", 1)[0]
        for secret in (self.secret, os.environ.get("AWS_SECRET_ACCESS_KEY", "")):
            line = line.replace(secret, "***") if secret else line
        return line[:500]


def read_address(url: str) -> Address:
    """Read `files.url`. Raises SettingsError where it is none, or the package that it needs is missing."""
    try:
        import obstore  # noqa: F401
    except ImportError as error:
        told = f"files.url: it needs the package obstore, {_PIP} {PACKAGE}"
        command = f'files.url: it needs the package obstore: "{sys.executable}" {_PIP} {PACKAGE}'
        raise SettingsError(f"{command} ({error})", told) from None
    try:
        return _read(url)
    except ValueError as error:
        told = f"files.url: {_WANTED} is what this version can use"
        why = f" ({error})" if str(error) else ""
        raise SettingsError(f"{told}, got {hide_password(url)!r}{why}", told) from None


def _read(url: str) -> Address:
    """Raises ValueError; its words have nothing of the URL in them."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("it is no address") from None
    if parts.scheme == "file":
        folder = Path(url2pathname(parts.path))
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or not folder.is_absolute():
            raise ValueError("the folder's whole path is needed, behind three slashes")
        if parts.query or parts.fragment:
            raise ValueError("a folder has no more to it: write ? as %3F and # as %23")
        if len(folder.parts) < 2:
            raise ValueError("a folder of its own is needed")
        return Address(url, folder)
    if parts.scheme != "s3":
        raise ValueError
    user, at, bucket = parts.netloc.rpartition("@")
    access, _colon, secret = user.partition(":")
    if at and not (access and secret):
        raise ValueError("an access key and its secret are needed before the @; or neither")
    if not bucket or ":" in bucket or "/" in unquote(bucket) or parts.fragment:
        raise ValueError("the bucket's name is needed; write / + @ in a secret as %2F %2B %40")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := query.keys() - {"endpoint", "region"}:
        raise ValueError(f"{len(unknown)} unknown parameters")
    endpoint = query.get("endpoint", "")
    if endpoint and not endpoint.startswith(("https://", "http://")):
        raise ValueError("endpoint must begin with https:// or http://")
    return Address(
        hide_password(url),
        bucket=unquote(bucket),
        prefix=unquote(parts.path).strip("/"),
        endpoint=endpoint.rstrip("/"),
        region=query.get("region", ""),
        access=unquote(access),
        secret=unquote(secret),
    )


def open_storage(address: Address, request_s: float, connect_s: float) -> LocalStore | S3Store:
    from obstore.store import LocalStore, S3Store

    if address.folder is not None:
        return LocalStore(prefix=address.folder)
    given: dict[str, str] = {}
    if address.access:
        given.update(access_key_id=address.access, secret_access_key=address.secret)
    if address.endpoint:
        given["endpoint"] = address.endpoint
    if address.region:
        given["region"] = address.region
    config: Any = given
    return S3Store(
        address.bucket,
        prefix=address.prefix or None,
        config=config,
        client_options={
            "allow_http": address.endpoint.startswith("http://"),
            "timeout": timedelta(seconds=request_s),
            "connect_timeout": timedelta(seconds=connect_s),
        },
        # An S3 that says "slow down" for a second is not away.
        retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=request_s)},
    )
