"""InsightFace's real loading path, with a model that the tests build."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faces import scrfd

from comfyui_guarded.guard.errors import ServerUnavailableError
from comfyui_guarded.guard.faces.chooser import Chooser
from comfyui_guarded.guard.faces.insightface import InsightFace, find_packs, list_roots

#: What else is in antelopev2; a session of any of these would fail.
OTHERS = ("1k3d68.onnx", "2d106det.onnx", "genderage.onnx", "glintr100.onnx")


def pack_files(folder: Path, detection: str = "scrfd_10g_bnkps.onnx") -> None:
    folder.mkdir(parents=True)
    for name in OTHERS:
        (folder / name).write_bytes(b"not a model")
    (folder / detection).write_bytes(b"not a model either")


# Finding packs: no file is opened, insightface need not be there.


def test_packs_are_found_best_first(tmp_path: Path) -> None:
    root = tmp_path / "insightface" / "models"
    for name, detection in (("buffalo_l", "det_10g.onnx"), ("mine", "det_mine.onnx"), ("antelopev2", "scrfd_10g.onnx")):
        pack_files(root / name, detection)
    assert [pack.name for pack in find_packs([root])] == ["antelopev2", "buffalo_l", "mine"]


def test_a_pack_unzipped_into_a_folder_of_its_own_name_is_found(tmp_path: Path) -> None:
    pack_files(tmp_path / "antelopev2" / "antelopev2")
    assert [pack.model for pack in find_packs([tmp_path])] == [
        tmp_path / "antelopev2" / "antelopev2" / "scrfd_10g_bnkps.onnx"
    ]


def test_the_first_root_wins_and_missing_ones_do_no_harm(tmp_path: Path) -> None:
    pack_files(tmp_path / "a" / "buffalo_l", "det_10g.onnx")
    pack_files(tmp_path / "b" / "buffalo_l", "det_10g.onnx")
    (tmp_path / "b" / "empty").mkdir()
    (tmp_path / "b" / "file.onnx").write_bytes(b"")
    found = find_packs([tmp_path / "none", tmp_path / "a", tmp_path / "b"])
    assert [pack.folder for pack in found] == [tmp_path / "a" / "buffalo_l"]


def test_the_landmark_model_of_buffalo_is_not_taken_for_its_detector(tmp_path: Path) -> None:
    pack_files(tmp_path / "buffalo_l", "det_10g.onnx")
    assert find_packs([tmp_path])[0].model.name == "det_10g.onnx"


def test_packs_are_looked_for_in_comfyuis_folder_and_in_insightfaces_own(tmp_path: Path) -> None:
    assert list_roots([tmp_path]) == [
        tmp_path / "insightface" / "models",
        Path.home() / ".insightface" / "models",
    ]


# Loading.


@pytest.fixture
def insightface() -> Any:
    pytest.importorskip("onnxruntime")
    return pytest.importorskip(
        "insightface", reason="insightface is not installed; requirements-insightface.txt says how"
    )


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's models folder with antelopev2 in it, nested, and a home without packs."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    folder = tmp_path / "models" / "insightface" / "models" / "antelopev2" / "antelopev2"
    pack_files(folder)
    scrfd.build(folder / "scrfd_10g_bnkps.onnx")
    return tmp_path / "models"


@pytest.fixture
def opened_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The .onnx files that Python or onnxruntime opens."""
    import onnxruntime

    names: list[str] = []
    listening = [True]

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event == "open" and str(arguments[0]).endswith(".onnx"):
            names.append(Path(arguments[0]).name)

    sys.addaudithook(heard)  # cannot be taken off again
    session = onnxruntime.InferenceSession

    def recorded(model: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(Path(model).name if isinstance(model, str) else "a model in memory")
        return session(model, *args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    yield names
    listening.clear()


def red_patch(width: int, height: int, left: int, top: int, side: int) -> np.ndarray:
    pixels = np.full((height, width, 3), 30, np.uint8)
    pixels[top : top + side, left : left + side] = (255, 0, 0)
    return pixels


@pytest.mark.usefixtures("insightface")
def test_a_nested_pack_is_loaded_and_finds_faces(models: Path) -> None:
    chooser = Chooser(lambda: [models])
    detector = chooser.get()
    assert detector.name == "insightface/antelopev2"
    assert chooser.choice().loaded
    faces = detector.find(red_patch(500, 330, 160, 96, 64))
    assert faces
    for face in faces:
        left, top, right, bottom = face.box
        assert 100 < left < right < 260
        assert 30 < top < bottom < 200
        assert face.confidence > 0.9
        assert len(face.landmarks) == 5


@pytest.mark.usefixtures("insightface")
def test_only_the_detection_file_is_opened(models: Path, opened_files: list[str]) -> None:
    detector = Chooser(lambda: [models]).get()
    detector.find(red_patch(320, 320, 96, 96, 64))
    assert opened_files == ["scrfd_10g_bnkps.onnx"]


@pytest.mark.usefixtures("insightface")
def test_pictures_of_many_sizes_share_one_session(models: Path, opened_files: list[str]) -> None:
    detector = Chooser(lambda: [models]).get()
    for side in (64, 160, 320, 640):
        detector.find(np.zeros((side, side, 3), np.uint8))
    assert opened_files.count("scrfd_10g_bnkps.onnx") == 1


@pytest.mark.usefixtures("insightface")
def test_colours_arrive_as_the_model_expects_them(models: Path) -> None:
    detector = Chooser(lambda: [models]).get()
    blue = red_patch(320, 320, 96, 96, 64)[:, :, ::-1]
    assert detector.find(np.ascontiguousarray(blue)) == []


@pytest.mark.usefixtures("insightface")
@pytest.mark.parametrize("size", [(1, 1), (33, 500), (641, 31)])
def test_pictures_of_any_size_are_looked_at(models: Path, size: tuple[int, int]) -> None:
    detector = Chooser(lambda: [models]).get()
    assert detector.find(np.zeros((size[1], size[0], 3), np.uint8)) == []


@pytest.mark.usefixtures("insightface")
def test_a_model_with_a_fixed_input_gets_the_picture_scaled(models: Path) -> None:
    folder = models / "insightface" / "models" / "antelopev2" / "antelopev2"
    scrfd.build(folder / "scrfd_10g_bnkps.onnx", side=640)
    faces = Chooser(lambda: [models]).get().find(red_patch(320, 320, 96, 96, 96))
    assert faces
    assert all(60 < face.box[0] < face.box[2] < 230 for face in faces)


@pytest.mark.usefixtures("insightface")
def test_a_pack_that_cannot_be_used_gives_way_to_centerface(models: Path) -> None:
    folder = models / "insightface" / "models" / "antelopev2" / "antelopev2"
    (folder / "scrfd_10g_bnkps.onnx").write_bytes(b"half a download")
    chooser = Chooser(lambda: [models])
    assert chooser.get().name == "centerface"
    assert "antelopev2 is there but cannot be used" in chooser.choice().reason
    with pytest.raises(ServerUnavailableError, match=r"scrfd_10g_bnkps\.onnx"):
        Chooser(lambda: [models], "insightface").get()


@pytest.mark.usefixtures("insightface")
def test_a_model_that_is_no_scrfd_is_refused(models: Path) -> None:
    onnx = pytest.importorskip("onnx")
    value = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, 8, 8]) for name in ("a", "b")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["a"], ["b"])], "g", value[:1], value[1:])
    folder = models / "insightface" / "models" / "antelopev2" / "antelopev2"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(folder / "scrfd_10g_bnkps.onnx"))
    with pytest.raises(ServerUnavailableError, match="is not a detection model"):
        InsightFace(find_packs(list_roots([models]))[0])
