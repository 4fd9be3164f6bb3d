"""Turn what ComfyUI says of a refused or failed prompt into our errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from .errors import (
    BY_NAME,
    BadImageError,
    DiskFullError,
    FaceTooSmallError,
    GenerationFailedError,
    GuardError,
    InvalidWorkflowError,
    JobInterruptedError,
    MissingModelError,
    MissingNodeError,
    NoFaceError,
    OutOfMemoryError,
    TooManyFacesError,
    clip,
    type_name,
)
from .host import Host, Outcome, Refusal

#: What our face loader says of a photo as ComfyUI validates a prompt.
_OF_PHOTOS: tuple[type[GuardError], ...] = (NoFaceError, TooManyFacesError, FaceTooSmallError, BadImageError)

MODEL_SUFFIXES = frozenset(
    {".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".onnx", ".gguf", ".pkl", ".engine"}
)

MEDIA_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".tga", ".avif", ".heic", ".heif"}
    | {".mp4", ".webm", ".mov", ".mkv", ".avi", ".wav", ".mp3", ".flac", ".ogg", ".m4a"}
)


def host_body(body: dict[str, Any], job_id: str) -> dict[str, Any]:
    """The body for ComfyUI's own handler: without our options and the ordering, which the guard does itself."""
    passed = {name: value for name, value in body.items() if name not in ("guard", "number", "front")}
    passed["prompt_id"] = job_id
    return passed


def make_execution_error(
    job_id: str, code: str, message: str, details: Mapping[str, Any], at_ms: int | None
) -> dict[str, Any]:
    """Make the data of ComfyUI's `execution_error` for an error of ours.

    The frontend refuses a whole list of jobs for one entry whose node is not a string.
    """
    return {
        "prompt_id": job_id,
        "timestamp": at_ms,
        "node_id": str(details.get("node_id") or ""),
        "node_type": str(details.get("node_type") or ""),
        "executed": [],
        "exception_message": message,
        "exception_type": details.get("exception_type") or type_name(code),
        "traceback": [],
        "current_inputs": {},
        "current_outputs": [],
    }


def explain_refusal(refusal: Refusal, graph: Mapping[str, Any], host: Host) -> GuardError:
    """Our error for the host's refusal: a missing node class, model or input file, or else an invalid workflow."""
    facts: dict[str, Any] = {"node_errors": refusal.node_errors, "host_type": refusal.type}
    if missing := host.missing_classes(graph):
        nodes = [node_id for node_id, node in graph.items() if node["class_type"] in missing]
        return MissingNodeError(
            f"This server lacks the node class {clip(', '.join(missing))}.",
            details=refusal.details,
            extra_info={**refusal.extra_info, "classes": missing, "nodes": nodes},
            **facts,
        )
    if (said := _find_own(refusal.node_errors)) is not None:
        node_id, error, message = said
        return error(message, details=refusal.details, extra_info={**refusal.extra_info, "node_id": node_id}, **facts)
    missing_values = list(_list_missing(refusal.node_errors))
    for suffixes, error, text in (
        (MODEL_SUFFIXES, MissingModelError, "This server lacks the model {value}."),
        (MEDIA_SUFFIXES, BadImageError, "The input file {value} cannot be used."),
    ):
        for node_id, name, value in missing_values:
            if PurePosixPath(value.split(" [")[0].replace("\\", "/")).suffix.lower() in suffixes:
                return error(
                    text.format(value=PurePosixPath(value.replace("\\", "/")).name),
                    details=refusal.details,
                    extra_info={**refusal.extra_info, "node_id": node_id, "input": name, "value": value},
                    **facts,
                )
    return InvalidWorkflowError(refusal.message, details=refusal.details, extra_info=dict(refusal.extra_info), **facts)


def _find_own(node_errors: Mapping[str, Any]) -> tuple[str, type[GuardError], str] | None:
    """(node id, error, message) of what one of our nodes says of its photo: `image - no_face: No face in a.png.`"""
    for node_id, entry in node_errors.items():
        for error in entry.get("errors", ()):
            if error.get("type") == "custom_validation_failed":
                for each in _OF_PHOTOS:
                    _input, is_ours, message = str(error.get("details", "")).partition(f" - {each.code}: ")
                    if is_ours:
                        return node_id, each, message
    return None


def _list_missing(node_errors: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """(node id, input, value) of every value that the host does not have."""
    for node_id, entry in node_errors.items():
        for error in entry.get("errors", ()):
            info = error.get("extra_info") or {}
            name = str(info.get("input_name", ""))
            if error.get("type") == "value_not_in_list":
                yield node_id, name, str(info.get("received_value", ""))
            elif error.get("type") == "custom_validation_failed":
                # The details of ComfyUI's loaders: `image - Invalid image file: name.png`.
                yield node_id, name, str(error.get("details", "")).rpartition(": ")[2]


#: Texts by which a failed job shows that the disk is full.
NO_SPACE = ("No space left on device", "database or disk is full", "not enough space on the disk")

#: Texts of errors after which every CUDA call of the process fails.
GPU_FAULT = ("CUDA error:", "device-side assert", "HIP error:", "CUDNN_STATUS_EXECUTION_FAILED")

#: "CUDA out of memory. Tried …", "CUDA error: out of memory", "HIP out of memory", "MPS backend out of memory (…)".
_OUT_OF_MEMORY = re.compile(r"\b(CUDA|HIP|XPU|MPS)\b[^\n]{0,20}out of memory|Allocation on device")
#: What torch says of the machine's own memory, on Linux and on Windows.
_OUT_OF_MAIN_MEMORY = re.compile(r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)")


def explain_failure(outcome: Outcome) -> GuardError:
    """Our error for a failed run, by what the host says of the exception."""
    if outcome.interrupted:
        return JobInterruptedError("The job was interrupted in ComfyUI.")
    message = outcome.exception_message.strip().split("\n\nTIPS:")[0].strip()
    facts = {
        "node_id": outcome.node_id,
        "node_type": outcome.node_type,
        "exception_type": outcome.exception_type,
        "exception_message": message[:2000],
    }
    if outcome.exception_type in BY_NAME:
        return BY_NAME[outcome.exception_type](message, extra_info=facts)
    if _is_out_of_main_memory(outcome):
        return OutOfMemoryError("The machine ran out of memory.", extra_info=facts)
    if _is_out_of_memory(outcome):
        return OutOfMemoryError("The GPU ran out of memory.", extra_info=facts)
    if contains(message, NO_SPACE):
        return DiskFullError("The disk is full.", details=message[:300], extra_info=facts)
    return GenerationFailedError(
        f"{outcome.node_type or 'A node'} failed: {message[:300] or outcome.exception_type}", extra_info=facts
    )


def _is_out_of_memory(outcome: Outcome) -> bool:
    """Whether memory ran out. The class lies in several modules of torch, and some allocators only say it in words."""
    name = outcome.exception_type.rpartition(".")[2]
    return name == "OutOfMemoryError" or _OUT_OF_MEMORY.search(outcome.exception_message) is not None


def _is_out_of_main_memory(outcome: Outcome) -> bool:
    """The same of the machine's own memory, also as NumPy says it. libav says so of what it cannot use, such as a
    sound without samples."""
    module, _, name = outcome.exception_type.rpartition(".")
    is_named = name in ("MemoryError", "_ArrayMemoryError") and module.partition(".")[0] != "av"
    return is_named or _OUT_OF_MAIN_MEMORY.search(outcome.exception_message) is not None


def contains(text: str, marks: tuple[str, ...]) -> bool:
    """Whether any of the marks is in the text."""
    return any(mark in text for mark in marks)
