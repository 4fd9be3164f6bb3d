"""Many at once, for a few seconds; `make crowd` lets 500 sockets and 200 submitters stay for a minute."""

from pathlib import Path

import pytest
from chaos.crowd import SLACK_MB, visited

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.serial,
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the server's memory from /proc"),
]


async def test_a_crowd_gets_no_5xx_loses_no_socket_and_leaves_no_memory_behind(server):
    host = server()
    host.start()
    seen, before_mb, after_mb = await visited(host, sockets=150, submitters=60, seconds=6)
    assert seen.wrong == []
    assert seen.opened == 150
    assert seen.messages >= seen.settled["succeeded"] > 60
    assert set(seen.statuses) == {200}
    assert after_mb - before_mb <= SLACK_MB, f"{before_mb:.0f} → {after_mb:.0f} MB, {seen.peak_mb:.0f} at most"
