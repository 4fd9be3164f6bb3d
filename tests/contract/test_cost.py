"""What a job took, as its owner is told it."""

import csv
import io

import pytest
from contract.client import assert_succeeded, raises, save, sleep


async def test_a_job_says_what_it_took_and_its_owner_what_all_took(client, keys):
    mine = keys.of(client, "mine")
    before = await mine.get("/guarded/spending")
    job = await mine.run({**sleep(0.5), "3": save("1")}, guard={"user": "=u1"})
    assert_succeeded(job)
    cost = job["cost"]
    assert cost["run_s"] == pytest.approx(sum(one["s"] for one in cost["nodes"]), abs=0.5)
    assert cost["nodes"][0]["class_type"] == "FaultSleep"
    assert 0.5 <= cost["nodes"][0]["s"] <= cost["run_s"]
    assert {one["class_type"] for one in cost["nodes"]} == {"FaultSleep", "SaveImage"}
    assert cost["load_s"] == 0
    assert min(cost["queue_s"], cost["check_s"]) >= 0
    failed = await mine.run(raises("value_error"))
    assert failed["refund"] is True
    assert failed["cost"]["run_s"] >= 0, "the worker has spent it"
    after = await mine.get("/guarded/spending")
    assert after["runs"] - before["runs"] == 2
    assert after["gpu_s"] - before["gpu_s"] == pytest.approx(cost["run_s"] + failed["cost"]["run_s"], abs=0.01)
    assert {row["owner"] for row in after["rows"]} == {"mine"}
    answer = await mine.request("GET", "/guarded/spending?format=csv")
    rows = list(csv.DictReader(io.StringIO(answer.content.decode())))
    assert "'=u1" in {row["user"] for row in rows}, "no spreadsheet takes it for a formula"
    assert {row["owner"] for row in rows} == {"mine"}
