"""The folder, loaded the way ComfyUI loads it (nodes.py, load_custom_node), with no host in sight."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Slow to import, or not there at all on a machine that only wants the queue.
HEAVY = ["av", "cv2", "insightface", "onnxruntime", "skimage", "torch"]

LOADER = """
import importlib.util, json, os, sys

module_path = sys.argv[1]
sys_module_name = module_path.replace(".", "_x_")
before = set(sys.modules)
spec = importlib.util.spec_from_file_location(sys_module_name, os.path.join(module_path, "__init__.py"))
module = importlib.util.module_from_spec(spec)
sys.modules[sys_module_name] = module
spec.loader.exec_module(module)

web = getattr(module, "WEB_DIRECTORY", None)
ours = os.path.realpath(module_path) + os.sep
installed = os.path.realpath(sys.prefix) + os.sep  # our own .venv lies inside the folder
print(json.dumps({
    "module_name": sys_module_name,
    "mappings": type(getattr(module, "NODE_CLASS_MAPPINGS", None)).__name__,
    "node_classes": sorted(getattr(module, "NODE_CLASS_MAPPINGS", None) or {}),
    "display_names": sorted(getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", None) or {}),
    "web_directory": web,
    "web_is_a_folder": web is not None and os.path.isdir(os.path.join(module_path, web)),
    "top_level": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "ours_under_other_names": sorted(
        name for name, loaded in list(sys.modules.items())
        if (file := os.path.realpath(getattr(loaded, "__file__", None) or "")).startswith(ours)
        and not file.startswith(installed)
        and name.split(".")[0] != sys_module_name
    ),
}))
"""


#: The time of the import alone, and that of what ComfyUI has imported before it comes to its packs.
TIMER = """
import time

began_s = time.process_time()
import aiohttp.web, asyncio, json, logging, numpy, os, sqlite3, sys
from PIL import Image
import importlib.util

started_s = time.process_time()
spec = importlib.util.spec_from_file_location("timed", os.path.join(sys.argv[1], "__init__.py"))
module = importlib.util.module_from_spec(spec)
sys.modules["timed"] = module
spec.loader.exec_module(module)
print(time.process_time() - started_s, started_s - began_s)
"""


def load_as_comfyui_does(folder: Path, elsewhere: Path) -> dict[str, Any]:
    done = subprocess.run(
        # -I: neither the working directory nor PYTHONPATH may lend a module; -X utf8 as on any newer Python.
        [sys.executable, "-I", "-X", "utf8", "-W", "error", "-B", "-c", LOADER, str(folder)],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return load_as_comfyui_does(root, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def installed(root: Path, published: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The published files alone, in a folder with a dot and a blank in its path."""
    folder = tmp_path_factory.mktemp("My Comfy v0.3") / "custom_nodes" / "comfyui.guarded"
    for name in published:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, folder / name)
    return load_as_comfyui_does(folder, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(params=["checkout", "installed"])
def loaded(request: pytest.FixtureRequest) -> dict[str, Any]:
    answer: dict[str, Any] = request.getfixturevalue(request.param)
    return answer


def test_loading_takes_no_heavy_import(loaded: dict[str, Any]) -> None:
    assert sorted(set(HEAVY) & set(loaded["top_level"])) == []


def test_loading_takes_less_than_three_tenths_of_a_second(root: Path, published: list[str], tmp_path: Path) -> None:
    """Of the processor, with bytecode as from the second start on, where aiohttp, numpy and Pillow take a quarter."""
    for name in published:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    took_s = []
    for _ in range(6):
        command = [sys.executable, "-I", "-X", "utf8", "-c", TIMER, str(tmp_path)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        took_s.append([float(part) for part in done.stdout.split()])
    assert min(min(own / 0.3, own / other * 0.25 / 0.3) for own, other in took_s[1:]) < 1, took_s


def test_loading_gives_comfyui_what_it_looks_for(loaded: dict[str, Any]) -> None:
    assert loaded["mappings"] == "dict"
    assert set(loaded["display_names"]) <= set(loaded["node_classes"])
    assert loaded["web_is_a_folder"], f"WEB_DIRECTORY is {loaded['web_directory']!r}"


def test_loading_leaves_the_hosts_module_names_free(loaded: dict[str, Any]) -> None:
    assert loaded["ours_under_other_names"] == []
    taken = {"app", "comfy", "execution", "folder_paths", "guard", "host", "nodes", "server"}
    assert sorted(taken & set(loaded["top_level"])) == []


def test_the_module_name_has_no_dot_of_the_path(installed: dict[str, Any]) -> None:
    assert installed["module_name"].endswith("comfyui_x_guarded")
    assert "." not in installed["module_name"]


def test_the_alias_does_not_run_the_packages_own_init() -> None:
    package = sys.modules["comfyui_guarded"]
    assert not hasattr(package, "NODE_CLASS_MAPPINGS")


def test_the_root_is_not_on_the_path(root: Path) -> None:
    assert [entry for entry in sys.path if Path(entry or ".").resolve() == root] == []


def heavy_at_module_level(tree: ast.Module) -> list[str]:
    """Imports of heavy modules that run when the module is imported, as 'line: module'.

    `if TYPE_CHECKING:` does not run; what stands in a function runs later.
    """
    found = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            waiting += node.orelse
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        found += [f"{node.lineno}: {name}" for name in names if name.split(".")[0] in HEAVY]
        waiting += ast.iter_child_nodes(node)
    return sorted(found)


def test_heavy_imports_at_module_level_are_recognised() -> None:
    source = """
import av
try:
    from torch import nn
except ImportError:
    pass
if TYPE_CHECKING:
    import onnxruntime
def later():
    import insightface
class A:
    import cv2.dnn
"""
    assert heavy_at_module_level(ast.parse(source)) == ["12: cv2.dnn", "2: av", "4: torch"]


def test_no_published_module_imports_anything_heavy_when_it_is_imported(
    root: Path, published_python: list[str]
) -> None:
    found = {
        name: heavy
        for name in published_python
        if (heavy := heavy_at_module_level(ast.parse((root / name).read_text(encoding="utf-8"))))
    }
    assert found == {}
