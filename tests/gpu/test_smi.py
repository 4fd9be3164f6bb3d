"""What `nvidia-smi` prints, read."""

from gpu.machine import MIB, Figures, read_figures

# As a driver of version 580 prints it.
H200 = "0, NVIDIA H200, 143771, 4, 618, 0\n"
TWO = "0, NVIDIA RTX A5000, 24564, 20480, 331, 97\n1, NVIDIA T4, 15360, [N/A], [Not Supported], [N/A]\n"


def test_one_gpu_at_rest():
    assert read_figures(H200) == [Figures(0, "NVIDIA H200", 143771 * MIB, 4 * MIB, 618 * MIB, 0)]


def test_of_two_one_says_less():
    first, second = read_figures(TWO)
    assert (first.used_bytes, first.busy_percent) == (20480 * MIB, 97)
    assert second == Figures(1, "NVIDIA T4", 15360 * MIB, None, None, None)
