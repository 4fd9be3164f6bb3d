"""A reader of server-sent events, as a bot would write it: it comes again with the last id that it has seen."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from contract.promised import assert_event_is_promised


@dataclass(frozen=True)
class Told:
    name: str
    data: Any
    id: int | None


class Reader:
    """Reads one stream, over as many connections as the test likes. `last_id` is what the next one resumes behind."""

    def __init__(self, session: aiohttp.ClientSession, url: str, headers: dict[str, str] | None = None) -> None:
        self._session = session
        self._url = url
        self._headers = headers or {}
        self.last_id: str | None = None
        self.status = 0
        self.seen: list[Told] = []

    async def events(self) -> AsyncIterator[Told]:
        """What one connection brings, until it ends."""
        headers = dict(self._headers)
        if self.last_id is not None:
            headers["Last-Event-ID"] = self.last_id
        async with self._session.get(self._url, headers=headers) as response:
            self.status = response.status
            if response.status != 200:
                return
            assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            assert response.headers["X-Accel-Buffering"] == "no"
            assert response.headers["Cache-Control"] == "no-store"
            fields: dict[str, str] = {}
            async for line in response.content:
                text = line.decode().rstrip("\n")
                if text:
                    name, _, value = text.partition(": ")
                    fields[name] = value
                    continue
                if "id" in fields:
                    self.last_id = fields["id"]
                if "data" in fields:
                    told = Told(
                        fields["event"], json.loads(fields["data"]), int(fields["id"]) if "id" in fields else None
                    )
                    assert_event_is_promised(told.name, told.data)
                    self.seen.append(told)
                    yield told
                fields = {}

    @property
    def states(self) -> list[str]:
        return [told.data["state"] for told in self.seen if told.name == "state"]

    def of(self, name: str) -> list[Any]:
        return [told.data for told in self.seen if told.name == name]
