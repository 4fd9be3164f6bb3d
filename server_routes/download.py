"""Get the files that requests name by address: for `guard/submit/fetch.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from urllib.parse import urljoin

import aiohttp
from aiohttp import hdrs
from yarl import URL

from ..guard.errors import FetchFailedError
from ..guard.settings import FetchSettings
from ..guard.submit.fetch import Broken, FetchRules
from .outside import Outside, is_inside

_BLOCK_BYTES = 2**20
_REDIRECTS = 5
_MOVED = frozenset({301, 302, 303, 307, 308})
#: Worth a second try; any other refusal is the source's last word.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
#: No encoding: what unpacks could be any size.
_HEADERS = {hdrs.ACCEPT_ENCODING: "identity", hdrs.USER_AGENT: "ComfyUI-Guarded"}


class Downloader:
    """Event loop."""

    def __init__(self, rules: FetchRules, settings: FetchSettings) -> None:
        self._outside = Outside(rules, settings.timeout_s, settings.at_once)

    async def download(
        self, url: str, check: Callable[[str], None], start: Callable[[int | None], None]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the file in blocks.

        Args:
            check: asked about each redirect's target.
            start: told of the length that the source declares, before anything is read.

        Raises:
            Broken: it may go better next time.
            FetchFailedError, and what `check` and `start` raise.
        """
        try:
            for _redirect in range(_REDIRECTS + 1):
                async with self._outside.open_session().get(
                    URL(url, encoded=True), headers=_HEADERS, allow_redirects=False
                ) as response:
                    if response.status in _MOVED and (target := response.headers.get(hdrs.LOCATION)):
                        url = urljoin(url, target)
                        check(url)
                        continue
                    _judge(response)
                    start(response.content_length)
                    async for block in _read(response):
                        yield block
                    return
        except asyncio.TimeoutError:
            raise _fail("The source did not answer in time.", "timeout") from None
        except PermissionError:
            raise _fail("The source's name leads to an address that may not be reached.", "address") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if is_inside(error):
                raise _fail("The source's name leads to an address that may not be reached.", "address") from None
            raise Broken(_fail("The source cannot be reached, or broke off.", "connection")) from None
        raise _fail(f"The source leads on more than {_REDIRECTS} times.", "redirects")


async def _read(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    block = bytearray()
    async for chunk in response.content.iter_chunked(2**16):
        block += chunk
        if len(block) >= _BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _judge(response: aiohttp.ClientResponse) -> None:
    """Raises Broken or FetchFailedError where the answer is not the file."""
    if response.status != 200:
        error = _fail(f"The source says {response.status}.", "status", status=response.status)
        raise Broken(error) if response.status in _PASSING else error
    if response.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() not in ("identity", ""):
        raise _fail("The source sends the file packed.", "encoding")


def _fail(message: str, reason: str, **facts: int) -> FetchFailedError:
    return FetchFailedError(message, extra_info={"reason": reason, **facts})
