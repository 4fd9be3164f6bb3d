"""What docs/deploy.md installs for the templates goes together in one Python; test_fresh.py installs it for real."""

import re

from package.conftest import ROOT

_INSTALL = re.compile(r"^(?:\.\./)?venv/bin/python -m pip install (.*)$", re.MULTILINE)


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


def test_every_pack_that_needs_onnxruntime_gets_one_where_there_is_none():
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    chapter = text[text.index("\n## 6. Models") :]
    line = '../venv/bin/python -c "import onnxruntime" || ../venv/bin/python -m pip install onnxruntime'
    for pack in ("ComfyUI-LivePortraitKJ", "ComfyUI_IPAdapter_plus"):
        block = next(block for block in re.findall(r"```sh\n(.*?)```", chapter, re.DOTALL) if f"/{pack}\n" in block)
        assert line in block, pack
