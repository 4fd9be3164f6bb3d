"""The janitor over HTTP, beside real jobs; and a disk that runs full and empty again."""

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contract.client import Client, assert_refusal, assert_succeeded, connected, photo_copy, picture, text, unique
from contract.conftest import PHOTO, kinds

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess

DAY_S = 86400
MB = 2**20
REPORT_KEYS = {
    *("started_at_ms", "duration_s", "dry_run", "files", "bytes", "folders", "jobs", "deleted", "oldest", "kept"),
    *("skipped", "vanished", "errors", "error_samples", "samples"),
}


def old(path: Path, age_s: float = 30 * DAY_S, size: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if size is not None:
        path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


async def sweep(client: Client, query: str = "") -> dict[str, Any]:
    answer = await client.request("POST", f"/guarded/janitor/sweep{query}")
    assert answer.status == 200, answer
    assert set(answer.json) == REPORT_KEYS
    return dict(answer.json)


@pytest.fixture
async def client(client: Client) -> Client:
    """On the shared server, whose operator has said that everything old may go."""
    said = await client.request("POST", "/guarded/janitor/native", body={"sweep": True})
    assert said.json["native"]["sweep"] is True
    return client


async def test_a_sweep_deletes_what_is_old_and_nothing_that_somebody_needs(client, host):
    name = unique("janitor")
    gone = [old(host.base / root / f"{name}.png", size=10) for root in ("output", "temp", "input")]
    kept = [
        old(host.base / "output" / "loras" / f"{name}.safetensors", size=10),
        old(host.base / "output" / "checkpoints" / "sub" / f"{name}.safetensors", size=10),
        old(host.base / "output" / f".{name}", size=10),
        old(host.base / "user" / f"{name}.txt", size=10),
        old(host.base / "models" / "loras" / f"{name}.safetensors", size=10),
    ]
    # The server sweeps by itself, too, once an hour: perhaps now.
    before = (await client.get("/guarded/janitor"))["totals"]["files"]
    dry = await sweep(client, "?dry_run=1")
    assert dry["dry_run"] is True
    if all(path.exists() for path in gone):
        assert f"output/{name}.png" in dry["samples"]
    report = await sweep(client)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)
    assert report["errors"] == 0, report
    status = await client.get("/guarded/janitor")
    assert report in status["sweeps"]
    assert status["totals"]["files"] - before >= 3
    assert status["adopted"] is False
    assert {disk["state"] for disk in status["disks"]} == {"ok"}


async def test_the_input_of_a_queued_job_is_there_when_its_turn_comes(client, host):
    name = f"{unique('janitor')}.png"
    shutil.copyfile(host.base / "input" / PHOTO, host.base / "input" / name)
    old(host.base / "input" / name)
    async with client.busy():
        job_id = await client.admitted(photo_copy(name))
        report = await sweep(client)
        assert report["kept"]["in_use"]["files"] >= 1
    assert_succeeded(await client.settled(job_id))
    await sweep(client)
    assert not (host.base / "input" / name).exists()


async def test_a_result_stays_until_its_owner_has_fetched_the_whole_of_it(client, host):
    prefix = unique("janitor")
    job = await client.run(picture(f"{prefix}/x"))
    artifact = job["artifacts"][0]
    path = old(host.base / "output" / artifact["subfolder"] / artifact["filename"])
    await client.job(job["job_id"])
    part = await client.request("GET", artifact["url"], headers={"Range": "bytes=0-9"})
    assert part.status == 206
    assert (await client.request("HEAD", artifact["url"])).status == 200
    assert (await client.request("GET", artifact["url"] + "?preview=webp;50;64")).status == 200
    report = await sweep(client)
    assert report["kept"]["unread"]["files"] >= 1
    assert path.exists()
    assert (await client.request("GET", artifact["url"])).status == 200
    await sweep(client)
    assert not path.exists()
    assert_refusal(await client.request("GET", artifact["url"]), "artifact_gone", 410)


async def test_a_result_fetched_in_ranges_is_fetched_with_the_last_one(client, host):
    job = await client.run(picture(unique("janitor")))
    artifact = job["artifacts"][0]
    path = old(host.base / "output" / artifact["filename"])
    for start in (0, 1000):
        end = "" if start else "999"
        part = await client.request("GET", artifact["url"], headers={"Range": f"bytes={start}-{end}"})
        assert part.status == 206
    await sweep(client)
    assert not path.exists()


async def test_what_is_asked_wrongly_is_refused(client):
    answer = await client.request("POST", "/guarded/janitor/sweep?dry_run=maybe")
    assert_refusal(answer, "invalid_request", 400)
    assert_refusal(await client.request("GET", "/guarded/janitor/sweep"), "method_not_allowed", 405)
    stranger = await client.request("POST", "/guarded/janitor/sweep", headers={"X-Forwarded-For": "1.2.3.4"})
    assert_refusal(stranger, "unauthorized", 401)


async def test_what_was_there_before_the_first_start_stays_until_the_operator_adopts_it(sandbox, tmp_path):
    mine = old(tmp_path / "base0" / "output" / "years" / "mine.png", 900 * DAY_S, size=1000)
    await asyncio.sleep(0.05)
    host = sandbox()
    async with connected(host) as client:
        report = await sweep(client)
        photo = client.base / "input" / PHOTO
        assert report["kept"]["existing"] == {"files": 2, "bytes": 1000 + photo.stat().st_size}
    host.stop()
    host.start()
    async with connected(host) as client:
        await sweep(client)
        assert mine.exists()
        await client.request("POST", "/guarded/janitor/native", body={"sweep": True})
        adopted = await client.request("POST", "/guarded/janitor/adopt")
        assert adopted.json["adopted"] is True
        await sweep(client)
        assert not mine.exists()


async def test_what_no_job_has_made_stays_until_somebody_says_so_and_that_word_survives_a_kill(sandbox, tmp_path):
    host = sandbox()
    async with connected(host) as client:
        job = await client.run(picture(unique("janitor")))
        artifact = job["artifacts"][0]
        assert (await client.request("GET", artifact["url"])).status == 200
        made = old(host.base / "output" / artifact["filename"])
        mine = [
            old(host.base / "output" / "a" / "mine.png", size=1000),
            old(host.base / "input" / "mine.png", size=500),
        ]
        temp = old(host.base / "temp" / "preview.png", size=10)
        report = await sweep(client)
        assert not made.exists()
        assert not temp.exists()
        assert all(path.exists() for path in mine)
        assert report["kept"]["native"] == {"files": 2, "bytes": 1500}

        async def counted() -> dict[str, Any]:
            return (await client.get("/guarded/janitor"))["native"]

        native = await client.polled(counted, lambda native: native["files"] is not None)
        assert native == {"sweep": "ask", "by_setting": False, "files": 2, "bytes": 1500}
        said = await client.request("POST", "/guarded/janitor/native", body={"sweep": True})
        assert said.json["native"]["sweep"] is True
    host.kill()
    host.start()
    async with connected(host) as client:
        assert (await client.get("/guarded/janitor"))["native"]["sweep"] is True
        assert all(path.exists() for path in mine)
        await sweep(client)
        assert not any(path.exists() for path in mine)
        await client.request("POST", "/guarded/janitor/native", body={"sweep": False})
        kept = old(host.base / "output" / "kept.png", size=1000)
        assert (await sweep(client))["kept"]["native"]["files"] == 1
        assert kept.exists()
    log = host.log.read_text()
    assert "output after 24 h, temp after 1 h, input after 168 h: of output and input only what jobs made" in log
    assert "input after 168 h: whoever made it" in log


@pytest.mark.parametrize("body", [{}, {"sweep": "yes"}, {"sweep": None}, {"sweep": True, "really": True}])
async def test_half_a_word_on_what_no_job_has_made_changes_nothing(client, body):
    answer = await client.request("POST", "/guarded/janitor/native", body=body)
    assert_refusal(answer, "invalid_request", 400)
    assert (await client.get("/guarded/janitor"))["native"]["sweep"] is True


async def test_a_setting_has_the_last_word_on_what_no_job_has_made(sandbox_client):
    client = await sandbox_client(GUARDED_JANITOR__SWEEP_NATIVE="false")
    answer = await client.request("POST", "/guarded/janitor/native", body={"sweep": True})
    assert_refusal(answer, "invalid_request", 400)
    path = old(client.base / "output" / "x.png", size=10)
    await sweep(client)
    assert path.exists()


async def test_a_server_that_swept_before_it_could_ask_goes_on(sandbox, tmp_path):
    own = tmp_path / "base0" / "user" / "__guarded"
    own.mkdir(parents=True)
    # As the version before wrote it.
    (own / "janitor.json").write_text('{"first_start_ms": 0, "adopted": false}')
    host = sandbox()
    async with connected(host) as client:
        path = old(host.base / "output" / "x.png", size=10)
        assert (await client.get("/guarded/janitor"))["native"]["sweep"] is True
        await sweep(client)
        assert not path.exists()


async def test_the_thread_sweeps_by_itself(sandbox_client):
    client = await sandbox_client(GUARDED_JANITOR__INTERVAL_S="1", GUARDED_JANITOR__SWEEP_NATIVE="true")
    path = old(client.base / "output" / "x.png", size=10)
    await client.polled(lambda: asyncio.to_thread(path.exists), lambda exists: not exists)


LIMITS = {
    "GUARDED_JANITOR__SWEEP_NATIVE": "true",
    "GUARDED_JANITOR__MIN_FREE_BYTES": str(30 * MB),
    "GUARDED_JANITOR__TARGET_FREE_BYTES": str(40 * MB),
    "GUARDED_JANITOR__FLOOR_FREE_BYTES": str(10 * MB),
}

#: A pack that makes the server believe in a disk of 64 MB, on which only the base directory's three roots lie.
SMALL_DISK = """
import pathlib, shutil

BASE = pathlib.Path(__file__).absolute().parents[2]

def disk_usage(_path):
    used = int((BASE / "others").read_text())
    for root in ("output", "temp", "input"):
        used += sum(path.lstat().st_size for path in (BASE / root).rglob("*") if path.is_file())
    return shutil._ntuple_diskusage(64 * 2**20, used, max(64 * 2**20 - used, 0))

shutil.disk_usage = disk_usage
NODE_CLASS_MAPPINGS = {}
"""


@pytest.fixture(params=kinds())
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., HostProcess]]:
    """Starts servers that believe in a disk of 64 MB."""
    kind: HostKind = request.param
    made: list[HostProcess] = []

    def start(**environment: str) -> HostProcess:
        process = HostProcess(kind, tmp_path / "base", environment={**LIMITS, **environment})
        made.append(process)
        (process.base / "others").write_text("0")
        pack = process.base / "custom_nodes" / "aaa_small_disk"
        pack.mkdir(exist_ok=True)
        (pack / "__init__.py").write_text(SMALL_DISK)
        return process.start()

    yield start
    for process in made:
        process.stop()


async def states(client: Client) -> set[str]:
    return {disk["state"] for disk in (await client.get("/guarded/janitor"))["disks"]}


@pytest.mark.timeout(360)
async def test_a_disk_that_runs_full_costs_the_oldest_files_then_refuses_jobs_and_comes_back_by_itself(small):
    host = small()
    async with connected(host) as client:
        files = {
            hours: old(host.base / root / f"{hours}.bin", hours * 3600, size=6 * MB)
            for hours, root in ((5, "output"), (0.5, "temp"), (4, "input"), (2, "output"), (3, "output"))
        }
        await client.polled(lambda: states(client), lambda seen: seen == {"ok"})
        # Pressure: 42 of 64 MB are taken; until 40 are free, the oldest go, whatever their age.
        (host.base / "others").write_text(str(12 * MB))
        await client.polled(lambda: asyncio.to_thread(files[3].exists), lambda exists: not exists)
        assert [hours for hours in sorted(files) if files[hours].exists()] == [0.5, 2]
        await client.polled(
            lambda: client.get("/guarded/janitor"),
            lambda status: sum(report["oldest"]["files"] for report in status["sweeps"]) == 3,
        )
        await client.assert_takes_jobs()

        # The floor: somebody else fills the disk; nothing of ours could make enough room.
        (host.base / "others").write_text(str(60 * MB))
        await client.polled(lambda: states(client), lambda seen: seen == {"full"})
        refusal = await client.submit(text())
        body = assert_refusal(refusal, "disk_full", 507)
        assert body["error"]["extra_info"]["floor_free_bytes"] == 10 * MB
        assert int(refusal.headers["Retry-After"]) >= 1
        ready = await client.request("GET", "/guarded/ready")
        assert (ready.status, ready.json["problems"]) == (503, ["disk full"])
        assert (await client.request("GET", "/guarded/health")).status == 200

        # Recovery, without anybody's doing.
        (host.base / "others").write_text("0")
        await client.polled(lambda: client.submit(text()), lambda answer: answer.status == 200)
        assert (await client.request("GET", "/guarded/ready")).status == 200
        await client.assert_takes_jobs()


async def test_a_job_that_is_in_is_finished_while_the_disk_is_below_its_floor(small):
    host = small()
    async with connected(host) as client:
        async with client.busy():
            job_id = await client.admitted(picture())
            (host.base / "others").write_text(str(60 * MB))
            await client.polled(lambda: states(client), lambda seen: seen == {"full"})
        assert_succeeded(await client.settled(job_id))


async def test_a_real_small_disk_is_kept_from_running_full(sandbox, tmp_path):
    output = tmp_path / "base0" / "output"
    output.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(output)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this user cannot mount a small file system")
    try:
        async with connected(sandbox(**LIMITS)) as client:
            files = [old(output / "deep" / f"{hours}.bin", hours * 3600, size=6 * MB) for hours in range(1, 6)]
            with open(output / "young.bin", "wb") as young:
                os.posix_fallocate(young.fileno(), 0, 12 * MB)
            await client.polled(lambda: asyncio.to_thread(files[2].exists), lambda exists: not exists)
            assert [path.exists() for path in files] == [True, True, False, False, False]
            await client.polled(lambda: states(client), lambda seen: seen == {"ok"})

            # Young files are nobody's to delete, so that these fill it for good: 57 of 64 MB.
            (output / "younger.bin").write_bytes(b"x" * 35 * MB)
            await client.polled(lambda: asyncio.to_thread(files[0].exists), lambda exists: not exists)
            (output / "youngest.bin").write_bytes(b"x" * 10 * MB)
            await client.polled(lambda: states(client), lambda seen: "full" in seen)
            assert_refusal(await client.submit(text()), "disk_full", 507)
            (output / "younger.bin").unlink()
            (output / "youngest.bin").unlink()
            await client.polled(lambda: client.submit(text()), lambda answer: answer.status == 200)
            await client.assert_takes_jobs()
            client.host.stop()
    finally:
        subprocess.run(["umount", "-l", str(output)], check=True)


async def test_names_of_any_kind_are_told_as_json(sandbox_client):
    client = await sandbox_client(GUARDED_JANITOR__SWEEP_NATIVE="true")
    old(client.base / "output" / "line\nbreak.png", size=10)
    if os.name != "nt":
        old(client.base / "output" / os.fsdecode(b"\xff.png"), size=10)
    report = await sweep(client, "?dry_run=1")
    assert "output/line\\nbreak.png" in report["samples"]
    json.dumps(report).encode()
