"""A film of which `Video Slice` nodes leave nothing is refused before there is a job."""

import io

import av
import pytest
from policy.test_loaded_savers import film, judge, node, save  # noqa: F401

from comfyui_guarded.guard.errors import BadVideoError

FILM = film("mp4", "mpeg4")  # a second long


def cut(*, video=("1", 0), **inputs):
    return node("Video Slice", video=list(video), **inputs)


@pytest.mark.parametrize(
    ("inputs", "passes"),
    [
        ({}, True),
        ({"start_time": 0.5}, True),
        ({"start_time": 0.5, "duration": 9.0}, True),
        ({"start_time": -9.0}, True),
        ({"start_time": ["9", 0]}, True),
        ({"start_time": 1.5}, False),
        ({"start_time": 1.5, "duration": 1.0}, False),
        ({"start_time": 0.5, "duration": 0.3, "strict_duration": True}, True),
        ({"start_time": 0.5, "duration": 0.9, "strict_duration": True}, False),
    ],
)
def test_a_slice_lies_within_its_film(judge, inputs, passes):  # noqa: F811
    graph = {"2": cut(**inputs), "3": node("GetVideoComponents", video=["2", 0]), "9": node("PrimitiveFloat", value=9)}
    if passes:
        assert judge(FILM, graph).frames == 12
        return
    with pytest.raises(BadVideoError) as caught:
        judge(FILM, graph)
    assert "1 s long" in caught.value.details
    assert caught.value.extra_info["node_id"] == "1"


def test_a_slice_of_a_slice_begins_where_that_one_does(judge):  # noqa: F811
    graph = {"2": cut(start_time=0.7), "3": cut(video=("2", 0), start_time=0.7), "4": save(video=["3", 0])}
    with pytest.raises(BadVideoError):
        judge(FILM, graph)
    graph["2"]["inputs"]["start_time"] = -0.7
    assert judge(FILM, graph).frames == 12


def test_a_film_that_begins_late_is_counted_from_its_files_beginning(judge):  # noqa: F811
    late = io.BytesIO()
    with av.open(io.BytesIO(FILM)) as source, av.open(late, "w", format="matroska") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream, ticks = stream, int(5 / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                container.mux(packet)
    assert judge(late.getvalue(), {"2": cut(start_time=5.5)}).frames == 12
    with pytest.raises(BadVideoError):
        judge(late.getvalue(), {"2": cut(start_time=12.0)})
