"""Tell what is wrong with how a file was judged at the door, by what its loader made of it."""

import re
from collections.abc import Iterator
from typing import Any

from policy.odd_files import FILMS, SOUNDS, Recipe

#: Of a file of some megabytes, by the processor.
MOST_SECONDS = 30
#: What a loader may take beside what it was judged to hold, in KiB; and of each pixel or sample, in bytes.
OWN_KIB, EACH_BYTES = 600_000, 64
#: What docs/http.md says of whole files that are refused, though a loader may make something of them.
SAID = re.compile(
    r"samples a second|no numbers|channels, of which|pixels; \d+ are allowed|breaks off|several sizes|HEIC|"
    r"would not mirror|more than \d+ pictures|changes its rate"
)
#: Of these nobody can tell how long they were.
_ENDLESS = frozenset({"mpegts", "mpeg", "adts", "ac3", "mp3", "mp2", "amr", "wv", "asf", "flv"})
_CODES = {"picture": "bad_image", "film": "bad_video", "sound": "bad_audio"}


def find_faults(recipe: Recipe, answer: Any) -> Iterator[str]:
    """What the door has promised and does not hold, by loader."""
    if "died" in answer:
        if answer["died"] not in ("", "making it"):  # an encoder, or the loader of a file that was refused
            yield f"{answer['died']}: it took the process with it, or never ended ({answer['status']})"
        return
    for class_type, told in answer.get("by", {}).items():
        if "refused" in told and recipe["kind"] == "picture" and "Video" in class_type:
            continue  # which is no film
        held = answer["held"]
        if class_type == "LoadImageMask":  # earlier ones take the first picture alone
            held = {**held, "frames": min(held["frames"], 1)}
        for fault in _find(recipe, held, told):
            yield f"{class_type}: {fault}"


def _find(recipe: Recipe, held: Any, told: Any) -> Iterator[str]:
    if "raised" in told:
        yield f"the door raised {told['raised']}"
    if told["judged_s"] > MOST_SECONDS:
        yield f"the door took {told['judged_s']} s"
    if "refused" in told:
        yield from _judge_refusal(recipe, held, told)
    elif told.get("media") is not None:
        yield from _judge_admission(recipe, held, told)


def _judge_refusal(recipe: Recipe, held: Any, told: Any) -> Iterator[str]:
    if not told["refused"].startswith("bad_"):
        yield f"refused as {told['refused']}"
    if len(told["why"]) < 20 or "object at 0x" in told["why"]:
        yield f"refused with these words: {told['why']}"
    if recipe["damage"] is None and "loaded" in told and not SAID.search(told["why"]) and is_plain(recipe):
        lost = held["frames"] and told["loaded"]["frames"] < held["frames"]
        if not lost and told["loaded"]["finite"]:
            yield f"refused, and it is whole and loads: {told['why']}"


def _judge_admission(recipe: Recipe, held: Any, told: Any) -> Iterator[str]:
    width, height, frames, _seconds, _rate, samples = told["media"]
    if "failed" in told:
        yield f"let in, and it failed: {told['failed']}"
        return
    loaded = told["loaded"]
    pixels = width * height * max(frames, 1)
    if loaded["pixels"] > pixels * 1.02 + width * height:
        yield f"let in for {pixels} pixels, and it has {loaded['pixels']}"
    if loaded["samples"] > samples * 1.05 + 20_000:
        yield f"let in for {samples} samples, and it has {loaded['samples']}"
    if not loaded["finite"]:
        yield "let in, and its samples are no numbers"
    if told["kib"] > OWN_KIB + EACH_BYTES * (pixels + samples) / 1024:
        yield f"let in, and it took {told['kib']} KiB"
    if is_cut_unseen(recipe):
        return
    if loaded["pixels"] and loaded["frames"] < held["frames"] * 0.9 - 1:
        yield f"let in, and {loaded['frames']} of {held['frames']} pictures are left"
    if loaded["samples"] and loaded["samples"] < held["samples"] * 0.8 - 20_000:
        yield f"let in, and {loaded['samples']} of {held['samples']} samples are left"


def is_plain(recipe: Recipe) -> bool:
    """Whether its container says in order what it holds."""
    if recipe["kind"] != "film":
        return True
    return recipe["packets"] == "all" and recipe["times"] in ("even", "uneven", "late") and not recipe["sizes"]


def is_cut_unseen(recipe: Recipe) -> bool:
    """Whether a part of it may be missing without a trace."""
    if recipe["kind"] == "picture":
        return recipe["damage"] is not None
    form = (FILMS if recipe["kind"] == "film" else SOUNDS)[recipe["form"]][0]
    damage = recipe["damage"]
    return damage is not None and (form in _ENDLESS or damage["how"] in ("lie", "grow"))
