# ruff: noqa: E501 - a table
"""Prompts that the a5000 profile must refuse, and by which limit; and prompts like them that it must let in.

The judgement was written down before there was a walk. `MEDIA` is what the loaders' files hold.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from comfyui_guarded.guard.cost.values import Media

Graph = dict[str, Any]


class Case(NamedTuple):
    """`limit`: of the profile; None: it must be let in."""

    name: str
    limit: str | None
    graph: Graph
    media: Mapping[str, Media] = MappingProxyType({})


def node(class_type: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


PHOTO = {"1": Media(4000, 3000)}
SMALL = {"1": Media(1024, 768)}
FILM = {"1": Media(1280, 720, 241, 241 / 24, 24)}
LONG = {"1": Media(1280, 720, 7200, 300, 24)}
LOADED = {"1": node("LoadImage", image="photo.png")}
VIDEO = {"1": node("LoadVideo", file="film.mp4"), "2": node("GetVideoComponents", video=["1", 0])}
SAVED = {"99": node("SaveImage", images=["9", 0], filename_prefix="x")}


def latent(width: Any = 1024, height: Any = 1024, batch_size: Any = 1) -> dict[str, Any]:
    return node("EmptyLatentImage", width=width, height=height, batch_size=batch_size)


def sampler(source: list[Any], steps: Any = 20) -> dict[str, Any]:
    return node(
        "KSampler", model=["m", 0], seed=1, steps=steps, cfg=7.0, sampler_name="euler", scheduler="normal",
        positive=["p", 0], negative=["p", 0], latent_image=source, denoise=1.0,
    )  # fmt: skip


def film(width: Any, height: Any, length: Any) -> dict[str, Any]:
    return node(
        "WanImageToVideo", positive=["p", 0], negative=["p", 0], vae=["v", 0], width=width, height=height,
        length=length, batch_size=1,
    )  # fmt: skip


def image(width: Any = 1024, height: Any = 1024, batch_size: Any = 1) -> dict[str, Any]:
    return node("EmptyImage", width=width, height=height, batch_size=batch_size, color=0)


def chain(count: int, steps: int) -> Graph:
    return {"0": latent()} | {str(at): sampler([str(at - 1), 0], steps) for at in range(1, count + 1)}


def upscales(count: int) -> Graph:
    graph = {**LOADED, "u": node("UpscaleModelLoader", model_name="RealESRGAN_x4plus.safetensors")}
    for at in range(2, 2 + count):
        graph[str(at)] = node("ImageUpscaleWithModel", upscale_model=["u", 0], image=[str(at - 1), 0])
    return graph


def tiled(upscale_by: float) -> Graph:
    inputs = {"image": ["1", 0], "upscale_by": upscale_by, "seed": 1, "steps": 20, "tile_width": 512}
    return {**LOADED, "2": node("UltimateSDUpscale", **inputs, tile_height=512, mask_blur=8, tile_padding=32)}


def formula(length: str, **values: Any) -> Graph:
    named = {f"values.{name}": value for name, value in values.items()}
    return {"1": node("ComfyMathExpression", expression=length, **named), "2": film(832, 480, ["1", 1])}


def pad(edge: int) -> Graph:
    inputs = {"image": ["1", 0], "left": edge, "top": 0, "right": edge, "bottom": edge, "feathering": 40}
    return {**LOADED, "2": node("ImagePadForOutpaint", **inputs)}


def loaded_film(cap: int, **more: Any) -> Graph:
    inputs = {"custom_width": 0, "custom_height": 0, "frame_load_cap": cap, "skip_first_frames": 0}
    return {
        "1": node("VHS_LoadVideo", video="film.mp4", **{"force_rate": 0, **inputs, "select_every_nth": 1, **more}),
    }


def scaled(by: float) -> Graph:
    return {**LOADED, "2": node("ImageScaleBy", image=["1", 0], upscale_method="lanczos", scale_by=by)}


def joined(kind: str, one: str, two: str, times: int, **more: Any) -> Graph:
    graph: Graph = {"0": image(batch_size=1)}
    for at in range(1, times + 1):
        graph[str(at)] = node(kind, **{one: [str(at - 1), 0], two: [str(at - 1), 0], **more})
    return graph


def looped(total: int) -> Graph:
    return {
        "0": latent(2048, 2048),
        "1": node("easy forLoopStart", total=total, initial_value1=["0", 0]),
        "2": sampler(["1", 2], 60),
        "3": node("easy forLoopEnd", flow=["1", 0], initial_value1=["2", 0]),
    }


def listed(doublings: int, *of: Any) -> Graph:
    """A list of all of those, doubled as often; the node `l` gives it."""
    graph: Graph = {"l0": node("CreateList", **{f"inputs.input{at}": each for at, each in enumerate(of)})}
    for at in range(1, doublings):
        link = [f"l{at - 1}", 0]
        graph[f"l{at}"] = node("CreateList", **{"inputs.input0": link, "inputs.input1": link})
    link = [f"l{doublings - 1}", 0]
    return {**graph, "l": node("CreateList", **{"inputs.input0": link, "inputs.input1": link})}


def prompted(doublings: int) -> Graph:
    """A sampler that gets a list of prompts."""
    return {
        **listed(doublings, ["p", 0]),
        "0": latent(),
        "2": node("KSampler", positive=["l", 0], latent_image=["0", 0], steps=20),
    }


STITCH = {"direction": "right", "match_image_size": True, "spacing_width": 0, "spacing_color": "white"}

CASES = [
    # A tile is no picture.
    Case("a tiled upscale of a photo", "max_pixels", tiled(8), PHOTO),
    Case("a tiled upscale of a small picture", None, tiled(2), SMALL),
    # A side that follows from the other.
    Case("a side of nothing", "max_pixels",
         {**LOADED, "2": node("ImageScale", image=["1", 0], upscale_method="area", width=16384, height=0)}),
    Case("a side of nothing, of a known picture", "max_pixels",
         {**LOADED, "2": node("ImageScale", image=["1", 0], upscale_method="area", width=0, height=8000)}, SMALL),
    Case("a side of nothing, small", None,
         {**LOADED, "2": node("ImageScale", image=["1", 0], upscale_method="area", width=1024, height=0)}, PHOTO),
    Case("a long side of a strip", None,
         {**LOADED, "2": node("ImageScale", image=["1", 0], upscale_method="area", width=8000, height=0)},
         {"1": Media(8000, 100)}),
    # What is added around it.
    Case("a border of 16,384 pixels", "max_pixels", pad(16384)),
    Case("a border of 256 pixels", None, pad(256), SMALL),
    # Numbers that nodes compute.
    Case("a film as long as a formula says", "max_frames", formula("a * b + 1", a=5000, b=16)),
    Case("a film of a formula of formulas", "max_frames",
         formula("max(min(a, 9999), 5) if a > 3 else 1", a=["3", 1])
         | {"3": node("ComfyMathExpression", expression="2 ** a", **{"values.a": 20})}),
    Case("a film of five seconds", None, formula("floor(a * b + 1)", a=5, b=16)),
    Case("a formula of simple numbers", "max_pixels",
         {"1": node("SimpleMath+", value="a*b", a=128, b=128), "2": latent(["1", 0], ["1", 0])}),
    Case("a calculator", "max_steps",
         {"1": node("SimpleCalculatorKJ", expression="a + 400", **{"variables.a": 1}),
          "0": latent(), "2": sampler(["0", 0], ["1", 1])}),
    Case("an operation by name", "max_pixels",
         {"1": node("easy mathInt", a=4096, b=4, operation="multiply"), "2": latent(["1", 0], ["1", 0])}),
    Case("a number out of a list of choices", "max_steps",
         {"1": node("CustomCombo", choice="500", index=0, option1="500", option2="20"),
          "3": node("ComfyNumberConvert", value=["1", 0]), "0": latent(), "2": sampler(["0", 0], ["3", 1])}),
    # Frames and area together.
    Case("a long film in 4K", "max_film_pixels", {"1": film(3840, 2160, 961)}),
    Case("a usual film, sampled", None, {"1": film(1280, 720, 81), "2": sampler(["1", 2])}),
    Case("a long film, sampled at length", "max_pixel_steps", {"1": film(1280, 720, 961), "2": sampler(["1", 2], 100)}),
    # Films that are loaded.
    Case("all frames of a film", "max_frames", loaded_film(0), LONG),
    Case("all frames of a short film", None, loaded_film(0), FILM),
    Case("frames at another rate", "max_frames", loaded_film(0, force_rate=240), FILM),
    Case("some frames of a long film", None, loaded_film(120), LONG),
    Case("all frames that a film has", "max_frames", VIDEO, LONG),
    Case("all frames of a short one", None, VIDEO, FILM),
    # Pictures made larger.
    Case("three models that make it larger", "max_pixels", upscales(3)| {"1": image(512, 512)}),
    Case("a photo, by a model", "max_pixels", upscales(1), PHOTO),
    Case("one model that makes it larger", None, upscales(1), SMALL),
    Case("a photo, eight times as wide", "max_pixels", scaled(8), PHOTO),
    Case("a photo, half as wide", None, scaled(0.5), PHOTO),
    Case("a photo, as it came", None, {**LOADED, "9": node("ImageInvert", image=["1", 0]), **SAVED}, {"1": Media(8000, 6000)}),
    Case("a photo, sampled as it came", "max_pixels",
         {**LOADED, "2": node("VAEEncode", pixels=["1", 0], vae=["v", 0]), "3": sampler(["2", 0])}, {"1": Media(8000, 6000)}),
    Case("a photo, scaled down and sampled", None,
         {**LOADED, "4": node("ImageScaleToTotalPixels", image=["1", 0], upscale_method="area", megapixels=1.0),
          "2": node("VAEEncode", pixels=["4", 0], vae=["v", 0]), "3": sampler(["2", 0])}, {"1": Media(8000, 6000)}),
    # Frames between frames.
    *(Case(f"frames by {kind}", "max_frames", {**VIDEO, "3": node(kind, frames=["2", 0], multiplier=16)}, FILM)
      for kind in ("RIFE VFI", "FILM VFI", "GMFSS Fortuna VFI", "IFRNet VFI", "AMT VFI")),
    Case("frames by the host's own node", "max_frames",
         {**VIDEO, "3": node("FrameInterpolate", interp_model=["m", 0], images=["2", 0], multiplier=16)}, FILM),
    Case("twice the frames", None,
         {**VIDEO, "3": node("FrameInterpolate", interp_model=["m", 0], images=["2", 0], multiplier=2)}, FILM),
    # More pictures.
    Case("merged again and again", "max_frames",
         joined("VHS_MergeImages", "images_A", "images_B", 12, merge_strategy="match A", scale_method="area", crop="disabled")),
    Case("stitched again and again", "max_pixels", joined("ImageStitch", "image1", "image2", 6, **STITCH)),
    Case("stitched once", None, joined("ImageStitch", "image1", "image2", 1, **STITCH)),
    Case("in a row, again and again", "max_pixels",
         joined("ImageConcatMulti", "image_1", "image_2", 6, inputcount=2, direction="right", match_image_size=False)),
    Case("a batch that is made larger", "max_frames",
         {"0": image(), "1": node("ImageExpandBatch+", image=["0", 0], size=4096, method="repeat all")}),
    Case("a batch of latents that is made larger", "max_pixels",
         {"0": latent(), "1": node("RepeatLatentBatch", samples=["0", 0], amount=64)}),
    Case("a picture repeated", "max_frames",
         {"0": image(), "1": node("RepeatImageBatch", image=["0", 0], amount=4096)}),
    Case("a picture repeated for a film", None,
         {"0": image(), "1": node("RepeatImageBatch", image=["0", 0], amount=81)}),
    # What a search over the host's own nodes found, each run and measured.
    Case("a sheet of large cells", "max_pixels",
         {"0": image(64, 64, 4), "1": node("ImageGrid", images=["0", 0], columns=2, cell_width=4096, cell_height=4096, padding=0)}),
    Case("a sheet of many columns", "max_pixels",
         {"0": image(64, 64), "1": node("ImageGrid", images=["0", 0], columns=4000, cell_width=256, cell_height=256, padding=0)}),
    Case("a sheet of four", None,
         {"0": image(64, 64, 4), "1": node("ImageGrid", images=["0", 0], columns=2, cell_width=256, cell_height=256, padding=4)}),
    Case("the largest side", "max_pixels",
         {"0": image(64, 64), "1": node("ImageScaleToMaxDimension", image=["0", 0], upscale_method="area", largest_size=8192)}),
    Case("a strip stitched to a picture", "max_pixels",
         {"0": image(2048, 2048), "1": image(8000, 16), "2": node("ImageStitch", image1=["0", 0], image2=["1", 0], **STITCH)}),
    Case("a strip with its shorter edge made long", "max_pixels",
         {"0": image(4096, 4096), "1": node("ImageCrop", image=["0", 0], width=4096, height=8, x=0, y=0),
          "2": node("ResizeImagesByShorterEdge", images=["1", 0], shorter_edge=512)}),
    Case("tiles that lie nearly on each other", "max_frames",
         {"0": image(2048, 2048), "1": node("SplitImageToTileList", image=["0", 0], tile_width=512, tile_height=512, overlap=511)}),
    Case("small tiles of which only one side is small", "max_frames",
         {"0": image(2048, 64), "1": node("SplitImageToTileList", image=["0", 0], tile_width=8, tile_height=1024, overlap=7)}),
    Case("a sheet with wide gaps", "max_pixels",
         {"0": image(64, 64, 64), "1": node("ImageGrid", images=["0", 0], columns=8, cell_width=64, cell_height=64, padding=1024)}),
    Case("pictures joined to a film that is loaded", "max_frames",
         {"0": image(64, 64, 900), "2": node("VHS_LoadVideo", video="film.mp4", force_rate=0, custom_width=64, custom_height=64,
                                             frame_load_cap=0, skip_first_frames=0, select_every_nth=1),
          "1": node("ImageBatch", image1=["0", 0], image2=["2", 0])}, {"2": Media(64, 64, 241, 241 / 24, 24)}),
    Case("a strip rounded up", "max_pixels",
         {"0": image(8000, 16), "1": node("ImageScaleToTotalPixels", image=["0", 0], upscale_method="area", megapixels=4.0, resolution_steps=8192)}),
    Case("sides in few steps", None,
         {"0": image(), "1": node("ImageScaleToTotalPixels", image=["0", 0], upscale_method="area", megapixels=1.0, resolution_steps=256)}),
    Case("a long side by ratio and megapixels", "max_steps",
         {"1": node("ResolutionSelector", aspect_ratio="21:9 (Ultrawide)", megapixels=0.01, multiple=8),
          "0": latent(), "2": sampler(["0", 0], ["1", 0])}),
    Case("the length of a text as a number", "max_steps",
         {"1": node("StringLength", string="0" * 500), "0": latent(), "2": sampler(["0", 0], ["1", 0])}),
    Case("a picture scaled to what its model wants, of a thousand", "max_film_pixels",
         {"0": image(16, 16, 999), "1": node("FluxKontextImageScale", image=["0", 0])}),
    Case("one picture scaled to what its model wants", None,
         {"0": image(16, 16), "1": node("FluxKontextImageScale", image=["0", 0])}),
    # Pickers of sizes.
    Case("a size out of a list", "max_pixels",
         {"1": node("SDXLEmptyLatentSizePicker+", resolution="1024x1024 (1.0)", batch_size=64, width_override=0, height_override=0)}),
    Case("a size in words", "max_pixels",
         {"1": node("EmptyLatentImageCustomPresets", dimensions="8192 x 4096 (2.0)", invert=False, batch_size=1)}),
    Case("a size out of a list that is usual", None,
         {"1": node("EmptyLatentImageCustomPresets", dimensions="1024 x 1024 (1.0)", invert=False, batch_size=1)}),
    Case("a size by ratio and megapixels", "max_pixels",
         {"1": node("ResolutionSelector", aspect_ratio="16:9 (Widescreen)", megapixels=64, multiple=8), "2": latent(["1", 0], ["1", 1])}),
    Case("a size by ratio and few megapixels", None,
         {"1": node("ResolutionSelector", aspect_ratio="16:9 (Widescreen)", megapixels=1, multiple=8), "2": latent(["1", 0], ["1", 1])}),
    Case("the size of another picture", "max_pixels",
         {**LOADED, "2": node("GetImageSize", image=["1", 0]), "3": latent(["2", 0], ["2", 1], 4)}, PHOTO),
    Case("layers", "max_pixels",
         {"1": node("EmptyQwenImageLayeredLatentImage", width=1024, height=1024, layers=64, batch_size=1)}),
    Case("three layers", None,
         {"1": node("EmptyQwenImageLayeredLatentImage", width=1024, height=1024, layers=3, batch_size=1)}),
    Case("the shorter edge", "max_pixels",
         {**LOADED, "2": node("ResizeImagesByShorterEdge", images=["1", 0], shorter_edge=8192)}, PHOTO),
    Case("the shorter edge of a strip", "max_pixels",
         {**LOADED, "2": node("ResizeImagesByShorterEdge", images=["1", 0], shorter_edge=1024)}, {"1": Media(6400, 100)}),
    Case("the resolution of an upscaler", "max_pixels",
         {**LOADED, "2": node("SeedVR2VideoUpscaler", image=["1", 0], seed=1, resolution=8192, batch_size=5)}, SMALL),
    Case("a usual resolution of an upscaler", None,
         {**LOADED, "2": node("SeedVR2VideoUpscaler", image=["1", 0], seed=1, resolution=1440, batch_size=5)}, SMALL),
    # Steps.
    Case("steps in a text", "max_steps",
         {"0": latent(), "1": node("FluxSamplerParams+", steps="20,500", latent_image=["0", 0])}),
    Case("steps in a text, few", None,
         {"0": latent(), "1": node("FluxSamplerParams+", steps="20,25", latent_image=["0", 0])}),
    Case("sigmas in a text", "max_steps",
         {"0": latent(4096, 4096), "1": node("ManualSigmas", sigmas=", ".join("1" * 401)),
          "2": node("SamplerCustomAdvanced", noise=["n", 0], guider=["g", 0], sampler=["s", 0], sigmas=["1", 0], latent_image=["0", 0])}),
    Case("a loop", "max_pixel_steps", looped(500)),
    Case("a short loop", None, looped(3)),
    Case("sixty samplers in a row", "max_pixel_steps", chain(60, 100)),
    Case("six samplers in a row", None, chain(6, 20)),
    # Lists, each item of which runs what follows.
    Case("a list of steps", "max_pixels", {**listed(8, 20), "0": latent(), "2": sampler(["0", 0], ["l", 0])}),
    Case("a list in which one step is long", "max_steps", {**listed(1, 20, 300), "0": latent(), "2": sampler(["0", 0], ["l", 0])}),
    Case("a list of prompts", "max_pixels", prompted(8)),
    Case("a list of prompts without an end", "max_pixels", prompted(80)),
    Case("a list of prompts, many steps of them", "max_pixel_steps",
         {**listed(3, ["p", 0]), "0": latent(1408, 1408), "2": sampler(["0", 0], 100) | {"inputs": {**sampler(["0", 0], 100)["inputs"], "positive": ["l", 0]}},
          **{str(at): node("KSampler", positive=["l", 0], latent_image=[str(at - 1), 0], steps=100) for at in range(3, 7)}}),
    Case("four prompts", None, prompted(2)),
    Case("a list of widths", "max_pixels", {**listed(5, 1024), "0": latent(["l", 0], 1024)}),
    Case("two widths", None, {**listed(1, 1024), "0": latent(["l", 0], 1024)}),
    Case("a list of pictures, a film joined to each", "max_frames",
         {"0": image(64, 64), **listed(5, ["0", 0]), "f": image(64, 64, 81), "2": node("ImageBatch", image1=["l", 0], image2=["f", 0])}),
    Case("a list of numbers, a picture repeated for each", "max_frames",
         {"0": image(64, 64), **listed(5, 81), "2": node("RepeatImageBatch", image=["0", 0], amount=["l", 0])}),
    Case("some frames of each film in a list", "max_frames",
         {"1": node("LoadVideo", file="film.mp4"), **listed(4, ["1", 0]), "2": node("GetVideoComponents", video=["l", 0]),
          "3": node("VideoFrameSample", video=["l", 0], num_frames=100, strategy="head", seed=1), "4": node("GetVideoComponents", video=["3", 0]),
          "5": node("CreateVideo", images=["4", 0], fps=8.0)}, {"1": Media(64, 64, 20, 2.5, 8)}),
    Case("a list of a list's switches", "max_pixels",
         {**listed(6, True), "0": latent(), "1": node("ComfySwitchNode", switch=["l", 0], on_true=["0", 0], on_false=["0", 0]),
          "2": sampler(["1", 0])}),
    Case("a film dealt out, each picture with all of another film", "max_frames",
         {"0": image(64, 64, 81), "1": node("RebatchImages", images=["0", 0], batch_size=1),
          "2": node("ImageBatch", image1=["1", 0], image2=["0", 0])}),
    Case("a film dealt out and each picture made larger", None,
         {"0": image(256, 256, 81), "1": node("RebatchImages", images=["0", 0], batch_size=1),
          "2": node("ImageScaleBy", image=["1", 0], upscale_method="area", scale_by=2.0),
          "3": node("RebatchImages", images=["2", 0], batch_size=4096), "4": node("CreateVideo", images=["3", 0], fps=16.0)}),
    Case("latents dealt out and sampled one by one", None,
         {"0": latent(1024, 1024, 8), "1": node("RebatchLatents", latents=["0", 0], batch_size=1), "2": sampler(["1", 0])}),
    Case("tiles of a picture, each sampled", None,
         {"0": image(2048, 2048), "1": node("SplitImageToTileList", image=["0", 0], tile_width=1024, tile_height=1024, overlap=128),
          "2": node("VAEEncode", pixels=["1", 0], vae=["v", 0]), "3": sampler(["2", 0])}),
    # Harmless.
    Case("the rest of a batch", None,
         {**VIDEO, "3": node("ImageFromBatch", image=["2", 0], batch_index=5, length=4096)}, FILM),
    Case("the rest of nobody knows what", None,
         {**VIDEO, "3": node("ImageFromBatch", image=["2", 0], batch_index=5, length=4096)}),
    Case("a batch dealt out anew", None,
         {**VIDEO, "3": node("RebatchImages", images=["2", 0], batch_size=4096)}, FILM),
    Case("the length of a text", None, {"1": node("StringTrim", string="x", length=4096)}),
    Case("the tile of a decoder", None,
         {"0": latent(), "1": node("VAEDecodeTiled", samples=["0", 0], vae=["v", 0], tile_size=4096, overlap=64, temporal_size=4096, temporal_overlap=8)}),
]  # fmt: skip
