import faulthandler
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from side_by_side import ByServer, rank

#: How long a test on a real host may take that says nothing of it.
REAL_HOST_S = 360
#: How long after its timeout a test may still be there. pytest-timeout needs the main thread; a process whose main
#: thread is stuck ends itself after this, with the stacks of all its threads, and the gate goes on without it.
STUCK_S = 60


def _register_alias() -> None:
    # By path: the repo's root must not be on sys.path, where our `nodes` would shadow ComfyUI's.
    spec = importlib.util.spec_from_file_location("_guarded_alias", Path(__file__).parents[1] / "alias.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register()


# Before any test module is imported.
_register_alias()

# ci: the same examples on every run, and no verdict that depends on how busy the machine is.
settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", deadline=None, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

# Several servers share the cores: with a thread per core in each of them, torch waits most of its time for a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")


_stacks = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    # A copy, since a test that is captured has another one in its place.
    config.stash[_stacks] = os.dup(sys.__stderr__.fileno()) if sys.__stderr__ is not None else 2


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    mark = item.get_closest_marker("timeout")
    timeout_s = mark.args[0] if mark is not None else float(item.config.getini("timeout"))
    _end_if_stuck(item.config, timeout_s + STUCK_S)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    # To the very end of the process: a thread that somebody left behind may keep it. A worker waits for the others.
    if not hasattr(session.config, "workerinput"):
        _end_if_stuck(session.config, 5 * STUCK_S)


def _end_if_stuck(config: pytest.Config, after_s: float) -> None:
    """From a thread that needs no Python."""
    faulthandler.dump_traceback_later(after_s, exit=True, file=config.stash[_stacks])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    return ByServer(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--serial",
        choices=("with", "without", "only"),
        default="with",
        help="tests that measure time or starve the machine (marked `serial`): with the others, left out, or alone",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("serial")
    left_out = [item for item in items if wanted != "with" and (wanted == "only") != _is_serial(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]
    for item in items:
        # The first test of a real host pays for its start. Were it a mark of the parameter, no test could have more.
        if item.get_closest_marker("comfyui") is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(REAL_HOST_S))
    if hasattr(config, "workerinput"):
        items.sort(key=rank)


def _is_serial(item: pytest.Item) -> bool:
    return item.get_closest_marker("serial") is not None
