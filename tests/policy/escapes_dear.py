# ruff: noqa: E501 - a table
"""Prompts that the a5000 profile must refuse with `strict`, and others like them that it must let in.

Texts and lists that go through nodes which nobody follows, sizes out of boxes and times, and whatever makes a step of a
sampler cost more than one call of its model.
"""

import json
from typing import Any

from policy.escapes import SAVED, Case, Graph, Media, image, latent, listed, node

MODEL = {
    "m": node("CheckpointLoaderSimple", ckpt_name="x.safetensors"),
    "p": node("CLIPTextEncode", clip=["m", 1], text="a"),
}


def places(count: int) -> str:
    return json.dumps([{"x": at, "y": 0} for at in range(count)])


def shapes(source: Any, side: int = 4096, **more: Any) -> Graph:
    sizes = {"frame_width": side, "frame_height": side, "shape_width": 9, "shape_height": 9}
    return {"x": node("CreateShapeMaskOnPath", shape="circle", coordinates=source, **sizes), **more}


def spline(count: int, repeat: int = 1) -> dict[str, Any]:
    return node("SplineEditor", points_store="[]", coordinates=places(count), mask_width=64, mask_height=64, points_to_sample=16,
                sampling_method="time", interpolation="cardinal", tension=0.5, repeat_output=repeat, float_output_type="list")  # fmt: skip


def points(count: int) -> dict[str, Any]:
    return node("PointsEditor", points_store="[]", coordinates=places(count), neg_coordinates="[]", bbox_store="[]", bboxes="[]",
                bbox_format="xyxy", width=512, height=512, normalize=False)  # fmt: skip


def through(kind: str, name: str, count: int, side: int = 4096, **more: Any) -> Graph:
    return shapes(
        ["n", 0], side, t=node("PrimitiveString", value=places(count)), n=node(kind, **{name: ["t", 0]}, **more)
    )


def resized(film: Media, **resize: Any) -> tuple[Graph, dict[str, Media]]:
    sizes = {"width": 64, "height": 64, "repeat": 1, "keep_proportion": False, "divisible_by": 2}
    loader = node("LoadAndResizeImage", image="a.gif", **resize, **sizes)
    return {"s": node("PrimitiveBoolean", value=False), "9": loader, **SAVED}, {"9": film}


def masks(side: int, **values: Any) -> Graph:
    return {"x": node("MaskFromList+", width=side, height=side, **values)}


def boxed(bboxes: Any, **more: Any) -> Graph:
    return {"x": node("DrawBBoxes", bboxes=bboxes), **more}


def box(x: Any = 0, y: Any = 0, width: Any = 512, height: Any = 512) -> dict[str, Any]:
    return {"x": x, "y": y, "width": width, "height": height}


def timed(mode: str, end: float, fps: float = 25.0, sound: bool = False) -> Graph:
    times = {"video_start_time": 0.0, "audio_start_time": 0.0, "video_end_time": end, "audio_end_time": end}
    film = node("EmptyLTXVLatentVideo", width=768, height=512, length=97, batch_size=1)
    heard = node("LTXVEmptyLatentAudio", frames_number=97, frame_rate=25, batch_size=1, audio_vae=["m", 2])
    given: Graph = {"audio_latent": ["a", 0]} if sound else {"video_latent": ["l", 0]}
    return {
        **MODEL,
        "l": film,
        "a": heard,
        "x": node("LTXVAudioVideoMask", video_fps=fps, max_length=mode, **times, **given),
    }


def sampled(
    side: int = 1024, steps: int = 30, sampler: dict[str, Any] | None = None, frames: int = 0, **patches: dict[str, Any]
) -> Graph:
    """With each patch of the model upon those before it."""
    last: list[Any] = ["m", 0]
    graph: Graph = dict(MODEL)
    for name, patch in patches.items():
        graph[name] = {**patch, "inputs": {**patch["inputs"], "model": last}}
        last = [name, 0]
    size = (
        node("EmptyHunyuanLatentVideo", width=side, height=side, length=frames, batch_size=1)
        if frames
        else latent(side, side)
    )
    return {
        **graph, "l": size, "i": node("BasicScheduler", model=last, scheduler="normal", steps=steps, denoise=1.0),
        "s": sampler or node("KSamplerSelect", sampler_name="euler"),
        "k": node("SamplerCustom", model=last, add_noise=True, noise_seed=1, cfg=7.0, positive=["p", 0], negative=["p", 0],
                  sampler=["s", 0], sigmas=["i", 0], latent_image=["l", 0]),
    }  # fmt: skip


def windows(
    length: int, overlap: int, schedule: str = "standard_static", stride: int = 1, dim: int = 2
) -> dict[str, Any]:
    return node("ContextWindowsManual", context_length=length, context_overlap=overlap, context_schedule=schedule, context_stride=stride,
                closed_loop=False, fuse_method="pyramid", dim=dim, freenoise=False)  # fmt: skip


def shrink(factor: float) -> dict[str, Any]:
    return node("PatchModelAddDownscale", block_number=3, downscale_factor=factor, start_percent=0.0, end_percent=0.35)


def adaptive(**given: float) -> dict[str, Any]:
    usual = {"order": 3, "rtol": 0.05, "atol": 0.0078, "h_init": 0.05, "pcoeff": 0.0, "icoeff": 1.0, "dcoeff": 0.0}
    return node("SamplerDPMAdaptative", **{**usual, "accept_safety": 0.81, "eta": 0.0, "s_noise": 1.0, **given})


def refine(mode: str, **plan: Any) -> dict[str, Any]:
    named = {f"input_mode.{name}": value for name, value in plan.items()}
    return node(
        "SamplerSelfRefineVideo", input_mode=mode, certain_percentage=0.999, uncertainty_threshold=0.2, seed=1, **named
    )


def ranged(first: int, last: int, steps: int) -> dict[str, Any]:
    return refine("1 range", start_step1=first, end_step1=last, steps_1=steps)


def controlled(count: int, side: int = 1024) -> Graph:
    graph = {**sampled(side), "c": node("ControlNetLoader", control_net_name="c.safetensors"), "e": image(512, 512)}
    for at in range(count):
        before = [f"c{at - 1}", 0] if at else ["p", 0]
        inputs = {"positive": before, "negative": ["p", 0], "control_net": ["c", 0], "image": ["e", 0], "strength": 1.0}
        graph[f"c{at}"] = node("ControlNetApplyAdvanced", start_percent=0.0, end_percent=1.0, **inputs)
    graph["k"]["inputs"]["positive"] = [f"c{count - 1}", 0]
    return graph


SEAMS = node(
    "HiDreamO1PatchSeamSmoothing",
    start_percent=0.0,
    end_percent=1.0,
    pattern="symmetric",
    passes="ramp_2_4_8",
    blend="average",
    strength=1.0,
)
ATTENTION = node("PerturbedAttentionGuidance", scale=3.0)
WAN = node("WanContextWindowsManual", context_length=81, context_overlap=30, context_schedule="standard_uniform", context_stride=1,
           closed_loop=False, fuse_method="pyramid", freenoise=True)  # fmt: skip
LONG = 9_999_999_999
ONES = ",".join(["1"] * 5001)

DEAR = [
    # Texts that go through nodes which nobody follows.
    *(Case(f"{count} places on a path, {how}", limit, graph)
      for count, limit in ((600, "max_film_pixels"), (16, None))
      for how, graph in (
          ("as a text", shapes(["t", 0], t=node("PrimitiveString", value=places(count)))),
          ("written out", through("SomethingToString", "input", count)),
          ("shown", through("DisplayAny", "input", count, mode="raw value")),
          ("by a condition", through("SimpleCondition+", "on_true", count, evaluate=1, on_false="[]")),
          ("by points", shapes(["e", 0], e=points(count))),
          ("by a spline", shapes(["e", 1], e=spline(count))),
          ("by a curve", shapes(["n", 0], e=spline(count), t=node("PrimitiveString", value=places(2)),
                                n=node("InterpolateCoords", coordinates=["t", 0], interpolation_curve=["e", 2]))),
      )),
    Case("places put together by a node that nobody follows", "max_frames", through("AppendStringsToList", "string1", 300, string2=places(300))),
    Case("places by a curve that comes again and again", "max_frames",
         shapes(["n", 0], 64, e=spline(16, 4096), t=node("PrimitiveString", value=places(2)),
                n=node("InterpolateCoords", coordinates=["t", 0], interpolation_curve=["e", 2]))),
    *(Case(f"places by a curve of a text with {count} numbers", limit,
           shapes(["n", 0], e=node("StringToFloatList", string=",".join(["0.5"] * count)), n=node("InterpolateCoords", coordinates=places(2), interpolation_curve=["e", 0])))
      for count, limit in ((600, "max_film_pixels"), (16, None))),
    Case("a piece cut out by many boxes", None, {"i": image(), "x": node("CropByBBoxes", image=["i", 0], bboxes=[box()] * 2000, output_width=512, output_height=512, padding=0)}),
    Case("places that a model writes", "strict",
         shapes(["n", 0], 64, t=node("TextGenerate", clip=["m", 1], prompt="x", max_length=4096), n=node("DisplayAny", input=["t", 0], mode="raw value"), **MODEL)),
    # Lists.
    Case("a mask for each number of a text", "max_frames", masks(64, str_values=ONES)),
    Case("a mask for each number of a list", "max_film_pixels", masks(2048, values=[1.0] * 900)),
    Case("a mask for each number of a text and a list", "max_frames", masks(64, str_values=",".join(["1"] * 600), values={"__value__": [1.0] * 600})),
    Case("a mask for each number of a list that a node makes", "max_frames", {**listed(10, 1.0), **masks(64, values=["s", 0]), "s": spline(600, 2)} | {"x": node("MaskFromList+", width=64, height=64, values=["s", 2])}),
    Case("a few masks", None, masks(1024, str_values="0.0, 0.5, 1.0", values=1.0)),
    *(Case(f"a mask of {side} pixels on a small picture that is padded", limit,
           {"i": image(64, 64), "m": node("SolidMask", value=1.0, width=side, height=side), "x": node("ImagePadForOutpaintMasked", image=["i", 0], mask=["m", 0], left=16, top=0, right=0, bottom=0, feathering=0),
            "t": node("MaskToImage", mask=["x", 1]), "e": node("VAEEncode", pixels=["t", 0], vae=["v", 0]),
            "k": node("KSampler", model=["m", 0], steps=20, latent_image=["e", 0])})
      for side, limit in ((4096, "max_pixels"), (1024, None))),
    # Sizes out of boxes, and out of times.
    Case("a canvas as large as a box", "max_pixels", boxed(box(width=60000, height=60000))),
    Case("a canvas as large as the last of many boxes", "max_pixels", boxed([[box()] * 20, [box(x=30000)]])),
    Case("a canvas as large as a box of texts", "max_pixels", boxed(box(x="600", width="00"))),
    Case("a canvas as large as two numbers of a box", "max_pixels",
         boxed(["b", 0], b=node("PrimitiveBoundingBox", x=16384, y=16384, width=16384, height=16384))),
    Case("a canvas as large as a box of a switch", "max_pixels",
         boxed(["s", 0], b=node("PrimitiveBoundingBox", x=0, y=0, width=16384, height=16384), s=node("SimpleCondition+", evaluate=1, on_true=["b", 0], on_false=["b", 0]))),
    Case("a canvas as large as a box that was drawn", "max_pixels",
         boxed(["b", 0], b=node("BBOXToBoundingBoxKJ", bbox=["e", 2], bbox_format="xyxy", index=0),
               e={**points(1), "inputs": {**points(1)["inputs"], "bboxes": json.dumps([{"startX": 0, "startY": 0, "endX": 60000, "endY": 60000}])}})),
    Case("a canvas as large as a small box", None, boxed(["b", 0], b=node("PrimitiveBoundingBox", **box()))),
    Case("boxes on a picture", None, {"i": image(), "x": node("DrawBBoxes", image=["i", 0], bboxes=[box()] * 200)}),
    Case("a film padded to an end", "max_frames", timed("pad", 10_000.0, 100.0)),
    Case("a film padded to an end nearby", None, timed("pad", 10.0)),
    Case("a film cut at an end", None, timed("truncate", 10_000.0, 100.0)),
    Case("a sound padded to an end", "max_seconds", timed("pad", 10_000.0, sound=True)),
    Case("a sound padded to an end nearby", None, timed("pad", 10.0, sound=True)),
    *(Case(f"people drawn on a canvas of {side} pixels that stands in the prompt", limit,
           {"x": node("SDPoseDrawKeypoints", keypoints=[{"people": [], "canvas_width": side, "canvas_height": side}], draw_body=True)})
      for side, limit in ((60000, "max_pixels"), (1024, None))),
    Case("as many drawings as parts in the prompt", "max_frames",
         {"x": node("SDPoseDrawKeypoints", keypoints=[{"people": [], "canvas_width": 64, "canvas_height": 64}] * 3000, draw_body=True)}),
    Case("a region that is cut out", None, {"i": image(4096, 4096), "x": node("ImageCropV2", image=["i", 0], crop_region=box(2000, 2000, 2096, 2096))}),
    # Steps that cost more than one call.
    Case("windows of which each is one pixel further", "max_pixel_steps", sampled(4096, 90, w=windows(256, 255))),
    Case("windows of many strides", "max_pixel_steps", sampled(2048, 60, w=windows(64, 60, "standard_uniform", 8))),
    Case("windows that lie beside each other", None, sampled(2048, 60, w=windows(256, 255, "batched"))),
    Case("windows as they are by default", None, sampled(512, 25, frames=161, w=windows(16, 4))),
    Case("windows of a film as they are by default", None, sampled(832, 20, frames=241, w=WAN)),
    Case("windows whose overlap a node gives", "max_pixel_steps",
         sampled(2048, 60, w=windows(256, 0)) | {"o": node("PrimitiveInt", value=255), "w": node("ContextWindowsManual", **{**windows(256, 0)["inputs"], "model": ["m", 0], "context_overlap": ["o", 0]})}),
    Case("a part of the model enlarged", "max_pixels", sampled(2048, 60, d=shrink(0.1))),
    Case("a part of the model enlarged again and again", "max_pixels", sampled(512, 20, d=shrink(0.5), e=shrink(0.5), f=shrink(0.5), g=shrink(0.5))),
    Case("a part of the model made smaller", None, sampled(2048, 60, d=shrink(2.0))),
    *(Case(f"{count} guides of the model", limit, sampled(**{f"g{at}": ATTENTION for at in range(count)})) for count, limit in ((200, "max_pixel_steps"), (2, None))),
    *(Case(f"a model smoothed {count} times over", limit, sampled(**{f"g{at}": SEAMS for at in range(count)})) for count, limit in ((6, "max_pixel_steps"), (1, None))),
    *(Case(f"{count} nets of control", limit, controlled(count)) for count, limit in ((250, "max_pixel_steps"), (3, None))),
    Case("a sampler that goes by a small tolerance", "max_pixel_steps", sampled(4096, 90, adaptive(rtol=0.0001, atol=0.0001))),
    Case("a sampler that never goes on", "max_pixel_steps", sampled(64, 1, adaptive(accept_safety=3.0))),
    Case("a sampler that never makes longer steps", "max_pixel_steps", sampled(64, 1, adaptive(icoeff=0.0))),
    Case("a sampler that does not begin", "max_pixel_steps", sampled(64, 1, adaptive(h_init=0.0))),
    Case("a sampler that goes by its usual tolerance", None, sampled(1024, 30, adaptive())),
    Case("a sampler that goes by tolerance, by its name", None, sampled(1024, 30, node("KSamplerSelect", sampler_name="dpm_adaptive"))),
    Case("few steps of one that takes as many as it needs", "max_pixel_steps",
         {**sampled(4096, 1, node("KSamplerSelect", sampler_name="dpm_adaptive")), "k2": node("KSampler", model=["m", 0], seed=1, steps=1, cfg=7.0, sampler_name="dpm_adaptive", scheduler="normal",
                                                                                             positive=["p", 0], negative=["p", 0], latent_image=["k", 0], denoise=1.0)}),
    Case("a plan without an end", "max_pixel_steps", {"s": refine("from_string", stochastic_plan=f"0-{LONG}:1"), "o": node("PreviewAny", source=["s", 0])}),
    Case("a plan of a million calls", "max_pixel_steps", sampled(64, 20, refine("from_string", stochastic_plan="0-100:1000000"), frames=81)),
    Case("a plan before one that is none", "max_pixel_steps", {"s": refine("from_string", stochastic_plan=f"0-{LONG}:1,x")}),
    Case("a plan of a hundred calls at each step", "max_pixel_steps", sampled(832, 60, ranged(0, 999, 100), frames=81)),
    Case("a plan as it is by default", None, sampled(832, 20, refine("from_string", stochastic_plan="2-5:3,6-14:1"), frames=81)),
    Case("a size that a loader does not use", "max_film_pixels", *resized(Media(2048, 2048, 300), resize=False)),
    Case("a size that a loader may not use", "max_film_pixels", *resized(Media(2048, 2048, 300), resize=["s", 0])),
    Case("a size that a loader uses", None, *resized(Media(2048, 2048, 300), resize=True)),
    Case("a size that a loader does not use, of a photo", None, *resized(Media(2048, 2048), resize=False)),
    Case("a plan of one range as it is by default", None, sampled(832, 20, ranged(2, 5, 3), frames=81)),
]  # fmt: skip
