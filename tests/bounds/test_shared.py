"""One owner floods the threads that all share with what is slow: others' requests go between its own, not behind them.

Judged by how many of the flood's requests end while somebody else's single one does, so that a slow machine changes
nothing: behind the flood it would be all that wait there.
"""

import asyncio
import contextlib
import itertools
import json
import random
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest
from bounds.shapes import FORM, JSON, node
from contract.client import PATIENCE_S, make_key

from comfyui_guarded.tests.hosts.launch import HostProcess

#: Of the flood, under way all the time.
AT_ONCE = 16
#: So many of it may end while another's request does: one that was under way, and those that are as quick as it is.
BETWEEN = AT_ONCE // 2
SIDE, SMALL_SIDE = 2048, 64
_numbers = itertools.count()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def make_png(side: int, *, grey: bool = False, mirrored: bool = False) -> bytes:
    """A picture that nobody has seen before."""
    bands = 1 if grey else 3
    if (packed := _PACKED.get((side, grey))) is None:
        if side > SMALL_SIDE:
            rows = (b"\0" + bytes(at * 4 % 256 for at in range(side)) * bands) * side
        else:  # a result must have some bytes
            rows = b"".join(b"\0" + random.Random(at).randbytes(side * bands) for at in range(side))
        packed = _PACKED[side, grey] = zlib.compress(rows, 1)
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x02\0\0\0\0\0\0" if mirrored else b""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0 if grey else 2, 0, 0, 0)),
        (b"tEXt", b"Comment\0%d" % next(_numbers)),
        *([(b"eXIf", exif)] if mirrored else []),
        (b"IDAT", packed),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


_PACKED: dict[tuple[int, bool], bytes] = {}
#: By the host's address: a large result of the one, and a small one of the other.
_made: dict[str, list[str]] = {}
_uploaded: dict[str, str] = {}


@dataclass
class Owner:
    """A client with a key of its own."""

    session: aiohttp.ClientSession
    url: str
    key: str
    facts: dict[str, str] = field(default_factory=dict)

    async def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        headers["Authorization"] = f"Bearer {self.key}"
        async with self.session.request(method, self.url + path, data=body, headers=headers) as answer:
            said = await answer.read()
            assert answer.status == 200, (path, answer.status, said[:500])
            return said

    async def upload(self, picture: bytes, kind: str = "image", words: bytes = b"") -> str:
        head = words + b'--b\r\nContent-Disposition: form-data; name="image"; filename="%d.png"\r\n\r\n' % next(
            _numbers
        )
        told = await self.ask("POST", f"/guarded/upload/{kind}", head + picture + b"\r\n--b--\r\n", **FORM)
        return str(json.loads(told)["name"])

    async def run(self, source: dict[str, object]) -> str:
        """Run a job that saves that picture; returns the address of its file."""
        prompt = {"1": source, "2": node("SaveImage", images=["1", 0], filename_prefix=f"shared{next(_numbers)}")}
        body = json.dumps({"prompt": prompt}).encode()
        told = json.loads(await self.ask("POST", f"/guarded/prompt?wait={PATIENCE_S:g}", body, **JSON))
        job = told["guard"]["job"]
        assert job["state"] == "succeeded", job["error"]
        return str(job["artifacts"][0]["url"])

    async def check_face(self, picture: bytes) -> None:
        await self.ask("POST", "/guarded/face-check?min_faces=0", picture, **{"Content-Type": "image/png"})


async def check_faces(owner: Owner) -> None:
    await owner.check_face(make_png(SIDE, grey=True))


async def ask_for_previews(owner: Owner) -> None:
    await owner.ask("GET", f"{owner.facts['file']}?preview=webp;{next(_numbers) % 100 + 1};2048")


async def upload_mirrored(owner: Owner) -> None:
    await owner.upload(make_png(SIDE, mirrored=True))


async def upload_masks(owner: Owner) -> None:
    original = json.dumps({"filename": owner.facts["upload"], "type": "input"}).encode()
    head = b'--b\r\nContent-Disposition: form-data; name="original_ref"\r\n\r\n' + original + b"\r\n"
    await owner.upload(make_png(SIDE, grey=True), "mask", head)


FLOODS = {
    "face checks": check_faces,
    "previews": ask_for_previews,
    "mirrored pictures": upload_mirrored,
    "masks": upload_masks,
}


@contextlib.asynccontextmanager
async def flood(owner: Owner, ask: Callable[[Owner], Awaitable[None]]) -> AsyncIterator[list[int]]:
    """Keep so many under way; yields how many have ended, in a list that changes."""
    ended = [0]

    async def go_on() -> None:
        while True:
            await ask(owner)
            ended[0] += 1

    crowd = [asyncio.create_task(go_on()) for _ in range(AT_ONCE)]
    try:
        while not ended[0]:  # the others wait by then
            await asyncio.wait(crowd, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
            assert not any(task.done() for task in crowd), [task for task in crowd if task.done()]
        yield ended
        assert not any(task.done() for task in crowd), [task for task in crowd if task.done()]
    finally:
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)


@pytest.fixture
async def owners(guarded_host: HostProcess) -> AsyncIterator[tuple[Owner, Owner, Owner]]:
    scopes = {"flood": "submit", "shop": "submit", "boss": "operate"}
    keys = [make_key(guarded_host.base, name, scope) for name, scope in scopes.items()]
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(PATIENCE_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        evil, shop, boss = (Owner(session, guarded_host.url, key) for key in keys)
        for _ in range(100):  # a new key takes effect within a second
            with contextlib.suppress(AssertionError):
                await boss.ask("GET", "/guarded/prompt")  # it was made last
                break
            await asyncio.sleep(0.1)
        if guarded_host.url not in _made:
            await shop.check_face(make_png(SMALL_SIDE))  # loads the detector
            large, small = make_png(SIDE), make_png(SMALL_SIDE)
            _made[guarded_host.url] = [
                await owner.run(node("LoadImage", image=await owner.upload(picture)))
                for owner, picture in ((evil, large), (shop, small))
            ]
            _uploaded[guarded_host.url] = await evil.upload(make_png(SIDE))
        evil.facts["upload"] = _uploaded[guarded_host.url]
        evil.facts["file"], shop.facts["file"] = _made[guarded_host.url]
        yield evil, shop, boss


@pytest.mark.parametrize("name", FLOODS)
async def test_what_one_floods_the_shared_threads_with_goes_before_nobody_else(name, owners):
    evil, shop, boss = owners

    async def run_job() -> None:
        await shop.run(node("LoadImage", image=await shop.upload(make_png(SMALL_SIDE))))

    theirs = {
        "a job with a picture": run_job,
        "a face check": lambda: shop.check_face(make_png(SMALL_SIDE)),
        "a preview": lambda: shop.ask("GET", f"{shop.facts['file']}?preview=png"),
        "a mirrored picture": lambda: shop.upload(make_png(SMALL_SIDE, mirrored=True)),
        "a file": lambda: shop.ask("GET", shop.facts["file"]),
        "health": lambda: boss.ask("GET", "/guarded/health"),
    }
    told = {}
    async with flood(evil, FLOODS[name]) as ended:
        for what, ask in theirs.items():
            before = ended[0]
            await ask()
            told[what] = ended[0] - before
    print(told)  # noqa: T201
    assert max(told.values()) <= BETWEEN, told
