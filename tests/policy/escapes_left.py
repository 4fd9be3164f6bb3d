"""More such prompts: what ComfyUI drops before it calls a node, sigmas by their number, and films of a photo."""

from typing import Any

from policy.escapes import LOADED, SMALL, Case, Graph, image, latent, node, sampler
from policy.escapes_made import custom

LESS = {"width": 64, "height": 64}


def shown(source: dict[str, Any], **more: Any) -> Graph:
    return {"i": image(4096, 4096), "x": source, "s": node("SaveImage", images=["x", 0], filename_prefix="x"), **more}


def sampled(source: dict[str, Any], **more: Any) -> Graph:
    return {"l": latent(4096, 4096), "x": source, "k": sampler(["x", 0]), **more}


def resized(choice: str, **more: Any) -> Graph:
    named = {f"resize_type.{name}": value for name, value in more.items()}
    return shown(node("ResizeImageMaskNode", input=["i", 0], resize_type=choice, **named), i=image(2048, 2048))


LEFT = [
    # Constants that no node gets.
    *(
        Case(
            f"{name} that is left over",
            "max_pixels",
            shown(node("ImageScaleBy", image=["i", 0], scale_by=8.0, **{name: value})),
        )
        for name, value in (
            ("width", 64),
            ("target_width", 64),
            ("longer_side", 64),
            ("megapixels", 0.1),
            ("resolution", "64x64"),
        )
    ),
    Case("a size that is left over", "max_pixels", shown(node("ImageScaleBy", image=["i", 0], scale_by=8.0, **LESS))),
    Case(
        "a size that is left over, of a latent",
        "max_pixels",
        sampled(node("LatentUpscaleBy", samples=["l", 0], scale_by=8.0, **LESS)),
    ),
    Case(
        "a size that is left over before that",
        "max_pixels",
        shown(
            node("ImageScaleBy", image=["f", 0], scale_by=8.0),
            f=node("ImageFlip", image=["i", 0], flip_method="x-axis: vertically", **LESS),
        ),
    ),
    Case(
        "a size that is left over in a loader",
        "max_pixels",
        shown(
            node("ImageScaleBy", image=["j", 0], scale_by=8.0),
            **LOADED,
            j=node("ImageScaleBy", image=["1", 0], scale_by=8.0),
        )
        | {"1": node("LoadImage", image="photo.png", **LESS)},
        SMALL,
    ),
    Case(
        "a size that is left over in samplers",
        "max_pixel_steps",
        {
            "0": latent(4096, 4096),
            **{
                str(at): {"class_type": "KSampler", "inputs": sampler([str(at - 1), 0], 100)["inputs"] | LESS}
                for at in range(1, 5)
            },
        },
    ),
    Case("another choice's size", "max_pixels", resized("scale by multiplier", multiplier=8.0, longer_size=64)),
    Case(
        "two other choices' sizes",
        "max_pixels",
        resized("scale by multiplier", multiplier=8.0, width=64, height=64, crop="disabled"),
    ),
    Case(
        "a link that is left over",
        "max_pixels",
        shown(
            node("ImageScaleBy", image=["i", 0], scale_by=8.0, width=["n", 0], height=["n", 0]),
            n=node("PrimitiveInt", value=64),
        ),
    ),
    Case(
        "a size that is left over, and large",
        None,
        shown(node("ImageScaleBy", image=["i", 0], scale_by=1.0, width=16384, height=16384)),
    ),
    Case(
        "steps that are left over",
        None,
        shown(node("ImageFlip", image=["i", 0], flip_method="x-axis: vertically", steps=100000)),
    ),
    Case("another choice's size, and large", None, resized("scale longer dimension", longer_size=2048, multiplier=8.0)),
    Case("a choice's own size", "max_pixels", resized("scale longer dimension", longer_size=8192)),
    # Steps by a list of sigmas.
    Case(
        "sigmas put between sigmas",
        "max_steps",
        custom(
            node(
                "ExtendIntermediateSigmas",
                sigmas=["e", 0],
                steps=50,
                start_at_sigma=-1.0,
                end_at_sigma=0.0,
                spacing="linear",
            ),
            l=latent(64, 64),
            e=node(
                "ExtendIntermediateSigmas",
                sigmas=["t", 0],
                steps=50,
                start_at_sigma=-1.0,
                end_at_sigma=0.0,
                spacing="linear",
            ),
            t=node("ManualSigmas", sigmas="1, 0.5, 0"),
        ),
    ),
    Case(
        "a list of numbers for sigmas",
        "max_steps",
        custom(
            node("FloatToSigmas", float_list=["t", 0]),
            l=latent(64, 64),
            t=node("StringToFloatList", string=",".join(["1"] * 300)),
        ),
    ),
    Case(
        "a short list of numbers for sigmas",
        None,
        custom(
            node("FloatToSigmas", float_list=["t", 0]),
            l=latent(64, 64),
            t=node("StringToFloatList", string=",".join(["1"] * 30)),
        ),
    ),
    # Films.
    Case(
        "a film of a photo",
        None,
        {
            **LOADED,
            "r": node("RepeatImageBatch", image=["1", 0], amount=48),
            "v": node(
                "VHS_VideoCombine",
                images=["r", 0],
                frame_rate=24,
                loop_count=0,
                filename_prefix="x",
                format="video/h264-mp4",
                pingpong=False,
                save_output=True,
            ),
        },
        SMALL,
    ),
    Case(
        "a long film of a photo",
        "max_frames",
        {
            **LOADED,
            "r": node("RepeatImageBatch", image=["1", 0], amount=4000),
            "v": node(
                "VHS_VideoCombine",
                images=["r", 0],
                frame_rate=24,
                loop_count=0,
                filename_prefix="x",
                format="video/h264-mp4",
                pingpong=False,
                save_output=True,
            ),
        },
        SMALL,
    ),
]
