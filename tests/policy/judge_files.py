"""Run by a real ComfyUI's Python (test_odd_files.py starts it): make odd files, judge each at the door, and load it.

python judge_files.py COMFYUI BASE ALIAS [PACK ...]

The first line of the answer names the loaders. After it comes, for each recipe that is a line of the input, one with
what the door and the real node made of the file, by loader. Each file is judged and loaded by a process of its own.
"""

import json
import logging
import math
import os
import resource
import select
import signal
import sys
import time
import warnings
from pathlib import Path

import our_package

COMFYUI, BASE, ALIAS, *PACKS = sys.argv[1:]
#: What a loader may have beside what it was judged to take; and how long it may take, by the processor.
MEMORY, SECONDS = 12 * 2**30, 120

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what nodes print
sys.argv = ["main.py", "--cpu", "--base-directory", BASE]
sys.path.insert(0, COMFYUI)
os.chdir(COMFYUI)
warnings.simplefilter("ignore")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import asyncio  # noqa: E402
import importlib  # noqa: E402

importlib.import_module("utils.install_util")  # as main.py does: nodes then hides the folder behind a module

import nodes  # noqa: E402
import server  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
our_package.register(ALIAS)

from comfyui_guarded.guard.errors import GuardError  # noqa: E402
from comfyui_guarded.guard.faces import frames, pages  # noqa: E402
from comfyui_guarded.guard.faces.loaded import LoadedFiles  # noqa: E402
from comfyui_guarded.guard.graph import Names  # noqa: E402
from comfyui_guarded.host.comfyui.declarations import Declarations  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
import odd_files  # noqa: E402

INPUT = Path(BASE) / "input"
logging.disable(logging.CRITICAL)


async def prepare():
    server.PromptServer(asyncio.get_running_loop()).send_progress_text = lambda *_text, **_more: None
    for each in ("nodes_video.py", "nodes_audio.py"):
        await nodes.load_custom_node(str(Path(COMFYUI) / "comfy_extras" / each), module_parent="comfy_extras")
    for pack in PACKS:
        await nodes.load_custom_node(pack, module_parent="custom_nodes")


def load_video(name):
    made = nodes.NODE_CLASS_MAPPINGS["LoadVideo"].execute(name).result[0]
    parts = made.get_components()
    return parts.images, parts.audio


def load_by_pack(class_type):
    def load(name):
        more = {"force_rate": 0, "custom_width": 0, "custom_height": 0, "frame_load_cap": 0}
        more |= {"start_time": 0} if "FFmpeg" in class_type else {"skip_first_frames": 0, "select_every_nth": 1}
        node_class = nodes.NODE_CLASS_MAPPINGS[class_type]
        return node_class().load_video(video=name, **more)[0], None

    return load


#: By class: the input that names the file, and how to load it: pictures and sound.
LOADERS = {
    "LoadImage": ("image", lambda name: (nodes.LoadImage().load_image(name)[0], None)),
    "LoadImageMask": ("image", lambda name: (load_mask(name), None)),
    "LoadVideo": ("file", load_video),
    "LoadAudio": ("audio", lambda name: (None, load_audio(name))),
}


def load_mask(name):
    loader = nodes.LoadImageMask()
    masks = [getattr(loader, loader.FUNCTION)(name, channel)[0] for channel in ("alpha", "red")]
    return masks[1].unsqueeze(-1)


def load_audio(name):
    by_core = nodes.NODE_CLASS_MAPPINGS["LoadAudio"]
    return by_core.execute(name).result[0] if hasattr(by_core, "execute") else by_core().load(name)[0]


def add_packs():
    for class_type in ("VHS_LoadVideo", "VHS_LoadVideoFFmpeg"):
        if class_type in nodes.NODE_CLASS_MAPPINGS:
            LOADERS[class_type] = ("video", load_by_pack(class_type))
    if (by_pack := nodes.NODE_CLASS_MAPPINGS.get("VHS_LoadAudioUpload")) is not None:
        LOADERS["VHS_LoadAudioUpload"] = ("audio", lambda name: (None, by_pack().load_audio(audio=name)[0]))


class Host:
    def __init__(self):
        self._declarations = Declarations()

    def file_inputs(self, class_type):
        return {LOADERS[class_type][0]: Names.FILE}

    def declaration(self, class_type):
        return self._declarations.find(class_type)

    def file(self, _kind, _subfolder, name):
        return INPUT / name


def judge(loaded, class_type, name):
    graph = {"1": {"class_type": class_type, "inputs": {LOADERS[class_type][0]: name}}}
    began = time.process_time()
    try:
        media = loaded.open_all(loaded.list_files(graph, None)).media.get("1")
        told = {"media": list(media) if media is not None else None}
    except GuardError as error:
        told = {"refused": error.code, "why": f"{error.message} {error.details}"}
    except BaseException as error:
        told = {"raised": f"{type(error).__name__}: {error}"[:300]}
    return {**told, "judged_s": round(time.process_time() - began, 2)}


def load(class_type, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        images, audio = LOADERS[class_type][1](name)
        found = {"loaded": {"frames": 0, "pixels": 0, "samples": 0, "finite": True, "rate": 0}}
        what = found["loaded"]
        if images is not None:
            what["frames"], what["pixels"] = images.shape[0], math.prod(images.shape[:3])
        if audio is not None:
            waveform = audio["waveform"]
            what |= {"samples": waveform.numel(), "rate": audio["sample_rate"]}
            what["finite"] = bool(torch.isfinite(waveform).all())
        if not what["pixels"] and not what["samples"]:
            found = {"failed": "it loaded nothing"}
    except BaseException as error:
        found = {"failed": f"{type(error).__name__}: {error}"[:300]}
    return {**found, "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}


def lower(bound):
    """Let the door give up after so many pixels."""
    if bound is not None:
        pages.MOST_PIXELS = frames.MOST_PIXELS = bound
        frames.MOST_OF_FILM = frames.MOST_BEHIND = bound
        frames.LEAST_PIXELS = 1


def try_out(line, tell):
    """`tell`: says what comes next, in case it is the last."""
    recipe = json.loads(line)
    try:
        name, data, held = odd_files.make(recipe)
    except odd_files.CannotMakeError as error:
        return {"unmade": str(error)[:200]}
    (INPUT / name).write_bytes(data)
    loaded = LoadedFiles(Host())
    lower(recipe.get("bound"))
    suits = {
        "picture": ("LoadImage", "LoadImageMask", "LoadVideo", "VHS_LoadVideo"),
        "sound": ("LoadAudio", "VHS_LoadAudioUpload"),
        "film": tuple(LOADERS),
    }["picture" if recipe.get("how") in ("row", "moving") else "film" if "how" in recipe else recipe["kind"]]
    found = {}
    for class_type in LOADERS:
        if class_type in suits:
            tell(f"the door of {class_type}")
            found[class_type] = judge(loaded, class_type, name)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for class_type, told in found.items():
        tell(class_type if "refused" not in told else "")
        told |= load(class_type, name)
    return {"held": held, "bytes": len(data), "name": name, "by": found}


def answer(line):
    """Do it in a process of its own, whatever becomes of that."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.close(reads)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        with os.fdopen(writes, "w") as told:
            found = try_out(line, lambda what: print(what, file=told, flush=True))
            told.write(json.dumps(found))
        os._exit(0)
    os.close(writes)
    os.set_blocking(reads, False)
    found, until = b"", time.monotonic() + SECONDS * 10
    while time.monotonic() < until:
        ready, _, _ = select.select([reads], [], [], 1)
        if ready:
            more = os.read(reads, 2**20)
            if not more:
                break
            found += more
    os.close(reads)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    *stages, last = found.decode().split("\n")
    if last:
        return last
    return json.dumps({"died": stages[-1] if stages else "making it", "status": status})


INPUT.mkdir(parents=True, exist_ok=True)
asyncio.run(prepare())
add_packs()
answers.write(json.dumps({name: Declarations().find(name).opens_with for name in LOADERS}) + "\n")
answers.flush()
for line in sys.stdin:
    answers.write(answer(line) + "\n")
    answers.flush()
