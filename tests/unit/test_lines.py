"""What waits behind the end of a job: nothing is lost, nothing overtakes, and a hung end holds up no other client."""

from __future__ import annotations

import random
import threading
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui_guarded.guard.events.lines import PREVIEWS, End, Lines


@pytest.fixture
def sent() -> list:
    return []


@pytest.fixture
def lines(sent) -> Lines:
    return Lines(sent.append)


def test_without_an_end_to_wait_for_nothing_is_put_off(lines, sent):
    assert not lines.put_off(("executing", {"node": None}, "a"))
    assert sent == []


def test_what_is_for_everybody_waits_for_nobody(lines):
    lines.add_end("a")
    assert not lines.put_off(("status", {}, None))


def test_the_next_jobs_events_come_after_the_end(lines, sent):
    end = lines.add_end("a")
    assert lines.put_off(("execution_start", {"prompt_id": "2"}, "a"))
    assert not lines.put_off(("execution_start", {"prompt_id": "3"}, "b"))
    lines.tell("a", end, lambda: sent.append("the end of 1"))
    assert sent == ["the end of 1", ("execution_start", {"prompt_id": "2"}, "a")]
    assert not lines.put_off(("executing", {}, "a"))


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_an_end_that_fails_to_be_told_holds_up_nothing(lines, sent, error):
    end = lines.add_end("a")
    lines.put_off(("execution_start", {}, "a"))

    def fail() -> None:
        raise error("no such socket")

    lines.tell("a", end, fail)
    assert sent == [("execution_start", {}, "a")]


def test_of_many_previews_the_last_ones_wait(lines, sent):
    end = lines.add_end("a")
    for number in range(100):
        lines.put_off((1, ("JPEG", number, 64), "a"))
        lines.put_off(("progress", {"value": number}, "a"))
    lines.tell("a", end, lambda: None)
    assert [data[1] for event, data, _sid in sent if event == 1] == list(range(100 - PREVIEWS, 100))
    assert [data["value"] for event, data, _sid in sent if event == "progress"] == list(range(100))


@given(
    jobs=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), min_size=1, max_size=8),
    seed=st.integers(0, 2**16),
)
def test_each_client_hears_everything_in_the_order_of_its_jobs(jobs, seed):
    """Each job sends its events and ends; the verdicts come in any order, from another thread."""
    sent: list = []
    lines = Lines(sent.append)

    def send(message) -> None:
        if not lines.put_off(message):
            sent.append(message)

    ends: list[tuple[int, str, End]] = []
    expected: dict[str, list] = {"a": [], "b": []}
    order = random.Random(seed)

    def tell_some(count: int) -> None:
        for _ in range(min(count, len(ends))):
            number, sid, end = ends.pop(order.randrange(len(ends)))
            lines.tell(sid, end, partial(sent.append, ("end", number, sid)))

    for number, (sid, events) in enumerate(jobs):
        for event in range(events):
            send(("event", [number, event], sid))
            expected[sid].append(("event", [number, event], sid))
        ends.append((number, sid, lines.add_end(sid)))
        expected[sid].append(("end", number, sid))
        send(("executing", number, sid))
        expected[sid].append(("executing", number, sid))
        teller = threading.Thread(target=tell_some, args=(order.randrange(3),))
        teller.start()
        teller.join()
    tell_some(len(ends))
    for sid in "ab":
        assert [message for message in sent if message[2] == sid] == expected[sid]
    assert not lines.put_off(("executing", {}, "a"))
    assert not lines.put_off(("executing", {}, "b"))
