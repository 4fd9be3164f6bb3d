"""How a request wants its results: what presigned addresses say, what a key says, and when a put is given up."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import botocore.session
import pytest
from botocore.config import Config
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from unit.fakes import GRAPH, LONG_S, settings
from unit.store_steps import CANCELLED, claim, run_to_success, submit

from comfyui_guarded.guard.bounds import Bounds, read_model
from comfyui_guarded.guard.client import Client, KeyLimits
from comfyui_guarded.guard.errors import InvalidRequestError
from comfyui_guarded.guard.events.attempts import Attempt
from comfyui_guarded.guard.events.puts import LONGEST, Puts, make_headers
from comfyui_guarded.guard.events.webhook_rules import Rules
from comfyui_guarded.guard.job import Artifact, Result
from comfyui_guarded.guard.outgoing import AS_IT_COMES, NewPut, ResultOptions
from comfyui_guarded.guard.store import DeliveryState
from comfyui_guarded.guard.submit import results
from comfyui_guarded.guard.submit.presigned import read_expiry_ms
from comfyui_guarded.guard.submit.request import Submission, parse, write_body
from comfyui_guarded.guard.submit.results import AskedResults, choose_results

RULES = Rules(settings().webhooks)
SECRET = "https://a.example/x?sig=VERY_SECRET"


def sign(version: str, expires_in_s: int, **more: str) -> str:
    client = botocore.session.get_session().create_client(
        "s3",
        region_name="eu-central-1",
        aws_access_key_id="AKID",
        aws_secret_access_key="secret",
        config=Config(signature_version=version),
        **more,
    )
    return str(client.generate_presigned_url("put_object", Params={"Bucket": "b", "Key": "k"}, ExpiresIn=expires_in_s))


# Addresses. --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["s3v4", "s3"])
@pytest.mark.parametrize("expires_in_s", [1, 900, 604800])
def test_what_botocore_signs_expires_when_it_says(version, expires_in_s):
    url = sign(version, expires_in_s, aws_session_token="T" * 1500)
    assert read_expiry_ms(url) == pytest.approx((time.time() + expires_in_s) * 1000, abs=3000)
    RULES.check(url, "x", LONGEST)


@pytest.mark.parametrize(
    ("query", "expires_at_ms"),
    [
        ("X-Goog-Date=20260101T000000Z&X-Goog-Expires=60&X-Goog-Signature=x", 1767225660000),
        ("GoogleAccessId=x&Expires=1767225660&Signature=x", 1767225660000),
        ("sv=2024-11-04&se=2026-01-01T00%3A01%3A00Z&sig=x", 1767225660000),
        ("sv=2024-11-04&se=2026-01-01T00:01Z&sig=x", 1767225660000),
        ("sv=2024-11-04&se=2026-01-01&sig=x", 1767225600000),
        ("", None),
        ("Expires=1767225660", None),
        ("se=2026-01-01", None),
        ("X-Amz-Date=20260101T000000Z", None),
        ("X-Amz-Date=20260101T000000Z&X-Amz-Expires=-5", None),
        ("X-Amz-Date=20260101T000000Z&X-Amz-Expires=99999999999", None),
        ("X-Amz-Date=99999999T000000Z&X-Amz-Expires=60", None),
        ("X-Amz-Date=20260101T000000Z&X-Amz-Expires=٣", None),
        ("Signature=x&Expires=1e9", None),
        ("Signature=x&Expires=99999999999999999999", None),
        ("sig=x&se=tomorrow", None),
        ("sig=x&se=9999-12-31T23:59:59Z", 253402300799000),
    ],
)
def test_each_vendors_way_to_say_until_when_is_read(query, expires_at_ms):
    assert read_expiry_ms(f"https://a.example/x?{query}") == expires_at_ms


@given(
    st.dictionaries(
        st.sampled_from(
            ["X-Amz-Date", "X-Amz-Expires", "X-Goog-Date", "X-Goog-Expires", "Expires", "Signature", "se", "sig"]
        ),
        st.text(max_size=20) | st.integers().map(str) | st.sampled_from(["20260101T000000Z", "99991231T235959Z", "60"]),
    )
)
def test_no_address_is_too_odd_to_be_read(query):
    from urllib.parse import urlencode

    found = read_expiry_ms(f"https://a.example/x?{urlencode(query)}")
    assert found is None or isinstance(found, int)


# What is asked for, and what the key says. -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "limits", "chosen"),
    [
        (None, {}, AS_IT_COMES),
        ({}, {}, AS_IT_COMES),
        ({"format": "webp"}, {}, ResultOptions("webp")),
        (None, {"results_format": "jpeg", "results_quality": 5}, ResultOptions("jpeg", 5)),
        ({"quality": 9}, {"results_format": "jpeg", "results_max_side": 99}, ResultOptions("jpeg", 9, 99)),
        ({"format": "png"}, {"results_format": "jpeg", "results_max_side": 99}, ResultOptions("png")),
        ({"format": "original"}, {"results_format": "jpeg", "results_inline": True}, ResultOptions(inline=True)),
        ({"inline": False}, {"results_inline": True}, AS_IT_COMES),
        ({"inline": True}, {}, ResultOptions(inline=True)),
    ],
)
async def test_a_request_wins_over_its_key(asked, limits, chosen):
    model = None if asked is None else AskedResults(**asked)
    client = Client("bot", operator=False, limits=KeyLimits(**limits))
    assert (await choose_results(model, client, RULES, 0)).results == chosen


async def test_a_format_that_this_server_cannot_write_is_refused_with_those_that_it_can(monkeypatch):
    monkeypatch.setattr(results, "list_formats", lambda: frozenset({"png", "mp4", "jpeg"}))
    for limits in (KeyLimits(), KeyLimits(results_format="webp")):
        with pytest.raises(InvalidRequestError) as caught:
            await choose_results(AskedResults(format="avif"), Client("bot", False, limits=limits), RULES, 0)
        assert caught.value.extra_info == {"field": "guard.results.format", "available": ["jpeg", "png", "mp4"]}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "format": st.sampled_from(["webp", "original", "bmp", "", None, 3, ["webp"]]),
            "quality": st.integers(-5, 200) | st.floats() | st.booleans() | st.none(),
            "max_side": st.integers() | st.floats() | st.text(max_size=3),
            "inline": st.booleans() | st.integers(0, 1),
            "put": st.lists(
                st.fixed_dictionaries(
                    {
                        "url": st.text(max_size=30)
                        | st.sampled_from([SECRET, "https://[::1]/", "https://a:b@c.example/"])
                    },
                    optional={
                        "artifact": st.integers() | st.floats(),
                        "headers": st.dictionaries(
                            st.sampled_from(["content-type", "Host", "x-amz-acl", "X-AMZ-ACL", "", "x-amz-é"]),
                            st.text(max_size=5),
                        ),
                    },
                ),
                max_size=3,
            ),
        },
    )
)
async def test_whatever_is_asked_for_is_chosen_or_refused_by_name(asked):
    try:
        model = read_model(AskedResults, asked, "guard.results.")
        chosen = await choose_results(model, Client("bot", operator=False), RULES, 0)
    except InvalidRequestError as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert refusal.extra_info["field"].startswith("guard.results.")
        assert "VERY_SECRET" not in f"{refusal.message} {refusal.details} {refusal.extra_info}"
        return
    assert chosen.results.quality is None or 1 <= chosen.results.quality <= 100
    assert all(put.url == SECRET for put in chosen.puts)
    assert "VERY_SECRET" not in repr(chosen)


def test_headers_that_no_signature_covers_cannot_be_named():
    for name in ("host", "content-length", "authorization", "transfer-encoding", "cookie", "x-forwarded-for", "expect"):
        with pytest.raises(ValidationError):
            AskedResults(put=[{"url": SECRET, "headers": {name: "x"}}])


# In the store, and on the way. -------------------------------------------------------------------------------

FILE = Artifact(0, "2", "image", "a.png", "", "output", 9, "ab" * 32, 3, 4)


def due(store, clock):
    return store.find_due_puts(clock.now_ms(), 9, under_way=(), full=()).result(LONG_S).deliveries


def with_puts(store, *puts: NewPut) -> str:
    return submit(store, puts=puts or (NewPut(0, SECRET),)).job.job_id


def finish(store, *puts: NewPut):
    job_id = with_puts(store, *puts)
    assert claim(store, 99) == job_id
    return run_to_success(store, job_id, Result({}, (FILE,))).job


def test_a_put_is_due_with_the_success_and_never_without(store, clock):
    failed = with_puts(store)
    assert due(store, clock) == []
    ended = store.settle(failed, CANCELLED).result(LONG_S).job
    assert [(put.state, put.error) for put in ended.puts] == [("given_up", "the job has not succeeded")]
    assert due(store, clock) == []
    job = finish(store)
    assert [put.state for put in job.puts] == ["waiting"]
    assert job.puts[0].next_at_ms <= job.settled_at_ms
    (put,) = due(store, clock)
    assert (put.url, put.job_id, put.place, put.attempts) == (SECRET, job.job_id, 0, 0)
    assert "VERY_SECRET" not in repr(put)


def test_how_far_a_put_has_come_is_seen_in_the_job_wherever_it_is_read(store, clock):
    job = finish(store, NewPut(0, SECRET), NewPut(0, SECRET + "2"))
    first, second = due(store, clock)
    waits = replace(first, attempts=1, next_at_ms=clock.now_ms() + 9000, last_status=503, last_error="no")
    store.record_put(waits).result(LONG_S)
    stored = replace(second, state=DeliveryState.DELIVERED, attempts=1, ended_at_ms=clock.now_ms(), last_status=200)
    store.record_put(stored).result(LONG_S)
    seen = [
        store.get(job.job_id).result(LONG_S),
        store.recall(job.job_id),
        *store.list_jobs(None, None, 9).result(LONG_S),
        store.find_entry(job.job_id).result(LONG_S).job,
    ]
    for one in seen:
        assert [(put.state, put.attempts, put.status, put.error) for put in one.puts] == [
            ("waiting", 1, 503, "no"),
            ("stored", 1, 200, None),
        ]
    assert due(store, clock) == []
    with_url = store._engine.read(lambda db: db.execute("SELECT count(*) FROM puts WHERE url <> ''").fetchone())
    assert with_url.result(LONG_S) == (1,), "a used address is gone"
    assert one.event_id == job.event_id


def test_a_forgotten_job_takes_its_puts_along(store, clock):
    job = finish(store)
    (put,) = due(store, clock)
    assert store.forget(clock.now_ms() + 1000, 9).result(LONG_S) == 1
    assert due(store, clock) == []
    store.record_put(replace(put, attempts=1)).result(LONG_S)
    assert store.get(job.job_id).result(LONG_S) is None


def test_no_address_is_in_the_body_of_a_job_or_in_its_webhook(store):
    job = finish(store)
    told = json.dumps(job.body())
    assert "VERY_SECRET" not in told
    assert json.loads(told)["puts"][0]["state"] == "waiting"


@pytest.mark.parametrize(
    ("attempt", "expires_in_s", "again"),
    [
        (Attempt(503), None, True),
        (Attempt(503), 3600, True),
        (Attempt(503), 4, False),
        (Attempt(error="unreachable"), 30, True),
        (Attempt(200), None, False),
        (Attempt(403, hopeless=True), 3600, False),
        (Attempt(410), 3600, False),
        (Attempt(503, retry_after_s=10**6), 60, True),
    ],
)
async def test_a_put_is_tried_again_as_long_as_its_address_is_valid_and_not_longer(
    store, clock, attempt, expires_in_s, again
):
    now_ms = clock.now_ms()
    ends_ms = None if expires_in_s is None else now_ms + expires_in_s * 1000
    finish(store, NewPut(0, SECRET, {}, ends_ms))
    (put,) = due(store, clock)
    at_ms = Puts(settings(), store, clock)._retry_at_ms(put, attempt, now_ms)
    assert (at_ms is not None) is again
    if at_ms is not None and ends_ms is not None:
        assert now_ms < at_ms < ends_ms


def test_a_put_without_an_end_of_its_own_is_given_up_after_the_settings_time(store, clock):
    puts = Puts(settings(results={"put_max_age_s": 100}), store, clock)
    finish(store)
    (put,) = due(store, clock)
    assert puts._retry_at_ms(put, Attempt(500), put.since_ms + 50_000) is not None
    assert puts._retry_at_ms(put, Attempt(500), put.since_ms + 100_001) is None


def test_the_callers_headers_win_and_old_signatures_get_no_type(store, clock):
    def headers(url: str, **own: str):
        finish(store, NewPut(0, url, own))
        put = due(store, clock)[-1]
        return dict(make_headers(put, "image/webp", 7))

    assert headers(SECRET)["content-type"] == "image/webp"
    assert headers(SECRET)["content-length"] == "7"
    assert headers(sign("s3v4", 60))["content-type"] == "image/webp"
    assert "content-type" not in headers(sign("s3", 60))
    assert headers(sign("s3", 60), **{"content-type": "image/png"})["content-type"] == "image/png"
    assert headers("https://a.example/x?sv=1&sig=y")["x-ms-blob-type"] == "BlockBlob"
    own = {"x-ms-blob-type": "AppendBlob"}
    assert headers("https://a.example/x?sv=1&sig=y", **own)["x-ms-blob-type"] == "AppendBlob"


@pytest.mark.parametrize("moved", [False, True])
def test_what_is_kept_of_a_request_has_its_face_check_and_no_address(moved):
    """The body outlives the job: a retry is made of it, and the page shows its prompt."""
    asked = {"face_check": {"min_faces": 2}, "results": {"format": "webp", "put": [{"url": SECRET}]}}
    raw = json.dumps({"prompt": GRAPH, "guard": asked}).encode()
    request = Submission(raw, Client("bot", operator=False))
    kept = write_body(request, parse(raw, Bounds()), moved)
    assert b"VERY_SECRET" not in kept
    assert json.loads(kept) == {"prompt": GRAPH, "guard": {"face_check": {"min_faces": 2}}}
