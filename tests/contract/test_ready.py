"""The next job is ready before the worker asks for it: ComfyUI is not asked twice about a prompt."""

import itertools

import pytest
from contract.client import Client, assert_ended_badly, assert_succeeded, node, photo_copy, picture, save, sleep, text


async def times_shown(client: Client, job_id: str) -> int:
    """How often the on_prompt handler of a pack has seen the job's prompt."""
    return int((await client.get(f"/guarded_faults/shown/{job_id}"))["times"])


async def test_other_packs_see_the_prompt_of_a_job_once_and_what_they_change_runs(client):
    alone = await client.admitted(picture())
    assert_succeeded(await client.settled(alone))
    async with client.busy():
        ids = [await client.admitted(prompt) for prompt in (picture(), text("%shown%"), picture())]
    for job_id in ids:
        assert_succeeded(await client.settled(job_id))
    assert [await times_shown(client, job_id) for job_id in (alone, *ids)] == [1, 1, 1, 1]
    assert (await client.job(ids[1]))["outputs"]["1"]["text"] == ["shown"]


async def test_a_prompt_is_shown_again_where_a_node_checks_its_inputs_by_code_of_its_own(client):
    checked = {"1": node("FaultValidation", does="pass", at="dispatch", seed=0), "2": save()}
    async with client.busy():
        job_id = await client.admitted(checked)
    assert_succeeded(await client.settled(job_id))
    assert await times_shown(client, job_id) == 2


@pytest.mark.parametrize("change", ["touch", "delete"])
async def test_a_prompt_is_shown_again_where_a_file_that_it_names_has_changed(client, change):
    photo = client.host.base / "input" / f"ready-{change}.png"
    photo.write_bytes((client.host.base / "input" / "photo.png").read_bytes())
    async with client.busy():
        changed, unchanged = (
            await client.admitted(photo_copy(photo.name)),
            await client.admitted(photo_copy("photo.png")),
        )
        photo.touch() if change == "touch" else photo.unlink()
    job = await client.settled(changed)
    assert_succeeded(job) if change == "touch" else assert_ended_badly(job, "bad_image")
    assert_succeeded(await client.settled(unchanged))
    assert (await times_shown(client, changed), await times_shown(client, unchanged)) == (2, 1)


async def test_a_native_prompt_that_waits_has_its_turn_before_the_jobs_that_do_not_have_a_slot_yet(client):
    async with client.busy():
        first, second = [await client.admitted(sleep(0.05)) for _ in range(2)]
        native = await client.native_submit(sleep(0.05))
    assert_succeeded(await client.settled(second))
    entries = [await client.native_entry(prompt_id) for prompt_id in (native, first, second)]
    starts = [dict(entry["status"]["messages"])["execution_start"]["timestamp"] for entry in entries]
    assert starts == sorted(starts)


async def test_jobs_show_numbers_as_comfyui_gives_them(client):
    async with client.busy():
        ids = [await client.admitted(sleep(0.3)) for _ in range(3)]
    for job_id in ids:
        await client.running(job_id)
        running = (await client.get("/queue"))["queue_running"]
        assert all(0 <= item[0] < 2**31 for item in running), running
        assert_succeeded(await client.settled(job_id))
    numbers = [(await client.native_entry(job_id))["prompt"][0] for job_id in ids]
    assert all(before < after for before, after in itertools.pairwise(numbers)), numbers
    assert numbers[0] >= 0
