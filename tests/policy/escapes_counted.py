# ruff: noqa: E501 - a table
"""More such prompts: copies by other words, sounds and tracks by their length, films that a picture's loader loads."""

import json
from typing import Any

from policy.escapes import LOADED, Case, Graph, image, latent, node, sampler
from policy.escapes_made import custom

from comfyui_guarded.guard.cost.values import Media

GIF = {"1": Media(64, 64, 1500)}
SHORT = {"1": Media(64, 64, 24)}


def encoded(source: dict[str, Any], **more: Any) -> Graph:
    return {"x": source, "e": node("VAEEncode", pixels=["x", 0], vae=["v", 0]), "k": sampler(["e", 0]), **more}


def offset(times: int) -> Graph:
    mask = node("OffsetMask", mask=["m", 0], x=0, y=0, angle=0, duplication_factor=times, padding_mode="empty")
    return encoded(node("MaskToImage", mask=["o", 0]), o=mask, m=node("SolidMask", value=1.0, width=2048, height=2048))


def coords(points: int, tracks: int = 1) -> str:
    return json.dumps([[{"x": 1, "y": 1}] * points] * tracks)


def drawn(tracks: dict[str, Any], side: int = 512, **more: Any) -> Graph:
    drawing = {"line_resolution": 24, "circle_size": 12, "opacity": 0.75, "line_width": 16}
    shown = node("WanMoveVisualizeTracks", images=["i", 0], tracks=["t", 0], **drawing)
    return {"i": image(side, side), "t": tracks, "x": shown, **more}


def generated(frames: int) -> dict[str, Any]:
    return node("GenerateTracks", width=832, height=480, num_frames=frames, num_tracks=5)


def written(loops: int, back: Any = False) -> dict[str, Any]:
    film = {
        "frame_rate": 24,
        "filename_prefix": "x",
        "format": "video/h264-mp4",
        "pingpong": back,
        "save_output": True,
    }
    return node("VHS_VideoCombine", images=["i", 0], loop_count=loops, **film)


def enlarging(ratio: float, side: int, method: str) -> Graph:
    schedule = node("KarrasScheduler", steps=8, sigma_max=14.6, sigma_min=0.03, rho=7.0)
    made = node("SamplerLCMUpscale", scale_ratio=ratio, scale_steps=-1, upscale_method=method)
    return {**custom(schedule), "l": latent(side, side), "s": made}


def sounds(kind: str, seconds: float, batch: int, **more: Any) -> Graph:
    return {"l": node(kind, seconds=seconds, batch_size=batch), "k": sampler(["l", 0]), **more}


def for_film(frames: int, batch: int) -> Graph:
    inputs = {"frames_number": frames, "frame_rate": 25.0, "batch_size": batch, "audio_vae": ["v", 0]}
    return {"l": node("LTXVEmptyLatentAudio", **inputs), "k": sampler(["l", 0])}


def cut_out(side: int) -> Graph:
    sizes = {"base_resolution": side, "padding": 0, "min_crop_resolution": 64, "max_crop_resolution": 64}
    mask = node("SolidMask", value=1.0, width=1024, height=1024)
    return encoded(node("ImageCropByMaskAndResize", image=["i", 0], mask=["m", 0], **sizes), i=image(), m=mask)


def baked(side: int) -> Graph:
    return {"x": node("BakeTextureFromVoxel", mesh=["m", 0], voxel_colors=["m", 1], texture_size=side)}


SOUNDS = ("EmptyLatentAudio", "EmptyAceStep1.5LatentAudio", "EmptyMiniMaxMusic3LatentAudio")
RENDERED = {"d": node("VAEDecode", samples=["k", 0], vae=["v", 0])}

COUNTED = [
    Case("a mask a thousand times", "max_film_pixels", offset(1000)),
    Case("a mask twice", None, offset(2)),
    # Tracks.
    Case("a picture for each place of a track", "max_frames", drawn(node("WanMoveTracksFromCoords", track_coords=coords(3000)))),
    Case("a picture for each place of many tracks", None, drawn(node("WanMoveTracksFromCoords", track_coords=coords(81, 40)))),
    Case("a large picture for each place of a track", "max_film_pixels", drawn(generated(1000), 4096)),
    Case("a large picture for each place of tracks put together", "max_film_pixels", drawn(node("WanMoveConcatTrack", tracks_1=["g", 0], tracks_2=["g", 0]), 4096, g=generated(1000))),
    Case("a film of tracks", None, drawn(generated(81), 832)),
    Case("a single track in single quotes", "max_frames", drawn(node("WanMoveTracksFromCoords", track_coords=str([{"x": 1, "y": 1}] * 3000)))),
    Case("a film as long as its tracks", None,
         {"t": node("WanMoveTracksFromCoords", track_coords=coords(81)),
          "f": node("WanImageToVideo", positive=["p", 0], negative=["p", 0], vae=["v", 0], width=832, height=480, length=["t", 1], batch_size=1)}),
    # Samplers that make latents larger.
    *(Case(f"a sampler that makes {side} pixels {ratio} times as many by {method}", limit, enlarging(ratio, side, method))
      for method in ("area", "bislerp")
      for ratio, side, limit in ((20.0, 512, "max_pixels"), (4.1, 1024, "max_pixels"), (1.0, 1032, None), (2.0, 1024, None), (0.5, 2048, None))),
    # Sounds.
    *(Case(f"thousands of sounds by {kind}", "max_seconds", sounds(kind, 240.0, 4096)) for kind in SOUNDS),
    *(Case(f"a long sound by {kind}", None, sounds(kind, 240.0, 1)) for kind in SOUNDS),
    Case("some short sounds", None, sounds("EmptyLatentAudio", 30.0, 8)),
    Case("a sound again and again", "max_seconds",
         sounds("EmptyLatentAudio", 240.0, 1, r=node("RepeatLatentBatch", samples=["l", 0], amount=64), k=sampler(["r", 0]))),
    Case("thousands of sounds for a film", "max_seconds", for_film(241, 4096)),
    Case("a sound for a film", None, for_film(241, 1)),
    # Both sides by one number.
    *(Case(f"a piece cut out and made {side} pixels large", limit, cut_out(side)) for side, limit in ((8192, "max_pixels"), (16384, "max_pixels"), (1024, None))),
    *(Case(f"a texture of {side} pixels", limit, baked(side)) for side, limit in ((8192, "max_pixels"), (4096, None))),
    # Films that are loaded as pictures.
    Case("a long film loaded as a picture", "max_frames", {**encoded(node("LoadImage", image="x.gif")), "1": node("LoadImage", image="x.gif"), **RENDERED}, GIF),
    Case("a long film loaded as a mask", "max_frames", {"1": node("LoadImageMask", image="x.gif", channel="red"), "x": node("MaskToImage", mask=["1", 0])}, GIF),
    Case("a short film loaded as a picture", None, {**encoded(node("ImageFlip", image=["1", 0], flip_method="x-axis: vertically")), **LOADED, **RENDERED}, SHORT),
    # The sign tells a direction.
    *(Case(f"{frames} views of a thing", limit, {"r": node("RenderSplat", splat=["s", 0], width=side, height=side, frames=frames)})
      for frames, side, limit in ((-240, 2048, "max_film_pixels"), (240, 2048, "max_film_pixels"), (-24, 512, None))),
    Case("as many views as a link says", "max_frames", {"i": node("PrimitiveInt", value=-1_000_000),
         "r": node("RenderSplat", splat=["s", 0], width=64, height=64, frames=["i", 0])}),
    # All that a host keeps until the prompt ends.
    *(Case(f"{count} films", limit, {str(at): image(1024, 1024, 400) for at in range(count)}) for count, limit in ((10, "max_film_pixels"), (4, None))),
    Case("a film in other colours again and again", "max_film_pixels",
         {"0": image(1024, 1024, 300), **{str(at + 1): node("ImageInvert", image=[str(at), 0]) for at in range(28)}}),
    *(Case(f"latents of {count} films", limit,
           {str(at): node("EmptyHunyuanLatentVideo", width=2048, height=2048, length=57, batch_size=1) for at in range(count)})
      for count, limit in ((100, "max_film_pixels"), (10, None))),
    *(Case(f"a film of {frames} pictures written there and back", limit, {"i": image(512, 512, frames), "v": written(0, back), "b": node("PrimitiveBoolean", value=True)})
      for frames, limit in ((999, "max_frames"), (200, None)) for back in (True, 1, ["b", 0])),
    *(Case(f"a film written {loops} times over", limit, {"i": image(512, 512, 200), "v": written(loops)}) for loops, limit in ((100, "max_frames"), (3, None))),
]  # fmt: skip
