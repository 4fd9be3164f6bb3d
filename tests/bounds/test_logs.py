"""What is refused, again and again, fills neither the log nor ComfyUI's memory of it."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator

import pytest
from bounds.judges import Patient
from bounds.shapes import JSON, node

TIMES = 60
#: One line, or those of one refusal, in a second, and nothing is quoted at length.
LOGGED_BYTES = 40 * 1024

SENT = {
    "a class": {"1": node("Q" * 90_000)},
    "values": {str(number): node("FaultText", text="x", seed="Q" * 20_000) for number in range(20)},
}


@contextlib.contextmanager
def logging_little(ours: Patient) -> Iterator[bytearray]:
    """What is logged in the block, so much a second at most."""
    logged = bytearray()
    before, began_s = ours.host.log.stat().st_size, time.monotonic()
    yield logged
    logged += ours.host.log.read_bytes()[before:]
    assert len(logged) < LOGGED_BYTES * (time.monotonic() - began_s + 1), logged[:2000]


@pytest.mark.parametrize("name", SENT)
async def test_refused_prompts_do_not_fill_the_log(name: str, ours: Patient, key: dict[str, str]):
    body = json.dumps({"prompt": SENT[name]}).encode()
    with logging_little(ours) as logged:
        for _ in range(TIMES):
            status, answer = await ours.send("/guarded/prompt", body, {**JSON, **key})
            assert 400 <= status < 500, answer[:500]
    assert b"refused" in logged, "it is said once"


@pytest.mark.parametrize("path", ["/guarded/jobs", "/prompt"])
async def test_strangers_do_not_fill_the_log(path: str, ours: Patient):
    origin = {"Origin": f"https://{'a' * 7000}", "Host": "127.0.0.1"}
    with logging_little(ours):
        for headers in (origin, {}):
            for _ in range(2 * TIMES):
                await ours.send(path, b"", headers, "GET")


async def test_requests_that_cannot_be_read_do_not_fill_the_log(ours: Patient):
    with logging_little(ours) as logged:
        for _ in range(10 * TIMES):
            reader, writer = await asyncio.open_connection("127.0.0.1", ours.host.port)
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40))
            await reader.read(100)
            writer.close()
    assert logged.count(b"cannot be read") < TIMES, "ten in a second of each address would be a line each"
