"""More such prompts: what a node makes on its way to less, canvases, latents of each format, and lists of numbers."""

from policy.escapes import Case, image, latent, node, sampler
from policy.escapes_left import sampled, shown

TILES = {"tile_width": 64, "tile_height": 64, "overlap": 0}
WEIGHTS = {
    "weights": "1.0",
    "timing": "linear",
    "add_starting_frames": 0,
    "add_ending_frames": 0,
    "method": "full batch",
}

WAY = [
    Case(
        "a picture that is painted on, many times, said to be small",
        "max_film_pixels",
        shown(
            node("RepeatImageBatch", image=["p", 0], amount=900),
            p=node("Painter", mask="", width=64, height=64, bg_color="#000000", image=["i", 0]),
            i=image(1408, 1408),
        ),
    ),
    # Fewer, or later, makes more.
    Case(
        "small tiles by a seed",
        "max_frames",
        shown(
            node("SplitImageToTileList", image=["i", 0], tile_width=1024, tile_height=["s", 0], overlap=0),
            i=image(2048, 2048),
            s=node("SeedNode", seed=2),
        ),
    ),
    Case(
        "small tiles of a square that is in a batch with a strip",
        "max_frames",
        shown(
            node("SplitImageToTileList", image=["b", 0], **TILES),
            b=node("ImageBatch", image1=["i", 0], image2=["j", 0]),
            i=image(2048, 2048),
            j=image(8000, 16),
        ),
    ),
    Case(
        "tiles of a tile",
        "max_frames",
        shown(
            node("SplitImageToTileList", image=["t", 0], tile_width=64, tile_height=64, overlap=60),
            t=node("SplitImageToTileList", image=["i", 0], tile_width=4096, tile_height=64, overlap=0),
            i=image(4096, 256),
        ),
    ),
    Case(
        "a picture for each weight of a row that begins late",
        "max_frames",
        shown(
            node("IPAdapterWeights", image=["i", 0], frames=20, start_frame=5000, end_frame=9999, **WEIGHTS),
            i=image(64, 64),
        ),
    ),
    Case(
        "a picture for each weight of a row",
        None,
        shown(
            node("IPAdapterWeights", image=["i", 0], frames=20, start_frame=5, end_frame=9999, **WEIGHTS),
            i=image(64, 64),
        ),
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
    *(
        Case(
            f"layers by boxes, {what}",
            limit,
            shown(
                node("ImageCompositor", layers=["b", 0]),
                i=image(64, 64),
                b=node("LayersFromBoundingBoxes", image=["i", 0], bboxes=boxes, **more),
            ),
        )
        for what, limit, boxes, more in (
            ("far off", "max_pixels", '[{"x": 16e3, "y": 16000, "width": 64, "height": 64}]', {}),
            ("on a large canvas", "max_pixels", "[]", {"canvas_width": 16384, "canvas_height": 16384}),
            (
                "in parts of a canvas",
                "max_pixels",
                '[{"bbox": [0, 0, 16, 16]}]',
                {"canvas_width": 1024, "canvas_height": 1024},
            ),
            (
                "near",
                None,
                '[{"x": 100, "y": 160, "width": 64, "height": 64}]',
                {"canvas_width": 1024, "canvas_height": 1024},
            ),
        )
    ),
    # Films of latents.
    Case(
        "a film taken out of a batch of latents",
        "max_frames",
        {
            "f": node("EmptyHunyuanLatentVideo", width=64, height=64, length=2001, batch_size=1),
            "x": node("LatentFromBatch", samples=["f", 0], batch_index=0, length=1),
            "k": sampler(["x", 0]),
        },
    ),
    Case(
        "a short film taken out of a batch of latents",
        None,
        {
            "f": node("EmptyHunyuanLatentVideo", width=64, height=64, length=81, batch_size=1),
            "x": node("LatentFromBatch", samples=["f", 0], batch_index=0, length=1),
            "k": sampler(["x", 0]),
        },
    ),
    Case(
        "layers by boxes that are no text",
        "max_pixels",
        shown(
            node("ImageCompositor", layers=["b", 0]),
            i=image(64, 64),
            b=node(
                "LayersFromBoundingBoxes", image=["i", 0], bboxes=[{"x": 16000, "y": 16000, "width": 64, "height": 64}]
            ),
        ),
    ),
    *(
        Case(
            f"latents beside {dim} others {times} times",
            limit,
            {
                "l": latent(512, 512, 20),
                "o": latent(512, 512, 1),
                "c0": node("RepeatLatentBatch", samples=["l", 0], amount=1),
                **{
                    f"c{at}": node("LatentConcat", samples1=[f"c{at - 1}", 0], samples2=["o", 0], dim=dim)
                    for at in range(1, times + 1)
                },
                "k": sampler([f"c{times}", 0]),
            },
        )
        for dim, times, limit in (("x", 5, "max_pixels"), ("-y", 5, "max_pixels"), ("x", 1, None))
    ),
]
