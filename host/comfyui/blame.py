"""Blame one input of our nodes where ComfyUI blames every input that `VALIDATE_INPUTS` takes."""

from __future__ import annotations

import functools
from typing import Any

import execution
import nodes

from .patching import Native, replace_function

#: A node class names here the input that its `VALIDATE_INPUTS` judges; the others only say by which rules.
ATTRIBUTE = "GUARDED_BLAMES"

#: ComfyUI's type of an error that `VALIDATE_INPUTS` has answered.
_ANSWERED = "custom_validation_failed"


def blame_one_input() -> None:
    """Wrap ComfyUI's validation of prompts."""
    native: Native = execution.validate_prompt

    @functools.wraps(native)
    async def validate_prompt(*args: Any, **kwargs: Any) -> Any:
        answer = await native(*args, **kwargs)
        for entry in answer[3].values():
            _drop_repeated(entry)
        return answer

    replace_function(native, validate_prompt)


def _drop_repeated(entry: dict[str, Any]) -> None:
    """Drop the errors of a node that say of another input what is said of the one that it blames."""
    blamed = getattr(nodes.NODE_CLASS_MAPPINGS.get(entry.get("class_type", "")), ATTRIBUTE, None)
    if blamed is not None:
        entry["errors"] = [
            error
            for error in entry["errors"]
            if error["type"] != _ANSWERED or error["extra_info"]["input_name"] == blamed
        ]
