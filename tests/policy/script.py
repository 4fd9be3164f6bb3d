"""A script that a real ComfyUI's Python runs: a line of JSON goes in, and a line comes back."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from packs.conftest import PACKS

from comfyui_guarded.tests.hosts.launch import HostKind


class Script:
    """`name` stands beside this file. Its first line says what it is ready for: `greeting`."""

    def __init__(self, name: str, kind: HostKind, base: Path, *arguments: str) -> None:
        site = os.environ.get("GUARDED_PACKS_SITE") or PACKS.with_name("packs-site")
        self._log = open(base / "log", "w")  # noqa: SIM115
        self._process = subprocess.Popen(
            [kind.python, str(Path(__file__).with_name(name)), str(kind.main.parent), str(base), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, "PYTHONPATH": str(site)},
        )  # fmt: skip
        self.greeting = self._read()

    def ask(self, question: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, Path(self._log.name).read_text()[-3000:]
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate(timeout=120)  # it ends with its input
        self._log.close()
