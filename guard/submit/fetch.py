"""Fetch the files that a request names by address or brings along as `data:` URLs, before a job exists.

A file so fetched is one of the request's own, as if it had come in a form: stored by its content in its owner's upload
folder, within the same sizes and the same hourly quota. From then on nothing knows where it came from.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from ..client import LOCAL, Client
from ..errors import BadImageError, FetchFailedError, GuardError, PayloadTooLargeError, PolicyViolationError
from ..files.uploads import Incoming, UploadedFile, Uploads, finish
from ..graph import Names
from ..quotas import Parcel, Quotas
from ..quotas.threads import run_beside, work
from ..settings import FetchSettings
from ..urls import Reach, Url, UrlError, is_source, read_url
from .limits import Limits
from .patterns import compile_patterns
from .request import Prompt, Submission

#: Files that one owner fetches at once.
_AT_ONCE_OF_ONE = 4

_DATA = re.compile(r"data:([\w.+-]{1,60}/[\w.+-]{1,60})?(?:;[\w.+-]{1,60}=[\w.+-]{1,60}){0,4};base64,", re.I | re.ASCII)
#: Characters that are decoded at once; a multiple of four.
_DECODED_AT_ONCE = 2**20


class FetchRules(Reach):
    """From where files may be fetched."""

    def __init__(self, settings: FetchSettings, hosts: Iterable[str]) -> None:
        """`hosts`: `policy.fetch_hosts`."""
        super().__init__(settings.allow_http, settings.allowed_networks)
        self._hosts = compile_patterns(tuple(hosts))

    def check(self, url: str, client: Client) -> None:
        """Check all that can be checked before the name is looked up; a redirect's target, too.

        Raises:
            PolicyViolationError: it is no plain URL, not https, inside the server's network, or of a host that is not
                for keys.
        """
        try:
            read = self.read(url)
        except UrlError as error:
            raise PolicyViolationError(f"The file's address {error}.", details="fetch.allowed_networks") from None
        if client.owner != LOCAL.owner and not self._is_for_keys(read):
            raise PolicyViolationError(
                f"The file lies on {read.host}, which is not among the hosts that this server loads from.",
                details="policy.fetch_hosts",
                extra_info={"host": read.host},
            )

    def _is_for_keys(self, url: Url) -> bool:
        if url.address is not None and self.names(url.address):
            return True
        return self._hosts is not None and self._hosts.fullmatch(url.host) is not None


class Broken(Exception):
    """A transfer that came to nothing, and may go better if it is begun anew."""

    def __init__(self, error: GuardError) -> None:
        super().__init__(error.message)
        self.error = error


class Download(Protocol):
    """Gets what a URL leads to. Event loop."""

    def __call__(
        self, url: str, check: Callable[[str], None], start: Callable[[int | None], None]
    ) -> AsyncGenerator[bytes, None]: ...


class Place(NamedTuple):
    """An input of a node: `inputs[name]`."""

    node_id: str
    inputs: dict[str, Any]
    name: str


class Fetched(NamedTuple):
    """Files that were fetched, by the text that stood for each, and their size together."""

    files: dict[str, UploadedFile]
    bytes: int


def find_sources(graph: Mapping[str, Any], file_inputs: Callable[[str], Mapping[str, Names]]) -> dict[str, list[Place]]:
    """The addresses and `data:` URLs in inputs that name files, and where each stands."""
    found: dict[str, list[Place]] = defaultdict(list)
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if not isinstance(value, str) or not is_source(value):
                continue
            if file_inputs(node["class_type"]).get(name) is Names.FILE:
                found[value].append(Place(node_id, node["inputs"], name))
    return found


def use_stored(
    prompt: Prompt, sources: Mapping[str, list[Place]], files: Mapping[str, UploadedFile], owner: str
) -> None:
    """Name the stored files wherever the prompt has their sources: nodes write all of it into what they make."""
    for text, places in sources.items():
        for place in places:
            place.inputs[place.name] = files[text].stored_as(owner)
    names = {text: file.stored_name for text, file in files.items()}
    if "extra_data" in prompt.body:
        prompt.body["extra_data"] = _put_names(prompt.body["extra_data"], names)
    prompt.parameters.update(_put_names(dict(prompt.parameters), names))


def _put_names(value: Any, names: Mapping[str, str]) -> Any:
    """Copy JSON with each text that is one of `names` replaced."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, dict):
        return {key: _put_names(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_names(item, names) for item in value]
    return value


class Fetcher:
    """Event loop; what takes the time of a file's size is done on other threads."""

    def __init__(
        self,
        settings: FetchSettings,
        rules: FetchRules,
        uploads: Uploads,
        limits: Limits,
        quotas: Quotas,
        file_inputs: Callable[[str], Mapping[str, Names]],
        download: Download,
    ) -> None:
        """`file_inputs`: see Host."""
        self._settings = settings
        self._rules = rules
        self._uploads = uploads
        self._limits = limits
        self._quotas = quotas
        self._file_inputs = file_inputs
        self._download = download
        self._room = asyncio.Semaphore(settings.at_once)
        self._at_once_of_one = max(min(_AT_ONCE_OF_ONE, settings.at_once - 1), 1)
        self._of_owner: dict[str, _Room] = {}

    def find(self, graph: Mapping[str, Any]) -> dict[str, list[Place]]:
        """See :func:`find_sources`."""
        return find_sources(graph, self._file_inputs)

    @asynccontextmanager
    async def fetch_for(
        self, request: Submission, prompt: Prompt, sources: Mapping[str, list[Place]]
    ) -> AsyncIterator[tuple[UploadedFile, ...]]:
        """Get what the prompt names by address or holds as `data:`, and put the stored names in its place.

        The end of the block deletes what was not moved to its place. Raises GuardError.
        """
        size, client = len(request.raw), request.client
        async with self.fetch(sources, client, len(request.files), request.file_bytes) as fetched:
            await work(size, use_stored, prompt, sources, fetched.files, client.owner)
            yield tuple(fetched.files.values())

    @asynccontextmanager
    async def fetch(
        self, sources: Mapping[str, list[Place]], client: Client, besides: int = 0, bytes_besides: int = 0
    ) -> AsyncIterator[Fetched]:
        """Get every source, each once. The end of the block deletes what was not moved to its place.

        Args:
            besides, bytes_besides: files that came with the request, and their size.

        Raises:
            GuardError: one could not be had; it names the node and the input.
        """
        settings = self._uploads.settings
        if len(sources) + besides > settings.max_files:
            raise PayloadTooLargeError(
                f"The request has more than {settings.max_files} files.", extra_info={"max_files": settings.max_files}
            )
        for text, places in sources.items():
            with _told(text, places):
                self._check(text, client)
        incoming: list[Incoming] = []
        parcel = self._quotas.open_parcel(client)
        left = _Left(settings.max_request_bytes - bytes_besides, settings.max_request_bytes, parcel)
        try:
            tasks = [
                asyncio.ensure_future(self._fetch_one(text, places, client, incoming, left))
                for text, places in sources.items()
            ]
            try:
                with self._quotas.counting():
                    files = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            self._limits.take_upload(client, left.taken)
            yield Fetched(dict(zip(sources, files, strict=True)), left.taken)
        finally:
            if incoming:
                await asyncio.shield(run_beside(_discard, incoming))
            parcel.close()

    def _check(self, text: str, client: Client) -> None:
        if text[:5].lower() != "data:":
            self._rules.check(text, client)
        elif _DATA.match(text) is None:
            raise BadImageError("A data: URL must be base64: data:image/png;base64,…")

    async def _fetch_one(
        self, text: str, places: list[Place], client: Client, incoming: list[Incoming], left: _Left
    ) -> UploadedFile:
        with _told(text, places):
            name = name_source(text)
            if text[:5].lower() == "data:":
                file = await self._start_file(places[0].name, name, incoming, left.parcel)
                await run_beside(_decode, text, file, left)
            else:
                file = await self._download_file(text, name, places[0].name, client, incoming, left)
            uploaded = await finish(file)
            if not uploaded.is_media:
                raise BadImageError(f"{name} is no picture, film or sound.", details="Its first bytes say so.")
            return uploaded

    async def _download_file(
        self, url: str, name: str, field: str, client: Client, incoming: list[Incoming], left: _Left
    ) -> Incoming:
        check = partial(self._rules.check, client=client)
        async with self._take_room(client.owner):
            try:
                return await asyncio.wait_for(
                    self._try_twice(url, name, field, check, incoming, left), self._settings.timeout_s
                )
            except asyncio.TimeoutError:
                raise FetchFailedError(
                    f"{name} did not come within {self._settings.timeout_s:g} s.",
                    extra_info={"reason": "timeout"},
                ) from None

    async def _try_twice(
        self,
        url: str,
        name: str,
        field: str,
        check: Callable[[str], None],
        incoming: list[Incoming],
        left: _Left,
    ) -> Incoming:
        broken: Broken | None = None
        for _attempt in range(2):
            file = await self._start_file(field, name, incoming, left.parcel)
            taken = 0
            start = partial(_check_length, file.max_bytes, name)
            try:
                async with aclosing(self._download(url, check, start)) as blocks:
                    async for block in blocks:
                        taken += len(block)
                        left.take(len(block))
                        await run_beside(file.write, block)
                return file
            except Broken as error:
                # Anew from the start: what is there by now may be another file.
                broken = error
                left.give_back(taken)
                await run_beside(file.discard)
        assert broken is not None
        raise broken.error

    async def _start_file(self, field: str, name: str, incoming: list[Incoming], parcel: Parcel) -> Incoming:
        """Begin a file, and remember it even if the request ends meanwhile."""
        starting = asyncio.ensure_future(run_beside(self._uploads.start_file, field, name, parcel))
        try:
            return await asyncio.shield(starting)
        finally:
            incoming.append(await starting)

    @asynccontextmanager
    async def _take_room(self, owner: str) -> AsyncIterator[None]:
        """One of the owner's places first, so that nobody takes all of them."""
        room = self._of_owner.setdefault(owner, _Room(asyncio.Semaphore(self._at_once_of_one)))
        room.users += 1
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(room.places)
                await stack.enter_async_context(self._room)
                yield
        finally:
            room.users -= 1
            if not room.users:
                self._of_owner.pop(owner, None)

    async def read(self, text: str, client: Client) -> bytes:
        """One file for a look at it, such as a face check; nothing is kept. Raises GuardError."""
        async with self.fetch({text: [Place("", {}, "image")]}, client) as fetched:
            (file,) = fetched.files.values()
            return await run_beside(file.path.read_bytes)


@dataclass
class _Room:
    places: asyncio.Semaphore
    users: int = 0


class _Left:
    """How many bytes the request's files may still have; `parcel` counts them for their owner."""

    def __init__(self, left: int, limit: int, parcel: Parcel) -> None:
        self.taken = 0
        self.parcel = parcel
        self._left = left
        self._limit = limit
        self._lock = threading.Lock()  # a `data:` URL is decoded on another thread

    def take(self, size: int) -> None:
        """Raises PayloadTooLargeError."""
        with self._lock:
            self.taken += size
        if self.taken > self._left:
            raise PayloadTooLargeError(
                f"The files together are over {self._limit} bytes.", extra_info={"max_request_bytes": self._limit}
            )

    def give_back(self, size: int) -> None:
        with self._lock:
            self.taken -= size


@contextmanager
def _told(text: str, places: list[Place]) -> Iterator[None]:
    """Name the input and the source in an error that leaves the block."""
    try:
        yield
    except GuardError as error:
        node = {"node_id": places[0].node_id} if places[0].node_id else {}
        error.extra_info = {**node, "input": places[0].name, "source": name_source(text), **error.extra_info}
        raise


def name_source(text: str) -> str:
    """What to call a source: the last part of its path, else its host; never its query, which may hold a signature."""
    if text[:5].lower() == "data:":
        return "data:" + text[5:70].partition(",")[0].partition(";")[0]
    with suppress(UrlError, ValueError):
        host = read_url(text).host
        last = unquote(urlsplit(text).path).replace("\\", "/").rpartition("/")[2]
        return last[:100] if last and last.isprintable() else host
    return "the file"


def _check_length(most: int, name: str, declared: int | None) -> None:
    """Refuse a file by the length that its server says. Raises PayloadTooLargeError."""
    if declared is not None and declared > most:
        raise PayloadTooLargeError(f"The file {name} is over {most} bytes.", extra_info={"max_file_bytes": most})


def _decode(text: str, file: Incoming, left: _Left) -> None:
    """Write what a `data:` URL holds. Raises BadImageError."""
    begin = text.index(",") + 1
    try:
        for at in range(begin, len(text), _DECODED_AT_ONCE):
            block = base64.b64decode(text[at : at + _DECODED_AT_ONCE], validate=True)
            left.take(len(block))
            file.write(block)
    except (binascii.Error, ValueError):
        raise BadImageError("A data: URL is not in base64.") from None


def _discard(incoming: list[Incoming]) -> None:
    for file in incoming:
        file.discard()
