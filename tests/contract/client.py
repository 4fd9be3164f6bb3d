"""A small client of a guarded server, and the graphs that the tests post with it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from contract.promised import assert_answer_is_promised

from comfyui_guarded.guard.access.keys import Key, create
from comfyui_guarded.guard.errors import FAMILY
from comfyui_guarded.guard.owners import KEY_FILE, name_folder
from comfyui_guarded.tests.hosts.launch import HostProcess

#: Far above what anything here takes; only a promise that is broken reaches it.
PATIENCE_S = 120.0
TERMINAL = ("succeeded", "failed", "cancelled")

Prompt = dict[str, Any]
Job = dict[str, Any]


# What is posted. ---------------------------------------------------------------------------------------------


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def unique(name: str = "t") -> str:
    """A file prefix that no other test uses."""
    return f"{name}_{uuid.uuid4().hex[:12]}"


def save(source: str = "1", prefix: str | None = None) -> dict[str, Any]:
    return node("SaveImage", images=[source, 0], filename_prefix=prefix or unique())


def make_sampled(checkpoint: str, saver: dict[str, Any], steps: int, seed: int, size: int) -> Prompt:
    """ComfyUI's own nodes around a KSampler; `saver` takes the picture of node 5."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "2": node("CLIPTextEncode", clip=["1", 1], text="a cat"),
        "3": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "4": node(
            "KSampler", model=["1", 0], seed=seed, steps=steps, cfg=7.0, sampler_name="euler", scheduler="normal",
            positive=["2", 0], negative=["2", 0], latent_image=["3", 0], denoise=1.0,
        ),
        "5": node("VAEDecode", samples=["4", 0], vae=["1", 2]),
        "6": saver,
    }  # fmt: skip


def text(words: str = "hello") -> Prompt:
    """The quickest good job: one output node that reports text."""
    return {"1": node("FaultText", text=words, seed=0)}


def sleep(seconds: float, *, checks: bool = True, steps: int = 0, prefix: str | None = None) -> Prompt:
    """A node that takes its time, and then a picture."""
    return {
        "1": node("FaultSleep", seconds=seconds, checks_interrupt=checks, steps=steps, seed=0),
        "2": save("1", prefix),
    }


def picture(prefix: str | None = None) -> Prompt:
    return sleep(0.0, prefix=prefix)


def gated(prefix: str) -> Prompt:
    """A run that makes its picture once `open_gate` lets it, and asks for no interrupt."""
    return {"1": node("FaultGatedImage", gate=f"{prefix}.gate", filename_prefix=prefix, seed=0)}


def open_gate(base: Path, prefix: str) -> None:
    (base / "input" / f"{prefix}.gate").touch()


def photo_copy(name: str, prefix: str | None = None) -> Prompt:
    return {"1": node("LoadImage", image=name), "2": node("ImageInvert", image=["1", 0]), "3": save("2", prefix)}


def raises(kind: str, message: str = "on purpose") -> Prompt:
    return {"1": node("FaultRaise", kind=kind, message=message, seed=0), "2": save()}


# What comes back. --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def code(self) -> str:
        return str(self.json["guard"]["code"])

    def __str__(self) -> str:
        return f"{self.status} {self.content[:2000].decode(errors='replace')}"


def assert_refusal(answer: Answer, code: str | None = None, status: int | None = None) -> dict[str, Any]:
    """The one error shape, with a code of the family and the status that belongs to it."""
    assert 400 <= answer.status < 600, f"not refused: {answer}"
    assert answer.headers["Content-Type"].startswith("application/json"), answer
    body = answer.json
    assert set(body) == {"error", "node_errors", "guard"}, answer
    assert set(body["error"]) == {"type", "message", "details", "extra_info"}, answer
    assert isinstance(body["error"]["type"], str), answer
    assert isinstance(body["error"]["message"], str), answer
    assert body["error"]["message"], answer
    assert isinstance(body["error"]["details"], str), answer
    assert isinstance(body["error"]["extra_info"], dict), answer
    assert isinstance(body["node_errors"], dict), answer
    guard = body["guard"]
    assert set(guard) - {"refund"} == {"code", "user_message", "retryable", "retry_after_s", "job_id"}, answer
    assert guard["code"] in FAMILY, answer
    assert answer.status == FAMILY[guard["code"]].status, answer
    assert guard["retryable"] is FAMILY[guard["code"]].retryable, answer
    assert guard.get("refund") in (None, guard["job_id"] is None), answer
    assert guard["user_message"], answer
    assert "Traceback" not in answer.content.decode(), answer
    if code is not None:
        assert guard["code"] == code, answer
    if status is not None:
        assert answer.status == status, answer
    return body


def assert_typed_4xx(answer: Answer) -> None:
    assert_refusal(answer)
    assert 400 <= answer.status < 500, answer


JOB_KEYS = {
    *("job_id", "prompt_id", "state", "position", "eta_s", "owner", "template", "parameters", "priority", "attempts"),
    *(
        "converted",
        "created_at_ms",
        "started_at_ms",
        "settled_at_ms",
        "timeout_s",
        "progress",
        "outputs",
        "artifacts",
        "error",
        "refund",
        "metadata",
        "user",
        "idempotency_key",
        "retry_of",
        "cost",
        "results",
        "puts",
    ),
}
ARTIFACT_KEYS = {
    *("index", "node_id", "kind", "filename", "subfolder", "type", "bytes", "sha256", "width", "height"),
    *("duration_s", "frames", "fps", "warnings", "url", "converted"),
}


def assert_succeeded(job: Job) -> None:
    assert (job["state"], job["error"], job["refund"]) == ("succeeded", None, False), job
    assert job["settled_at_ms"] >= job["started_at_ms"] >= job["created_at_ms"], job


def assert_ended_badly(job: Job, code: str) -> None:
    """Failed or cancelled, with that code and a refund, and nothing to deliver."""
    assert job["state"] == ("cancelled" if code == "cancelled" else "failed"), job
    assert job["error"]["code"] == code, job
    assert set(job["error"]) == {"code", "message", "user_message", "retryable", "details"}, job
    assert job["error"]["retryable"] is FAMILY[code].retryable, job
    assert job["refund"] is True, job
    assert (job["outputs"], job["artifacts"]) == ({}, []), job
    assert job["settled_at_ms"] >= job["created_at_ms"], job


def assert_native_error(entry: dict[str, Any]) -> None:
    """A history entry from which a client that knows only ComfyUI learns that there is nothing to take."""
    assert entry["outputs"] == {}, entry
    assert entry["status"]["status_str"] == "error", entry
    assert entry["status"]["completed"] is False, entry
    messages = entry["status"]["messages"]
    assert all(len(message) == 2 for message in messages), entry
    events = [event for event, _data in messages]
    assert "execution_error" in events, entry
    assert "execution_success" not in events, entry


def folder_of(base: Path, owner: str) -> str:
    """The owner's folder below ComfyUI's roots, on the server of that base directory."""
    return name_folder((base / "user" / "__guarded" / KEY_FILE).read_bytes(), owner)


@dataclass
class Socket:
    """A websocket as ComfyUI's clients open it. Every text message is kept."""

    ws: aiohttp.ClientWebSocketResponse
    client_id: str
    seen: list[dict[str, Any]] = field(default_factory=list)
    #: Binary previews.
    frames: list[bytes] = field(default_factory=list)

    async def next(self) -> dict[str, Any]:
        while True:
            message = await self.ws.receive(PATIENCE_S)
            if message.type is aiohttp.WSMsgType.BINARY:
                self.frames.append(message.data)
                continue
            assert message.type is aiohttp.WSMsgType.TEXT, message
            self.seen.append(json.loads(message.data))
            return self.seen[-1]

    async def until(self, enough: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The first message of which that is true, said already or still to come."""
        for event in self.seen:
            if enough(event):
                return event
        while not enough(event := await self.next()):
            pass
        return event

    async def until_end_of(self, prompt_id: str) -> list[dict[str, Any]]:
        """What was said of the job, up to `executing` with node null, which ends it for every client."""
        while not any(self._is_end(event, prompt_id) for event in self.seen):
            await self.next()
        return self.about(prompt_id)

    def about(self, prompt_id: str) -> list[dict[str, Any]]:
        return [event for event in self.seen if event["data"].get("prompt_id") == prompt_id]

    @staticmethod
    def _is_end(event: dict[str, Any], prompt_id: str) -> bool:
        data = event["data"]
        return event["type"] == "executing" and data["node"] is None and data.get("prompt_id") == prompt_id


def types_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def files_announced(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every file that an `executed` named."""
    return [
        item
        for event in events
        if event["type"] == "executed"
        for items in (event["data"].get("output") or {}).values()
        if isinstance(items, list)
        for item in items
        if isinstance(item, dict) and "filename" in item
    ]


def assert_heard_only_an_error(events: list[dict[str, Any]]) -> None:
    types = types_of(events)
    assert types.count("execution_error") == 1, types
    assert "execution_success" not in types, types
    assert files_announced(events) == [], events


# Who asks. ---------------------------------------------------------------------------------------------------


class Client:
    """One bot, and with the `native_` methods an old client of ComfyUI's own routes."""

    def __init__(self, session: aiohttp.ClientSession, host: HostProcess) -> None:
        self.session = session
        self.host = host
        self.base = host.base

    async def request(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, headers: Any = None
    ) -> Answer:
        """`body` is sent as JSON without a content type; `raw` as it is."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        async with self.session.request(
            method,
            self.host.url + path,
            data=data and io.BytesIO(data),
            headers=headers,
            skip_auto_headers=("Content-Type",),
        ) as response:
            answer = Answer(response.status, response.headers.copy(), await response.read())
        assert_answer_is_promised(method, path, answer.status, answer.headers, answer.content)
        return answer

    async def get(self, path: str, **options: Any) -> Any:
        """The JSON of an answer that must be 200."""
        answer = await self.request("GET", path, **options)
        assert answer.status == 200, answer
        return answer.json

    async def submit(self, prompt: Prompt, *, wait_s: float | None = None, headers: Any = None, **body: Any) -> Answer:
        path = "/guarded/prompt" + (f"?wait={wait_s:g}" if wait_s is not None else "")
        return await self.request("POST", path, {"prompt": prompt, **body}, headers=headers)

    async def admitted(self, prompt: Prompt, **options: Any) -> str:
        """The id of a job that must be let in."""
        answer = await self.submit(prompt, **options)
        assert answer.status == 200, answer
        return str(answer.json["prompt_id"])

    async def run(self, prompt: Prompt, **options: Any) -> Job:
        """The settled job of a prompt that must be let in."""
        return await self.settled(await self.admitted(prompt, **options))

    async def job(self, job_id: str, wait_s: float = 0, headers: Any = None) -> Job:
        answer = await self.request("GET", f"/guarded/jobs/{job_id}?wait={wait_s:g}", headers=headers)
        assert answer.status == 200, answer
        return dict(answer.json)

    async def reached(self, job_id: str, *states: str) -> Job:
        """The job once it is in one of the states, or has ended."""
        return await self.polled(lambda: self.job(job_id), lambda job: job["state"] in (*states, *TERMINAL))

    async def settled(self, job_id: str) -> Job:
        ends_s = time.monotonic() + PATIENCE_S
        job = await self.job(job_id)
        while job["state"] not in TERMINAL:
            assert time.monotonic() < ends_s, f"never settled: {job}\n{self.host.log_tail()}"
            job = await self.job(job_id, wait_s=5)
        return job

    async def running(self, job_id: str) -> Job:
        job = await self.reached(job_id, "running")
        assert job["state"] == "running", job
        return job

    async def taken(self, job_id: str) -> None:
        """Wait until ComfyUI's worker has the job: its state says so a moment before."""
        await self.running(job_id)
        await self.polled(self.native_running, lambda running: job_id in running)

    async def inside_a_node(self, job_id: str) -> Job:
        """The job once its node has reported progress: ComfyUI has reset its interrupt flag by then."""
        return await self.polled(lambda: self.job(job_id), lambda job: job["progress"] or job["state"] in TERMINAL)

    async def wrote(self, prefix: str) -> None:
        """Wait until a run has made its file: only its end is to come."""
        output = self.base / "output"
        await self.polled(lambda: asyncio.to_thread(lambda: list(output.glob(f"{prefix}*.png"))), bool)

    async def cancel(self, job_id: str) -> Job:
        answer = await self.request("DELETE", f"/guarded/jobs/{job_id}")
        assert answer.status == 200, answer
        return dict(answer.json)

    @contextlib.asynccontextmanager
    async def busy(self) -> AsyncIterator[str]:
        """A guarded job that runs for as long as the block."""
        job_id = await self.admitted(sleep(3600))
        await self.taken(job_id)
        try:
            yield job_id
        finally:
            await self.cancel(job_id)

    @contextlib.asynccontextmanager
    async def busy_natively(self) -> AsyncIterator[str]:
        """A prompt of somebody who does not know the guard, running for as long as the block."""
        prompt_id = await self.native_submit(sleep(3600, steps=100_000))
        await self.polled(self.native_running, lambda running: prompt_id in running)
        try:
            yield prompt_id
        finally:
            await self._interrupt_natively(prompt_id)

    async def _interrupt_natively(self, prompt_id: str) -> None:
        """By id, and again only where it was lost (ComfyUI's own fault): a second one could hit the next prompt."""
        while prompt_id in await self.native_running():
            await self.request("POST", "/interrupt", {"prompt_id": prompt_id})
            for _ in range(100):
                if prompt_id not in await self.native_running():
                    return
                await asyncio.sleep(0.02)

    async def guarded_queue(self) -> list[str]:
        queue = await self.get("/guarded/queue")
        return [row[1] for row in queue["queue_running"] + queue["queue_pending"]]

    async def jobs(self, query: str = "limit=500") -> list[Job]:
        return list((await self.get(f"/guarded/jobs?{query}"))["jobs"])

    async def native_submit(self, prompt: Prompt, **body: Any) -> str:
        answer = await self.request("POST", "/prompt", {"prompt": prompt, **body})
        assert answer.status == 200, answer
        return str(answer.json["prompt_id"])

    async def native_queue(self) -> list[str]:
        queue = await self.get("/queue")
        return [row[1] for row in queue["queue_running"] + queue["queue_pending"]]

    async def native_running(self) -> list[str]:
        return [row[1] for row in (await self.get("/queue"))["queue_running"]]

    async def native_entry(self, prompt_id: str) -> dict[str, Any]:
        """The history entry, as soon as there is one."""
        history = await self.polled(lambda: self.get(f"/history/{prompt_id}"), bool)
        return dict(history[prompt_id])

    async def polled(self, look: Callable[[], Any], enough: Callable[[Any], Any]) -> Any:
        ends_s = time.monotonic() + PATIENCE_S
        while not enough(seen := await look()):
            assert time.monotonic() < ends_s, f"still {seen}\n{self.host.log_tail()}"
            await asyncio.sleep(0.01)
        return seen

    @contextlib.asynccontextmanager
    async def socket(
        self, path: str = "/ws", client_id: str | None = None, key: str | None = None
    ) -> AsyncIterator[Socket]:
        client_id = uuid.uuid4().hex if client_id is None else client_id
        url = f"{self.host.url}{path}{'&' if '?' in path else '?'}clientId={client_id}"
        headers = {"Authorization": f"Bearer {key}"} if key else None
        async with self.session.ws_connect(url, headers=headers, max_msg_size=0) as ws:
            socket = Socket(ws, client_id)
            await socket.next()  # the first `status`: from here on nothing is missed
            yield socket

    async def assert_takes_jobs(self) -> None:
        """The worker lives: a good job of a caller who did nothing wrong succeeds."""
        assert_succeeded(await self.run(text()))


class KeyedClient(Client):
    """The same with a key: its own owner, and no operator unless the key says so."""

    def __init__(self, client: Client, key: str, headers: Mapping[str, str] | None = None) -> None:
        """`headers` go with every request."""
        super().__init__(client.session, client.host)
        self.key = key
        self._headers = {"Authorization": f"Bearer {key}", **(headers or {})}

    async def request(self, *args: Any, headers: Any = None, **options: Any) -> Answer:
        return await super().request(*args, headers={**self._headers, **(headers or {})}, **options)


def make_key(base: Path, name: str, scope: str = "submit", **facts: Any) -> str:
    """A key of a server's, as the command line would make it."""
    wanted = {
        "key_id": "",
        "name": name,
        "scope": scope,
        "sha256": "",
        "created_at_ms": 0,
        "webhook_secret": "",
        **facts,
    }
    return create(base / "user" / "__guarded", Key(**wanted), same_owner=True)[1]


@contextlib.asynccontextmanager
async def connected(host: HostProcess, silent_s: float = PATIENCE_S + 30) -> AsyncIterator[Client]:
    """`silent_s`: how long an answer may say nothing."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=silent_s)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Client(session, host)


class PlainClient:
    """One keep-alive connection without an event loop, for tests that post many bodies."""

    def __init__(self, host: HostProcess) -> None:
        self.host = host
        self._connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=PATIENCE_S + 30)

    def post(self, raw: bytes, path: str = "/guarded/prompt", headers: Any = None) -> Answer:
        return self._asked("POST", path, raw, headers)

    def get(self, path: str, headers: Any = None) -> Answer:
        return self._asked("GET", path, None, headers)

    def delete(self, path: str) -> Answer:
        return self._asked("DELETE", path, None)

    def close(self) -> None:
        self._connection.close()

    def run(self, prompt: Prompt) -> Job:
        answer = self.post(json.dumps({"prompt": prompt}).encode(), f"/guarded/prompt?wait={PATIENCE_S:g}")
        assert answer.status == 200, f"{answer}\n{self.host.log_tail()}"
        return dict(answer.json["guard"]["job"])

    def _asked(self, method: str, path: str, raw: bytes | None, headers: Any = None) -> Answer:
        self._connection.request(method, path, body=raw, headers=headers or {})
        response = self._connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        assert_answer_is_promised(method, path, answer.status, answer.headers, answer.content)
        return answer


def quarantined(base: Path, job_id: str) -> list[Path]:
    return sorted((base / "user" / "__guarded" / "quarantine" / job_id).glob("*"))
