"""A stream of events ends soon after its caller's key."""

from types import SimpleNamespace

from comfyui_guarded.server_routes import events


class Reader:
    """Nothing ever happens."""

    is_over = False

    def __init__(self, keys):
        self.asked, self._keys = [], keys

    async def next(self, wait_s):
        self.asked.append(wait_s)
        self._keys.clear()
        return []


async def test_a_silent_stream_looks_within_a_second_whether_its_key_was_revoked():
    keys = {"bot"}
    reader = Reader(keys)
    access = SimpleNamespace(is_current=lambda client: client in keys)
    call = SimpleNamespace(services=SimpleNamespace(access=access), client="bot")
    assert await events._wait(call, reader, events.HEARTBEAT_S) is None
    assert len(reader.asked) == 1
    assert reader.asked[0] < 1.0
