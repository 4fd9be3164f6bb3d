"""A bot that is told of its jobs, whatever its receiver does: the right number of deliveries, each with its one id."""

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from contract.client import Client, assert_refusal, connected, raises, text
from contract.conftest import kinds
from contract.test_access import make_key
from standardwebhooks import Webhook as Verifier

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess, free_port

SETTINGS = {
    "GUARDED_WEBHOOKS__ALLOW_HTTP": "true",
    "GUARDED_WEBHOOKS__ALLOWED_NETWORKS": "127.0.0.0/8",
    "GUARDED_WEBHOOKS__FIRST_RETRY_S": "0.1",
    # Longer than a good receiver, in this very process, takes to answer on a machine that is busy with other tests.
    "GUARDED_WEBHOOKS__TIMEOUT_S": "1.5",
    "GUARDED_WEBHOOKS__MAX_AGE_S": "7",
}
EVERY = ["queued", "dispatched", "running", "validating", "succeeded", "failed", "cancelled"]


@dataclass
class Got:
    """One request to the receiver."""

    id: str
    type: str
    job_id: str
    data: dict[str, Any]


class Receiver:
    """A bot's web server. `answers` is asked with each request what to say to it."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.port = free_port()
        self.got: list[Got] = []
        self.answer: Callable[[web.Request, int], Awaitable[web.StreamResponse]] = self.ok
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?from=guard"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        assert request.method == "POST"
        sent = Verifier(self.secret).verify(body, dict(request.headers))
        told = Got(request.headers["webhook-id"], sent["type"], sent["data"]["job_id"], sent["data"])
        self.got.append(told)
        earlier = sum(other.id == told.id for other in self.got) - 1
        return await self.answer(request, earlier)

    @staticmethod
    async def ok(_request: web.Request, _earlier: int) -> web.StreamResponse:
        return web.Response(status=204)

    def of(self, job_id: str) -> list[Got]:
        return [told for told in self.got if told.job_id == job_id]


@pytest.fixture(scope="module", params=kinds())
def hooked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    kind: HostKind = request.param
    if subprocess.run([kind.python, "-c", "import standardwebhooks"], capture_output=True, check=False).returncode:
        pytest.skip(f"{kind.python} has no standardwebhooks: install requirements.txt into it")
    with HostProcess(kind, tmp_path_factory.mktemp("hooked"), environment=SETTINGS) as process:
        yield process


def secret_of(base: Path) -> str:
    return (base / "user" / "__guarded" / "webhook.secret").read_text().strip()


@pytest.fixture
async def bot(hooked: HostProcess) -> AsyncIterator[Client]:
    async with connected(hooked) as client:
        yield client


@pytest.fixture
async def receiver(hooked: HostProcess) -> AsyncIterator[Receiver]:
    receiver = Receiver(secret_of(hooked.base))
    await receiver.start()
    yield receiver
    await receiver.stop()


async def submit(bot: Client, receiver: Receiver, prompt: Any = None, **webhook: Any) -> str:
    return await bot.admitted(prompt or text(), guard={"webhook": {"url": receiver.url, **webhook}})


async def deliveries(bot: Client, job_id: str) -> list[dict[str, Any]]:
    found = await bot.get("/guarded/webhooks?state=pending,delivered,dead&limit=500")
    return [each for each in found["webhooks"] if each["job_id"] == job_id][::-1]


async def ended(bot: Client, job_id: str, count: int = 1) -> list[dict[str, Any]]:
    """The job's deliveries, once all have been delivered or given up."""
    return await bot.polled(
        lambda: deliveries(bot, job_id),
        lambda found: len(found) == count and all(each["state"] != "pending" for each in found),
    )


async def test_a_bot_is_told_once_of_the_end_with_the_job_as_it_is(bot, receiver):
    good, bad = await submit(bot, receiver), await submit(bot, receiver, raises("value_error"))
    for job_id, kind in ((good, "job.succeeded"), (bad, "job.failed")):
        (delivery,) = await ended(bot, job_id)
        assert (delivery["state"], delivery["attempts"], delivery["last_status"]) == ("delivered", 1, 204)
        (told,) = receiver.of(job_id)
        assert (told.id, told.type) == (delivery["id"], kind)
        assert told.data == await bot.job(job_id)
    assert receiver.of(bad)[0].data["refund"] is True


async def test_every_state_comes_in_order_where_the_bot_asks_for_it(bot, receiver):
    async def stumbles(request: web.Request, earlier: int) -> web.StreamResponse:
        return web.Response(status=200 if earlier else 500)

    receiver.answer = stumbles
    job_ids = [await submit(bot, receiver, events=EVERY) for _ in range(5)]
    for job_id in job_ids:
        assert {each["attempts"] for each in await ended(bot, job_id, 5)} == {2}
        told = receiver.of(job_id)
        assert [each.type for each in told[::2]] == [f"job.{state}" for state in EVERY[:5]]
        assert [each.id for each in told[::2]] == [each.id for each in told[1::2]]
        assert len({each.id for each in told}) == 5


async def test_errors_and_timeouts_are_tried_again_until_one_attempt_succeeds(bot, receiver):
    async def poorly(request: web.Request, earlier: int) -> web.StreamResponse:
        if earlier == 0:
            return web.Response(status=500, text="x" * 100_000)
        if earlier == 1:
            await asyncio.sleep(3)  # longer than webhooks.timeout_s
        if earlier == 2:
            return web.Response(status=503, headers={"Retry-After": "1"})
        return web.Response(status=200, text="{not json")

    receiver.answer = poorly
    job_id = await submit(bot, receiver)
    (delivery,) = await ended(bot, job_id)
    assert (delivery["state"], delivery["attempts"]) == ("delivered", 4)
    assert len(receiver.of(job_id)) == 4
    assert {told.id for told in receiver.of(job_id)} == {delivery["id"]}


async def test_410_ends_it_at_once_and_a_redelivery_begins_anew_under_the_same_id(bot, receiver):
    async def gone(request: web.Request, earlier: int) -> web.StreamResponse:
        return web.Response(status=410 if earlier == 0 else 200)

    receiver.answer = gone
    job_id = await submit(bot, receiver)
    (delivery,) = await ended(bot, job_id)
    assert (delivery["state"], delivery["attempts"], delivery["last_status"]) == ("dead", 1, 410)
    listed = (await bot.get("/guarded/webhooks"))["webhooks"]
    assert delivery in listed
    again = await bot.request("POST", f"/guarded/webhooks/{delivery['id']}/redeliver")
    assert (again.status, again.json["state"]) == (200, "pending")
    (delivery,) = await ended(bot, job_id)
    assert (delivery["state"], delivery["attempts"]) == ("delivered", 1)
    assert [told.id for told in receiver.of(job_id)] == [delivery["id"]] * 2
    assert_refusal(await bot.request("POST", "/guarded/webhooks/msg_x/redeliver"), "not_found", 404)


async def test_a_redirect_is_not_followed_and_what_never_succeeds_is_given_up(bot, receiver):
    elsewhere = []

    async def redirects(request: web.Request, earlier: int) -> web.StreamResponse:
        if request.path != "/hook":
            elsewhere.append(request.path)
        return web.Response(status=307, headers={"Location": f"http://127.0.0.1:{receiver.port}/elsewhere"})

    receiver.answer = redirects
    job_id = await submit(bot, receiver)
    (delivery,) = await ended(bot, job_id)
    assert (delivery["state"], delivery["last_status"]) == ("dead", 307)
    assert len(receiver.of(job_id)) == delivery["attempts"] >= 3
    assert elsewhere == []


async def test_garbage_is_no_success(bot):
    async def answered_with(said: bytes) -> dict[str, Any]:
        async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(said)
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(garbage, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            job_id = await bot.admitted(text(), guard={"webhook": {"url": url}})
            (delivery,) = await ended(bot, job_id)
        return delivery

    said = [b"hello\r\n", b"HTTP/1.1 abc\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000]
    for delivery in await asyncio.gather(*map(answered_with, said)):
        assert (delivery["state"], delivery["last_status"]) == ("dead", None)
        assert delivery["last_error"]
        assert delivery["attempts"] >= 3


async def test_an_answer_without_end_does_not_hold_the_sender_up(bot, receiver):
    async def endless(request: web.Request, earlier: int) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"x" * 65536)
        return response

    receiver.answer = endless
    job_id = await submit(bot, receiver)
    (delivery,) = await ended(bot, job_id)
    assert (delivery["state"], len(receiver.of(job_id))) == ("delivered", 1)


async def test_a_receiver_that_was_down_gets_what_it_missed_and_a_hanging_one_holds_up_no_other(bot, receiver):
    async def hangs(request: web.Request, earlier: int) -> web.StreamResponse:
        await asyncio.sleep(3 if earlier < 2 else 0)
        return web.Response()

    down = Receiver(receiver.secret)
    receiver.answer = hangs
    hung = [await submit(bot, receiver) for _ in range(20)]
    missed = [await submit(bot, down) for _ in range(5)]
    await asyncio.sleep(0.7)
    await down.start()
    try:
        for job_id in missed:
            (delivery,) = await ended(bot, job_id)
            assert (delivery["state"], [told.id for told in down.of(job_id)]) == ("delivered", [delivery["id"]])
    finally:
        await down.stop()
    for job_id in hung:
        (delivery,) = await ended(bot, job_id)
        assert {told.id for told in receiver.of(job_id)} == {delivery["id"]}


@pytest.mark.parametrize(
    ("webhook", "field"),
    [
        ({"url": "http://10.0.0.1/"}, "guard.webhook.url"),
        ({"url": "http://2130706433/"}, "guard.webhook.url"),
        ({"url": "ftp://127.0.0.1/"}, "guard.webhook.url"),
        ({"url": "http://127.0.0.1/", "events": ["sneezed"]}, "guard.webhook.events.0"),
        ({"url": "http://127.0.0.1/", "events": []}, "guard.webhook.events"),
        ({"url": "http://127.0.0.1/", "secret": "x"}, "guard.webhook.secret"),
        ("http://127.0.0.1/", "guard.webhook"),
        ({}, "guard.webhook.url"),
    ],
)
async def test_a_webhook_that_cannot_be_is_refused_by_name(bot, webhook, field):
    body = assert_refusal(await bot.submit(text(), guard={"webhook": webhook}), "invalid_request", 400)
    assert body["error"]["extra_info"]["field"] == field


async def test_a_name_that_leads_inside_is_not_connected_to(sandbox, tmp_path):
    """As DNS rebinding does it: the URL is unsuspicious, the address behind it is not."""
    host = sandbox(**{**SETTINGS, "GUARDED_WEBHOOKS__ALLOWED_NETWORKS": ""})
    connections = 0

    async def seen(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    server = await asyncio.start_server(seen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connected(host) as client:
        url = f"http://{socket.gethostname()}:{port}/"
        job_id = await client.admitted(text(), guard={"webhook": {"url": url}})
        (delivery,) = await ended(client, job_id)
    assert delivery["state"] == "dead"
    # Where the machine does not know its own name, there is nothing to connect to in the first place.
    assert "may not be reached" in delivery["last_error"] or "Cannot connect" in delivery["last_error"]
    assert connections == 0


async def test_what_was_settled_before_a_sigkill_is_delivered_after_it(sandbox):
    host = sandbox(**{**SETTINGS, "GUARDED_WEBHOOKS__MAX_AGE_S": "600"})
    receiver = Receiver(secret_of(host.base))
    async with connected(host) as client:
        job_ids = [await submit(client, receiver, events=EVERY) for _ in range(10)]
        await client.settled(job_ids[4])
    await asyncio.to_thread(host.kill)
    await receiver.start()
    await asyncio.to_thread(host.start)
    try:
        async with connected(host) as client:
            for job_id in job_ids:
                await client.settled(job_id)
                await client.polled(
                    lambda job_id=job_id: deliveries(client, job_id),
                    lambda found: (
                        {each["state"] for each in found} == {"delivered"} and found[-1]["type"] == "job.succeeded"
                    ),
                )
                ids = [each["id"] for each in await deliveries(client, job_id)]
                # At least once, each under its own id; in order, whatever was sent again.
                assert list(dict.fromkeys(told.id for told in receiver.of(job_id))) == ids
    finally:
        await receiver.stop()


async def test_a_key_names_a_webhook_of_its_own_and_signs_with_its_own_secret(sandbox):
    host = sandbox(**SETTINGS, GUARDED_ACCESS__TRUST_LOOPBACK="false")
    receiver = Receiver("")
    key = await asyncio.to_thread(make_key, host.base, "bot", webhook=receiver.url)
    stored = json.loads((host.base / "user" / "__guarded" / "keys.json").read_text())
    receiver.secret = next(each["webhook_secret"] for each in stored if each["name"] == "bot")
    other = await asyncio.to_thread(make_key, host.base, "other")
    await receiver.start()
    try:
        async with connected(host) as client:
            headers = {"Authorization": f"Bearer {key}"}

            async def posted() -> Any:
                return await client.submit(text(), headers=headers)

            answer = await client.polled(posted, lambda answer: answer.status == 200)
            job_id = answer.json["prompt_id"]
            await client.polled(lambda: asyncio.sleep(0, receiver.of(job_id)), bool)
            assert [told.type for told in receiver.of(job_id)] == ["job.succeeded"]
            query = "/guarded/webhooks?state=delivered,pending"
            own = (await client.get(query, headers=headers))["webhooks"]
            assert [each["id"] for each in own] == [told.id for told in receiver.got]
            others = {"Authorization": f"Bearer {other}"}
            await client.polled(
                lambda: client.request("GET", query, headers=others), lambda answer: answer.status == 200
            )
            assert (await client.get(query, headers=others))["webhooks"] == []
            path = f"/guarded/webhooks/{own[0]['id']}/redeliver"
            assert_refusal(await client.request("POST", path, headers=others), "not_found", 404)
    finally:
        await receiver.stop()
