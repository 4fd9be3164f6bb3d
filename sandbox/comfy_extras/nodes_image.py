"""The image nodes. An IMAGE is a float32 array (frames, height, width, channels) in 0..1."""

import hashlib
import json
import os
import random
from typing import Any, ClassVar

import folder_paths
import numpy as np
from comfy.cli_args import args
from PIL import Image, ImageFile, ImageFilter, ImageOps, ImageSequence, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

MAX_RESOLUTION = 16384
HIDDEN_METADATA = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


class EmptyImage:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 1, "max": MAX_RESOLUTION, "step": 1}
        color = {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}
        return {
            "required": {
                "width": ("INT", side),
                "height": ("INT", dict(side)),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
                "color": ("INT", color),
            }
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "generate"
    CATEGORY = "image"

    def generate(self, width: int, height: int, batch_size: int = 1, color: int = 0) -> tuple[np.ndarray]:
        rgb = np.array([color >> 16 & 255, color >> 8 & 255, color & 255], np.float32) / 255
        return (np.broadcast_to(rgb, (batch_size, height, width, 3)).copy(),)


class ImagePadForOutpaint:
    """Grey around a picture; the mask says where, without ComfyUI's feathering."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        edge = {"default": 0, "min": 0, "max": MAX_RESOLUTION, "step": 8}
        return {
            "required": {
                "image": ("IMAGE",),
                **{name: ("INT", dict(edge)) for name in ("left", "top", "right", "bottom")},
                "feathering": ("INT", {"default": 40, "min": 0, "max": MAX_RESOLUTION, "step": 1}),
            }
        }

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "expand_image"
    CATEGORY = "image"

    def expand_image(
        self, image: np.ndarray, left: int, top: int, right: int, bottom: int, feathering: int
    ) -> tuple[np.ndarray, np.ndarray]:
        frames, height, width, channels = image.shape
        padded = np.full((frames, top + height + bottom, left + width + right, channels), 0.5, np.float32)
        padded[:, top : top + height, left : left + width] = image
        mask = np.ones(padded.shape[1:3], np.float32)
        mask[top : top + height, left : left + width] = 0
        return padded, mask[np.newaxis]


class LoadImage:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        with os.scandir(folder_paths.get_input_directory()) as entries:
            files = [entry.name for entry in entries if entry.is_file()]
        images = sorted(folder_paths.filter_files_content_types(files, ["image"]))
        return {"required": {"image": (images, {"image_upload": True})}}

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"
    CATEGORY = "image"

    def load_image(self, image: str) -> tuple[np.ndarray, np.ndarray]:
        frames, masks = [], []
        with _leniently(Image.open, folder_paths.get_annotated_filepath(image)) as file:
            for raw in ImageSequence.Iterator(file):
                frame = _leniently(ImageOps.exif_transpose, raw)
                rgb = np.asarray(frame.convert("RGB"), np.float32) / 255
                if frames and rgb.shape != frames[0].shape:
                    continue
                frames.append(rgb)
                masks.append(_mask(frame))
        return np.stack(frames), np.stack(masks)

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        with open(folder_paths.get_annotated_filepath(image), "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        return folder_paths.exists_annotated_filepath(image) or f"Invalid image file: {image}"


def _mask(frame: Image.Image) -> np.ndarray:
    """What is transparent. Without alpha it is empty and 64 pixels wide, whatever the image's size."""
    if "A" not in frame.getbands():
        return np.zeros((64, 64), np.float32)
    return 1 - np.asarray(frame.getchannel("A"), np.float32) / 255


def _leniently(function: Any, argument: Any) -> Any:
    """Load truncated images as ComfyUI does: what is missing stays blank."""
    try:
        return function(argument)
    except (OSError, UnidentifiedImageError, ValueError):
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            return function(argument)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


class SaveImage:
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    CATEGORY = "image"
    DESCRIPTION = "Saves the input images to your ComfyUI output directory."
    kind = "output"
    compress_level = 4

    def __init__(self) -> None:
        self.prefix_append = ""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}
        return {"required": required, "hidden": HIDDEN_METADATA}

    def save_images(
        self,
        images: np.ndarray,
        filename_prefix: str = "ComfyUI",
        prompt: dict | None = None,
        extra_pnginfo: dict | None = None,
    ) -> dict[str, Any]:
        root = folder_paths.get_directory_by_type(self.kind)
        assert root is not None
        height, width = images.shape[1:3]
        folder, filename, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix + self.prefix_append, root, width, height
        )
        metadata = None if args.disable_metadata else _png_metadata(prompt, extra_pnginfo)
        saved = []
        for number, image in enumerate(images):
            name = f"{filename.replace('%batch_num%', str(number))}_{counter + number:05}_.png"
            # NaN silently becomes some number: a broken picture is saved, and the node succeeds.
            with np.errstate(invalid="ignore"):
                pixels = np.clip(image * 255.0, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(
                os.path.join(folder, name), pnginfo=metadata, compress_level=self.compress_level
            )
            saved.append({"filename": name, "subfolder": subfolder, "type": self.kind})
        return {"ui": {"images": saved}, "result": (images,)}


def _png_metadata(prompt: dict | None, extra_pnginfo: dict | None) -> PngInfo:
    metadata = PngInfo()
    if prompt is not None:
        metadata.add_text("prompt", json.dumps(prompt))
    for name in extra_pnginfo or ():
        metadata.add_text(name, json.dumps(extra_pnginfo[name]))
    return metadata


class PreviewImage(SaveImage):
    DESCRIPTION = "Preview the images without saving them to the ComfyUI output directory."
    kind = "temp"
    compress_level = 1

    def __init__(self) -> None:
        self.prefix_append = "_temp_" + "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=5))

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}, "hidden": HIDDEN_METADATA}


class ImageScale:
    METHODS: ClassVar[dict[str, Image.Resampling]] = {
        "nearest-exact": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "area": Image.Resampling.BOX,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 0, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(cls.METHODS),),
                "width": ("INT", side),
                "height": ("INT", dict(side)),
                "crop": (["disabled", "center"],),
            }
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"

    def upscale(self, image: np.ndarray, upscale_method: str, width: int, height: int, crop: str) -> tuple[np.ndarray]:
        if width == 0 and height == 0:
            return (image,)
        old_height, old_width = image.shape[1:3]
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        if crop == "center":
            image = _crop_to_ratio(image, width / height)
        return (resize(image, width, height, self.METHODS[upscale_method]),)


def _crop_to_ratio(image: np.ndarray, ratio: float) -> np.ndarray:
    height, width = image.shape[1:3]
    x = max(0, round((width - height * ratio) / 2))
    y = max(0, round((height - width / ratio) / 2))
    return image[:, y : height - y, x : width - x]


def resize(image: np.ndarray, width: int, height: int, method: Image.Resampling) -> np.ndarray:
    def one(plane: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(plane).resize((width, height), method))

    return per_plane(image, one)


def per_plane(image: np.ndarray, function: Any) -> np.ndarray:
    """Apply a function of one float32 plane to each channel of each frame: Pillow has no float colours."""
    channels = [[function(np.ascontiguousarray(frame[..., c])) for c in range(image.shape[3])] for frame in image]
    return np.stack([np.stack(planes, axis=-1) for planes in channels]).astype(np.float32)


class ImageInvert:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "invert"
    CATEGORY = "image/color"

    def invert(self, image: np.ndarray) -> tuple[np.ndarray]:
        return (1.0 - image,)


class ImageBlur:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE", {}),
                "blur_radius": ("INT", {"default": 1, "min": 1, "max": 31, "step": 1}),
                "sigma": ("FLOAT", {"default": 1.0, "min": 0.1, "max": 10.0, "step": 0.1}),
            }
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "blur"
    CATEGORY = "image/filters"

    def blur(self, image: np.ndarray, blur_radius: int, sigma: float) -> tuple[np.ndarray]:
        gaussian = ImageFilter.GaussianBlur(min(sigma, blur_radius))

        def one(plane: np.ndarray) -> np.ndarray:
            eight_bit = Image.fromarray(np.clip(plane * 255, 0, 255).astype(np.uint8))
            return np.asarray(eight_bit.filter(gaussian), np.float32) / 255

        return (per_plane(image, one),)


class ImageBatch:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "batch"
    CATEGORY = "image/batch"
    DEPRECATED = True

    def batch(self, image1: np.ndarray, image2: np.ndarray) -> tuple[np.ndarray]:
        channels = max(image1.shape[3], image2.shape[3])
        image1, image2 = (
            np.pad(i, ((0, 0), (0, 0), (0, 0), (0, channels - i.shape[3])), constant_values=1.0)
            for i in (image1, image2)
        )
        height, width = image1.shape[1:3]
        if image2.shape[1:3] != (height, width):
            image2 = resize(_crop_to_ratio(image2, width / height), width, height, Image.Resampling.BILINEAR)
        return (np.concatenate((image1, image2)),)


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls
    for cls in (
        EmptyImage,
        ImagePadForOutpaint,
        LoadImage,
        SaveImage,
        PreviewImage,
        ImageScale,
        ImageInvert,
        ImageBlur,
        ImageBatch,
    )
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "EmptyImage": "Empty Image",
    "ImagePadForOutpaint": "Pad Image for Outpainting",
    "LoadImage": "Load Image",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "ImageScale": "Upscale Image",
    "ImageInvert": "Invert Image Colors",
    "ImageBlur": "Blur Image",
    "ImageBatch": "Batch Images",
}
