"""Know this server's node classes, and load custom ones."""

import importlib.util
import logging
import os
import sys
from typing import Any

import comfy.model_management
import folder_paths
from comfy.cli_args import args
from comfy_extras import nodes_image, nodes_primitive
from comfy_extras.nodes_image import (
    MAX_RESOLUTION,
    EmptyImage,
    ImageBatch,
    ImageInvert,
    ImageScale,
    LoadImage,
    PreviewImage,
    SaveImage,
)

__all__ = [
    "MAX_RESOLUTION",
    "EmptyImage",
    "ImageBatch",
    "ImageInvert",
    "ImageScale",
    "LoadImage",
    "PreviewImage",
    "SaveImage",
]

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
EXTENSION_WEB_DIRS: dict[str, str] = {}
LOADED_MODULE_DIRS: dict[str, str] = {}

for _module in (nodes_image, nodes_primitive):
    NODE_CLASS_MAPPINGS.update(_module.NODE_CLASS_MAPPINGS)
    NODE_DISPLAY_NAME_MAPPINGS.update(_module.NODE_DISPLAY_NAME_MAPPINGS)


def before_node_execution() -> None:
    # Looked up each time: a plugin may have put a check of its own there.
    comfy.model_management.throw_exception_if_processing_interrupted()


def interrupt_processing(value: bool = True) -> None:
    comfy.model_management.interrupt_current_processing(value)


def get_module_name(module_path: str) -> str:
    name = os.path.basename(module_path)
    return os.path.splitext(name)[0] if os.path.isfile(module_path) else name


async def load_custom_node(
    module_path: str, ignore: frozenset[str] | set[str] = frozenset(), module_parent: str = "custom_nodes"
) -> bool:
    """Import a folder or .py file by its path and register what it declares; return False if that fails.

    A folder becomes a package whose module name is its path with every dot as `_x_`, so only relative imports
    work inside it. Names in `ignore` are not overridden.
    """
    name = get_module_name(module_path)
    if os.path.isfile(module_path):
        module_dir, source = os.path.dirname(module_path), module_path
        sys_name = name = os.path.splitext(module_path)[0]
    else:
        module_dir, source = module_path, os.path.join(module_path, "__init__.py")
        sys_name = module_path.replace(".", "_x_")
    try:
        spec = importlib.util.spec_from_file_location(sys_name, source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[sys_name] = module
        spec.loader.exec_module(module)
    except Exception:
        logging.exception("Cannot import %s module for custom nodes", module_path)
        return False

    LOADED_MODULE_DIRS[name] = os.path.abspath(module_dir)
    web_dir = getattr(module, "WEB_DIRECTORY", None)
    if web_dir is not None:
        web_dir = os.path.abspath(os.path.join(module_dir, web_dir))
        if os.path.isdir(web_dir):
            EXTENSION_WEB_DIRS[name] = web_dir
    mappings = getattr(module, "NODE_CLASS_MAPPINGS", None)
    if mappings is None:
        logging.warning("Skip %s: it has no NODE_CLASS_MAPPINGS", module_path)
        return False
    for class_type, class_def in mappings.items():
        if class_type not in ignore:
            NODE_CLASS_MAPPINGS[class_type] = class_def
            class_def.RELATIVE_PYTHON_MODULE = f"{module_parent}.{get_module_name(module_path)}"
    NODE_DISPLAY_NAME_MAPPINGS.update(getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", None) or {})
    return True


async def init_extra_nodes(init_custom_nodes: bool = True, init_api_nodes: bool = True) -> list[str]:
    """Load custom_nodes/* and every --extra-custom-node; return the paths that failed."""
    if not init_custom_nodes:
        logging.info("Skipping loading of custom nodes")
        return []
    base_names = set(NODE_CLASS_MAPPINGS)
    failed = []
    for path in _custom_node_paths():
        loaded = await load_custom_node(path, base_names)
        logging.info("custom node %s%s", path, "" if loaded else " (IMPORT FAILED)")
        if not loaded:
            failed.append(path)
    return failed


def _custom_node_paths() -> list[str]:
    paths = []
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            path = os.path.join(folder, name)
            is_other_file = os.path.isfile(path) and not name.endswith(".py")
            blocked = args.disable_all_custom_nodes and name not in args.whitelist_custom_nodes
            if not (name == "__pycache__" or name.endswith(".disabled") or is_other_file or blocked):
                paths.append(path)
    return paths + [os.path.abspath(path) for path in args.extra_custom_node]
