"""End the programs that a job's nodes have started, at the latest with the job.

A node that is stopped forgets its ffmpeg, which goes on encoding, even when this process has ended; and one that waits
for a program hears of no stop. Programs count that are started by `subprocess`, and what they start in turn.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import subprocess
from collections.abc import Callable
from typing import Any

from .run import Run

log = logging.getLogger("guarded.host")


def watch_programs(find_run: Callable[[], Run | None]) -> None:
    """Note each program in the run on whose behalf a thread starts it. The main thread, once.

    `find_run` may end the thread: then nothing is started.
    """
    native = subprocess.Popen.__init__

    @functools.wraps(native)
    def __init__(popen: subprocess.Popen[Any], *args: Any, **kwargs: Any) -> None:
        run = find_run()
        native(popen, *args, **kwargs)
        if run is not None:
            run.programs = [*filter(_is_on, run.programs), popen]
            if run.is_over and run.folder:  # it ended between the two; an operator's may stay
                end_programs(run)

    setattr(subprocess.Popen, "__init__", __init__)  # noqa: B010 (its type forbids it)


def end_programs(run: Run) -> bool:
    """Kill what the run has started and is still there; False: nothing is. Any thread."""
    programs, run.programs = [*filter(_is_on, run.programs)], []
    for popen in programs:
        _kill(popen)
    if programs:
        about = {"job_id": run.job_id}
        log.warning("job %s left %d program(s) behind, which were ended", run.job_id, len(programs), extra=about)
    return bool(programs)


def _is_on(popen: subprocess.Popen[Any]) -> bool:
    """Whether it runs. Takes no result from a node that waits for it."""
    return popen.returncode is None and popen.poll() is None


def _kill(popen: subprocess.Popen[Any]) -> None:
    psutil: Any = importlib.import_module("psutil")  # only where something is left, and without types

    family: list[Any] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(popen.pid).children(recursive=True)
    for one in (popen, *family):
        with contextlib.suppress(psutil.Error, OSError):
            one.kill()
