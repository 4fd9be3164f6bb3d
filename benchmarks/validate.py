"""What the checks of result files cost, against Pillow's and PyAV's own decode of the same file.

    python benchmarks/validate.py [--rounds 15]

Ratios, side by side in one process, the two taking turns; the median of the rounds. The budget is 1.5 ×
for a 1024² PNG. Memory: the peak of a fresh process that checks a film of 75 frames, and of one with twenty times
as many.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _alias import ROOT, register

BUDGET = 1.5


def _register_alias() -> None:
    register()
    sys.path.append(str(ROOT / "tests"))


def check(path: Path) -> None:
    from results.checking import check as checked

    checked(path)


def check_in_thread(path: Path) -> None:
    """As a job's files are checked: with the thread, and the time limit."""
    from results.checking import DEFAULTS, outcome

    from comfyui_guarded.guard.results import checks as artifacts

    reported = outcome(path)
    artifacts.run_within(30, lambda: artifacts.check(reported, DEFAULTS))


def decode_with_pillow(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        image.load()


def decode_with_pyav(path: Path) -> None:
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for _ in container.decode(video=0):
            pass


def compare(
    ours: Callable[[Path], None], theirs: Callable[[Path], None], path: Path, rounds: int
) -> tuple[float, float]:
    """Median milliseconds of both. A round of each first, for caches and imports."""
    took: dict[Callable[[Path], None], list[float]] = {ours: [], theirs: []}
    for number in range(rounds + 1):
        for work in (theirs, ours):
            began_s = time.perf_counter()
            work(path)
            if number:
                took[work].append((time.perf_counter() - began_s) * 1000)
    return statistics.median(took[ours]), statistics.median(took[theirs])


def _read_own_peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what this process's parent had before the exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_peak_mb(path: Path) -> float:
    """Of a process that checks this one file."""
    done = subprocess.run([sys.executable, __file__, "--peak", str(path)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def make_files(folder: Path) -> dict[str, Path]:
    from results import corpus, pictures

    made = {
        "png 1024²": ("a.png", lambda: corpus.image(pictures.landscape(1024), "PNG", compress_level=4)),
        "png 4096²": ("b.png", lambda: corpus.image(pictures.landscape(4096), "PNG", compress_level=4)),
        "jpeg 1024²": ("c.jpg", lambda: corpus.image(pictures.landscape(1024), "JPEG", quality=92)),
        "webp 1024²": ("d.webp", lambda: corpus.image(pictures.landscape(1024), "WEBP", quality=90)),
        "mp4 15 s 512²": ("e.mp4", lambda: corpus.film(pictures.talking_head())),
        "mp4 15 s 1024²": ("f.mp4", lambda: corpus.film(pictures.pan(pictures.landscape(1024), 375))),
        "webm 15 s 512²": (
            "g.webm",
            lambda: corpus.film(pictures.talking_head(), "webm", "libvpx-vp9", crf="32", b="0", deadline="realtime"),
        ),
    }
    for name, write in made.values():
        (folder / name).write_bytes(write())
    return {label: folder / name for label, (name, _) in made.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    _register_alias()
    if arguments.peak is not None:
        check(arguments.peak)
        print(_read_own_peak_mb())
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(f"{'file':16} {'size':>9} {'ours':>9} {'decode':>9} {'ratio':>6}")
        ratios = {}
        for label, path in make_files(folder).items():
            theirs = decode_with_pyav if label.startswith(("mp4", "webm")) else decode_with_pillow
            ours_ms, theirs_ms = compare(check_in_thread, theirs, path, arguments.rounds)
            ratios[label] = ours_ms / theirs_ms
            size = path.stat().st_size / 1024
            print(f"{label:16} {size:6.0f} KB {ours_ms:6.1f} ms {theirs_ms:6.1f} ms {ratios[label]:6.2f}")
        from results import corpus, pictures

        peaks = []
        for frames in (75, 1500):
            path = folder / f"{frames}.mp4"
            path.write_bytes(corpus.film(pictures.pan(pictures.landscape(512), frames)))
            peaks.append(measure_peak_mb(path))
            print(f"memory, film of {frames:4} frames of 512²: {peaks[-1]:.1f} MB")
        print(f"memory grows by {peaks[1] - peaks[0]:+.1f} MB")
    within = ratios["png 1024²"] <= BUDGET
    print(f"png 1024²: {ratios['png 1024²']:.2f} × of a budget of {BUDGET} ×: {'kept' if within else 'MISSED'}")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
