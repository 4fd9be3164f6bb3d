"""Films through VideoHelperSuite, silent ones among them, as the template `liveportrait` loads and saves them."""

import pytest
from contract.client import assert_succeeded, node, unique


def film(motion: str, **inputs):
    """The motion's frames and its sound, saved as the template saves them."""
    size = {"custom_width": 64, "custom_height": 64, "frame_load_cap": 16}
    given = {"frame_rate": 8, "loop_count": 0, "pingpong": False, "save_output": True, "format": "video/h264-mp4"}
    load = {"video": motion, "force_rate": 8, "skip_first_frames": 0, "select_every_nth": 1, **size}
    return {
        "1": node("VHS_LoadVideo", **load),
        "2": node("GuardedLoadSound", video=motion, longest_s=15.0),
        "3": node("VHS_VideoCombine", images=["1", 0], audio=["2", 0], filename_prefix=unique("f"), **given, **inputs),
    }


@pytest.mark.parametrize("motion", ["silent.mp4", "sounding.mp4"])
async def test_a_motion_with_or_without_sound_becomes_a_film(client, motion):
    job = await client.run(film(motion))
    assert_succeeded(job)
    (artifact,) = job["artifacts"]
    assert (artifact["kind"], artifact["frames"]) == ("video", 16)
    assert ("no_audio" in artifact["warnings"]) is (motion == "silent.mp4")
    assert artifact["filename"].endswith("-audio.mp4") is (motion == "sounding.mp4")
