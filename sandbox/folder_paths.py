"""Where files live: the base directory's folders, the model folders, and the names that refer to them."""

import mimetypes
import os
import time
from collections.abc import Iterable

from comfy.cli_args import args

WEIGHT_EXTENSIONS = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"}
supported_pt_extensions = WEIGHT_EXTENSIONS

base_path = os.path.abspath(args.base_directory or os.path.dirname(os.path.realpath(__file__)))
models_dir = os.path.join(base_path, "models")

output_directory = os.path.abspath(args.output_directory or os.path.join(base_path, "output"))
input_directory = os.path.abspath(args.input_directory or os.path.join(base_path, "input"))
temp_directory = os.path.join(os.path.abspath(args.temp_directory or base_path), "temp")
user_directory = os.path.abspath(args.user_directory or os.path.join(base_path, "user"))

# Model folders by kind; the few kinds with more than one folder of their own come last.
_SINGLE_KINDS = (
    "checkpoints",
    "loras",
    "vae",
    "clip_vision",
    "style_models",
    "embeddings",
    "vae_approx",
    "gligen",
    "upscale_models",
    "latent_upscale_models",
    "hypernetworks",
    "photomaker",
    "model_patches",
    "audio_encoders",
    "background_removal",
    "frame_interpolation",
    "geometry_estimation",
    "optical_flow",
    "detection",
)
_KINDS: dict[str, list[str]] = {kind: [kind] for kind in _SINGLE_KINDS} | {
    "text_encoders": ["text_encoders", "clip"],
    "diffusion_models": ["unet", "diffusion_models"],
    "controlnet": ["controlnet", "t2i_adapter"],
}
_LEGACY_KINDS = {"unet": "diffusion_models", "clip": "text_encoders"}
_SAVED_MODEL_KINDS = ("checkpoints", "clip", "vae", "diffusion_models", "loras")

folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {
    kind: ([os.path.join(models_dir, folder) for folder in folders], WEIGHT_EXTENSIONS)
    for kind, folders in _KINDS.items()
} | {
    "configs": ([os.path.join(models_dir, "configs")], {".yaml"}),
    "diffusers": ([os.path.join(models_dir, "diffusers")], {"folder"}),
    "classifiers": ([os.path.join(models_dir, "classifiers")], {""}),
    "custom_nodes": ([os.path.join(base_path, "custom_nodes")], set()),
    "datasets": ([os.path.join(base_path, "datasets")], set()),
}


def map_legacy(folder_name: str) -> str:
    return _LEGACY_KINDS.get(folder_name, folder_name)


def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
    """Register one more folder for a kind of model; a kind that is new accepts any extension."""
    paths, _ = folder_names_and_paths.setdefault(map_legacy(folder_name), ([], set()))
    if full_folder_path in paths:
        if not is_default:
            return
        paths.remove(full_folder_path)
    paths.insert(0 if is_default else len(paths), full_folder_path)


for _kind in _SAVED_MODEL_KINDS:
    add_model_folder_path(_kind, os.path.join(output_directory, _kind))


def get_output_directory() -> str:
    return output_directory


def get_input_directory() -> str:
    return input_directory


def get_temp_directory() -> str:
    return temp_directory


def get_user_directory() -> str:
    return user_directory


def set_output_directory(output_dir: str) -> None:
    global output_directory
    output_directory = output_dir


def set_input_directory(input_dir: str) -> None:
    global input_directory
    input_directory = input_dir


def set_temp_directory(temp_dir: str) -> None:
    global temp_directory
    temp_directory = temp_dir


def set_user_directory(user_dir: str) -> None:
    global user_directory
    user_directory = user_dir


def get_system_user_directory(name: str = "system") -> str:
    """The folder of an internal user, which no HTTP route can name.

    Raises
    ------
    ValueError
        If the name is empty, starts with an underscore, or has anything but letters, digits and underscores.
    """
    if not isinstance(name, str) or name.startswith("_") or not name.replace("_", "").isalnum():
        raise ValueError(f"Invalid system user name: {name!r}")
    return os.path.join(user_directory, f"__{name}")


def get_public_user_directory(user_id: str) -> str | None:
    if not isinstance(user_id, str) or not user_id or user_id.startswith("__"):
        return None
    return os.path.join(user_directory, user_id)


def get_directory_by_type(type_name: str | None) -> str | None:
    """The folder behind `type=` in a URL; None for anything but output, temp and input."""
    known = {"output": output_directory, "temp": temp_directory, "input": input_directory}
    return known.get(type_name) if type_name else None


def annotated_filepath(name: str) -> tuple[str, str | None]:
    """Split `"a.png [output]"` into the name (without the blank before the tag) and the folder."""
    for kind in ("output", "input", "temp"):
        tag = f"[{kind}]"
        if name.endswith(tag):
            return name[: -len(tag) - 1], get_directory_by_type(kind)
    return name, None


def is_within_directory(directory: str, target: str) -> bool:
    """Whether `target`, its symlinks followed, lies in `directory`."""
    try:
        directory, target = os.path.realpath(directory), os.path.realpath(target)
        return os.path.commonpath((directory, target)) == directory
    except ValueError:
        return False


def get_annotated_filepath(name: str, default_dir: str | None = None) -> str:
    plain, base_dir = annotated_filepath(name)
    base_dir = base_dir or default_dir or input_directory
    path = os.path.abspath(os.path.join(base_dir, plain))
    if not is_within_directory(base_dir, path):
        raise ValueError(f"Invalid file path: {plain!r}")
    return path


def exists_annotated_filepath(name: str) -> bool:
    try:
        return os.path.exists(get_annotated_filepath(name))
    except ValueError:
        return False


def get_folder_paths(folder_name: str) -> list[str]:
    return list(folder_names_and_paths[map_legacy(folder_name)][0])


def get_full_path(folder_name: str, filename: str) -> str | None:
    # Joined to "/" and made relative again, so that ".." cannot leave the model folder.
    relative = os.path.relpath(os.path.join("/", filename), "/")
    paths, _ = folder_names_and_paths.get(map_legacy(folder_name), ([], set()))
    candidates = (os.path.join(path, relative) for path in paths)
    return next((candidate for candidate in candidates if os.path.isfile(candidate)), None)


def get_full_path_or_raise(folder_name: str, filename: str) -> str:
    path = get_full_path(folder_name, filename)
    if path is None:
        raise FileNotFoundError(f"Model in folder '{folder_name}' with filename '{filename}' not found.")
    return path


def get_filename_list(folder_name: str) -> list[str]:
    """Relative names of all model files of a kind. Not cached, unlike ComfyUI's: the sandbox has few."""
    paths, extensions = folder_names_and_paths[map_legacy(folder_name)]
    names = set()
    for path in paths:
        for folder, subfolders, files in os.walk(path, followlinks=True):
            subfolders[:] = [name for name in subfolders if name != ".git"]
            names.update(os.path.relpath(os.path.join(folder, name), path) for name in files)
    return filter_files_extensions(names, extensions)


def filter_files_extensions(files: Iterable[str], extensions: Iterable[str]) -> list[str]:
    allowed = set(extensions)
    return sorted(name for name in files if not allowed or os.path.splitext(name)[1].lower() in allowed)


def filter_files_content_types(files: Iterable[str], content_types: list[str]) -> list[str]:
    def content_type(name: str) -> str:
        if name.endswith(".webp"):  # unknown to the mimetypes of some systems
            return "image"
        return (mimetypes.guess_type(name, strict=False)[0] or "").split("/")[0]

    return [name for name in files if content_type(name) in content_types]


def get_save_image_path(
    filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
) -> tuple[str, str, int, str, str]:
    """Folder, file name, counter, subfolder and expanded prefix for the next file of this prefix.

    The counter is one more than the highest in the folder *now*: after a deletion it rewinds and a name is
    used a second time, as in ComfyUI.
    """
    if "%" in filename_prefix:
        filename_prefix = _expand(filename_prefix, image_width, image_height)
    subfolder, filename = os.path.split(os.path.normpath(filename_prefix))
    folder = os.path.join(output_dir, subfolder)
    if not is_within_directory(output_dir, folder):
        raise Exception(f"Saving image outside the output folder is not allowed: {os.path.abspath(folder)}")
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)
        names = []
    start = f"{filename}_"
    counters = [_leading_number(name[len(start) :]) for name in names if name.startswith(start)]
    return folder, filename, max(counters, default=0) + 1, subfolder, filename_prefix


def _leading_number(rest: str) -> int:
    try:
        return int(rest.split(".")[0].split("_")[0])
    except ValueError:
        return 0


def _expand(prefix: str, width: int, height: int) -> str:
    now = time.localtime()
    values = {"width": str(width), "height": str(height), "year": str(now.tm_year)}
    values |= {"month": f"{now.tm_mon:02}", "day": f"{now.tm_mday:02}"}
    values |= {"hour": f"{now.tm_hour:02}", "minute": f"{now.tm_min:02}", "second": f"{now.tm_sec:02}"}
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", value)
    return prefix
