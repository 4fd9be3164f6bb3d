"""CenterFace on torch finds what it finds on onnxruntime. Runs with the Python of a real ComfyUI, which has torch."""

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from faces.photos import WITH_FACES, WITHOUT, photo

from comfyui_guarded.guard.errors import GuardError, ServerUnavailableError
from comfyui_guarded.guard.faces import Detector, network
from comfyui_guarded.guard.faces.centerface import WEIGHTS
from comfyui_guarded.guard.faces.check import FaceChecker
from comfyui_guarded.guard.faces.on_torch import TorchNetwork
from comfyui_guarded.guard.faces.search import shrink
from comfyui_guarded.tests.hosts.launch import real_kinds

ROOT = Path(__file__).parents[2]
#: All photos upright, those with faces turned too, and one whose sides are no multiple of 32.
VIEWS = [(name, 0) for name in [*WITH_FACES, *WITHOUT]] + [(name, turn) for name in WITH_FACES for turn in (1, 2, 3)]


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray[Any, Any]]:
    views = [np.rot90(shrink(np.asarray(photo(name)), 576 * 576), turn) for name, turn in VIEWS]
    return [np.ascontiguousarray(view) for view in [*views, views[0][:301, :467]]]


@pytest.fixture(scope="module")
def seen(pictures: list[np.ndarray[Any, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What torch sees, by seen_by_torch.py."""
    has_torch = (kind.python for kind in real_kinds() if _has_torch(kind.python))
    if (python := next(has_torch, None)) is None:
        pytest.skip("no ComfyUI with torch is there; give one with COMFYUI_PATH")
    folder = tmp_path_factory.mktemp("pictures")
    files = [str(folder / f"{number}.npy") for number in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        np.save(file, picture)
    script = [python, str(Path(__file__).with_name("seen_by_torch.py")), str(ROOT / "alias.py"), *files]
    done = subprocess.run(script, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _has_torch(python: str) -> bool:
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([python, "-c", look], check=False).returncode == 0


def test_torch_finds_the_same_faces_to_one_percent(
    seen: dict[str, Any], pictures: list[np.ndarray[Any, Any]], centerface: Detector
) -> None:
    for view, picture, found in zip([*VIEWS, "cut"], pictures, seen["found"], strict=True):
        expected = centerface.find(picture)
        assert len(found) == len(expected), view
        for face, (confidence, _size, *places) in zip(expected, found, strict=True):
            assert confidence == pytest.approx(face.confidence, rel=0.01), view
            wanted = [*face.box, *np.ravel(face.landmarks)]
            assert places == pytest.approx(wanted, abs=0.01 * face.size), view
    assert sum(map(len, seen["found"])) > len(WITH_FACES)


def test_the_whole_check_says_the_same_on_torch(
    seen: dict[str, Any], pictures: list[np.ndarray[Any, Any]], checker: FaceChecker
) -> None:
    def judge(picture: np.ndarray[Any, Any]) -> str:
        try:
            checker.check(picture)
            return "passed"
        except GuardError as error:
            return error.code

    assert seen["judged"] == [judge(picture) for picture in pictures]
    assert {"passed", "no_face"} <= set(seen["judged"])


def test_torch_is_chosen_where_onnxruntime_is_missing_and_imported_by_nothing_but_the_first_check(
    seen: dict[str, Any],
) -> None:
    for said in (seen["choice"], seen["facts"], seen["chosen"]):
        assert (said["detector"], said["device"], said["runtime"]) == ("centerface", "cpu", "torch")
    assert not seen["facts"]["onnxruntime"]["providers"]
    assert not seen["imported_early"]
    assert seen["chosen"]["loaded"]


def test_comfyuis_own_work_keeps_its_threads(seen: dict[str, Any]) -> None:
    assert len(set(seen["threads"])) == 1, seen["threads"]


def test_the_network_is_read_as_the_package_onnx_reads_it() -> None:
    graph = onnx.load(str(WEIGHTS)).graph
    steps, weights = network.read_network(WEIGHTS)
    assert [dataclasses.astuple(step) for step in steps] == [
        (
            node.op_type,
            list(node.input),
            node.output[0],
            {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute},
        )
        for node in graph.node
    ]
    assert set(weights) == {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        assert np.array_equal(weights[tensor.name], onnx.numpy_helper.to_array(tensor)), tensor.name


@pytest.mark.parametrize("content", [b"", b"\x0f", b"not a network", WEIGHTS.read_bytes()[:5_000_000]])
def test_a_file_that_is_no_network_is_said_to_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", object())
    (tmp_path / "cut.onnx").write_bytes(content)
    with pytest.raises(ServerUnavailableError, match=r"cut\.onnx does not load"):
        TorchNetwork(tmp_path / "cut.onnx")
