"""What the wiring itself does."""

import gc
import weakref

import pytest

from comfyui_guarded.app import spare_collector


class Ring:
    """Refers to itself."""

    def __init__(self):
        self.me = self


@pytest.fixture
def thawed():
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_the_collector_passes_over_what_a_start_has_made_and_over_nothing_else(thawed):
    garbage = weakref.ref(Ring())
    lasting = [Ring() for _ in range(1000)]
    spare_collector()
    assert garbage() is None, "what is garbage at that moment does not stay"
    seen = gc.get_objects()
    assert gc.get_freeze_count() > 1000
    assert not any(one is lasting[0] for one in seen)
    later = weakref.ref(Ring())
    gc.collect()
    assert later() is None
    last = weakref.ref(lasting[0].__dict__["me"])
    lasting[0].me = None
    del seen, lasting
    assert last() is None, "what nobody refers to goes at once"
