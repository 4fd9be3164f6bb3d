"""Published clients, unchanged, against one server: each in a process of its own, with what its users install."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from contract.client import node, unique
from contract.conftest import kinds
from contract.test_access import make_key

from comfyui_guarded.tests.hosts.launch import ROOT, HostProcess

DRIVERS = Path(__file__).parent / "drivers"
#: Where `make` has put the packages.
INSTALLED = ROOT / "build" / "clients"

#: Of a job. A good one takes a third of a second, the time that a client may need to open its socket.
JOB_TIMEOUT_S = 1.2
#: For all graphs of one client, while the others' jobs run too. Only a client that hangs needs it.
PATIENCE_S = 240.0
#: As many as keep two cores busy; all their jobs queue up behind one another.
AT_ONCE = 6

#: Clients that always talk to the root of the server.
ROOT_ONLY = ("comfy_api_simplified_key", "comfy_api_simplified_ws", "pycomfy_ws")


@dataclass(frozen=True)
class Told:
    """What a client handed over for one graph: a picture, an error, or neither."""

    picture: bytes | None
    error: str | None


def drivers() -> list[Path]:
    return sorted(path for path in DRIVERS.iterdir() if path.suffix in (".py", ".mjs") and path.stem != "common")


def cases() -> list[tuple[str, str]]:
    """(driver, path below the server's root): under /guarded, and where ComfyUI's own routes are."""
    names = [driver.stem for driver in drivers()]
    return [(name, "") for name in names] + [(name, "/guarded") for name in names if name not in ROOT_ONLY]


def graphs() -> dict[str, dict[str, Any]]:
    """A good job, one that takes too long, and one whose picture is black."""
    return {
        "good": {"1": _pause(0.3), "9": _save("1")},
        "slow": {"1": _pause(3600), "9": _save("1")},
        "black": {
            "1": _titled(node("FaultBlackImage", width=128, height=128, nan=False, seed=0)),
            "2": _pause(0.3, image=["1", 0]),
            "9": _save("2"),
        },
    }


def _titled(made: dict[str, Any]) -> dict[str, Any]:
    """With the title that ComfyUI exports, without which some clients do not find a node."""
    return {**made, "_meta": {"title": made["class_type"]}}


def _pause(seconds: float, **inputs: Any) -> dict[str, Any]:
    return _titled(node("FaultSleep", seconds=seconds, checks_interrupt=True, steps=4, seed=0, **inputs))


def _save(source: str) -> dict[str, Any]:
    return _titled(node("SaveImage", images=[source, 0], filename_prefix=unique("client")))


def _kinds() -> list[object]:
    """The sandbox; with GUARDED_CLIENTS (`make clients`), each real ComfyUI too, which takes two minutes more."""
    return kinds() if os.environ.get("GUARDED_CLIENTS") else kinds()[:1]


@pytest.fixture(scope="package", params=_kinds())
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Any, Told]]:
    """What every client handed over, by (driver, path, graph)."""
    if not (INSTALLED / "bin").is_dir() and not (INSTALLED / "Scripts").is_dir():
        pytest.skip("the published clients are not installed: make clients")
    base = tmp_path_factory.mktemp("clients")
    environment = {"GUARDED_NATIVE__MODE": "guarded", "GUARDED_WATCHDOG__JOB_TIMEOUT_S": str(JOB_TIMEOUT_S)}
    host = HostProcess(request.param, base, environment=environment)
    key = make_key(base, "published")
    with host:
        yield ask_all(host.url, key, tmp_path_factory)


def ask_all(url: str, key: str, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Told]:
    """What every client hands over, by (driver, path, graph), of the server at that address."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = {
            (driver, path): pool.submit(_run, driver, f"{url}{path}", key, tmp_path_factory.mktemp(driver.stem))
            for driver in drivers()
            if driver.suffix == ".py" or (shutil.which("node") and (INSTALLED / "node_modules").is_dir())
            for path in ("", "/guarded")
            if (driver.stem, path) in cases()
        }
        found: dict[Any, Any] = {}
        for (driver, path), future in made.items():
            for graph, answer in future.result().items():
                found[driver.stem, path, graph] = answer
        return found


def _run(driver: Path, url: str, key: str, folder: Path) -> dict[str, Told | str]:
    """What the client handed over for each graph; a text where it did not come so far."""
    files = {name: folder / f"{name}.json" for name in graphs()}
    for name, graph in graphs().items():
        files[name].write_text(json.dumps(graph))
    python = INSTALLED / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = [str(python) if driver.suffix == ".py" else "node", str(driver), url, *map(str, files.values())]
    # Some look for a server's address in there.
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("COMFY")}
    environment["KEY"] = key  # for those of the drivers that come with one
    with open(folder / "log", "w+b") as log:
        try:
            done = subprocess.run(
                command, cwd=INSTALLED, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                timeout=PATIENCE_S, check=False,
            )  # fmt: skip
            ended = f"ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = "hung"
        log.seek(0)
        ended += f": {log.read()[-2000:].decode(errors='replace')}"
    return {name: _told(file) or ended for name, file in files.items()}


def _told(graph: Path) -> Told | None:
    picture, error = Path(f"{graph}.picture"), Path(f"{graph}.error")
    if picture.exists():
        return Told(picture.read_bytes() or None, None)
    return Told(None, error.read_text()) if error.exists() else None
