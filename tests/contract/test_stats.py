"""/guarded/stats and /guarded/metrics over HTTP, beside real jobs."""

from typing import Any

from contract.client import Client, assert_refusal, picture, raises, sleep, text
from prometheus_client.parser import text_string_to_metric_families

OUTCOMES = {"jobs", "succeeded", "failed", "cancelled", "average_run_s", "success_rate", "by_code", "refused"}


async def test_the_figures_move_with_the_jobs(client: Client):
    before = await client.get("/guarded/stats")
    await client.run(text())
    await client.run(picture())
    await client.run(raises("value_error"))
    async with client.busy() as cancelled:
        pass
    await client.settled(cancelled)

    def moved(stats: dict[str, Any]) -> bool:
        return all(
            stats["windows"]["24h"][name] - before["windows"]["24h"][name] >= count
            for name, count in (("succeeded", 2), ("failed", 1), ("cancelled", 1))
        )

    stats = await client.polled(lambda: client.get("/guarded/stats"), moved)
    machine = {"gpu", "disk", "worker", "warmup", "alarms", "unseen_alarms", "failing"}
    assert set(stats) == {"now_ms", "windows", "queue", "slowest", "chart", "refused_since_ms", *machine}
    assert all(set(window) == OUTCOMES for window in stats["windows"].values())
    assert stats["windows"]["7d"]["by_code"]["generation_failed"] >= 1
    assert stats["windows"]["7d"]["average_run_s"] > 0
    assert stats["queue"] == {"queued": 0, "running": 0, "max_jobs": 1}
    assert stats["worker"]["alive"] is True
    assert stats["slowest"][0]["p95_run_s"] >= stats["slowest"][0]["median_run_s"]
    assert sum(stats["chart"][-1][name] for name in ("succeeded", "failed", "cancelled")) >= 1


async def test_what_is_refused_at_the_door_is_counted_by_code(client: Client):
    before = (await client.get("/guarded/stats"))["windows"]["1h"]["refused"]
    await client.submit({})
    await client.submit(text(), guard={"unknown": 1})
    await client.request("POST", "/guarded/prompt", raw=b"no json")
    await client.request("POST", "/guarded/workflows/absent", {})
    await client.request("GET", "/guarded/jobs/absent")  # no job was asked for

    def moved(stats: dict[str, Any]) -> bool:
        return stats["windows"]["1h"]["refused"].get("not_found", 0) > before.get("not_found", 0)

    after = (await client.polled(lambda: client.get("/guarded/stats"), moved))["windows"]["1h"]["refused"]
    changed = {code: count - before.get(code, 0) for code, count in after.items() if count != before.get(code, 0)}
    assert changed == {"invalid_request": 2, "invalid_workflow": 1, "not_found": 1}


async def test_what_runs_and_the_files_on_the_disks_are_shown(client: Client):
    async with client.busy() as job_id:
        stats = await client.polled(
            lambda: client.get("/guarded/stats"), lambda stats: stats["worker"]["running"] == job_id
        )
        assert stats["worker"]["running"] == job_id
    counted = await client.polled(
        lambda: client.get("/guarded/stats"), lambda stats: stats["disk"]["input"]["files"] is not None
    )
    assert set(counted["disk"]) == {"output", "temp", "input"}
    for place in counted["disk"].values():
        assert place["total_bytes"] >= place["free_bytes"] > 0
    assert counted["disk"]["input"]["files"] >= 1  # the photo of the other tests


async def test_a_scrape_has_the_jobs_that_ended_and_how(client: Client):
    answer = await client.request("GET", "/guarded/metrics")
    if answer.status == 503 and client.host.kind.real:
        # A ComfyUI of somebody else, whose Python lacks the package: it says so, and all else works.
        assert assert_refusal(answer, "server_unavailable")["error"]["extra_info"]["package"] == "prometheus-client"
        return
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"

    async def counted() -> dict[tuple[str, ...], float]:
        text = (await client.request("GET", "/guarded/metrics")).content.decode()
        return {
            (sample.name, *(value for _label, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    before = await counted()
    await client.run(text())
    await client.run(raises("value_error"))
    assert_refusal(await client.submit({}), "invalid_workflow")
    after = await counted()
    refused = ("guarded_admission_refusals_total", "invalid_workflow")
    succeeded = ("guarded_jobs_settled_total", "", "succeeded")
    assert after[succeeded] == before[succeeded] + 1
    assert after[refused] == before.get(refused, 0) + 1
    assert after["guarded_jobs_admitted_total",] == before["guarded_jobs_admitted_total",] + 2
    assert after["guarded_ready",] == after["guarded_worker_up",] == 1
    assert after["process_resident_memory_bytes",] > 0


async def test_alarms_are_listed_for_operators_until_they_are_seen(client: Client) -> None:
    late = [(await client.submit(sleep(60), guard={"timeout_s": 0.2})).json["prompt_id"] for _ in range(2)]

    def are_there(page: dict[str, Any]) -> bool:
        return set(late) <= {alarm["job_id"] for alarm in page["alarms"]}

    page = await client.polled(lambda: client.get("/guarded/alarms"), are_there)
    newest = page["alarms"][0]
    assert newest["code"] == "generation_timeout"
    assert page["unseen"] == sum(alarm["seen_at_ms"] is None for alarm in page["alarms"])
    (older,) = (await client.get(f"/guarded/alarms?limit=1&before={newest['id']}"))["alarms"]
    assert older["id"] < newest["id"]
    answer = await client.request("POST", "/guarded/alarms/seen", {"ids": [newest["id"]]})
    assert answer.json == {"unseen": page["unseen"] - 1}
    assert (await client.request("POST", "/guarded/alarms/seen", {"up_to": newest["id"]})).json == {"unseen": 0}
    assert (await client.get("/guarded/stats"))["unseen_alarms"] == 0
    assert_refusal(await client.request("POST", "/guarded/alarms/seen", {"ids": ["x"]}), "invalid_request")
