"""What one request may cost: a heartbeat on the server's loop, and the most memory that the server has had."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from comfyui_guarded.tests.hosts.launch import HostProcess

MIB = 2**20


class Patient:
    """A server, and what requests do to it."""

    def __init__(self, host: HostProcess, session: aiohttp.ClientSession) -> None:
        self.host = host
        self._session = session

    async def read_stall_s(self) -> float:
        """The longest stall since the last call."""
        async with self._session.get(f"{self.host.url}/guarded_faults/heart") as answer:
            return float((await answer.json())["stall_s"])

    async def send(self, path: str, body: bytes, headers: Mapping[str, str], method: str = "POST") -> tuple[int, bytes]:
        """Status and answer; (0, b"") where the server has closed the connection without one."""
        try:
            async with self._session.request(
                method, self.host.url + path, data=io.BytesIO(body) if body else None, headers=headers
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, aiohttp.http_exceptions.HttpProcessingError):
            return 0, b""

    async def measure(self, path: str, body: bytes, headers: Mapping[str, str], method: str = "POST") -> Cost:
        await self._settle()
        await self.read_stall_s()
        before = read_peak(self.host.pid, afresh=True)
        status, answer = await self.send(path, body, headers, method)
        await asyncio.sleep(0.2)  # what is done after the answer counts too
        stall_s = await self.read_stall_s()
        return Cost(status, answer, stall_s, read_peak(self.host.pid) - before)

    async def _settle(self) -> None:
        """Wait until the loop is quiet: the request before may still be worked on."""
        for _ in range(100):
            await self.read_stall_s()
            await asyncio.sleep(0.1)
            if await self.read_stall_s() < 0.03:
                return


def read_peak(pid: int, *, afresh: bool = False) -> int:
    """The most memory that a process has had, since the last look that let the peak begin `afresh`."""
    if afresh:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


class Cost:
    def __init__(self, status: int, answer: bytes, stall_s: float, memory_bytes: int) -> None:
        self.status = status
        self.answer = answer
        self.stall_s = stall_s
        self.memory_bytes = memory_bytes

    def __str__(self) -> str:
        return (
            f"{self.status}, stall {self.stall_s * 1000:.0f} ms, +{self.memory_bytes / MIB:.0f} MiB, "
            f"{len(self.answer)} bytes: {self.answer[:300]!r}"
        )

    @property
    def code(self) -> str:
        return str(json.loads(self.answer)["guard"]["code"])
