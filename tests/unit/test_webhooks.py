"""Where webhooks may go, how they are signed, and what the outbox does with them."""

import asyncio
import json
import os
import socket
import sys
import threading
import time
from dataclasses import replace

import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError
from unit.fakes import LONG_S, new_job, settings

from comfyui_guarded.guard.errors import InvalidRequestError
from comfyui_guarded.guard.events import outbox as webhooks
from comfyui_guarded.guard.events.attempts import Attempt
from comfyui_guarded.guard.events.outbox import Outbox, retry_at_ms
from comfyui_guarded.guard.events.webhook_rules import Rules
from comfyui_guarded.guard.job import SUCCESS, JobState, Verdict, Webhook
from comfyui_guarded.guard.quotas.threads import working_for
from comfyui_guarded.guard.settings import SettingsError, load
from comfyui_guarded.guard.store import DeliveryState
from comfyui_guarded.guard.store.rows import find_job
from comfyui_guarded.server_routes.outside import Resolver
from comfyui_guarded.server_routes.sender import Sender


def rules(**given):
    return Rules(settings(webhooks=given).webhooks)


# Where they may go. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/hook?x=1&y=%20",
        "https://EXAMPLE.com:8443/a/b",
        "https://93.184.216.34/hook",
        "https://[2606:2800:220:1:248:1893:25c8:1946]/hook",
        "https://xn--e1afmkfd.example/",
    ],
)
def test_a_public_address_is_taken(url):
    rules().check(url)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.9.9.9",
        "localhost",
        "LOCALHOST.",
        "x.localhost",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.5.5",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "192.0.0.192",
        "100.100.100.200",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        # Odd spellings of 127.0.0.1 and 169.254.169.254.
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "127.0.0.1.",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a00:1]",
        "[2002:7f00:1::]",
        "[2002:a9fe:a9fe::1]",
        "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
        "[fe80::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[fec0::1]",
        "[ff02::1]",
        "[2001:db8::1]",
    ],
)
def test_an_address_inside_is_refused_however_it_is_spelled(host):
    with pytest.raises(InvalidRequestError) as caught:
        rules(allow_http=True).check(f"http://{host}/hook")
    assert caught.value.extra_info == {"field": "guard.webhook.url"}
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com",
        "file:///etc/passwd",
        "//example.com/",
        "https:///x",
        "https://user@example.com/",
        "https://example.com@127.0.0.1/",
        "https://127.0.0.1\\@example.com/",
        "https://example.com\\.evil/",
        "https://example.com#@127.0.0.1/",
        "https://exa mple.com/",
        "https://example.com/a b",
        "https://example.com/\r\nHost: x",
        "https://example.com/\n",
        "https://ⓔxample.com/",
        "https://１２７.0.0.1/",
        "https://example.com:99999/",
        "https://example.com:80:80/",
        "https://[::1%25lo]/",
        "https://[fe80::1%eth0]/",
        "https://example.com/" + "a" * 2000,
    ],
)
def test_a_url_that_two_parsers_could_read_differently_is_refused(url):
    with pytest.raises(InvalidRequestError):
        rules(allow_http=True, allowed_networks=["0.0.0.0/0", "::/0"]).check(url)


def test_http_is_taken_only_where_the_settings_say_so():
    with pytest.raises(InvalidRequestError, match="https"):
        rules().check("http://example.com/")
    rules(allow_http=True).check("http://example.com/")


def test_networks_that_the_settings_name_may_be_reached_and_no_others():
    own = rules(allowed_networks=["127.0.0.0/8", "10.1.0.0/16", "fd00::/8"])
    for host in ("127.0.0.1", "localhost", "10.1.2.3", "[fd00::5]", "[::ffff:10.1.2.3]"):
        own.check(f"https://{host}/")
    for host in ("10.2.0.1", "192.168.0.1", "[fe80::1]"):
        with pytest.raises(InvalidRequestError):
            own.check(f"https://{host}/")


@pytest.mark.parametrize("secret", ["whsec_", "short", "whsec_" + "A" * 8, "whsec_!" + "A" * 43])
def test_a_secret_that_is_too_weak_stops_the_plugin_by_name(secret):
    if secret:
        with pytest.raises(SettingsError, match=r"webhooks\.secret"):
            load(None, {"GUARDED_WEBHOOKS__SECRET": secret})


# How they are signed. ----------------------------------------------------------------------------------------


def test_a_receiver_can_verify_what_it_gets(tmp_path):
    secret = webhooks.read_or_make_secret(tmp_path)
    assert webhooks.read_or_make_secret(tmp_path) == secret
    if os.name != "nt":
        assert (tmp_path / webhooks.SECRET_FILE).stat().st_mode & 0o077 == 0
    body = json.dumps({"type": "job.succeeded", "data": {"metadata": {"chat": "Привет"}}})
    headers = dict(webhooks.make_headers(secret, "msg_1", body, int(time.time() * 1000)))
    assert Verifier(secret).verify(body, headers)["type"] == "job.succeeded"
    for change in ({"webhook-id": "msg_2"}, {"webhook-timestamp": str(int(time.time()) - 10)}):
        with pytest.raises(WebhookVerificationError):
            Verifier(secret).verify(body, {**headers, **change})
    with pytest.raises(WebhookVerificationError):
        Verifier(secret).verify(body + " ", headers)


# When they are tried again. ----------------------------------------------------------------------------------


FAILED = Attempt(500, "the receiver said 500")


def test_pauses_double_up_to_an_hour_with_half_of_each_left_to_chance():
    rules_ = settings(webhooks={"first_retry_s": 10, "max_age_s": 10**7}).webhooks
    for attempts, most_s in ((1, 10), (2, 20), (5, 160), (20, 3600), (1000, 3600)):
        pauses = [retry_at_ms(rules_, FAILED, attempts, 0, 0) / 1000 for _ in range(200)]
        assert most_s / 2 - 0.01 <= min(pauses) <= max(pauses) <= most_s
        assert max(pauses) > min(pauses) * 1.2


def test_a_delivery_is_given_up_when_its_next_attempt_would_be_too_late():
    rules_ = settings(webhooks={"first_retry_s": 10, "max_age_s": 60}).webhooks
    assert retry_at_ms(rules_, FAILED, 1, 1000, 2000) is not None
    assert retry_at_ms(rules_, FAILED, 1, 1000, 61_000) is None


@pytest.mark.parametrize("attempt", [Attempt(200), Attempt(410, "x"), Attempt(error="refused", hopeless=True)])
def test_some_endings_are_final(attempt):
    assert retry_at_ms(settings().webhooks, attempt, 1, 0, 0) is None


def test_a_receiver_may_ask_for_a_longer_pause_within_reason():
    for asked_s, at_least_s, at_most_s in ((0.1, 2, 5), (60, 60, 60), (10**9, 3600, 3600)):
        pause_s = retry_at_ms(settings().webhooks, Attempt(503, "x", asked_s), 1, 0, 0) / 1000
        assert at_least_s <= pause_s <= at_most_s


# The outbox in the store. ------------------------------------------------------------------------------------


HOOK = Webhook("https://a.example/hook")
EVERY = Webhook("https://b.example:8443/hook", tuple(state.value for state in JobState))


def finish(store, webhook, verdict=SUCCESS):
    job_id = store.submit(new_job(webhook=webhook), 10**6).result(LONG_S).job.job_id
    store.claim("local", 10**6).result(LONG_S)
    store.start(job_id).result(LONG_S)
    store.validate(job_id).result(LONG_S)
    store.settle(job_id, verdict).result(LONG_S)
    store.release(job_id).result(LONG_S)
    return job_id


def due(store, now_ms=2**53, limit=100, under_way=(), full=()):
    return store.find_due_deliveries(now_ms, limit, under_way=under_way, full=full).result(LONG_S).deliveries


def ended(store, delivery, state, **facts):
    """An attempt has ended so."""
    store.record_attempt(replace(delivery, state=state, attempts=delivery.attempts + 1, **facts)).result(LONG_S)


def test_a_settled_job_puts_one_delivery_into_the_outbox_with_the_job_as_it_ended(store):
    job_id = finish(store, HOOK)
    (delivery,) = due(store)
    sent = json.loads(delivery.payload)
    assert sent["type"] == delivery.type == "job.succeeded"
    assert sent["data"] == store.get(job_id).result(LONG_S).body()
    assert sent["timestamp"].endswith("Z")
    assert delivery.webhook_id.startswith("msg_")
    assert delivery.target == "https://a.example"
    assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, 0)
    finish(store, None)
    assert len(due(store)) == 1


def test_a_verdict_that_comes_too_late_puts_nothing_in(store):
    job_id = finish(store, HOOK)
    store.settle(job_id, Verdict(JobState.FAILED, "generation_timeout", "x")).result(LONG_S)
    assert len(due(store)) == 1


def test_a_transaction_that_is_taken_back_takes_its_deliveries_with_it(store):
    job_id = store.submit(new_job(webhook=HOOK), 9).result(LONG_S).job.job_id

    def buggy(db):
        store._transitions._move(
            db, find_job(db, job_id), JobState.CANCELLED, verdict=Verdict(JobState.CANCELLED, "cancelled")
        )
        raise ZeroDivisionError

    with pytest.raises(Exception, match="database"):
        store._engine.write(buggy).result(LONG_S)
    assert due(store) == []


def test_of_a_job_only_the_first_delivery_that_is_left_is_due_so_that_they_come_in_order(store):
    finish(store, EVERY)
    told = []
    while found := due(store):
        assert len(found) == 1
        told.append(found[0].type)
        # Not delivered yet: the next one waits for it, also while it waits itself.
        ended(store, found[0], DeliveryState.PENDING, next_at_ms=10**15)
        assert due(store, now_ms=10**14) == []
        ended(store, found[0], DeliveryState.DELIVERED)
    assert told == ["job.queued", "job.dispatched", "job.running", "job.validating", "job.succeeded"]


def test_what_is_under_way_or_for_a_target_that_is_full_is_not_due(store):
    first, other = finish(store, HOOK), finish(store, EVERY)
    numbers = {delivery.job_id: delivery.number for delivery in due(store)}
    assert [delivery.job_id for delivery in due(store, under_way=[numbers[first]])] == [other]
    assert [delivery.job_id for delivery in due(store, full=["https://b.example:8443"])] == [first]
    assert due(store, limit=0) == []


def test_the_store_says_when_the_next_one_is_due(store):
    finish(store, HOOK)
    (delivery,) = due(store)
    ended(store, delivery, DeliveryState.PENDING, next_at_ms=5000)
    found = store.find_due_deliveries(4000, 9, under_way=(), full=()).result(LONG_S)
    assert (found.deliveries, found.next_at_ms) == ([], 5000)


def test_a_delivery_that_was_given_up_is_tried_again_under_its_old_id_by_whom_it_belongs_to(store):
    finish(store, HOOK)
    (delivery,) = due(store)
    ended(store, delivery, DeliveryState.DEAD, last_status=410)
    assert due(store) == []
    (dead,) = store.list_deliveries("bot", frozenset({DeliveryState.DEAD}), 9).result(LONG_S)
    assert (dead.webhook_id, dead.attempts, dead.last_status) == (delivery.webhook_id, 1, 410)
    assert store.list_deliveries("other", frozenset(DeliveryState), 9).result(LONG_S) == []
    assert store.redeliver(delivery.webhook_id, "other").result(LONG_S) is None
    assert store.redeliver("msg_unknown", None).result(LONG_S) is None
    again = store.redeliver(delivery.webhook_id, "bot").result(LONG_S)
    assert (again.webhook_id, again.state) == (delivery.webhook_id, DeliveryState.PENDING)
    assert again.attempts == 0, "its pauses begin short again"
    assert [found.webhook_id for found in due(store)] == [delivery.webhook_id]
    # An attempt that was under way meanwhile is not the one that was asked for.
    ended(store, delivery, DeliveryState.DELIVERED)
    assert [found.webhook_id for found in due(store)] == [delivery.webhook_id]
    ended(store, again, DeliveryState.DELIVERED)
    assert due(store) == []


def test_a_job_that_is_forgotten_takes_its_deliveries_with_it(store):
    finish(store, HOOK)
    assert store.forget(2**53, 9).result(LONG_S) == 1
    assert store.list_deliveries(None, frozenset(DeliveryState), 9).result(LONG_S) == []


# The sending. ------------------------------------------------------------------------------------------------


async def recorded(outbox, delivery, attempt):
    """Note how an attempt ended, and wait until that is written down."""
    written = asyncio.Event()
    outbox.filled.subscribe(written.set)
    outbox.record_attempt(delivery, attempt)
    await asyncio.wait_for(written.wait(), LONG_S)


async def test_the_address_that_was_looked_up_and_judged_is_the_one_connected_to(store, clock, monkeypatch):
    """DNS rebinding: the name leads to a permitted address first, and inside afterwards."""
    connections, looked_up = [], []

    async def receive(reader, writer):
        connections.append(writer.get_extra_info("sockname")[0])
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()

    def getaddrinfo(host, port, *_args, **_options):
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (f"127.0.0.{len(looked_up)}", port))]

    server = await asyncio.start_server(receive, "0.0.0.0", 0)
    port = server.sockets[0].getsockname()[1]
    given = settings(webhooks={"allow_http": True, "allowed_networks": ["127.0.0.1/32"]}).webhooks
    outbox = Outbox(given, store, lambda _owner: "whsec_" + "A" * 43 + "=", clock)
    sender = Sender(outbox, given.timeout_s)
    finish(store, Webhook(f"http://bot.example:{port}/hook"))
    (delivery,) = due(store)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with server:
        assert (await sender.attempt(delivery)).outcome == "delivered"
        refused = await sender.attempt(delivery)
        await sender.close()
    assert (refused.outcome, refused.hopeless) == ("unreachable", False)
    assert "may not be reached" in refused.error
    assert looked_up == ["bot.example", "bot.example"]
    assert connections == ["127.0.0.1"]


async def test_names_that_nobody_answers_for_take_no_thread_of_anybody_else(monkeypatch):
    """The event loop's own threads are few, and all that waits for the disk needs them."""
    answered = threading.Event()

    def unanswered(*_args, **_options):
        answered.wait(LONG_S)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", unanswered)
    resolver = Resolver(rules(), 32, LONG_S)
    looking = [asyncio.create_task(resolver.resolve(f"{number}.example", 443)) for number in range(64)]
    await asyncio.sleep(0)
    try:
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "at once"), LONG_S / 2) == "at once"
    finally:
        answered.set()
        found = await asyncio.gather(*looking, return_exceptions=True)
        await resolver.close()
    assert all(isinstance(error, OSError) for error in found)


async def test_names_of_one_owner_that_nobody_answers_for_leave_a_thread_to_other_owners(monkeypatch):
    answered = threading.Event()

    def look_up(name, *_args, **_options):
        assert name == "fine.example" or answered.wait(LONG_S)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    resolver = Resolver(rules(), 4, LONG_S)
    with working_for("flood"):
        looking = [asyncio.create_task(resolver.resolve(f"{number}.example", 443)) for number in range(16)]
    await asyncio.sleep(0)
    try:
        # What nobody waits for any more has its thread all the same.
        for task in looking[:8]:
            task.cancel()
        with working_for("shop"), pytest.raises(OSError, match="no answer"):
            await asyncio.wait_for(resolver.resolve("fine.example", 443), LONG_S / 2)
    finally:
        answered.set()
        await asyncio.gather(*looking, return_exceptions=True)
        await resolver.close()


async def test_where_the_package_that_signs_is_missing_a_delivery_waits_as_after_any_failure(store, clock, monkeypatch):
    finish(store, HOOK)
    (delivery,) = due(store)
    monkeypatch.setitem(sys.modules, "standardwebhooks", None)
    outbox = Outbox(settings().webhooks, store, lambda _owner: "whsec_" + "A" * 43 + "=", clock)
    attempt = await Sender(outbox, 1).attempt(delivery)
    assert (attempt.outcome, attempt.final) == ("unreachable", False)
    assert "standardwebhooks" in attempt.error
    await recorded(outbox, delivery, attempt)
    assert due(store, clock.now_ms()) == []
    assert [(again.number, again.attempts) for again in due(store)] == [(delivery.number, 1)]


async def test_a_delivery_that_the_rules_no_longer_allow_or_nobody_can_sign_is_given_up(store, clock):
    for url, secret in (("https://127.0.0.1/", "whsec_" + "A" * 43 + "="), ("https://a.example/", None)):
        finish(store, Webhook(url))
        (delivery,) = due(store)
        outbox = Outbox(settings().webhooks, store, lambda _owner, secret=secret: secret, clock)
        given_up = []
        outbox.given_up.subscribe(lambda delivery, why, given_up=given_up: given_up.append((delivery.webhook_id, why)))
        attempt = await Sender(outbox, 1).attempt(delivery)
        assert attempt.hopeless
        await recorded(outbox, delivery, attempt)
        assert [webhook_id for webhook_id, _why in given_up] == [delivery.webhook_id]
        assert due(store) == []
