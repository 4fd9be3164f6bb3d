"""Nodes that reach for files in every way that packs have: what they name, what they read, and where they write."""

import base64
import ctypes
import os
import subprocess
import threading
import urllib.request
from typing import Any

import folder_paths
import server
from PIL import Image

from .common import SEED, FaultNode, sample_image

TEXT = ("STRING", {"default": ""})
#: As packs do that ask once, when they are imported.
OUTPUT = folder_paths.get_output_directory()


class _Reach(FaultNode):
    OUTPUT_NODE = True
    RETURN_TYPES: tuple[str, ...] = ()


class FaultReport(_Reach):
    """Reports whatever file it is told to, and one that is not there as well."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        missing = ("BOOLEAN", {"default": False})
        return {"required": {"filename": TEXT, "subfolder": TEXT, "type": ("STRING", {"default": "output"})},
                "optional": {"missing": missing}}  # fmt: skip

    def run(self, filename: str, subfolder: str, type: str, missing: bool = False) -> dict[str, Any]:
        files = [{"filename": filename, "subfolder": subfolder, "type": type}]
        if missing:
            files.append({"filename": "nothing-here.png", "subfolder": "", "type": "output"})
        return {"ui": {"images": files}}


class FaultRecord(_Reach):
    """Reports the bytes of a recording, whose input has a type of its own; a text may be linked to it."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"audio": ("AUDIO_RECORD", {})}}

    def run(self, audio: str) -> dict[str, Any]:
        with open(folder_paths.get_annotated_filepath(audio), "rb") as file:
            return {"ui": {"text": [base64.b64encode(file.read()).decode()]}}


class FaultEither(_Reach):
    """Reports what it gets in inputs that take things of several kinds, none of which names a file."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT,FLOAT,STRING,BOOLEAN", {})}, "optional": {"picture": ("IMAGE,MASK", {})}}

    def run(self, value: Any, picture: Any = None) -> dict[str, Any]:
        return {"ui": {"text": [str(value), str(picture is not None)]}}


class FaultReadPath(_Reach):
    """Reports the bytes of any file by a text that nothing marks as a path; a folder's names; an address's answer; what
    a program says of a file."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"words": TEXT}}

    def run(self, words: str) -> dict[str, Any]:
        if words.startswith("cat:"):
            done = subprocess.run(["cat", words[4:]], capture_output=True, check=True)
            return {"ui": {"text": [base64.b64encode(done.stdout).decode()]}}
        if words.startswith("http:"):
            return {"ui": {"text": [fetch(words)]}}
        if os.path.isdir(words):
            return {"ui": {"text": sorted(os.listdir(words))}}
        with open(words, "rb") as file:
            return {"ui": {"text": [base64.b64encode(file.read()).decode()]}}


class FaultOpen(_Reach):
    """Reports the bytes of a file that it opens in C, as film loaders do, by a name that one of ComfyUI's functions
    makes a path of; or only whether there is such a file."""

    WAYS = ("get", "split", "exists")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"way": (list(cls.WAYS),), "words": TEXT}}

    def run(self, way: str, words: str) -> dict[str, Any]:
        if way == "exists":
            return {"ui": {"text": [str(folder_paths.exists_annotated_filepath(words))]}}
        if way == "get":
            path = folder_paths.get_annotated_filepath(words)
        else:
            name, folder = folder_paths.annotated_filepath(words)
            path = os.path.join(folder or folder_paths.get_input_directory(), name)
        return {"ui": {"text": [base64.b64encode(read_in_c(path)).decode()]}}


class FaultFollow(_Reach):
    """Reports the bytes of a film, or of the last file that a playlist names: in C, as FFmpeg does."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"video": ("STRING", {"video_upload": True})}}

    def run(self, video: str) -> dict[str, Any]:
        path = folder_paths.get_annotated_filepath(video)
        content = read_in_c(path)
        if content.startswith(b"#EXTM3U"):
            segment = content.decode().split()[-1]
            content = read_in_c(os.path.normpath(os.path.join(os.path.dirname(path), segment)))
        return {"ui": {"text": [base64.b64encode(content).decode()]}}


class FaultFetch(_Reach):
    """Reports what an address answers."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"url": TEXT}}

    def run(self, url: str) -> dict[str, Any]:
        return {"ui": {"text": [fetch(url)]}}


class FaultGossip(_Reach):
    """Saves a picture, or with `fails` raises an error that tells where the one before it was saved: nodes outlive the
    jobs that they work for."""

    last = ""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"fails": ("BOOLEAN", {"default": False}), "seed": SEED}}

    def run(self, fails: bool, seed: int) -> dict[str, Any]:
        if fails:
            raise OSError(f"cannot close '{FaultGossip.last}' before the next one")
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path("gossip", OUTPUT)
        name = f"{stem}_{counter:05}_.png"
        FaultGossip.last = os.path.join(folder, name)
        Image.fromarray((sample_image(seed)[0] * 255).astype("uint8")).save(FaultGossip.last)
        return {"ui": {"images": [{"filename": name, "subfolder": subfolder, "type": "output"}]}}


def fetch(url: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=60) as answer:
        return str(answer.read().decode(errors="replace"))


def read_in_c(path: str) -> bytes:
    """The file's bytes, of which Python hears nothing: ffprobe and the like open so, within the process."""
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    library.fread.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    library.fclose.argtypes = [ctypes.c_void_p]
    if not (file := library.fopen(os.fsencode(path), b"rb")):
        raise FileNotFoundError(path)
    content = ctypes.create_string_buffer(1 << 20)
    size = library.fread(content, 1, len(content), file)
    library.fclose(file)
    return content.raw[:size]


class FaultRequeue(_Reach):
    """Puts another prompt into ComfyUI's queue, past every route, from the worker's thread or from one of its own."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"id": TEXT, "on_thread": ("BOOLEAN", {"default": False})}}

    def run(self, id: str, on_thread: bool) -> dict[str, Any]:
        queue = server.PromptServer.instance.prompt_queue
        item = next(iter(queue.currently_running.values()))
        inputs = {"filename": "x.png", "subfolder": "", "type": "output"}
        prompt = {"9": {"class_type": "FaultReport", "inputs": inputs}}
        another = (item[0] + 1, id, prompt, {}, ["9"], *item[5:])
        if on_thread:
            thread = threading.Thread(target=queue.put, args=(another,))
            thread.start()
            thread.join()
        else:
            queue.put(another)
        return {"ui": {"text": ["queued"]}}


class FaultWrite(_Reach):
    """Saves a picture where it finds the output folder in one of the ways in which packs do."""

    WAYS = ("prefix", "getter", "variable", "kept", "imported", "given")

    def __init__(self) -> None:
        self.output_dir = folder_paths.get_output_directory()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"way": (list(cls.WAYS),), "name": TEXT, "seed": SEED}}

    def run(self, way: str, name: str, seed: int) -> dict[str, Any]:
        subfolder = ""
        if way == "prefix":
            folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(name, self.output_dir)
            name = f"{stem}_{counter:05}_.png"
        else:
            folder = {
                "getter": folder_paths.get_output_directory(),
                "variable": folder_paths.output_directory,
                "kept": self.output_dir,
                "imported": OUTPUT,
                "given": "",
            }[way]
            name += ".png"
        picture = Image.fromarray((sample_image(seed)[0] * 255).astype("uint8"))
        picture.save(os.path.join(folder, name))
        return {"ui": {"images": [{"filename": name, "subfolder": subfolder, "type": "output"}]}}


class _AnyType(str):
    """Fits every input, as the switches and converters of many packs do."""

    def __ne__(self, _other: object) -> bool:
        return False


class FaultJoin(FaultNode):
    """Puts a text together while the job runs."""

    RETURN_TYPES = (_AnyType("*"),)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"one": TEXT, "other": TEXT}}

    def run(self, one: str, other: str) -> tuple[str]:
        return (one + other,)
