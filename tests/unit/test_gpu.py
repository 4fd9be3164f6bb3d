"""GPU figures over a stand-in for `pynvml`, in the shapes that its documentation gives."""

import types

import pytest

from comfyui_guarded.guard.operators import gpu as module
from comfyui_guarded.guard.operators.gpu import Gpus

GIB = 2**30


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


def fake_nvml(*gpus, **changes):
    """`pynvml` with these GPUs: (uuid, name, per cent busy, bytes used, bytes in all)."""
    nvml = types.SimpleNamespace(
        NVMLError=NVMLError,
        NVMLError_NotSupported=NVMLError_NotSupported,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
        nvmlDeviceGetUUID=lambda gpu: gpu[0],
        nvmlDeviceGetName=lambda gpu: gpu[1],
        nvmlDeviceGetUtilizationRates=lambda gpu: types.SimpleNamespace(gpu=gpu[2], memory=1),
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetTemperature=lambda gpu, sensor: 61 + sensor,
        nvmlDeviceGetMemoryInfo=lambda gpu: types.SimpleNamespace(used=gpu[3], free=gpu[4] - gpu[3], total=gpu[4]),
    )
    for name, value in changes.items():
        setattr(nvml, name, value)
    return nvml


A5000 = ("GPU-11aa", "NVIDIA RTX A5000", 97, 20 * GIB, 24 * GIB)
SMALL = ("GPU-22bb", "NVIDIA T4", 0, GIB, 16 * GIB)


def test_one_gpu_as_json():
    gpus = Gpus({})
    gpus.look(fake_nvml(A5000))
    assert gpus.ours is not None
    assert gpus.ours.body() == {
        "name": "NVIDIA RTX A5000",
        "utilization_percent": 97,
        "vram_used_bytes": 20 * GIB,
        "vram_total_bytes": 24 * GIB,
        "temperature_celsius": 61,
    }


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        (None, "NVIDIA RTX A5000"),
        ("1", "NVIDIA T4"),
        ("1,0", "NVIDIA T4"),
        ("GPU-22", "NVIDIA T4"),
        *((nothing, None) for nothing in ("", "7", "-1")),
    ],
)
def test_ours_is_the_first_that_cuda_sees(visible, name):
    gpus = Gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    gpus.look(fake_nvml(A5000, SMALL))
    assert len(gpus.all) == 2
    assert (gpus.ours.name if gpus.ours is not None else None) == name


def test_what_the_driver_cannot_say_is_none():
    def not_supported(_handle):
        raise NVMLError_NotSupported

    gpus = Gpus({})
    gpus.look(fake_nvml(A5000, nvmlDeviceGetUtilizationRates=not_supported, nvmlDeviceGetMemoryInfo=not_supported))
    assert gpus.ours is not None
    assert (gpus.ours.utilization_percent, gpus.ours.vram_used_bytes, gpus.ours.vram_total_bytes) == (None,) * 3


def test_names_in_bytes_are_read_too():
    gpus = Gpus({})
    gpus.look(fake_nvml((b"GPU-1", b"Tesla T4", 0, 0, 1)))
    assert gpus.ours is not None
    assert gpus.ours.name == "Tesla T4"


def test_figures_grow_stale_when_the_driver_hangs(monkeypatch):
    gpus = Gpus({})
    gpus.look(fake_nvml(A5000))
    monkeypatch.setattr(module, "STALE_S", -1.0)
    assert gpus.all == ()
    assert gpus.ours is None


def test_without_a_driver_the_thread_ends_and_there_are_no_gpus(caplog):
    def no_driver():
        raise NVMLError("NVML Shared Library Not Found")

    gpus = Gpus({}, fake_nvml(A5000, nvmlInit=no_driver))
    gpus.start()
    gpus._thread.join(60)
    assert not gpus._thread.is_alive()
    assert gpus.all == ()
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


def test_the_real_package_has_everything_that_is_asked_for():
    pynvml = pytest.importorskip("pynvml")
    for name in vars(fake_nvml()):
        assert hasattr(pynvml, name), name
