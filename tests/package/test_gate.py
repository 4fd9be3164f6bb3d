"""The gate runs tests side by side, and starts no server twice for it."""

from pathlib import Path

import pytest
from side_by_side import OWN_HOSTS, SHARED_HOSTS, SINGLE, TOGETHER, group

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("nodeid", "together"),
    [
        ("contract/test_submit.py::test_x[ComfyUI-0.33.0]", "contract on ComfyUI-0.33.0"),
        ("contract/test_http.py::test_x[ComfyUI-0.33.0-/a[0]]", "contract on ComfyUI-0.33.0"),
        ("contract/test_http.py::TestX::test_x[1-sandbox]", "contract on sandbox"),
        ("contract/test_ladder.py::test_x[ComfyUI-0.3.64-1]", "contract/test_ladder.py on ComfyUI-0.3.64"),
        ("results/test_on_hosts.py::test_x[sandbox]", "results on sandbox"),
        ("browser/test_editor.py::test_x[ComfyUI-0.3.64]", "browser/test_editor.py on ComfyUI-0.3.64"),
        ("contract/test_http.py::test_x", "contract/test_http.py on no host"),
        ("chaos/test_channels.py::test_x[sandbox-a]", "chaos/test_channels.py on sandbox"),
        ("chaos/test_disk.py::test_x[sandbox]", "chaos/test_disk.py::test_x[sandbox]"),
        ("unit/test_job.py::test_x[error0-failed]", "unit/test_job.py on no host"),
    ],
)
def test_what_shares_a_server_stays_on_one_worker(nodeid: str, together: str) -> None:
    assert group(nodeid) == together


def test_what_is_said_to_start_servers_of_its_own_is_there() -> None:
    for names, folders in ((OWN_HOSTS, SHARED_HOSTS), (TOGETHER, SINGLE)):
        for name in names:
            assert [module for folder in folders for module in (TESTS / folder).glob(f"test_{name}*.py")], name


def test_a_test_that_is_dealt_out_alone_shares_no_server() -> None:
    """A fixture of a module would be made again on every worker."""
    for module in (module for folder in SINGLE for module in (TESTS / folder).glob("*.py")):
        if not module.stem.removeprefix("test_").startswith(TOGETHER):
            assert "scope=" not in module.read_text(), module
