"""Which detector, and why; what happens when the packages are missing or overwrote each other."""

import importlib
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from faces.conftest import RedIsAFace
from faces.photos import photo, png

from comfyui_guarded.guard.errors import InvalidRequestError, MissingModelError, ServerUnavailableError
from comfyui_guarded.guard.faces import chooser as chooser_module
from comfyui_guarded.guard.faces import onnx
from comfyui_guarded.guard.faces.check import FaceChecker
from comfyui_guarded.guard.faces.chooser import Chooser


@pytest.fixture(autouse=True)
def nobodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    pack = tmp_path / "models" / "insightface" / "models" / "buffalo_l"
    pack.mkdir(parents=True)
    (pack / "det_10g.onnx").write_bytes(b"not a model")
    return tmp_path / "models"


class Fake(RedIsAFace):
    """Stands for a detector; counts how often it is made."""

    made = 0
    device = "cpu"
    runtime = "onnxruntime"

    def __init__(self, *_arguments: Any) -> None:
        super().__init__()
        type(self).made += 1
        threading.Event().wait(0.05)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setattr(Fake, "made", 0)
    monkeypatch.setattr(chooser_module, "CenterFace", Fake)
    return Fake


def test_without_a_pack_centerface_is_chosen_and_the_reason_says_so() -> None:
    choice = Chooser().choice()
    assert choice.body() == {
        "detector": "centerface",
        "reason": "No InsightFace pack is there.",
        "device": "cpu",
        "runtime": "onnxruntime",
        "loaded": False,
    }


def test_a_pack_without_insightface_is_said_to_be_there(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    choice = Chooser(lambda: [models]).choice()
    assert choice.detector == "centerface"
    assert choice.reason == "The pack buffalo_l is there, but insightface is not installed."


def test_a_pack_with_insightface_is_chosen(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert Chooser(lambda: [models]).choice().detector == "insightface/buffalo_l"


def test_a_pack_that_is_asked_for_and_missing_is_an_error(models: Path) -> None:
    with pytest.raises(ServerUnavailableError, match="pack antelopev2 is not there") as caught:
        Chooser(lambda: [models], "insightface/antelopev2").get()
    assert caught.value.extra_info["packs"] == ["buffalo_l"]
    with pytest.raises(ServerUnavailableError, match="No InsightFace pack is there"):
        Chooser(detector="insightface").get()
    with pytest.raises(MissingModelError, match="No InsightFace pack is there"):  # a prompt's
        Chooser().get("insightface")


def test_a_detector_nobody_knows_is_an_invalid_request() -> None:
    with pytest.raises(InvalidRequestError, match="'yolo'"):
        Chooser().get("yolo")


def test_threads_that_ask_at_once_load_once(fake: type[Fake]) -> None:
    chooser = Chooser()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: chooser.get(), range(16)))
    assert fake.made == 1
    assert len(set(map(id, found))) == 1


def test_the_choice_is_logged_once(fake: type[Fake], caplog: pytest.LogCaptureFixture) -> None:
    chooser = Chooser()
    with caplog.at_level(logging.INFO, "guarded.faces"):
        chooser.get()
        chooser.get()
    assert caplog.messages == ["faces: centerface on the CPU (onnxruntime): No InsightFace pack is there."]


def test_cuda_counts_only_where_it_is_really_there(fake: type[Fake]) -> None:
    chooser = Chooser(device="cuda")
    chooser.get()
    assert chooser.choice().device == "cpu"
    assert "CUDAExecutionProvider is not there" in chooser.choice().reason


def test_real_sessions_run_in_many_threads() -> None:
    pytest.importorskip("onnxruntime")
    checker = FaceChecker(Chooser())
    image = photo("skimage/data/astronaut.png")
    photos = [png(image.crop((0, 0, 512 - shift, 512))) for shift in range(12)]
    alone = [checker.check(data) for data in photos]
    fresh = FaceChecker(Chooser())
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(fresh.check, photos)) == alone


# Packages that are missing.


@pytest.mark.parametrize("package", ["onnxruntime", "insightface"])
def test_a_missing_package_is_named(models: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    if package == "insightface":
        pytest.importorskip("onnxruntime")
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    chooser = Chooser(lambda: [models], "centerface" if package == "onnxruntime" else "insightface")
    with pytest.raises(ServerUnavailableError, match=f"needs the package {package}, which is not installed") as caught:
        FaceChecker(chooser).check(png(photo("skimage/data/camera.png")))
    assert caught.value.extra_info == {"package": package}


def test_what_insightface_itself_lacks_is_named() -> None:
    error = onnx.explain_missing("insightface", ModuleNotFoundError("No module named 'cv2'", name="cv2"))
    assert "opencv-python-headless, which is not installed" in error.message
    assert error.details.startswith("insightface does not load")


def test_nothing_heavy_is_imported_with_the_package() -> None:
    code = (
        "import sys, importlib.util as u; s = u.spec_from_file_location('a', 'alias.py'); m = u.module_from_spec(s);"
        "s.loader.exec_module(m); m.register();"
        "import comfyui_guarded.nodes.face_check, comfyui_guarded.guard.faces.insightface;"
        "print(sorted({'onnxruntime', 'insightface', 'cv2', 'torch', 'onnx'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


# The onnxruntime trap.

BOTH = {"onnxruntime": "1.22.0", "onnxruntime-gpu": "1.22.0"}
GPU = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
CPU = ("AzureExecutionProvider", "CPUExecutionProvider")


def test_two_packages_without_cuda_are_the_broken_state_with_the_command_that_mends_it() -> None:
    state = onnx.judge(BOTH, CPU)
    assert state.broken
    assert "CUDAExecutionProvider is gone" in state.problem
    pip = f'"{sys.executable}" -m pip'
    assert state.command == f"{pip} uninstall -y onnxruntime onnxruntime-gpu && {pip} install onnxruntime-gpu"


def test_two_packages_with_cuda_work_until_the_next_upgrade() -> None:
    state = onnx.judge(BOTH, GPU)
    assert not state.broken
    assert "may take the GPU away" in state.problem
    assert state.command


@pytest.mark.parametrize(
    ("packages", "providers"),
    [({"onnxruntime-gpu": "1.22.0"}, GPU), ({"onnxruntime": "1.22.0"}, CPU), ({}, ()), ({}, GPU)],
)
def test_one_package_or_none_is_no_problem(packages: dict[str, str], providers: tuple[str, ...]) -> None:
    state = onnx.judge(packages, providers)
    assert (state.problem, state.broken, state.command) == ("", False, "")


def test_a_package_that_does_not_import_is_broken() -> None:
    state = onnx.judge({"onnxruntime": "1.22.0"}, ())
    assert state.broken
    assert "--force-reinstall" in state.command


def test_the_facts_for_health_are_json_and_name_the_choice() -> None:
    facts = Chooser().facts()
    assert {"detector", "reason", "device", "runtime", "loaded", "onnxruntime"} == set(facts)
    assert facts["onnxruntime"]["packages"] == onnx.list_installed()


def test_without_onnxruntime_the_facts_say_that_no_face_can_be_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(onnx, "list_installed", dict)
    facts = Chooser().facts()
    assert facts["detector"] is None
    assert facts["reason"] == "No face can be looked for: neither onnxruntime nor torch is installed."
