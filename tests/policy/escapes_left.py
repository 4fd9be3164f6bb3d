"""More such prompts: what ComfyUI drops before it calls a node, and what a node makes on its way to less."""

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
    # What a node makes on its way.
    *(
        Case(
            f"many small {many} on a large picture, {what}",
            limit,
            shown(
                node(
                    "ImageCompositeMasked", destination=["i", 0], source=["a", 0], x=0, y=0, resize_source=sized, **more
                ),
                a=image(64, 64, 900 if many == "pictures" else 1),
                m=node("ImageToMask", image=["b", 0], channel="red"),
                b=image(64, 64, 900),
            ),
        )
        for many, what, limit, sized, more in (
            ("pictures", "scaled", "max_film_pixels", True, {}),
            ("pictures", "scaled by a text", "max_film_pixels", "false", {}),
            ("pictures", "as they are", None, False, {}),
            ("masks", "scaled", "max_film_pixels", True, {"mask": ["m", 0]}),
            ("masks", "as they are", None, False, {"mask": ["m", 0]}),
        )
    ),
    Case(
        "many small latents on a large one",
        "max_pixels",
        sampled(
            node("LatentCompositeMasked", destination=["l", 0], source=["a", 0], x=0, y=0, resize_source=True),
            a=latent(64, 64, 900),
        ),
    ),
    Case(
        "the frames of a segment",
        "max_frames",
        shown(node("WanDancerPadKeyframes", images=["i", 0], segment_length=5000, segment_index=0), i=image(64, 64)),
    ),
    Case(
        "the frames of all segments",
        "max_frames",
        shown(node("WanDancerPadKeyframesList", images=["i", 0], segment_length=900, num_segments=50), i=image(64, 64)),
    ),
    Case(
        "a segment",
        None,
        shown(node("WanDancerPadKeyframes", images=["i", 0], segment_length=149, segment_index=0), i=image(512, 512)),
    ),
    # Latents that are not eight times smaller.
    *(
        Case(
            f"{kind}, scaled to pixels",
            "max_pixels",
            {
                "l": node(kind, width=512, height=512, batch_size=1, **more),
                "u": node(
                    "LatentUpscale",
                    samples=["l", 0],
                    upscale_method="bilinear",
                    width=4096,
                    height=4096,
                    crop="disabled",
                ),
                "k": sampler(["u", 0]),
            },
        )
        for kind, more in (
            ("EmptyFlux2LatentImage", {}),
            ("EmptyHunyuanImageLatent", {}),
            ("EmptyHunyuanVideo15Latent", {"length": 1}),
            ("EmptyLTXVLatentVideo", {"length": 1}),
            ("StableCascade_EmptyLatentImage", {"compression": 42}),
        )
    ),
    Case(
        "a picture encoded as such, scaled to pixels",
        "max_pixels",
        shown(
            node(
                "LatentUpscale", samples=["e", 0], upscale_method="bilinear", width=4096, height=4096, crop="disabled"
            ),
            i=image(512, 512),
            e=node("VAEEncode", pixels=["i", 0], vae=["v", 0]),
            v=node("VAELoader", vae_name="flux2-vae.safetensors"),
            k=sampler(["x", 0]),
        )
        | {"s": sampler(["x", 0])},
    ),
    Case(
        "such a latent, scaled to as many pixels as may be",
        None,
        {
            "l": node("EmptyFlux2LatentImage", width=512, height=512, batch_size=1),
            "u": node(
                "LatentUpscale", samples=["l", 0], upscale_method="bilinear", width=2048, height=2048, crop="disabled"
            ),
            "k": sampler(["u", 0]),
        },
    ),
    *(
        Case(
            f"a latent cut to pieces along {dim}",
            limit,
            {
                "l": latent(*((4096, 64) if dim == "x" else (64, 4096))),
                "c": node("LatentCutToBatch", samples=["l", 0], dim=dim, slice_size=size),
                "u": node(
                    "LatentUpscale",
                    samples=["c", 0],
                    upscale_method="bilinear",
                    width=1024,
                    height=1024,
                    crop="disabled",
                ),
                "k": sampler(["u", 0]),
            },
        )
        for dim in ("x", "y")
        for size, limit in ((1, "max_pixels"), (64, None))
    ),
    # Layers.
    *(
        Case(
            f"layers, {what}",
            limit,
            shown(
                node("ImageCompositor", layers=["b", 0], compositor=state),
                i=image(64, 64),
                j=image(*size),
                a=node("AddLayer", image=["i", 0]),
                b=node("AddLayer", layers=["a", 0], image=["j", 0], **more),
            ),
        )
        for what, limit, size, more, state in (
            ("far off", "max_pixels", (64, 64), {"x": 16000, "y": 16000}, {}),
            ("turned", "max_pixels", (8192, 64), {"rotation": 45.0}, {}),
            ("stretched", "max_pixels", (64, 64), {"width": 8192, "height": 8192}, {}),
            ("a saved canvas", "max_pixels", (64, 64), {}, {"canvas": {"w": 16000, "h": 16000}, "layers": [{}]}),
            (
                "a saved canvas in a text",
                "max_pixels",
                (64, 64),
                {},
                '{"canvas": {"w": "16000", "h": 16000}, "layers": [{}]}',
            ),
            (
                "a saved size",
                "max_pixels",
                (64, 64),
                {},
                {"canvas": {"w": 64, "h": 64}, "layers": [{"transform": {"w": 16000, "h": 16000}}]},
            ),
            ("near", None, (64, 64), {"x": 500, "y": 400}, {"canvas": {"w": 1024, "h": 1024}, "layers": [{}]}),
            ("far to the right", None, (64, 64), {"x": 16000}, {}),
        )
    ),
    Case(
        "a wide layer and a high one",
        "max_pixels",
        shown(
            node("ImageCompositor", layers=["b", 0]),
            i=image(16384, 100),
            j=image(100, 16384),
            a=node("AddLayer", image=["i", 0]),
            b=node("AddLayer", layers=["a", 0], image=["j", 0]),
        ),
    ),
    # Lists and sounds.
    Case(
        "a mask for each number",
        "max_frames",
        {
            "t": node("StringToFloatList", string=",".join(["1"] * 3000)),
            "m": node("FloatToMask", input_values=["t", 0], width=64, height=64),
            "x": node("MaskToImage", mask=["m", 0]),
            "s": node("SaveImage", images=["x", 0]),
        },
    ),
    Case(
        "a mask for each number of two lists",
        "max_frames",
        {
            "t": node("StringToFloatList", string=",".join(["1"] * 900)),
            "w": node("WeightScheduleExtend", input_values_1=["t", 0], input_values_2=["t", 0], output_type="list"),
            "m": node("FloatToMask", input_values=["w", 0], width=64, height=64),
        },
    ),
    Case(
        "a mask for each of few numbers",
        None,
        {
            "t": node("StringToFloatList", string="0, 0.5, 1"),
            "m": node("FloatToMask", input_values=["t", 0], width=64, height=64),
        },
    ),
    *(
        Case(
            f"a sound put after itself {times} times",
            limit,
            {
                "a0": node("EmptyAudio", duration=60.0, sample_rate=44100, channels=2),
                **{
                    f"a{at + 1}": node("AudioConcat", audio1=[f"a{at}", 0], audio2=[f"a{at}", 0], direction="after")
                    for at in range(times)
                },
            },
        )
        for times, limit in ((2, None), (3, "max_seconds"))
    ),
]
