"""What the registry would publish, and whether its rules are kept: no eval, no exec, no pip at run time."""

import ast
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_BYTES = 8 * 1024 * 1024

# ComfyUI 0.3.64 brings these itself; more would change somebody's installation.
BROUGHT_BY_COMFYUI = {
    "aiohttp",
    "av",
    "numpy",
    "pillow",
    "psutil",
    "pydantic",
    "pydantic-settings",
    "tomli",
    "typing-extensions",
}


@pytest.fixture(scope="module")
def pyproject(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def parse(root: Path, name: str) -> ast.Module:
    return ast.parse((root / name).read_text(encoding="utf-8"), filename=name)


def dotted(node: ast.expr) -> str:
    """`os.system` for the expression os.system; empty for anything that is not a plain dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def forbidden_calls(tree: ast.Module) -> list[str]:
    """Each call that the registry's rules forbid, as 'line: why'."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            named = [module, *(alias.name for alias in node.names)]
            if not getattr(node, "level", 0) and any(name.split(".")[0] in {"pip", "ensurepip"} for name in named):
                found.append(f"{node.lineno}: imports pip")
            if module == "os" and {"system", "popen"} & {alias.name for alias in node.names}:
                found.append(f"{node.lineno}: takes system or popen out of os")
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        if called.removeprefix("builtins.") in {"eval", "exec", "compile"}:
            found.append(f"{node.lineno}: calls {called}")
        if called in {"os.system", "os.popen"}:
            found.append(f"{node.lineno}: calls {called}")
        if re.search(r"subprocess|Popen", called):
            if any(keyword.arg == "shell" and not _is_constant_false(keyword.value) for keyword in node.keywords):
                found.append(f"{node.lineno}: starts a shell")
            words = [
                word.value for word in ast.walk(node) if isinstance(word, ast.Constant) and isinstance(word.value, str)
            ]
            if any(re.search(r"\b(pip\d?|uv|conda)\b", word) for word in words):
                found.append(f"{node.lineno}: runs an installer")
    return found


def _is_constant_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def is_module(names: set[str], path: PurePosixPath) -> bool:
    return f"{path}.py" in names or str(path / "__init__.py") in names


def unpublished_imports(tree: ast.Module, name: str, published: set[str]) -> list[str]:
    """Relative imports that name a module which is not published, as 'line: module'."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = PurePosixPath(name)
        for _ in range(node.level):
            folder = folder.parent
        target = folder.joinpath(*(node.module or "").split("."))
        if node.module and not is_module(published, target):
            found.append(f"{node.lineno}: {'.' * node.level}{node.module}")
    return found


# The rules themselves, tried on small sources: a checker that finds nothing proves nothing.


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('1')",
        "compile('1', '', 'eval')",
        "import builtins\nbuiltins.exec('1')",
        "import os\nos.system('ls')",
        "from os import system",
        "import pip",
        "from pip._internal import main",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'pip', 'install', 'x'])",
        "import subprocess\nsubprocess.check_call('ls', shell=True)",
        "import asyncio\nasyncio.create_subprocess_exec('pip3', 'install', 'x')",
        "from subprocess import Popen\nPopen(['uv', 'pip', 'install', 'x'])",
    ],
)
def test_a_forbidden_call_is_recognised(source: str) -> None:
    assert forbidden_calls(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('x')",
        "model.eval()",
        "import ast\nast.literal_eval('1')",
        "import os, sys\nos.execv(sys.executable, [sys.executable])",
        "import subprocess\nsubprocess.run(['nvidia-smi'], shell=False)",
        "from .pip import x",
        "from ..guard import pipeline",
    ],
)
def test_a_harmless_call_is_let_pass(source: str) -> None:
    assert not forbidden_calls(ast.parse(source))


def test_an_import_of_something_unpublished_is_recognised() -> None:
    published = {"guard/__init__.py", "guard/job.py", "host/comfyui/seam.py"}
    tree = ast.parse("from ...guard.job import Job\nfrom ...sandbox.server import X\nfrom . import seam")
    assert unpublished_imports(tree, "host/comfyui/seam.py", published) == ["2: ...sandbox.server"]


# The published files


def test_everything_that_an_installed_package_needs_is_published(published: list[str]) -> None:
    needed = {
        "__init__.py",
        "__main__.py",
        "alias.py",
        "app.py",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "requirements.txt",
        "guard/__init__.py",
        "guard/messages/en.json",
        "guard/messages/ru.json",
    }
    assert needed - set(published) == set()


def test_nothing_that_only_developers_need_is_published(published: list[str]) -> None:
    developers = re.compile(
        r"^(tests|sandbox|demo|benchmarks|examples|build|shared|\.[^/]+)(/|$)"
        r"|^(Makefile|CONTRIBUTING\.md|SECURITY\.md|requirements-(dev|demo)\.txt)$"
        r"|(^|/)(__pycache__|node_modules)/|\.(pyc|db|sqlite3?|log)$"
    )
    assert [name for name in published if developers.search(name)] == []


def test_no_published_file_is_big(root: Path, published: list[str]) -> None:
    big = {name: size for name in published if (size := (root / name).stat().st_size) > MAX_FILE_BYTES}
    assert big == {}


def test_published_names_are_legal_on_windows(published: list[str]) -> None:
    illegal = re.compile(r'[<>:"|?*\\]|[ .](/|$)|(^|/)(con|prn|aux|nul|com\d|lpt\d)(\.|/|$)', re.IGNORECASE)
    assert [name for name in published if illegal.search(name)] == []
    assert len({name.casefold() for name in published}) == len(published)


def test_published_code_calls_nothing_that_the_registry_forbids(root: Path, published_python: list[str]) -> None:
    found = {name: calls for name in published_python if (calls := forbidden_calls(parse(root, name)))}
    assert found == {}


def test_published_code_imports_only_what_is_published(
    root: Path, published: list[str], published_python: list[str]
) -> None:
    found = {
        name: missing
        for name in published_python
        if (missing := unpublished_imports(parse(root, name), name, set(published)))
    }
    assert found == {}


def test_every_folder_with_code_is_a_package(published: list[str], published_python: list[str]) -> None:
    """import-linter does not look into a folder without an __init__.py: its arrows would go unchecked."""
    folders = {folder.as_posix() for name in published_python for folder in PurePosixPath(name).parents[:-1]}
    assert [folder for folder in sorted(folders) if f"{folder}/__init__.py" not in published] == []


def test_every_published_script_is_ours(root: Path, published: list[str]) -> None:
    """The browser imports every .js below WEB_DIRECTORY: plain source, nothing vendored or minified."""
    scripts = [name for name in published if re.search(r"\.(js|mjs|cjs|ts|wasm)$", name)]
    for name in scripts:
        assert name.startswith("js/"), f"{name}: scripts live under js/"
        assert name.endswith(".js"), f"{name}: plain ES modules, no build step"
        assert not re.search(r"\.min\.|(^|/)(vendor|vendored|lib|dist|third_party|tests?)/|\.test\.", name), name
        text = (root / name).read_text(encoding="utf-8")
        assert max(map(len, text.splitlines()), default=0) < 400, f"{name}: looks minified"
        assert "sourceMappingURL" not in text, name
        assert not re.search(r"\beval\s*\(|new\s+Function\s*\(", text), f"{name}: evaluates text"
        sources = re.findall(r"""(?:\bfrom|\bimport)\s*\(?\s*["']([^"']+)["']""", text)
        foreign = [source for source in sources if not source.startswith((".", "/"))]
        assert foreign == [], f"{name}: imports from elsewhere"


# pyproject.toml and requirements.txt


def test_the_project_has_what_the_registry_wants(pyproject: dict[str, Any], root: Path) -> None:
    project = pyproject["project"]
    assert re.fullmatch(r"[a-z](?:[a-z0-9]|[-_.](?![-_.]))*", project["name"])
    assert "comfyui" not in project["name"]
    assert len(project["name"]) < 100
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["description"]
    assert project["license"] == {"file": "LICENSE"}
    assert (root / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert project["requires-python"] == ">=3.10"
    assert project["urls"]["Repository"].startswith("https://github.com/")
    assert project["dynamic"] == ["dependencies"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}


def test_the_comfy_table_has_what_the_registry_wants(pyproject: dict[str, Any], published: list[str]) -> None:
    comfy = pyproject["tool"]["comfy"]
    assert re.fullmatch(r"[a-z0-9-]+", comfy["PublisherId"])
    assert comfy["DisplayName"] == "ComfyUI-Guarded"
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert "web" not in comfy, "WEB_DIRECTORY registers the folder; `web` would do it twice"
    for included in comfy.get("includes", []):
        assert not re.match(r"/?(tests|sandbox|demo|benchmarks)", included)


def test_the_changelog_names_the_version_or_what_is_to_come(root: Path, pyproject: dict[str, Any]) -> None:
    headings = re.findall(r"^## \[([^\]]+)\]", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings
    assert headings[0] in {"Unreleased", pyproject["project"]["version"]}


#: Pure Python, and without requirements of their own.
FOR_FIGURES = {"nvidia-ml-py", "prometheus-client"}
#: One module without dependencies of its own.
FOR_WEBHOOKS = {"standardwebhooks"}


def test_installing_the_requirements_does_not_change_a_working_comfyui(root: Path) -> None:
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line.strip() and not line.startswith("#")]
    for line in wanted:
        name = re.match(r"[A-Za-z0-9_.-]+", line)
        assert name, f"not a plain requirement: {line}"
        assert name.group().lower().replace("_", "-") in BROUGHT_BY_COMFYUI | FOR_FIGURES | FOR_WEBHOOKS, line
        assert "==" not in line.split(";")[0], f"pinned: {line}"
        assert ">=" in line, f"no lower bound: {line}"
