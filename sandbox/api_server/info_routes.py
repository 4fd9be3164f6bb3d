"""What this server is and has."""

import glob
import logging
import os
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import comfy.model_management
import folder_paths
import nodes
from aiohttp import web
from comfy.cli_args import argv
from comfy_api import feature_flags
from comfyui_version import __version__

if TYPE_CHECKING:
    from server import PromptServer


def register(server: "PromptServer") -> None:
    routes = server.routes

    @routes.get("/")
    async def get_root(request: web.Request) -> web.StreamResponse:
        page = os.path.join(server.web_root, "index.txt")
        return web.FileResponse(page, headers={"Cache-Control": "no-store"})

    @routes.get("/embeddings")
    def get_embeddings(request: web.Request) -> web.Response:
        names = folder_paths.get_filename_list("embeddings")
        return web.json_response([os.path.splitext(name)[0] for name in names])

    @routes.get("/models")
    async def list_model_types(request: web.Request) -> web.Response:
        return web.json_response(list(folder_paths.folder_names_and_paths))

    @routes.get("/models/{folder}")
    async def get_models(request: web.Request) -> web.Response:
        folder = request.match_info["folder"]
        if folder not in folder_paths.folder_names_and_paths:
            return web.Response(status=404)
        return web.json_response(folder_paths.get_filename_list(folder))

    @routes.get("/extensions")
    async def get_extensions(request: web.Request) -> web.Response:
        """Every script that ComfyUI's page would import from the custom nodes."""
        scripts = [
            f"/extensions/{quote(name)}/{os.path.relpath(path, folder)}"
            for name, folder in nodes.EXTENSION_WEB_DIRS.items()
            for path in glob.glob(os.path.join(glob.escape(folder), "**/*.js"), recursive=True)
        ]
        return web.json_response(scripts)

    @routes.get("/features")
    async def get_features(request: web.Request) -> web.Response:

        return web.json_response(feature_flags.get_server_features())

    @routes.get("/system_stats")
    async def system_stats(request: web.Request) -> web.Response:
        return web.json_response({"system": _system(), "devices": [_device()]})

    @routes.get("/object_info")
    async def get_object_info(request: web.Request) -> web.Response:
        info = {}
        for class_type in nodes.NODE_CLASS_MAPPINGS:
            try:
                info[class_type] = node_info(class_type)
            except Exception:
                logging.exception("no information about node class %s", class_type)
        return web.json_response(info)

    @routes.get("/object_info/{node_class}")
    async def get_object_info_node(request: web.Request) -> web.Response:
        class_type = request.match_info["node_class"]
        known = class_type in nodes.NODE_CLASS_MAPPINGS
        return web.json_response({class_type: node_info(class_type)} if known else {})


def node_info(class_type: str) -> dict[str, Any]:
    """What the editor knows of a node class."""
    class_def = nodes.NODE_CLASS_MAPPINGS[class_type]
    inputs = class_def.INPUT_TYPES()
    outputs = class_def.RETURN_TYPES
    info = {
        "input": inputs,
        "input_order": {category: list(names) for category, names in inputs.items()},
        "is_input_list": getattr(class_def, "INPUT_IS_LIST", False),
        "output": outputs,
        "output_is_list": getattr(class_def, "OUTPUT_IS_LIST", [False] * len(outputs)),
        "output_name": getattr(class_def, "RETURN_NAMES", outputs),
        "name": class_type,
        "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(class_type, class_type),
        "description": getattr(class_def, "DESCRIPTION", ""),
        "python_module": getattr(class_def, "RELATIVE_PYTHON_MODULE", "nodes"),
        "category": getattr(class_def, "CATEGORY", "sd"),
        "output_node": getattr(class_def, "OUTPUT_NODE", False) is True,
        "has_intermediate_output": getattr(class_def, "HAS_INTERMEDIATE_OUTPUT", False) is True,
        "search_aliases": getattr(class_def, "SEARCH_ALIASES", []),
    }
    for flag in ("DEPRECATED", "EXPERIMENTAL", "DEV_ONLY"):
        if getattr(class_def, flag, False):
            info[flag.lower()] = True
    for name in ("OUTPUT_TOOLTIPS", "API_NODE", "ESSENTIALS_CATEGORY"):
        if hasattr(class_def, name):
            info[name.lower()] = getattr(class_def, name)
    return info


def _system() -> dict[str, Any]:
    return {
        "os": sys.platform,
        "ram_total": comfy.model_management.get_total_memory(),
        "ram_free": comfy.model_management.get_free_memory(),
        "comfyui_version": __version__,
        "required_frontend_version": None,
        "installed_templates_version": None,
        "required_templates_version": None,
        "comfy_package_versions": [],
        "python_version": sys.version,
        "pytorch_version": None,
        "embedded_python": False,
        "deploy_environment": "sandbox",
        "argv": argv,
    }


def _device() -> dict[str, Any]:
    device = comfy.model_management.get_torch_device()
    total = comfy.model_management.get_total_memory(device)
    free = comfy.model_management.get_free_memory(device)
    return {
        "name": comfy.model_management.get_torch_device_name(device),
        "type": device.type,
        "index": device.index,
        "vram_total": total,
        "vram_free": free,
        "torch_vram_total": total,
        "torch_vram_free": free,
    }
