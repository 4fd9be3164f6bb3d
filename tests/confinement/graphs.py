"""Graphs for every output node of a host, made of its own `object_info`."""

from collections.abc import Iterator
from typing import Any

from contract.client import Prompt, node
from contract.conftest import PHOTO

#: By type, what gives it: nodes of which the first that the host has is taken, with the link's output.
SOURCES: dict[str, list[tuple[dict[str, Any], ...]]] = {
    "IMAGE": [(node("LoadImage", image=PHOTO),)],
    "MASK": [(node("SolidMask", value=0.5, width=64, height=64),)],
    "LATENT": [(node("EmptyLatentImage", width=64, height=64, batch_size=1),)],
    "AUDIO": [(node("LoadAudio", audio="tone.wav"),)],
    "VIDEO": [(node("LoadImage", image=PHOTO), node("CreateVideo", images=["s0", 0], fps=8.0))],
    "VOXEL": [],
}


def declared(info: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any], bool]]:
    """(name, type or choices, options, required) of each input of a class."""
    for section in ("required", "optional"):
        for name, one in (info.get("input", {}).get(section) or {}).items():
            yield name, one[0], one[1] if len(one) > 1 and isinstance(one[1], dict) else {}, section == "required"


def make(class_type: str, info: dict[str, Any], known: dict[str, Any], **given: Any) -> Prompt | None:
    """A prompt whose node "9" is of that class, with defaults and with what is given; None where that cannot be."""
    prompt: Prompt = {}
    inputs: dict[str, Any] = {}
    for name, kind, options, required in declared(info):
        if name in given:
            inputs[name] = given[name]
            continue
        if not required:
            continue
        choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
        if choices is not None:
            if not choices:
                return None
            first = choices[0]
            inputs[name] = first if isinstance(first, (str, int, float, bool)) else first.get("key")
        elif kind in ("STRING", "INT", "FLOAT", "BOOLEAN"):
            inputs[name] = options.get(
                "default", {"STRING": "", "INT": options.get("min", 0), "FLOAT": 1.0}.get(kind, False)
            )
        else:
            for wanted in str(kind).split(","):
                if (link := _feed(prompt, wanted, known)) is not None:
                    inputs[name] = link
                    break
            else:
                return None
    prompt["9"] = {"class_type": class_type, "inputs": inputs}
    return prompt


def _feed(prompt: Prompt, kind: str, known: dict[str, Any]) -> list[Any] | None:
    for chain in SOURCES.get(kind, []):
        if all(one["class_type"] in known for one in chain):
            for number, one in enumerate(chain):
                inputs = {
                    name: [f"{kind}{value[0][1:]}", value[1]] if isinstance(value, list) else value
                    for name, value in one["inputs"].items()
                }
                prompt[f"{kind}{number}"] = {**one, "inputs": inputs}
            return [f"{kind}{len(chain) - 1}", 0]
    return None
