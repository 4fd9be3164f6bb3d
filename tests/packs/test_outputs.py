"""Every kind of file that nodes save: found, checked, listed, and served as it was checked, or rightly refused."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from contract.client import Prompt, assert_ended_badly, node, unique
from contract.conftest import PHOTO

PICTURES = {"1": node("LoadImage", image=PHOTO), "2": node("RepeatImageBatch", image=["1", 0], amount=4)}
SOUND = {"3": node("LoadAudio", audio="tone.wav")}
FILM = {**PICTURES, "4": node("CreateVideo", images=["2", 0], fps=8.0)}
LATENT = {"5": node("EmptyLatentImage", width=64, height=64, batch_size=1)}
TEXT = {"6": node("PrimitiveString", value="a text")}
#: A body of Gaussians, and the mesh that ComfyUI makes of it.
BODY = {
    "7": node("Load3DAdvanced", model_file="3d/ball.splat", viewport_state={}, width=64, height=64),
    "8": node("File3DToSplat", model_3d=["7", 0]),
}
MESH = {
    **BODY,
    "10": node(
        "SplatToMesh",
        splat=["8", 0],
        resolution=64,
        kernel=5,
        smooth=0,
        level=0.4,
        min_component=0,
        min_opacity=0.02,
        color_sharpen=2.0,
    ),
}
PLY = {**BODY, "11": node("SplatToFile3D", splat=["8", 0], format="ply")}
GLB = {**MESH, "12": node("MeshToFile3D", mesh=["10", 0])}
VIEW: dict[str, Any] = {"viewport_state": {}, "width": 64, "height": 64}


@dataclass(frozen=True)
class Case:
    """A saver, and what must come of it.

    Attributes:
        kind: the artifacts'; empty where the result is no file.
        files: how many.
        ends: of the names.
        code: why the job must fail; empty: it must not.
    """

    name: str
    class_type: str
    inputs: dict[str, Any]
    kind: str = ""
    files: int = 1
    ends: str = ""
    code: str = ""
    before: dict[str, Any] = field(default_factory=lambda: dict(FILM))

    def prompt(self) -> Prompt:
        prefix = {} if self.class_type.startswith("Preview") else {"filename_prefix": unique("k")}
        return {**self.before, "9": node(self.class_type, **{**prefix, **self.inputs})}


def vhs(format: str, kind: str = "video", files: int = 1, ends: str = "", **inputs: Any) -> Case:
    given = {"images": ["2", 0], "frame_rate": 8, "loop_count": 0, "pingpong": False, "save_output": True, **inputs}
    name = format + "".join(f" {each}" for each in sorted(inputs))
    before = {**FILM, **SOUND} if "audio" in inputs else FILM
    return Case(f"VHS {name}", "VHS_VideoCombine", {**given, "format": format}, kind, files, ends, before=before)


CASES = [
    Case("SaveImage", "SaveImage", {"images": ["2", 0]}, "image", 4, ".png"),
    Case("PreviewImage", "PreviewImage", {"images": ["1", 0]}, "image", 1, ".png"),
    Case(
        "SaveAnimatedWEBP",
        "SaveAnimatedWEBP",
        {"images": ["2", 0], "fps": 8.0, "lossless": False, "quality": 80, "method": "default"},
        "image",
        1,
        ".webp",
    ),
    Case(
        "SaveAnimatedPNG", "SaveAnimatedPNG", {"images": ["2", 0], "fps": 8.0, "compress_level": 4}, "image", 1, ".png"
    ),
    Case("SaveWEBM", "SaveWEBM", {"images": ["2", 0], "codec": "vp9", "fps": 8.0, "crf": 32.0}, "video", 1, ".webm"),
    Case(
        "SaveWEBM av1", "SaveWEBM", {"images": ["2", 0], "codec": "av1", "fps": 8.0, "crf": 32.0}, "video", 1, ".webm"
    ),
    Case("SaveVideo", "SaveVideo", {"video": ["4", 0], "format": "auto", "codec": "auto"}, "video", 1, ".mp4"),
    Case("SaveVideo mp4", "SaveVideo", {"video": ["4", 0], "format": "mp4", "codec": "h264"}, "video", 1, ".mp4"),
    Case("SaveAudio", "SaveAudio", {"audio": ["3", 0]}, "audio", 1, ".flac", before=SOUND),
    Case("SaveAudioMP3", "SaveAudioMP3", {"audio": ["3", 0], "quality": "V0"}, "audio", 1, ".mp3", before=SOUND),
    Case("SaveAudioMP3 128k", "SaveAudioMP3", {"audio": ["3", 0], "quality": "128k"}, "audio", 1, ".mp3", before=SOUND),
    Case("SaveAudioOpus", "SaveAudioOpus", {"audio": ["3", 0], "quality": "128k"}, "audio", 1, ".opus", before=SOUND),
    Case("PreviewAudio", "PreviewAudio", {"audio": ["3", 0]}, "audio", 1, ".flac", before=SOUND),
    Case("SaveLatent", "SaveLatent", {"samples": ["5", 0]}, "other", 1, ".latent", before=LATENT),
    Case("PreviewAny", "PreviewAny", {"source": ["6", 0]}, before=TEXT),
    Case("SaveText txt", "SaveText", {"text": ["6", 0], "format": "txt"}, "other", 1, ".txt", before=TEXT),
    Case("SaveText json", "SaveText", {"text": ["6", 0], "format": "json"}, "other", 1, ".json", before=TEXT),
    Case("SaveGLB of a mesh", "SaveGLB", {"mesh": ["10", 0]}, "other", 1, ".glb", before=MESH),
    Case("SaveGLB of a file", "SaveGLB", {"mesh": ["7", 0]}, "other", 1, ".splat", before=BODY),
    Case("SaveGaussianSplat", "SaveGaussianSplat", {"model_3d": ["11", 0], **VIEW}, "other", 1, ".ply", before=PLY),
    Case("Save3DAdvanced", "Save3DAdvanced", {"model_3d": ["12", 0], **VIEW}, "other", 1, ".glb", before=GLB),
    Case("Preview3D", "Preview3D", {"model_file": ["12", 0]}, "other", 1, ".glb", before=GLB),
    Case("Preview3DAdvanced", "Preview3DAdvanced", {"model_3d": ["12", 0], **VIEW}, "other", 1, ".glb", before=GLB),
    Case(
        "PreviewGaussianSplat", "PreviewGaussianSplat", {"model_3d": ["11", 0], **VIEW}, "other", 1, ".ply", before=PLY
    ),
    Case(
        "SaveImageAdvanced png",
        "SaveImageAdvanced",
        {"images": ["1", 0], "format": "png", "format.bit_depth": "8-bit", "format.input_color_space": "sRGB"},
        "image",
        1,
        ".png",
    ),
    Case(
        "SaveImageAdvanced png 16",
        "SaveImageAdvanced",
        {"images": ["1", 0], "format": "png", "format.bit_depth": "16-bit", "format.input_color_space": "sRGB"},
        "image",
        1,
        ".png",
    ),
    Case(
        "SaveImageAdvanced exr",
        "SaveImageAdvanced",
        {"images": ["1", 0], "format": "exr", "format.bit_depth": "32-bit float", "format.input_color_space": "sRGB"},
        "other",
        1,
        ".exr",
    ),
    vhs("image/gif", "image", ends=".gif"),
    vhs("image/webp", "image", ends=".webp", lossless=False),
    vhs("video/8bit-png", "image", 4, ".png"),
    vhs("video/8bit-png", "image", 4, ".png", filename_prefix=unique("k%03d k")),
    vhs("video/16bit-png", "image", 4, ".png"),
    vhs("video/ProRes", ends=".mov", profile="hq"),
    vhs("video/av1-webm", ends=".webm", pix_fmt="yuv420p", crf=35),
    vhs("video/ffmpeg-gif", "image", ends=".gif", dither="sierra2_4a"),
    vhs(
        "video/ffv1-mkv",
        ends=".mkv",
        level="3",
        coder="1",
        context="1",
        gop_size=1,
        slices="16",
        slicecrc="1",
        pix_fmt="rgba64le",
    ),
    vhs("video/h264-mp4", ends=".mp4", pix_fmt="yuv420p", crf=19),
    vhs("video/h264-mp4", ends="-audio.mp4", pix_fmt="yuv420p", crf=19, audio=["3", 0]),
    vhs("video/h264-mp4", ends=".mp4", pix_fmt="yuv420p10le", crf=19),
    vhs("video/h265-mp4", ends=".mp4", pix_fmt="yuv420p10le", crf=22),
    vhs("video/h265-mp4", ends="-audio.mp4", pix_fmt="yuv420p10le", crf=22, audio=["3", 0]),
    vhs("video/webm", ends=".webm", pix_fmt="yuv420p", crf=20),
    vhs("video/webm", ends="-audio.webm", pix_fmt="yuv420p", crf=20, audio=["3", 0]),
    vhs("image/gif", "image", ends=".gif", pingpong=True),
    vhs("video/h264-mp4", ends=".mp4", pingpong=True),
    vhs("video/h264-mp4", ends=".mp4", save_output=False),
]


async def test_every_kind_of_output_is_found_checked_listed_and_served_as_it_was_checked(client):
    known = await client.get("/object_info")
    ran, wrong = [], []
    for case in CASES:
        prompt = case.prompt()
        if not all(each["class_type"] in known for each in prompt.values()):
            continue
        answer = await client.submit(prompt)
        if answer.status != 200:
            wrong.append((case.name, answer.json))
            continue
        job = await client.settled(answer.json["prompt_id"])
        files = job["artifacts"]
        seen = (
            job["state"],
            len(files),
            {each["kind"] for each in files},
            all(each["filename"].endswith(case.ends) for each in files),
        )
        if seen != ("succeeded", case.files if case.kind else 0, {case.kind} - {""}, True):
            wrong.append((case.name, seen, job["error"], [each["filename"] for each in files]))
            continue
        for artifact in files:
            served = await client.request("GET", artifact["url"])
            assert hashlib.sha256(served.content).hexdigest() == artifact["sha256"], case.name
        ran.append(case.name)
    assert not wrong, wrong
    assert len(ran) >= 33, ran


def listing(base):
    return {str(path.relative_to(base / "output")) for path in (base / "output").rglob("*") if path.is_file()}


async def test_a_refused_film_takes_with_it_what_lies_beside_it(client):
    """VideoHelperSuite leaves a picture with the workflow, the film without its sound, and the workflow in temp."""
    before = listing(client.base)
    prompt = vhs("video/h264-mp4", audio=["3", 0], pix_fmt="yuv420p", crf=19, save_metadata=True).prompt()
    prompt["2"] = node("EmptyImage", width=64, height=64, batch_size=4, color=0)
    assert_ended_badly(await client.run(prompt), "result_blank")
    assert listing(client.base) == before
    assert not list((client.base / "temp").rglob("metadata.txt"))
