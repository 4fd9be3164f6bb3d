"""Files by address and as `data:` URLs: what they may be, where they may come from, and what a source may do to us."""

import asyncio
import base64
import json
import socket

import pytest
from aiohttp import web
from unit.fakes import LONG_S, FakeFaces, FakeHost, settings, uploads

from comfyui_guarded.guard.client import LOCAL, Client
from comfyui_guarded.guard.errors import GuardError, QuotaExceededError
from comfyui_guarded.guard.files.files import Files
from comfyui_guarded.guard.files.references import References
from comfyui_guarded.guard.host import Folders
from comfyui_guarded.guard.life.health import Health
from comfyui_guarded.guard.life.secrets import Secrets
from comfyui_guarded.guard.owners import folder_of
from comfyui_guarded.guard.quotas import Quotas
from comfyui_guarded.guard.submit.admission import Admission
from comfyui_guarded.guard.submit.fetch import Fetcher, FetchRules, Place
from comfyui_guarded.guard.submit.limits import Limits
from comfyui_guarded.guard.submit.request import Submission
from comfyui_guarded.server_routes.download import Downloader

BOT = Client("bot", operator=False)
PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 40
JPEG = b"\xff\xd8\xff\xe0" + b"\x00" * 40
DATA = "data:image/png;base64," + base64.b64encode(PNG).decode()
LOCALLY = {"allow_http": True, "allowed_networks": ["127.0.0.1/32"]}


class Source:
    """A web server whose answers the test writes, and what it was asked for."""

    def __init__(self):
        self.asked = []
        self.answers = {}

    def __getitem__(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    async def _answer(self, request):
        self.asked.append(request.path)
        answer = self.answers[request.path]
        return await answer(request) if callable(answer) else web.Response(body=answer)


@pytest.fixture
async def source():
    made = Source()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", made._answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = site._server.sockets[0].getsockname()[1]
    yield made
    await runner.cleanup()


class Door:
    """An admission that fetches, whose host has a real input folder."""

    def __init__(self, store, clock, folder, fetch, hosts, limits, **policy):
        self.store, self.host, self.faces, self.input = store, FakeHost(), FakeFaces(), folder / "input"
        self.host.places = Folders(None, None, self.input)
        given = settings(fetch={**LOCALLY, **fetch}, policy={"fetch_hosts": hosts, **policy}, limits=limits)
        health = Health(self.host, store)
        health.mark_serving()
        self.uploads = uploads(self.host.input_folder, max_file_bytes=4096, max_files=3, max_request_bytes=6000)
        limits = Limits(given.limits, clock)
        rules = FetchRules(given.fetch, given.policy.fetch_hosts)
        self.downloader = Downloader(rules, given.fetch)
        fetcher = Fetcher(
            given.fetch,
            rules,
            self.uploads,
            limits,
            Quotas(given.limits),
            self.host.file_inputs,
            self.downloader.download,
        )
        references = References(self.host, Files(self.host, store))
        # fmt: off
        self.admission = Admission(
            given, store, self.host, health, self.faces, references, Secrets(), clock, self.uploads, limits,
            Quotas(given.limits), fetcher=fetcher,
        )
        # fmt: on

    async def admit(self, *images, client=BOT, **body):
        graph = {
            str(number): {"class_type": "LoadImage", "inputs": {"image": image}} for number, image in enumerate(images)
        }
        graph["out"] = {"class_type": "SaveImage", "inputs": {"images": ["0", 0], "filename_prefix": "x"}}
        raw = json.dumps({"prompt": graph, **body}).encode()
        submitted = await self.admission.admit(Submission(raw, client))
        entry = self.store.find_entry(submitted.job.job_id).result(LONG_S)
        return json.loads(entry.body)

    async def refusal(self, *images, **more) -> GuardError:
        with pytest.raises(GuardError) as caught:
            await self.admit(*images, **more)
        assert 400 <= caught.value.status < 500
        assert self.stored() == [], "a refusal leaves nothing"
        assert self.store.queued == 0
        return caught.value

    def stored(self) -> list[str]:
        below = (path.relative_to(self.input) for path in self.input.rglob("*") if path.is_file())
        return sorted(path.as_posix() for path in below)


@pytest.fixture
async def door(store, clock, tmp_path):
    made = []

    def make(fetch=(), hosts=(), limits=None, **policy):
        made.append(Door(store, clock, tmp_path, dict(fetch), list(hosts), limits or {}, **policy))
        return made[-1]

    yield make
    for each in made:
        await each.downloader._outside.close()


# What comes in. ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [BOT, LOCAL], ids=["key", "local"])
async def test_data_and_addresses_become_files_of_their_owner_and_leave_no_trace(door, source, client):
    source.answers = {"/a/me.jpg": JPEG}
    url = source["/a/me.jpg?signature=secret"]
    here = door()
    workflow = {"extra_pnginfo": {"workflow": {"widgets_values": [url, DATA]}}}
    body = await here.admit(DATA, url, DATA, client=client, extra_data=workflow)
    names = [body["prompt"][str(number)]["inputs"]["image"] for number in range(3)]
    assert [name.startswith(f"{folder_of(client.owner)}/") for name in names] == [True] * 3
    assert [(here.input / name).read_bytes() for name in names] == [PNG, JPEG, PNG]
    assert [name[-4:] for name in names] == [".png", ".jpg", ".png"]
    assert len(here.stored()) == 2, "stored by content, and nothing left on its way"
    assert "secret" not in json.dumps(body), "what is kept knows nothing of where a file came from"
    assert "base64" not in json.dumps(body)
    assert source.asked == ["/a/me.jpg"]
    assert here.faces.asked[0][0]["0"]["inputs"]["image"] == names[0], "the face check looked at the file"


async def test_a_file_that_a_thousand_requests_name_is_stored_once(door, source):
    source.answers = {"/one": PNG, "/two": PNG}
    here = door()
    await here.admit(source["/one"])
    await here.admit(source["/two"])
    await here.admit(DATA)
    assert len(here.stored()) == 1


async def test_what_was_fetched_counts_to_the_quota_of_the_owners_files(door):
    here = door(limits={"max_file_bytes": 2 * len(PNG)})
    for _ in range(3):
        error = await here.refusal(DATA, guard={"webhook": {"url": "http://10.0.0.1/"}})
        assert not isinstance(error, QuotaExceededError), "a refusal gives back what it took"
    await here.admit(DATA)
    await here.admit(DATA)
    with pytest.raises(QuotaExceededError):
        await here.admit(DATA)


async def test_texts_that_are_no_files_stay_what_they_are(door, source):
    graph = {"0": {"class_type": "Words", "inputs": {"text": DATA, "note": "data: and https://x"}}}
    raw = json.dumps({"prompt": graph}).encode()
    here = door()
    submitted = await here.admission.admit(Submission(raw, BOT))
    assert here.store.find_entry(submitted.job.job_id).result(LONG_S).body == raw


async def test_a_redirect_is_followed_a_few_times(door, source):
    async def on(request):
        raise web.HTTPFound(source["/there"])

    async def round_and_round(request):
        raise web.HTTPTemporaryRedirect("/circle")

    source.answers = {"/here": on, "/there": PNG, "/circle": round_and_round}
    here = door()
    assert (await here.refusal(source["/circle"])).extra_info["reason"] == "redirects"
    assert len(source.asked) <= 7
    await here.admit(source["/here"])


# Where it may not come from. --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.2/a.png",
        "https://localhost/a.png",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/a.png",
        "https://2130706433/a.png",
        "https://user@127.0.0.1/a.png",
        "https://other.example/a.png",
        "http://files.example.org.evil.example/a.png",
    ],
)
async def test_a_key_names_the_operators_hosts_and_nothing_inside(door, url):
    here = door(hosts=["files.example.org"], fetch={"allowed_networks": ["127.0.0.1/32"]})
    if "localhost" in url:
        here = door(hosts=["files.example.org"], fetch={"allowed_networks": []})
    error = await here.refusal(url)
    assert error.code == "policy_violation"
    assert error.extra_info["node_id"] == "0"
    assert "meta-data?" not in str(error.extra_info)


async def test_http_is_for_those_whose_operator_says_so(door, source):
    error = await door(fetch={"allow_http": False}).refusal(source["/a"], client=LOCAL)
    assert (error.code, source.asked) == ("policy_violation", [])


@pytest.mark.parametrize(
    "target", ["http://127.0.0.2:{port}/in", "http://169.254.169.254/", "http://evil.example/", "file:///etc/passwd"]
)
async def test_a_redirect_leads_nowhere_that_the_address_itself_may_not(door, source, target):
    async def on(request):
        return web.Response(status=302, headers={"Location": target.format(port=source.port)})

    source.answers = {"/on": on, "/in": PNG}
    error = await door().refusal(source["/on"])
    assert error.code == "policy_violation"
    assert source.asked == ["/on"]


async def test_a_name_is_judged_by_each_address_that_it_turns_out_to_have(door, source, monkeypatch):
    """Rebinding: an address that is allowed first, and one inside at the next look."""
    looked_up = []

    def getaddrinfo(host, port, *_args, **_options):
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (f"127.0.0.{len(looked_up)}", port))]

    async def close(request):
        response = web.Response(body=PNG)
        response.force_close()
        return response

    source.answers = {"/a": close}
    here = door(hosts=["*.example.org"])
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    url = f"http://files.example.org:{source.port}/a"
    await here.admit(url)
    with pytest.raises(GuardError) as caught:
        await here.admit(url)
    assert (caught.value.code, caught.value.extra_info["reason"]) == ("fetch_failed", "address")
    assert looked_up == ["files.example.org"] * 2, "an address inside is not tried again"
    assert source.asked == ["/a"]


# What a source may do to us. --------------------------------------------------------------------------------------


async def test_a_source_that_breaks_off_gets_one_more_try_and_starts_from_the_beginning(door, source):
    """Its second answer is another picture: nothing of the first may be in the file."""

    async def break_off(request):
        if source.asked.count("/a") > 1:
            return web.Response(body=JPEG)
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(PNG)
        request.transport.close()
        return response

    source.answers = {"/a": break_off}
    here = door()
    body = await here.admit(source["/a"])
    assert (here.input / body["prompt"]["0"]["inputs"]["image"]).read_bytes() == JPEG
    assert source.asked == ["/a", "/a"]


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (500, 2), (503, 2), (204, 1)])
async def test_a_source_that_refuses_is_asked_twice_at_most(door, source, status, tries):
    async def refuse(request):
        return web.Response(status=status)

    source.answers = {"/a/photo.png": refuse}
    error = await door().refusal(source["/a/photo.png?token=secret"])
    assert (error.code, error.extra_info["status"]) == ("fetch_failed", status)
    assert len(source.asked) == tries
    assert error.extra_info["source"] == "photo.png"
    assert "secret" not in json.dumps(error.body("en"))


@pytest.mark.parametrize("says", [True, False])
async def test_a_huge_file_is_refused_as_soon_as_it_is_known_to_be_huge(door, source, says):
    async def pour(request):
        response = web.StreamResponse(headers={"Content-Length": str(2**40)} if says else {})
        await response.prepare(request)
        while True:  # until nobody listens any more
            await response.write(b"\x89PNG\r\n\x1a\n" + b"\0" * 65536)

    source.answers = {"/a": pour}
    error = await door().refusal(source["/a"])
    assert (error.code, error.status) == ("payload_too_large", 413)
    assert source.asked == ["/a"]


async def test_files_that_are_small_each_and_too_large_together_are_refused(door, source):
    big = PNG + b"\0" * 2900
    source.answers = {"/1": big, "/2": big + b"1", "/3": big + b"2"}
    here = door()
    error = await here.refusal(source["/1"], source["/2"], source["/3"])
    assert error.extra_info["max_request_bytes"] == 6000
    error = await here.refusal(*(DATA + "A" * 4 * number for number in range(4)))
    assert error.extra_info["max_files"] == 3


async def test_a_slow_source_ends_with_its_time_and_takes_nobody_elses(door, source):
    stuck = asyncio.Event()

    async def trickle(request):
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(PNG)
        stuck.set()
        await asyncio.sleep(LONG_S)
        return response

    source.answers = {"/slow": trickle, "/a": PNG}
    here = door(fetch={"timeout_s": 2})
    slow = asyncio.create_task(here.admit(source["/slow"], client=Client("other", operator=False)))
    await asyncio.wait_for(stuck.wait(), LONG_S)
    await here.admit(source["/a"])
    assert not slow.done()
    with pytest.raises(GuardError) as caught:
        await asyncio.wait_for(slow, LONG_S)
    assert (caught.value.code, caught.value.extra_info["reason"]) == ("fetch_failed", "timeout")
    assert len(here.stored()) == 1, "nothing of the slow one"
    assert source.asked == ["/slow", "/a"], "its time was gone, so there was no second try"


async def test_owners_share_the_room_and_none_takes_all_of_it(door, source):
    going, full, gate = [], asyncio.Event(), asyncio.Event()

    async def wait(request):
        going.append(request.path)
        if len(going) == 6:
            full.set()
        await gate.wait()
        return web.Response(body=PNG)

    source.answers = {f"/{owner}{number}": wait for owner in "ab" for number in range(6)}
    here = door(fetch={"at_once": 6})
    asked = [
        asyncio.create_task(here.admit(source[f"/{owner}{number}"], client=Client(owner, operator=False)))
        for owner in "ab"
        for number in range(6)
    ]
    await asyncio.wait_for(full.wait(), LONG_S)
    await asyncio.sleep(0.1)
    assert sorted(path[1] for path in going) == ["a"] * 4 + ["b"] * 2
    gate.set()
    await asyncio.wait_for(asyncio.gather(*asked), LONG_S)


@pytest.mark.parametrize("body", [b"<html>no</html>", b'{"error": 1}', b"#EXTM3U\nhttp://a/", b"plain", b"<svg/>"])
async def test_what_is_no_picture_is_bad_image_whatever_its_name_and_type_say(door, source, body):
    async def lie(request):
        return web.Response(body=body, content_type="image/png")

    source.answers = {"/a.png": lie}
    here = door()
    assert (await here.refusal(source["/a.png"])).code == "bad_image"
    assert (await here.refusal("data:image/png;base64," + base64.b64encode(body).decode())).code == "bad_image"


async def test_a_packed_answer_is_refused_since_it_could_be_of_any_size(door, source):
    async def packed(request):
        return web.Response(body=PNG, headers={"Content-Encoding": "gzip"})

    source.answers = {"/a": packed}
    assert (await door().refusal(source["/a"])).extra_info["reason"] == "encoding"


@pytest.mark.parametrize("rest", ["", "image/png,xx", "image/png;base64,@@@@", "image/png;base64,AAA", ";base64,"])
async def test_a_data_url_is_base64_or_refused(door, rest):
    assert (await door().refusal(f"data:{rest}")).code in ("bad_image", "invalid_request")


async def test_a_source_that_nobody_serves_is_a_failed_fetch(door):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    error = await door().refusal(f"http://127.0.0.1:{port}/a")
    assert (error.code, error.extra_info["reason"]) == ("fetch_failed", "connection")


async def test_what_is_fetched_counts_as_uploaded(door, source):
    source.answers = {"/a": PNG, "/b": PNG + b"1"}
    here = door(limits={"upload_bytes_per_hour": 100})
    await here.admit(source["/a"])
    with pytest.raises(GuardError) as caught:
        await here.admit(source["/b"], DATA)
    assert caught.value.code in ("rate_limited", "payload_too_large")


async def test_the_loop_goes_on_while_a_large_data_url_is_decoded(door):
    here = door()
    here.uploads.settings = here.uploads.settings.model_copy(
        update={"max_file_bytes": 2**26, "max_request_bytes": 2**26}
    )
    text = "data:image/png;base64," + base64.b64encode(PNG + b"\0" * (12 * 2**20)).decode()
    turns = 0

    async def watch():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    async with here.admission._fetcher.fetch({text: [Place("1", {}, "image")]}, BOT) as fetched:
        assert fetched.bytes == 12 * 2**20 + len(PNG)
    watching.cancel()
    assert turns > 100
