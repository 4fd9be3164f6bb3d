"""Files over HTTP, refusals in one shape, health, who is let in, and languages."""

import hashlib

import pytest
from contract.client import assert_ended_badly, assert_refusal, connected, picture, raises, text
from contract.conftest import kinds

from comfyui_guarded.tests.hosts.launch import HostProcess

# The server itself. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds())
async def test_the_garbage_collector_passes_over_what_the_start_has_made(kind, tmp_path):
    """It would hold up every thread while it goes through all of that."""
    with HostProcess(kind, tmp_path) as started:  # a shared one has made more since
        async with connected(started) as client:
            objects = await client.get("/guarded_faults/frozen")
    assert objects["frozen"] > 50_000
    assert objects["seen"] < objects["frozen"]


# Artifacts. --------------------------------------------------------------------------------------------------


async def test_an_artifact_is_the_very_file_with_its_type(client):
    job = await client.run(picture())
    (artifact,) = job["artifacts"]
    answer = await client.request("GET", artifact["url"])
    assert answer.status == 200
    assert answer.content == (client.base / "output" / artifact["filename"]).read_bytes()
    assert hashlib.sha256(answer.content).hexdigest() == artifact["sha256"]
    assert answer.headers["Content-Type"] == "image/png"
    assert int(answer.headers["Content-Length"]) == artifact["bytes"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_an_artifact_can_be_had_in_ranges(client):
    url = (await client.run(picture()))["artifacts"][0]["url"]
    whole = (await client.request("GET", url)).content
    part = await client.request("GET", url, headers={"Range": "bytes=100-199"})
    assert (part.status, part.content) == (206, whole[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(whole)}"
    assert (await client.request("GET", url, headers={"Range": "bytes=-10"})).content == whole[-10:]
    beyond = await client.request("GET", url, headers={"Range": f"bytes={len(whole)}-"})
    assert beyond.status == 416


async def test_an_artifact_that_the_client_has_is_not_sent_again(client):
    url = (await client.run(picture()))["artifacts"][0]["url"]
    first = await client.request("GET", url)
    for name, value in (
        ("If-None-Match", first.headers["ETag"]),
        ("If-Modified-Since", first.headers["Last-Modified"]),
    ):
        again = await client.request("GET", url, headers={name: value})
        assert (again.status, again.content) == (304, b"")


async def test_an_artifact_whose_file_is_not_what_the_job_made_is_gone(client):
    job = await client.run(picture())
    other = await client.run({**picture(), "1": {**picture()["1"], "inputs": {**picture()["1"]["inputs"], "seed": 5}}})
    mine, theirs = (client.base / "output" / found["artifacts"][0]["filename"] for found in (job, other))
    mine.write_bytes(theirs.read_bytes())
    body = assert_refusal(await client.request("GET", job["artifacts"][0]["url"]), "artifact_gone", 410)
    assert body["error"]["extra_info"] == {"index": 0}
    original = bytearray((await client.request("GET", other["artifacts"][0]["url"])).content)
    original[-20] ^= 1
    theirs.write_bytes(original)
    assert_refusal(await client.request("GET", other["artifacts"][0]["url"]), "artifact_gone", 410)
    mine.unlink()
    assert_refusal(await client.request("GET", job["artifacts"][0]["url"]), "artifact_gone", 410)
    assert (await client.job(job["job_id"])) == job


@pytest.mark.parametrize("index", ["1", "-1", "x", "99999999999999999999", "0.0"])
async def test_an_index_that_the_job_lacks_is_not_found(client, index):
    job = await client.run(picture())
    assert_refusal(await client.request("GET", f"/guarded/jobs/{job['job_id']}/artifacts/{index}"), "not_found", 404)


# One shape for every refusal. ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/guarded/nope", "/guarded/jobs/x/y/z", "/api/guarded/x")),
        *(("GET", path) for path in ("/guarded/jobs/x", "/guarded/jobs/x/artifacts/0", "/guarded/jobs/%00")),
        *((method, "/guarded/nope") for method in ("POST", "PUT", "DELETE", "PATCH")),
    ],
)
async def test_what_does_not_exist_is_a_json_404(client, method, path):
    assert_refusal(await client.request(method, path), "not_found", 404)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/guarded/prompt", ["POST"]),
        ("POST", "/guarded/jobs", ["GET"]),
        ("POST", "/guarded/jobs/x", ["DELETE", "GET"]),
        ("PATCH", "/api/guarded/jobs/x", ["DELETE", "GET"]),
        ("POST", "/guarded/health", ["GET"]),
        ("DELETE", "/guarded/queue", ["GET"]),
    ],
)
async def test_a_method_that_the_route_lacks_is_a_json_405_that_says_which_it_has(client, method, path, allow):
    answer = await client.request(method, path)
    body = assert_refusal(answer, "method_not_allowed", 405)
    allowed = [name.strip() for name in answer.headers["Allow"].split(",")]
    assert method not in allowed
    assert body["error"]["extra_info"]["allowed"] == allowed
    assert set(allow) <= set(allowed)


@pytest.mark.parametrize(
    "path",
    [
        *(
            f"/guarded/jobs?{query}"
            for query in ("limit=0", "limit=x", "limit=501", "state=done", "before=0", "limit=nan")
        ),
        *(f"/guarded/jobs/x?wait={wait}" for wait in ("-1", "x", "nan", "inf", "1e9")),
    ],
)
async def test_a_bad_query_is_a_json_400(client, path):
    assert_refusal(await client.request("GET", path), "invalid_request", 400)


async def test_a_bad_wait_on_submit_leaves_no_job_behind(client):
    before = await client.jobs("limit=1")
    answer = await client.request("POST", "/guarded/prompt?wait=x", {"prompt": text()})
    assert_refusal(answer, "invalid_request", 400)
    assert await client.jobs("limit=1") == before


async def test_history_of_an_unknown_id_is_empty_as_comfyuis(client):
    assert await client.get("/guarded/history/4b2f7c1e-0000-4000-8000-000000000000") == {}


async def test_health_and_ready_answer(client):
    assert (await client.get("/guarded/health"))["status"] == "ok"
    assert await client.get("/guarded/ready") == {"status": "ready"}


# Who is let in. -----------------------------------------------------------------------------------------------

STRANGERS = [
    {"X-Forwarded-For": "203.0.113.5"},
    {"x-forwarded-proto": "https"},
    {"Forwarded": "for=203.0.113.5"},
    {"X-Real-IP": "203.0.113.5"},
    {"CF-Connecting-IP": "203.0.113.5"},
    {"Host": "bot.example.com"},
    {"Host": "127.0.0.1.example.com"},
]


@pytest.mark.parametrize("headers", STRANGERS, ids=lambda headers: next(iter(headers.items()))[1] or "empty")
async def test_whoever_may_come_from_elsewhere_is_unauthorized_in_json(client, headers):
    before = await client.jobs("limit=1")
    for method, path, body in (
        ("POST", "/guarded/prompt", {"prompt": text()}),
        ("GET", "/guarded/jobs", None),
        ("GET", "/guarded/queue", None),
        ("DELETE", "/guarded/jobs/x", None),
    ):
        answer = await client.request(method, path, body, headers=headers)
        refusal = assert_refusal(answer, "unauthorized", 401)
        assert refusal["error"]["extra_info"] == {}
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert await client.jobs("limit=1") == before


@pytest.mark.parametrize("path", ["/guarded/health", "/guarded/ready"])
async def test_a_stranger_hears_the_bare_status_only(client, path):
    answer = await client.request("GET", path, headers={"X-Forwarded-For": "203.0.113.5"})
    assert answer.status == 200
    assert set(answer.json) == {"status"}


@pytest.mark.parametrize("name", ["localhost", "localhost:8188", "127.0.0.1", "127.0.0.1:1"])
async def test_loopback_by_any_of_its_names_is_let_in(client, name):
    assert (await client.request("GET", "/guarded/jobs?limit=1", headers={"Host": name})).status == 200


async def test_without_trust_in_loopback_nobody_is_let_in(sandbox_client):
    client = await sandbox_client(GUARDED_ACCESS__TRUST_LOOPBACK="false")
    assert_refusal(await client.submit(text()), "unauthorized", 401)
    assert await client.get("/guarded/health") == {"status": "ok"}


# Languages. ---------------------------------------------------------------------------------------------------


async def test_a_refusal_speaks_russian_unless_asked_otherwise(client):
    texts = {
        language: (await client.request("GET", "/guarded/jobs/x", headers=headers)).json["guard"]["user_message"]
        for language, headers in {
            "default": {},
            "ru": {"Accept-Language": "ru-RU,ru;q=0.9,en;q=0.5"},
            "en": {"Accept-Language": "en-GB,en;q=0.9"},
            "other": {"Accept-Language": "de-DE"},
            "second": {"Accept-Language": "de, en;q=0.5, ru;q=0.4"},
            "junk": {"Accept-Language": ";;q=x,,*"},
        }.items()
    }
    assert texts["ru"].startswith("Ничего не найдено")
    assert texts["en"].startswith("Nothing was found")
    assert texts["default"] == texts["other"] == texts["junk"] == texts["ru"]
    assert texts["second"] == texts["en"]


@pytest.mark.parametrize(
    ("locale", "accept", "expected"),
    [
        (None, None, "Не удалось"),
        (None, "en", "The image could not"),
        ("en", None, "The image could not"),
        ("en-US", "ru", "The image could not"),
        ("ru", "en", "Не удалось"),
        ("xx", "en", "The image could not"),
    ],
)
async def test_a_job_speaks_the_language_that_it_was_ordered_in(client, locale, accept, expected):
    guard = {"locale": locale} if locale else {}
    job = await client.run(raises("value_error"), guard=guard, headers={"Accept-Language": accept} if accept else {})
    assert_ended_badly(job, "generation_failed")
    assert job["error"]["user_message"].startswith(expected)


async def test_a_reader_may_ask_for_another_language_than_the_job_was_ordered_in(client):
    job = await client.run(raises("value_error"), guard={"locale": "ru"})
    read = await client.job(job["job_id"], headers={"Accept-Language": "en"})
    assert read["error"]["user_message"].startswith("The image could not")


async def test_the_notice_of_a_waiting_job_speaks_its_language(client):
    async with client.busy():
        answer = await client.submit(text(), guard={"locale": "en"})
        assert answer.json["guard"]["user_message"].startswith("The server is busy (1/1 tasks).")
    await client.settled(answer.json["prompt_id"])
