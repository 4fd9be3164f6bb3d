"""Start a host with this package in it: the sandbox, or a real ComfyUI. For the tour, the tests and the benchmarks.

Look for a real ComfyUI in `COMFYUI_PATH` (one folder, or several joined with the path separator), then in the ComfyUI
that contains this checkout, then in `~/comfy/ComfyUI` and `~/comfy/ComfyUI-*`; for its Python in `COMFYUI_PYTHON`, in a
`venv`, `.venv` or `../venv` of that tree, and last take this interpreter.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = ROOT / "sandbox"
FAULTS = Path(__file__).resolve().parent / "guarded_faults"

#: A ComfyUI that starts cold on a busy machine with two cores takes minutes.
READY_WITHIN_S = 240.0

_WINDOWS = os.name == "nt"

#: Below the ports of outgoing connections, one of which could take the port before the server does; and none that
#: browsers refuse, such as 10080. Each process begins elsewhere, since several start servers at the same time.
_ports = itertools.cycle(11_000 + (os.getpid() * 499 + offset) % 20_000 for offset in range(20_000))

# A shell's background job ignores SIGINT. The servers would inherit that, and `stop` could not reach them.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: A proxy that the environment names cannot reach this machine's loopback.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class HostKind:
    """A server program: the sandbox, or one ComfyUI tree."""

    name: str
    main: Path
    python: str
    real: bool


def sandbox_kind() -> HostKind:
    return HostKind("sandbox", SANDBOX / "main.py", sys.executable, real=False)


def real_kinds() -> list[HostKind]:
    """Every real ComfyUI found; `COMFYUI_PATH` alone where it is set."""
    if given := os.environ.get("COMFYUI_PATH"):
        trees = [Path(part) for part in given.split(os.pathsep) if part]
    else:
        home = Path.home() / "comfy"
        trees = [ROOT.parent.parent, home / "ComfyUI", *sorted(home.glob("ComfyUI-*"))]
    return [
        HostKind(_read_label(tree), tree / "main.py", _find_python(tree), real=True)
        for tree in trees
        if (tree / "main.py").is_file() and (tree / "comfy").is_dir() and (tree / "execution.py").is_file()
    ]


def _read_label(tree: Path) -> str:
    version = "unknown"
    for line in (tree / "comfyui_version.py").read_text().splitlines():
        if line.startswith("__version__"):
            version = line.split('"')[1]
    return f"ComfyUI {version}"


def _find_python(tree: Path) -> str:
    if given := os.environ.get("COMFYUI_PYTHON"):
        return given
    within = Path("Scripts/python.exe") if _WINDOWS else Path("bin/python")
    for folder in (tree / "venv", tree / ".venv", tree.parent / "venv"):
        if (folder / within).is_file():
            return str(folder / within)
    return sys.executable


def free_port() -> int:
    """A port of loopback's on which nothing listens, and which this process has not given out before."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("_ports never ends")


class HostProcess:
    """One server process on loopback, over a base directory that outlives it.

    Args:
        base: gets `input/`, `output/`, `user/`, `custom_nodes/` …; the package and the fault nodes are linked in.
        environment: settings for the guard, as `GUARDED_…` variables.
        guarded: False starts the bare host, to compare with.
        package: the checkout of the package that is linked in; another one to compare versions.
        arguments: more for the host's command line.
        cpu: False lets it use a GPU.
    """

    def __init__(
        self,
        kind: HostKind,
        base: Path,
        *,
        environment: Mapping[str, str] | None = None,
        guarded: bool = True,
        package: Path = ROOT,
        arguments: tuple[str, ...] = (),
        port: int | None = None,
        cpu: bool = True,
    ) -> None:
        self.kind = kind
        self.base = base
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "server.log"
        self._guarded = guarded
        self._environment = dict(environment or {})
        self._arguments = (*(("--cpu",) if cpu else ()), *arguments)
        self._process: subprocess.Popen[bytes] | None = None
        for folder in ("input", "output", "temp", "user", "custom_nodes", "models"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        _link(FAULTS, base / "custom_nodes" / FAULTS.name)
        if guarded:
            _link(package, base / "custom_nodes" / "ComfyUI-Guarded")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def set(self, **environment: str) -> None:
        """Give the next process these settings, too."""
        self._environment |= environment

    def start(self) -> HostProcess:
        """Start the server, and wait until it takes requests (and jobs, if it is guarded)."""
        self.spawn()
        self.wait_ready()
        return self

    def spawn(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GUARDED_", "PYTHON"))}
        inherited.pop("MAX_GPU_JOBS", None)
        command = [
            self.kind.python,
            str(self.kind.main),
            *("--disable-api-nodes", "--listen", "127.0.0.1", "--port", str(self.port)),
            *("--base-directory", str(self.base)),
            *("--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}"),
            *self._arguments,
        ]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.kind.main.parent,
                env={**inherited, "PYTHONUNBUFFERED": "1", **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self, within_s: float = READY_WITHIN_S) -> None:
        """Wait for the server. Raises RuntimeError, with the end of the log, if it or the package fails."""
        path = "/guarded/ready" if self._guarded else "/prompt"
        ends = time.monotonic() + within_s
        while time.monotonic() < ends:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                with _DIRECT.open(self.url + path, timeout=5):
                    return
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    break
                time.sleep(0.05)
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"{self.kind.name} did not come up; the end of its log:\n{self.log_tail()}")

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait(self, within_s: float = READY_WITHIN_S) -> int:
        """Wait until the process ends by itself, and return its exit code. Raises subprocess.TimeoutExpired."""
        assert self._process is not None
        code = self._process.wait(within_s)
        self._process = None
        return code

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut or the OOM killer would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it as Ctrl-C would, and by force after ten seconds."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM if _WINDOWS else signal.SIGINT)
        try:
            self._process.wait(10)
            self._process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> HostProcess:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()


def _link(target: Path, link: Path) -> None:
    if link.exists():
        return
    if _WINDOWS:
        # A junction needs no rights; a symlink does.
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, capture_output=True)
    else:
        link.symlink_to(target, target_is_directory=True)
