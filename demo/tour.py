"""A tour of the guard on real photos: what it does to good jobs, bad jobs and a killed server, as a table.

`make demo` runs it on the sandbox, or on the ComfyUI named by `COMFYUI_PATH`. The exit status is 0 only if every
outcome was the expected one, 1 if one was not, 2 if the tour could not be made. `make serve` keeps the server running.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

# Python puts this folder on sys.path. `alias` lies in the root, and takes the root off sys.path again.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import alias

alias.register()

from comfyui_guarded.demo.client import Client, TourError  # noqa: E402
from comfyui_guarded.demo.scenes import PHOTOS, SETTINGS, Tour  # noqa: E402
from comfyui_guarded.demo.table import Table  # noqa: E402
from comfyui_guarded.tests.hosts.launch import ROOT, HostKind, HostProcess, real_kinds, sandbox_kind  # noqa: E402


def main() -> int:
    options = _parse_options()
    # A letter that the terminal's encoding lacks must not end the tour.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    # End the server on a supervisor's SIGTERM as on Ctrl-C; it would outlive this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        kind = _choose_kind()
        if options.serve:
            return _serve(kind, options.port, options.keep)
        return _tour(kind, options.port, options.keep)
    except TourError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="start the server and keep it until Ctrl-C")
    parser.add_argument("--port", type=int, help="default: 8188 with --serve, else a free one")
    parser.add_argument("--keep", action="store_true", help="keep the pictures, the database and the log")
    return parser.parse_args()


def _choose_kind() -> HostKind:
    """The sandbox, or the ComfyUI that COMFYUI_PATH names."""
    given = os.environ.get("COMFYUI_PATH")
    if not given:
        return sandbox_kind()
    kinds = real_kinds()
    if not kinds:
        raise TourError(f"COMFYUI_PATH is {given}, where no ComfyUI is (no main.py, comfy/ and execution.py).")
    return kinds[0]


def _tour(kind: HostKind, port: int | None, keep: bool) -> int:
    table = Table()
    began_s = time.monotonic()
    base = _make_base()
    host = HostProcess(kind, base, environment=SETTINGS, port=port)
    try:
        _copy_photos(base)
        table.print(f"ComfyUI-Guarded on {_describe(kind)}, in {base}; starting it ...")
        took_s = _start(host)
        table.print(f"it takes jobs at {host.url} after {took_s:.1f} s\n")
        table.print_head()
        Tour(Client(host.url), table, base, host.kill, lambda: _start(host)).walk()
    except BaseException:
        print(f"\nThe log is {host.log}, the pictures are in {base / 'output'}.", file=sys.stderr)
        raise
    finally:
        host.stop()
    right = table.rows - table.wrong
    table.print(f"\n{right} of {table.rows} outcomes as expected, {time.monotonic() - began_s:.0f} s.")
    if table.wrong or keep:
        table.print(f"The log is {host.log}, the pictures are in {base / 'output'}.")
    else:
        shutil.rmtree(base, ignore_errors=True)
        table.print("Log and pictures were deleted (--keep keeps them).")
    return 1 if table.wrong else 0


def _serve(kind: HostKind, port: int | None, keep: bool) -> int:
    port = port or 8188
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise TourError(f"Port {port} is in use. Another one: {sys.executable} {sys.argv[0]} --serve --port 8189")
    base = _make_base()
    host = HostProcess(kind, base, port=port)
    try:
        photos = _copy_photos(base)
        print(f"Starting ComfyUI-Guarded on {_describe(kind)} ...", flush=True)
        _start(host)
        body = (ROOT / "workflows" / "api" / "first_job.json").resolve()
        shown = os.path.relpath(body) if body.is_relative_to(Path.cwd()) else body
        print(
            f"It takes jobs at {host.url}. Try:\n\n"
            f"    curl -s -d @{shown} '{host.url}/guarded/prompt?wait=30'\n\n"
            f"Photos for LoadImage: {', '.join(photos)}.\n"
            f"The log is {host.log}, pictures come to {base / 'output'}. Ctrl-C stops it.",
            flush=True,
        )
        while host.alive:
            time.sleep(0.5)
        raise TourError(f"The server has ended by itself. The end of its log:\n{host.log_tail()}")
    except KeyboardInterrupt:
        print("\nStopping ...", flush=True)
        host.stop()
        if keep:
            print(f"The log is {host.log}, the pictures are in {base / 'output'}.")
        else:
            shutil.rmtree(base, ignore_errors=True)
        return 0
    finally:
        host.stop()


def _start(host: HostProcess) -> float:
    """Start the host, and return how many seconds that took. Raises TourError with the end of its log if it fails."""
    began_s = time.monotonic()
    try:
        host.start()
    except RuntimeError as error:
        raise TourError(str(error)) from None
    return time.monotonic() - began_s


def _make_base() -> Path:
    return Path(tempfile.mkdtemp(prefix="comfyui-guarded-")).resolve()


def _copy_photos(base: Path) -> list[str]:
    """Copy the photos into the server's input folder, and return their names."""
    source = Path(sys.prefix) / "photos"
    missing = [photo for photo in PHOTOS if not (source / photo).is_file()]
    if missing:
        raise TourError(f"There is no {source / missing[0]}. `make demo` and `make serve` put the photos there.")
    for photo in PHOTOS:
        shutil.copy(source / photo, base / "input")
    return [Path(photo).name for photo in PHOTOS]


def _describe(kind: HostKind) -> str:
    return f"{kind.name} ({kind.main.parent})" if kind.real else "the sandbox host"


if __name__ == "__main__":
    sys.exit(main())
