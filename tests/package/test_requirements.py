"""What docs/deploy.md installs for the templates goes together in one Python.

`GUARDED_FRESH=1` installs it for real, in a fresh environment; that downloads half a gigabyte.
"""

import os
import re
import subprocess
import sys
import venv

import pytest
from package.conftest import ROOT

_INSTALL = re.compile(r"^(?:\.\./)?venv/bin/python -m pip install (.*)$", re.MULTILINE)
#: What must be there before, as ComfyUI has it.
_BEFORE = ("numpy>=2", "pillow", "aiohttp")
_IMPORTS = (
    "import google.protobuf, insightface.app, mediapipe, onnx, onnxruntime\n"
    "from mediapipe.framework.formats import landmark_pb2\n"
    "landmark_pb2.NormalizedLandmarkList()\n"
    "print(google.protobuf.__version__, onnx.__version__)"
)


def installs():
    """The arguments of each pip line of the chapter on models, as a shell would split them, in order."""
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    chapter = text[text.index("\n## 6. Models") :].replace("\\\n", " ")
    lines = [line.split("#")[0] for line in _INSTALL.findall(chapter)]
    return [[word.strip('"') for word in line.split()] for line in lines]


def test_no_line_lets_onnx_or_protobuf_grow_beyond_what_mediapipe_takes():
    words = [word for line in installs() for word in line]
    assert "mediapipe==0.10.21" in words
    assert words.count("protobuf>=4.25.3,<5") == 2, "each line that could change it"
    assert words.count("onnx<1.19") == 2
    listed = (ROOT / "requirements-insightface.txt").read_text(encoding="utf-8")
    assert re.search(r"^onnx>=1\.16,<1\.19\b", listed, re.MULTILINE)


@pytest.mark.skipif(not os.environ.get("GUARDED_FRESH"), reason="GUARDED_FRESH=1 installs half a gigabyte")
@pytest.mark.timeout(1800)
def test_in_a_fresh_environment_all_of_it_can_be_imported(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    links = tmp_path / "ComfyUI-Guarded"
    links.symlink_to(ROOT)
    for words in (list(_BEFORE), *installs(), ["onnxruntime"]):
        subprocess.run([python, "-m", "pip", "install", "-q", *words], cwd=tmp_path, check=True)
    done = subprocess.run([python, "-c", _IMPORTS], cwd=tmp_path, check=True, capture_output=True, text=True)
    protobuf, onnx = done.stdout.split()[-2:]
    assert (protobuf.split(".")[0], onnx.split(".")[:2]) == ("4", ["1", "18"])
    assert sys.version_info >= (3, 10)
