"""Run by a real ComfyUI's Python (test_pictures.py starts it): print where its LoadImage and the door judge otherwise.

python judge_pictures.py COMFYUI BASE ALIAS
"""

import io
import json
import os
import sys
import warnings
from pathlib import Path

import our_package

COMFYUI, BASE, ALIAS = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--base-directory", BASE]
sys.path.insert(0, COMFYUI)
os.chdir(COMFYUI)
warnings.simplefilter("ignore")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy_extras.nodes_audio  # noqa: E402
import comfy_extras.nodes_video  # noqa: E402
import nodes  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

our_package.register(ALIAS)

from comfyui_guarded.guard.errors import GuardError  # noqa: E402
from comfyui_guarded.guard.faces.loaded import LoadedFiles  # noqa: E402
from comfyui_guarded.guard.graph import Names  # noqa: E402
from comfyui_guarded.host.comfyui.declarations import Declarations, find_opener  # noqa: E402

INPUT = Path(BASE) / "input"
MODES = ("RGB", "RGBA", "L", "P", "1", "I;16", "F", "CMYK")
#: The door keeps these from every loader, whatever that makes of them: programs, and what Pillow leaves to others.
CLOSED = {"EPS", "PDF", "ICNS", "WMF", "PALM", "HDF5", "GRIB", "BUFR", "MPEG"}


class Host:
    def __init__(self):
        self._declarations = Declarations()

    def file_inputs(self, _class_type):
        return {"image": Names.FILE}

    def declaration(self, class_type):
        return self._declarations.find(class_type)

    def file(self, _kind, _subfolder, name):
        return INPUT / name


def list_pictures():
    """(what it is, the file's suffix, its bytes) of all that this Pillow can write."""
    Image.init()
    noise = np.random.default_rng(1).integers(0, 255, (70, 90, 3), np.uint8)
    for form in sorted(set(Image.SAVE) - CLOSED):
        for mode in MODES:
            picture = Image.fromarray(noise).convert("I" if mode == "I;16" else mode).convert(mode)
            yield from written(f"{form} {mode}", form, picture)
    many = [Image.fromarray(np.roll(noise, at, 0)) for at in range(4)]
    for form in ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"):
        yield from written(f"{form} of four", form, many[0], save_all=True, append_images=many[1:])
    sizes = [many[0], many[1].resize((45, 35))]
    for form in ("MPO", "TIFF"):  # a phone's photo with its smaller picture
        yield from written(f"{form} of two sizes", form, sizes[0], save_all=True, append_images=sizes[1:])
    for size in ((1, 1), (3, 5), (15, 40), (40, 15), (16, 17), (17, 16), (32, 3)):
        for form in ("AVIF", "BMP", "GIF", "JPEG", "PNG", "WEBP"):
            yield from written(f"{form} of {size}", form, many[0].resize(size))
    side = Image.Exif()
    side[0x0112] = 6
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        yield from written(f"{form} on its side", form, many[0], exif=side)
    for exif in (b"junkjunk", b"II*\0", b"", b"II*\0\x08\0\0\0\1\0\x12\1\x05\0\1\0\0\0\x1a\0\0\0" + bytes(12)):
        for form in ("JPEG", "PNG", "WEBP", "AVIF", "MPO"):
            yield from written(f"{form} with EXIF {exif!r}", form, many[0], exif=exif)


def written(what, form, picture, **options):
    buffer = io.BytesIO()
    try:
        picture.save(buffer, form, **options)
    except Exception:
        return
    for suffix in (".bin", f".{form.lower()}"):
        yield what, suffix, buffer.getvalue()


def load(name):
    """Why ComfyUI's own node cannot load it."""
    try:
        pixels, _mask = nodes.LoadImage().load_image(name)
        return "" if pixels.numel() else "no pixels"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]


def main():
    INPUT.mkdir(parents=True, exist_ok=True)
    loaded = LoadedFiles(Host())
    judged, admitted, kept_out = 0, [], []
    for what, suffix, data in list_pictures():
        for share in (1, 0.6):
            name = f"{judged}{suffix}"
            (INPUT / name).write_bytes(data[: int(len(data) * share)])
            graph = {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}
            told = ""
            try:
                loaded.open_all(loaded.list_files(graph, None))
            except GuardError as error:
                told = f"{error.message} {error.details}"
            fault = load(name)
            case = f"{what}{suffix} {share:.0%}"
            if fault and not told:
                admitted.append(f"{case}: {fault}")
            if told and not fault and share == 1:
                kept_out.append(f"{case}: {told}")
            judged += 1
            (INPUT / name).unlink()
    loaders = (nodes.LoadImage, comfy_extras.nodes_video.LoadVideo, comfy_extras.nodes_audio.LoadAudio)
    told = {"judged": judged, "admitted": admitted, "kept_out": kept_out, "openers": list(map(find_opener, loaders))}
    sys.stdout.write(json.dumps(told) + "\n")


main()
