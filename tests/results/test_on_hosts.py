"""Broken results on a running server: each settles with its code, and nobody is handed a file."""

from typing import Any

import pytest
from contract.client import (
    Client,
    assert_ended_badly,
    assert_native_error,
    assert_succeeded,
    node,
    quarantined,
    save,
    unique,
)
from contract.conftest import hosts, is_real


def report(source: str, prefix: str | None = None, class_type: str = "ResultsReport") -> dict[str, Any]:
    return {"1": node(class_type, source=source, filename_prefix=prefix or unique())}


def black(nan: bool = False) -> dict[str, Any]:
    return node("FaultBlackImage", width=1024, height=1024, nan=nan, seed=0)


def frames(kind: str, count: int = 25, seed: int = 0) -> dict[str, Any]:
    return node("ResultsFrames", kind=kind, frames=count, seed=seed)


def written(client: Client, job: dict[str, Any]) -> list[Any]:
    """The files in the output folder that the job's artifacts name."""
    return [client.base / "output" / item["subfolder"] / item["filename"] for item in job["artifacts"]]


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        pytest.param({"1": black(), "2": save()}, "result_blank", id="black"),
        pytest.param({"1": black(nan=True), "2": save()}, "result_blank", id="nan, saved"),
        pytest.param(
            {"1": black(nan=True), "2": node("GuardedValidateImage", image=["1", 0]), "3": save("2")},
            "result_corrupt",
            id="nan, validated",
        ),
        pytest.param(
            {"1": frames("nan"), "2": node("GuardedValidateImage", image=["1", 0]), "3": save("2")},
            "result_corrupt",
            id="one nan",
        ),
        pytest.param(
            {"1": frames("nan"), "2": node("GuardedSaveImage", images=["1", 0], filename_prefix="x", format="png")},
            "result_corrupt",
            id="nan, saved by us",
        ),
        pytest.param(
            {"1": frames("moving", 1), "2": node("GuardedValidateImage", image=["1", 0], width=64), "3": save("2")},
            "result_incomplete",
            id="size",
        ),
        pytest.param(
            {
                "1": frames("frozen"),
                "2": node("GuardedValidateVideo", images=["1", 0], fps=25.0),
                "3": save("1"),
                "4": node("PreviewImage", images=["2", 1]),
            },
            "result_corrupt",
            id="frozen frames",
        ),
        pytest.param(
            {"1": node("FaultTruncatedImage", filename_prefix="cut", seed=0)}, "result_corrupt", id="truncated"
        ),
        pytest.param({"1": node("FaultTinyFile", filename_prefix="tiny", seed=0)}, "result_too_small", id="tiny"),
        pytest.param({"1": node("FaultMissingFile", filename_prefix="no", seed=0)}, "result_missing", id="missing"),
        pytest.param(report("frozen.mp4"), "result_corrupt", id="frozen film"),
        pytest.param(report("half.webm"), "result_corrupt", id="half a film"),
        pytest.param(report("silent.wav"), "result_blank", id="silent sound"),
    ],
)
async def test_a_broken_result_settles_with_its_code(client: Client, prompt: dict[str, Any], code: str):
    job = await client.run(prompt)
    assert_ended_badly(job, code)
    assert_native_error(await client.native_entry(job["job_id"]))
    assert (await client.request("GET", f"/guarded/jobs/{job['job_id']}/artifacts/0")).status == 404
    await client.assert_takes_jobs()


async def test_a_refused_file_is_in_quarantine_and_nowhere_else(client: Client):
    prefix = unique()
    job = await client.run(report("frozen.mp4", prefix))
    assert_ended_badly(job, "result_corrupt")
    assert job["error"]["details"]["check"] == "frozen"
    assert list((client.base / "output").glob(f"{prefix}*")) == []
    (kept,) = quarantined(client.base, job["job_id"])
    assert kept.read_bytes() == (client.base / "input" / "frozen.mp4").read_bytes()
    assert (await client.request("GET", f"/view?filename={kept.name}&type=output")).status == 404


async def test_a_film_comes_with_its_measures(client: Client):
    job = await client.run(report("good.mp4"))
    assert_succeeded(job)
    (artifact,) = job["artifacts"]
    assert (artifact["kind"], artifact["width"], artifact["height"]) == ("video", 256, 256)
    assert (artifact["frames"], artifact["fps"], artifact["duration_s"]) == (50, 25, 2)
    assert artifact["warnings"] == ["low_bitrate"]


async def test_an_unknown_kind_passes_with_a_warning(client: Client):
    job = await client.run(report("model.glb"))
    assert_succeeded(job)
    assert (job["artifacts"][0]["kind"], job["artifacts"][0]["warnings"]) == ("other", ["unknown_kind"])


@pytest.mark.parametrize("shape", ["3d", "path", "sentence", "annotated", "deep", "beside"])
async def test_a_file_is_a_result_in_whatever_shape_its_node_reports_it(client: Client, shape: str):
    prompt = report("good.png", f"some/{unique()}", "ResultsNamed")
    prompt["1"]["inputs"]["shape"] = shape
    job = await client.run(prompt)
    assert_succeeded(job)
    (artifact,) = job["artifacts"]
    assert (artifact["node_id"], artifact["kind"], artifact["type"]) == ("1", "image", "output")
    content = (client.base / "input" / "good.png").read_bytes()
    assert (await client.request("GET", artifact["url"])).content == content
    prompt["1"]["inputs"]["source"] = "frozen.mp4"
    job = await client.run(prompt)
    assert_ended_badly(job, "result_corrupt")
    assert len(quarantined(client.base, job["job_id"])) == 1


async def test_a_sequence_has_the_same_number_wherever_its_name_asks_for_one(client: Client):
    """As VideoHelperSuite names the pictures of a film whose prefix has a `%03d` too."""
    prompt = report("good.png", unique("seq"), "ResultsNamed")
    prompt["1"]["inputs"]["shape"] = "sequence"
    job = await client.run(prompt)
    assert_succeeded(job)
    names = [item["filename"] for item in job["artifacts"]]
    assert [(name.partition(" % ")[0], name.split(".")[-2]) for name in names] == [
        ("007", "7"), ("008", "8"), ("1000", "1000"),
    ]  # fmt: skip


async def test_a_text_that_names_no_file_of_the_run_is_a_text(client: Client):
    earlier = await client.run(report("good.png", unique()))
    (name,) = (item["filename"] for item in earlier["artifacts"])
    prompt = report("good.png", unique(), "ResultsNamed")
    prompt["1"]["inputs"]["shape"] = "nothing"
    prompt["2"] = node("PreviewAny", source=name)
    job = await client.run(prompt)
    assert_succeeded(job)
    assert job["artifacts"] == []


async def test_after_its_cached_file_was_deleted_a_job_makes_its_own(client: Client):
    """ComfyUI would answer from its cache, with the name of a file that is not there."""
    prompt = {"1": frames("moving", 1, seed=5), "2": save("1", unique())}
    await client.native_entry(await client.native_submit(prompt))
    seen = []
    for _ in range(3):
        job = await client.run(prompt)
        assert_succeeded(job)
        (path,) = written(client, job)
        assert path.is_file()
        seen.append((path, (await client.request("GET", job["artifacts"][0]["url"])).status))
        path.unlink()
    assert [status for _, status in seen] == [200, 200, 200]


async def test_a_node_that_takes_any_input_makes_each_job_a_file_of_its_own(client: Client):
    """Nothing can be put into its inputs, so that the prompts are equal for ComfyUI's cache."""
    prompt = report("good.png", unique(), "ResultsCached")
    paths = set()
    for _ in range(3):
        assert_succeeded(job := await client.run(prompt))
        paths |= set(written(client, job))
        assert (await client.request("GET", job["artifacts"][0]["url"])).status == 200
    assert len(paths) == 3
    native = [await client.native_entry(await client.native_submit(prompt)) for _ in range(2)]
    first, second = (entry["outputs"] for entry in native)
    assert first == second, "ComfyUI's own prompts go on being answered from its cache"


async def test_a_name_that_comes_again_does_not_show_the_next_customers_picture(client: Client):
    prefix = unique()
    first = await client.run(report("good.png", prefix))
    (path,) = written(client, first)
    path.unlink()
    second = await client.run(report("other.png", prefix))
    assert written(client, second) == [path]
    gone = await client.request("GET", first["artifacts"][0]["url"])
    assert (gone.status, gone.code) == (410, "artifact_gone")
    answer = await client.request("GET", second["artifacts"][0]["url"])
    assert answer.content == (client.base / "input" / "other.png").read_bytes()


async def test_validators_and_our_own_save_go_through(client: Client):
    prompt = {
        "1": frames("moving", 2),
        "2": node("GuardedValidateImage", image=["1", 0], width=128, height=128, frames=2),
        "3": node("GuardedSaveImage", images=["2", 0], filename_prefix=f"a/{unique()}", format="webp", quality=90),
    }
    first, second = await client.run(prompt), await client.run(prompt)
    names = [item["filename"] for job in (first, second) for item in job["artifacts"]]
    assert len(set(names)) == 4
    assert first["job_id"].replace("-", "")[:8] in names[0]
    for job in (first, second):
        assert_succeeded(job)
        assert all(path.is_file() for path in written(client, job))


async def test_on_fail_warn_lets_a_bad_image_pass_into_the_graph(client: Client):
    prompt = {
        "1": frames("moving", 1),
        "2": node("GuardedValidateImage", image=["1", 0], width=64, on_fail="warn"),
        "3": save("2"),
    }
    assert_succeeded(await client.run(prompt))


# With ComfyUI's own video nodes. -----------------------------------------------------------------------------


#: The sandbox has no VIDEO.
on_real_hosts = hosts(is_real)


def video(kind: str, **checks: Any) -> dict[str, Any]:
    return {
        "1": frames(kind, 50),
        "2": node("CreateVideo", images=["1", 0], fps=25.0),
        "3": node("GuardedValidateVideo", video=["2", 0], **checks),
        "4": node("SaveVideo", video=["3", 0], filename_prefix=unique(), format="mp4", codec="h264"),
    }


@pytest.mark.parametrize(("slot", "code"), [(1, None), (0, "result_too_small")])
async def test_what_shows_a_mask_may_be_black_whatever_its_input_is_called(client: Client, slot: int, code: str | None):
    """The same file as a picture is refused."""
    prompt = {
        "1": node("LoadImage", image="good.png"),
        "2": node("ResultsShown", source="black.png", filename_prefix=unique(), shown=["1", slot]),
    }
    job = await client.run(prompt)
    assert_succeeded(job) if code is None else assert_ended_badly(job, code)


@on_real_hosts
async def test_a_video_is_validated_and_saved(client: Client):
    job = await client.run(video("moving", duration_s=2.0, width=128, frames=50))
    assert_succeeded(job)
    (artifact,) = job["artifacts"]
    assert (artifact["kind"], artifact["frames"], artifact["fps"], artifact["duration_s"]) == ("video", 50, 25, 2)


@pytest.mark.parametrize(
    ("kind", "checks", "code"),
    [
        ("frozen", {}, "result_corrupt"),
        ("black", {}, "result_blank"),
        ("nan", {}, "result_corrupt"),
        ("moving", {"duration_s": 3.0}, "result_incomplete"),
        ("moving", {"needs_audio": True}, "result_incomplete"),
    ],
)
@on_real_hosts
async def test_a_bad_video_does_not_get_as_far_as_a_file(client: Client, kind: str, checks: dict[str, Any], code: str):
    assert_ended_badly(await client.run(video(kind, **checks)), code)


@pytest.mark.parametrize(("kind", "code"), [("moving", None), ("frozen", "result_corrupt")])
@on_real_hosts
async def test_a_webm_of_comfyuis_own_writer_is_judged(client: Client, kind: str, code: str | None):
    prompt = {
        "1": frames(kind, 50),
        "2": node("SaveWEBM", images=["1", 0], filename_prefix=unique(), codec="vp9", fps=25.0, crf=20.0),
    }
    job = await client.run(prompt)
    if code is None:
        assert_succeeded(job)
        assert job["artifacts"][0]["frames"] == 50
    else:
        assert_ended_badly(job, code)


@on_real_hosts
async def test_a_video_file_is_validated_without_loading_it(client: Client):
    prompt = {
        "1": node("LoadVideo", file="good.mp4"),
        "2": node("GuardedValidateVideo", video=["1", 0], duration_s=2.0),
        "3": node("SaveVideo", video=["2", 0], filename_prefix=unique(), format="auto", codec="auto"),
    }
    assert_succeeded(await client.run(prompt))
    assert_ended_badly(await client.run({**prompt, "1": node("LoadVideo", file="frozen.mp4")}), "result_corrupt")
