"""What the package adds to its host's start.

The host is started with and without the package, in turns, from the start of the process until it takes requests
(jobs, with the package). ComfyUI's own "Import times for custom nodes" is read from its log; the sandbox has none.
"""

from __future__ import annotations

import re
import statistics
import sys

import _common
import _figures
from _common import HostProcess

BUDGET_S = 0.3
_IMPORT_TIME = re.compile(r"([\d.]+) seconds(?: \(IMPORT FAILED\))?: .*ComfyUI-Guarded")


def main() -> None:
    parser = _common.make_parser(__doc__, rounds=5)
    options = parser.parse_args()
    kind = _common.find_host_kind(options.host)
    with _common.make_base_directory() as base:
        _common.print_headline(kind, options)
        hosts = {
            "with": (HostProcess(kind, base / "with"), "/guarded/ready"),
            "without": (HostProcess(kind, base / "without", guarded=False), "/prompt"),
        }
        took_s: dict[str, list[float]] = {"with": [], "without": []}
        for turn in range(options.rounds + 1):
            for name in ("with", "without") if turn % 2 else ("without", "with"):
                host, path = hosts[name]
                seconds = _common.time_start_s(host, path)
                host.stop()
                if turn:  # the first one compiles, creates the database, and warms the disk's cache
                    took_s[name].append(seconds)
            if turn:
                print(f"round {turn} of {options.rounds} done", file=sys.stderr, flush=True)
        imports_s = [float(found) for found in _IMPORT_TIME.findall(hosts["with"][0].log.read_text(errors="replace"))]
    added_s = statistics.median(one - other for one, other in zip(took_s["with"], took_s["without"], strict=True))
    _figures.print_table(
        ["", "with the package", "without", "added", "budget", ""],
        [
            [
                "start until ready, s",
                *(f"{statistics.median(took_s[name]):.2f}" for name in ("with", "without")),
                f"{added_s:+.2f} s",
                f"≤ +{BUDGET_S:g} s",
                _figures.format_verdict(added_s, BUDGET_S),
            ]
        ],
    )
    if imports_s[1:]:
        print(
            f"ComfyUI's own import time of the package: {statistics.median(imports_s[1:]):.1f} s (rounded by ComfyUI)"
        )
    elif kind.real:
        print("ComfyUI's log names no import time of the package; did it load?")


if __name__ == "__main__":
    main()
