"""How busy the machine is, over a stand-in for psutil."""

import types

from unit.fakes import SetClock
from unit.test_gpu import A5000, fake_nvml

from comfyui_guarded.guard.operators.gpu import Gpus
from comfyui_guarded.guard.operators.machine import EVERY_S, KEPT_S, Machine

NOW_MS = 1_800_000_000_000
PSUTIL = types.SimpleNamespace(
    cpu_percent=lambda _interval: 37.5, virtual_memory=lambda: types.SimpleNamespace(total=100, available=30)
)


def test_a_sample_has_what_the_machine_and_its_gpu_say():
    gpus = Gpus({})
    gpus.look(fake_nvml(A5000))
    machine = Machine(gpus, SetClock(NOW_MS), PSUTIL)
    machine.look()
    assert machine.body(0) == {
        "every_s": EVERY_S,
        "ram_total_bytes": 100,
        "vram_total_bytes": A5000[4],
        "samples": [
            {
                "at_ms": NOW_MS,
                "cpu_percent": 37.5,
                "ram_used_bytes": 70,
                "gpu_percent": 97,
                "vram_used_bytes": A5000[3],
                "gpu_celsius": 61,
            }
        ],
    }


def test_the_last_hour_is_kept_and_one_may_ask_for_what_is_new():
    clock = SetClock(NOW_MS)
    machine = Machine(Gpus({}), clock, PSUTIL)
    for _ in range(int(KEPT_S / EVERY_S) + 10):
        clock.ms += int(EVERY_S * 1000)
        machine.look()
    samples = machine.body(0)["samples"]
    assert clock.ms - samples[0]["at_ms"] == (KEPT_S - EVERY_S) * 1000
    assert [sample["at_ms"] for sample in machine.body(samples[-3]["at_ms"])["samples"]] == [
        sample["at_ms"] for sample in samples[-2:]
    ]


def test_what_nobody_says_is_null():
    def fails():
        raise OSError

    machine = Machine(Gpus({}), SetClock(NOW_MS), types.SimpleNamespace(cpu_percent=lambda _i: 1, virtual_memory=fails))
    machine.look()
    (sample,) = machine.body(0)["samples"]
    assert set(sample.values()) == {NOW_MS, None}
