# ruff: noqa: E501 - a table
"""More such prompts: what nodes make of texts and numbers, count, turn on its side, and take again and again."""

from typing import Any

from policy.escapes import FILM, LOADED, PHOTO, VIDEO, Case, Graph, film, image, latent, node, sampler

TEXT = "a" * 16000


def wide(source: dict[str, Any], slot: int = 0, **more: Any) -> Graph:
    """The number in that output, as the width of a strip that is as high as a strip may be."""
    return {"x": source, "l": latent(["x", slot], 16384), "k": sampler(["l", 0]), **more}


def stepped(source: dict[str, Any], slot: int = 0, **more: Any) -> Graph:
    return {"x": source, "l": latent(), "k": sampler(["l", 0], ["x", slot]), **more}


def counted(source: dict[str, Any], slot: int = 0, **more: Any) -> Graph:
    """The number in that output, as how many pictures there are."""
    return {"x": source, "l": latent(1024, 1024, ["x", slot]), "k": sampler(["l", 0]), **more}


def convert(source: dict[str, Any], **more: Any) -> Graph:
    return wide(node("ComfyNumberConvert", value=["j", 0]), 1, j=source, **more)


def regex(pattern: str, text: str) -> dict[str, Any]:
    return node(
        "RegexExtract", string=text, regex_pattern=pattern, mode="First Match", case_insensitive=True, multiline=False,
        dotall=False, group_index=1,
    )  # fmt: skip


def picked(kind: str, name: str, indexes: Any, **more: Any) -> dict[str, Any]:
    return node(kind, **{name: ["i", 0]}, indexes=indexes, **more)


ERR = {"err_if_missing": True, "err_if_empty": True}
MANY = ",".join(["0"] * 200)
DOUBLED: Graph = {
    "r0": node("StringConcatenate", string_a="a" * 1000, string_b="b" * 1000, delimiter=""),
    **{
        f"r{at}": node("StringConcatenate", string_a=[f"r{at - 1}", 0], string_b=[f"r{at - 1}", 0], delimiter="")
        for at in (1, 2, 3)
    },
}
TALL = {"i": image(16, 16384)}
FLUX = {
    "model": ["m", 0], "conditioning": ["p", 0], "latent_image": ["l", 0], "seed": "1", "sampler": "euler", "scheduler": "simple",
    "steps": "20", "guidance": "3.5", "max_shift": "", "base_shift": "", "denoise": "1.0",
}  # fmt: skip


def custom(sigmas: dict[str, Any], **more: Any) -> Graph:
    return {
        "l": latent(4096, 4096), "x": sigmas, "s": node("KSamplerSelect", sampler_name="euler"), **more,
        "k": node("SamplerCustomAdvanced", noise=["n", 0], guider=["g", 0], sampler=["s", 0], sigmas=["x", 0], latent_image=["l", 0]),
    }  # fmt: skip


def doubled(times: int) -> Graph:
    texts = {"c0": node("CLIPTextEncode", clip=["c", 0], text="a fox")}
    return texts | {
        f"c{at}": node("ConditioningCombine", conditioning_1=[f"c{at - 1}", 0], conditioning_2=[f"c{at - 1}", 0])
        for at in range(1, times + 1)
    }


def conditioned(positive: list[Any]) -> dict[str, Any]:
    return {"inputs": {**sampler(["l", 0])["inputs"], "positive": positive}}


MADE = [
    # Texts.
    Case("the length of a long text", "max_pixels", wide(node("StringLength", string=TEXT))),
    Case("the length of a long text as steps", "max_steps", stepped(node("StringLength", string=TEXT))),
    Case("the length of a text that grows", "max_pixels",
         wide(node("StringLength", string=["r", 0]), r=node("StringReplace", string="a" * 160, find="a", replace="b" * 100))),
    Case("the length of a text that grows by a pattern", "max_pixels",
         wide(node("StringLength", string=["r", 0]),
              r=node("RegexReplace", string="a" * 160, regex_pattern="a", replace="b" * 100, count=0))),
    Case("the length of a text that is doubled", "max_pixels", wide(node("StringLength", string=["r3", 0]), **DOUBLED)),
    Case("the length of a text that is doubled without an end", "max_pixels",
         wide(node("StringLength", string=["r40", 0]), r0=DOUBLED["r0"],
              **{f"r{at}": node("StringConcatenate", string_a=[f"r{at - 1}", 0], string_b=[f"r{at - 1}", 0], delimiter="") for at in range(1, 41)})),
    Case("the length of a text in a wide field", "max_pixels",
         wide(node("StringLength", string=["f", 0]), f=node("StringFormat", f_string="{a:>16384}", **{"values.a": "x"}))),
    Case("the length of a text in capitals", "max_pixels",
         wide(node("StringLength", string=["f", 0]), f=node("CaseConverter", string="ß" * 8192, mode="UPPERCASE"))),
    Case("the length of a short text", None, wide(node("StringLength", string="a" * 512))),
    Case("a number in JSON", "max_pixels", convert(node("JsonExtractString", json_string='{"a": "1\\u0036384"}', key="a"))),
    Case("a small number in JSON", None, convert(node("JsonExtractString", json_string='{"a": 512, "b": 16384}', key="a"))),
    Case("a number put together", "max_pixels", convert(node("StringReplace", string="1X", find="X", replace="6384"))),
    Case("a small number put together", None, convert(node("StringConcatenate", string_a="5", string_b="12", delimiter=""))),
    Case("a number by a pattern", "max_pixels", convert(regex(r"\d{5}", "a1b6c3d8e4 16384"))),
    Case("a small number by a pattern", None, convert(regex(r"\d+", "768x1024"))),
    Case("a number by a switch between texts", "max_pixels",
         convert(node("ComfySwitchNode", switch=["b", 0], on_false=["s", 0], on_true="64"), s=node("StringConcatenate", string_a="163", string_b="84", delimiter=""),
                 b=node("RegexMatch", string="a", regex_pattern="b"))),
    Case("a colour", "max_pixels", wide(node("ColorToRGBInt", color="#004000"))),
    Case("a dark colour", None, wide(node("ColorToRGBInt", color="#000200"))),
    Case("a number by a choice", "max_pixels", wide(node("CustomCombo", choice="x", index=16384), 1)),
    # Formulas.
    *(Case(f"the formula {formula}", "max_pixels", wide(node("SimpleMath+", value=formula, a=128, b=128)))
      for formula in ("2**14", "a*b", "16384", "max(a, 16384)", "round(9999, -4) * 2", "len(a) * 4096", "a and 16384", "-(-16384)", "c + 16384")),
    Case("a formula over a model", "max_pixels", wide(node("SimpleMath+", value="len(a)*4096", a=["m", 0]), m=node("CheckpointLoaderSimple", ckpt_name="x"))),
    Case("a formula over a text", "max_pixels", wide(node("SimpleMath+", value="a**2", a="128"))),
    Case("a formula of few", None, wide(node("SimpleMath+", value="a*4", a=128))),
    Case("the second of two formulas", "max_pixels", wide(node("SimpleMathDual+", value_1="1", value_2="2**14"), 2)),
    Case("a formula for each case", "max_pixels", wide(node("SimpleMathCondition+", evaluate=1, on_true="a*128", on_false="64", a=128))),
    Case("a formula for each case, both of them small", None, wide(node("SimpleMathCondition+", evaluate=1, on_true="a*4", on_false="64", a=128))),
    Case("a slider", "max_pixels", wide(node("SimpleMathSlider+", value=1.0, min=0.0, max=16384.0, rounding=0), 1)),
    Case("a coarse slider", "max_pixels", wide(node("SimpleMathSliderLowRes+", value=10, min=0.0, max=16384.0, rounding=0), 1)),
    Case("a slider at its lower end", None, wide(node("SimpleMathSlider+", value=0.25, min=0.0, max=2048.0, rounding=0), 1)),
    *(Case(f"a formula of the host's, {formula}", "max_pixels", wide(node("ComfyMathExpression", expression=formula, **{"values.a": 1.6384}), 1))
      for formula in ("round(a * 10000)", "int('16384')", "log(a * 1e7, 1.001)", "[64, 16384][1]", "tan(a * 0.9587) * 1e5", "16384 if a else 64")),
    Case("a formula in a text", "max_pixels",
         wide(node("ComfyMathExpression", expression=["t", 0], **{"values.a": 128}), 1, t=node("StringConcatenate", string_a="a*", string_b="a", delimiter=""))),
    Case("a formula over what only the run can tell", "max_pixels",
         {"1": node("TextGenerate", clip=["c", 0], prompt="a number"), "c": node("CLIPLoader", clip_name="x"), "2": node("ComfyNumberConvert", value=["1", 0]),
          **wide(node("ComfyMathExpression", expression="a * 16384", **{"values.a": ["2", 0]}), 1)}),
    Case("what only the run can tell", None,
         {"1": node("TextGenerate", clip=["c", 0], prompt="a number"), "c": node("CLIPLoader", clip_name="x"), **wide(node("ComfyNumberConvert", value=["1", 0]), 1)}),
    # Counts.
    Case("the number of pictures", "max_pixels", counted(node("BatchCount+", batch=["i", 0]), i=image(16, 16, 200))),
    Case("the number of latents", "max_pixels", counted(node("GetLatentSizeAndCount", latent=["i", 0]), 1, i=latent(64, 64, 200))),
    Case("the channels of a latent", "max_pixels", counted(node("GetLatentSizeAndCount", latent=["i", 0]), 2, i=node("EmptyLTXVLatentVideo", width=64, height=64, length=1, batch_size=1))),
    Case("the number of pictures that are picked", "max_pixels",
         counted(node("VHS_GetImageCount", images=["v", 0]), v=picked("VHS_SelectImages", "image", MANY, **ERR), i=image(16, 16))),
    Case("the number of tiles", "max_pixels",
         counted(node("BatchCount+", batch=["t", 0]), i=image(256, 256),
                 t=node("ImageTile+", image=["i", 0], rows=16, cols=16, overlap=0.0, overlap_x=0, overlap_y=0))),
    Case("four tiles", None,
         counted(node("BatchCount+", batch=["t", 0]), i=image(256, 256),
                 t=node("ImageTile+", image=["i", 0], rows=2, cols=2, overlap=0.0, overlap_x=0, overlap_y=0))),
    Case("the number of few pictures", None, counted(node("BatchCount+", batch=["i", 0]), i=image(16, 16, 4))),
    # The same ones again.
    *(Case(f"latents picked by {kind}, the same again and again", "max_pixels",
           {"i": latent(), "x": picked(kind, name, MANY, **more), "k": sampler(["x", 0])})
      for kind, name, more in (("VHS_SelectLatents", "latent", ERR), ("GetLatentsFromBatchIndexed", "latents", {"latent_format": "BCHW"}))),
    *(Case(f"pictures picked by {kind}, the same again and again", "max_pixels",
           {"i": image(), "x": picked(kind, name, MANY, **more), "e": node("VAEEncode", pixels=["x", 0], vae=["v", 0]), "k": sampler(["e", 0])})
      for kind, name, more in (("VHS_SelectImages", "image", ERR), ("GetImagesFromBatchIndexed", "images", {}))),
    Case("whole batches picked again and again", "max_pixels",
         {"i": latent(1024, 1024, 4), "x": picked("VHS_SelectLatents", "latent", ",".join(["::-1"] * 50), **ERR), "k": sampler(["x", 0])}),
    Case("pictures picked by a text that nobody knows", "max_pixels",
         {"i": latent(), "x": picked("VHS_SelectLatents", "latent", ["t", 0], **ERR), "k": sampler(["x", 0]),
          "t": node("RegexReplace", string="0", regex_pattern="0", replace=MANY)}),
    Case("films picked again and again", "max_frames",
         {"i": film(64, 64, 81), "x": node("VHS_SelectLatents", latent=["i", 2], indexes=",".join(["0"] * 40), **ERR), "k": sampler(["x", 0])}),
    Case("three pictures picked", None, {"i": latent(1024, 1024, 8), "x": picked("VHS_SelectLatents", "latent", "0, 2, 5", **ERR), "k": sampler(["x", 0])}),
    Case("frames of a film picked", None, {**VIDEO, "x": node("GetImagesFromBatchIndexed", images=["2", 0], indexes="0, 100, 200")}, FILM),
    # On its side.
    *(Case(f"the width of what was {angle} high", "max_pixels",
           wide(node(kind, image=["p", 0]), p=node("ImageRotate", image=["i", 0], rotation=angle), **TALL))
      for kind in ("GetImageSize", "GetImageSize+") for angle in ("90 degrees", "270 degrees")),
    Case("the width of what was turned round", None, wide(node("GetImageSize", image=["p", 0]), p=node("ImageRotate", image=["i", 0], rotation="180 degrees"), **TALL)),
    Case("a photo that is turned", None,
         {**LOADED, "9": node("ImageRotate", image=["1", 0], rotation="90 degrees"), "99": node("SaveImage", images=["9", 0], filename_prefix="x")}, PHOTO),
    # Each with each.
    Case("each step with each seed", "max_pixel_steps", {"l": latent(), "k": node("FluxSamplerParams+", **{**FLUX, "seed": ",".join("1" * 99), "guidance": "1...5+0.1"})}),
    Case("all samplers with all schedulers", "max_pixel_steps", {"l": latent(), "k": node("FluxSamplerParams+", **{**FLUX, "sampler": "*", "scheduler": "!x"})}),
    Case("steps by a row", "max_pixel_steps", {"l": latent(), "k": node("FluxSamplerParams+", **{**FLUX, "steps": "1...100+0.5"})}),
    Case("two seeds", None, {"l": latent(), "k": node("FluxSamplerParams+", **{**FLUX, "seed": "1, 2", "steps": "20, 30"})}),
    Case("each seed with each prompt and each LoRA's strength", "max_pixel_steps",
         {"l": latent(), "c": node("TextEncodeForSamplerParams+", clip=["m", 1], text="a fox\n----\n" * 40), "r": node("LorasForFluxParams+", lora_1="x", strength_model_1="0...1+0.1"),
          "k": node("FluxSamplerParams+", **{**FLUX, "conditioning": ["c", 0], "loras": ["r", 0], "seed": ",".join("1" * 20)})}),
    Case("sigmas between words", "max_steps",
         {"l": latent(4096, 4096), "1": node("ManualSigmas", sigmas="x".join("1" * 401)),
          "2": node("SamplerCustomAdvanced", noise=["n", 0], guider=["g", 0], sampler=["s", 0], sigmas=["1", 0], latent_image=["l", 0])}),
    Case("a schedule of a list of numbers", "max_steps", custom(node("FloatToSigmas", float_list=["f", 0]), f=node("StringToFloatList", string=",".join("1" * 400)))),
    Case("a schedule with steps between its steps", "max_steps",
         custom(node("ExtendIntermediateSigmas", sigmas=["b", 0], steps=90, start_at_sigma=-1.0, end_at_sigma=0.0, spacing="linear"),
                b=node("KarrasScheduler", steps=90, sigma_max=14.6, sigma_min=0.03, rho=7.0))),
    Case("a schedule with a step between each two", None,
         custom(node("ExtendIntermediateSigmas", sigmas=["b", 0], steps=2, start_at_sigma=-1.0, end_at_sigma=0.0, spacing="linear"),
                b=node("KarrasScheduler", steps=20, sigma_max=14.6, sigma_min=0.03, rho=7.0))),
    Case("a sampler that makes latents larger", "max_pixels",
         {**custom(node("KarrasScheduler", steps=20, sigma_max=14.6, sigma_min=0.03, rho=7.0)),
          "s": node("SamplerLCMUpscale", scale_ratio=20.0, scale_steps=-1, upscale_method="area")}),
    Case("conditions put together again and again", "max_pixel_steps", {**doubled(10), "l": latent(), "k": sampler(["l", 0]) | conditioned(["c10", 0])}),
    Case("two conditions put together", None, {**doubled(1), "l": latent(), "k": sampler(["l", 0]) | conditioned(["c1", 0])}),
    # What a search over the packs' nodes found.
    Case("an output counted from the last", "max_pixels", wide(node("CustomCombo", choice="64", index=16384), -1)),
    Case("the length of a text that only the run can tell", "max_pixels",
         wide(node("StringLength", string=["1", 0]), **{"1": node("TextGenerate", clip=["c", 0], prompt="a tale"), "c": node("CLIPLoader", clip_name="x")})),
    Case("pictures that are counted, and are not there", "max_frames", {"i": image(64, 64, 4), "x": node("ImageBatchMulti", inputcount=1000, image_1=["i", 0])}),
    Case("pictures side by side that are not there", "max_pixels", {"i": image(), "x": node("ImageConcatMulti", inputcount=100, image_1=["i", 0], direction="right", match_image_size=False)}),
    Case("a grid cut into pieces", "max_frames", {"i": image(1024, 1024), "x": node("ImageGridtoBatch", image=["i", 0], columns=64, rows=0)}),
    Case("a grid cut into four", None, {"i": image(1024, 1024), "x": node("ImageGridtoBatch", image=["i", 0], columns=2, rows=2)}),
    Case("empty frames between frames", "max_frames",
         {"i": image(64, 64, 4), "x": node("PadImageBatchInterleaved", images=["i", 0], empty_frames_per_image=400, pad_frame_value=0.0, add_after_last=True)}),
    Case("frames that fade into each other", "max_frames",
         {"i": image(64, 64, 4), "x": node("TransitionImagesInBatch", images=["i", 0], interpolation="linear", transition_type="fade", transitioning_frames=400, blur_radius=0.0, reverse=False, device="CPU")}),
    Case("frames by chance", "max_frames",
         {"i": image(64, 64, 4), "x": node("RandomImageFromBatch", input=["i", 0], start_index=0, end_index=-1, num_frames=2000, randomness=1.0, min_distance=0, max_distance=0, seed=1), "z": node("CreateVideo", images=["x", 0], fps=16.0)}),
    Case("a picture for each place of a path", "max_frames",
         {"x": node("CreateShapeMaskOnPath", shape="circle", coordinates='[{"x":1,"y":1}' + ',{"x":1,"y":1}' * 1500 + "]", frame_width=64, frame_height=64, shape_width=8, shape_height=8),
          "y": node("MaskToImage", mask=["x", 0]), "z": node("CreateVideo", images=["y", 0], fps=16.0)}),
]  # fmt: skip
