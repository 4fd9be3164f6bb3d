"""Which of the jobs that it may run a box takes first: loaded models decide, and nobody is passed over for too long."""

from hypothesis import example, given
from hypothesis import strategies as st

from comfyui_guarded.guard.store.placing import Candidate, choose

WAIT_MS = 20_000
MODELS = "XYZ"


def candidate(number, model):
    return Candidate(number, 0, 0, 0.0, f"of {model}", f'["{model}"]', None, None, None, None)


#: A claim follows the one before it by so much, and a box that has loaded this makes it.
CLAIMS = st.lists(st.tuples(st.sampled_from([1, 9_999, 10_000, WAIT_MS - 1, WAIT_MS]), st.sampled_from(MODELS)))


@given(st.lists(st.sampled_from(MODELS), min_size=2, max_size=20), CLAIMS)
# The limit itself: passed over at once and a millisecond before it is over, and no more at its end.
@example([*"YXXXX"], [(1, "X"), (WAIT_MS - 1, "X"), (1, "X"), (1, "X")])
def test_who_is_passed_over_goes_first_as_soon_as_it_has_waited_for_long_enough(models, claims):
    line = [candidate(number, model) for number, model in enumerate(models)]
    now_ms = 10**12
    since = {}
    for after_ms, loaded in claims:
        now_ms += after_ms
        if not line:
            break
        choice = choose(line, now_ms, frozenset(loaded), WAIT_MS)
        assert choice.first is line[0]
        matching = [job for job in line if job.names == {loaded}]
        waited_ms = now_ms - since.get(line[0].number, now_ms)
        if waited_ms >= WAIT_MS or not matching:
            assert choice.job is line[0], "it has waited for long enough, or none is better"
        else:
            assert choice.job is matching[0], "the first of those whose model is loaded"
        if choice.job is not choice.first and choice.first.passed_at_ms is None:
            since[choice.first.number] = now_ms
            line[0] = choice.first._replace(passed_at_ms=now_ms)
        line = [job for job in line if job.number != choice.job.number]


def test_the_limit_is_reached():
    line = [candidate(0, "Y")._replace(passed_at_ms=1000), candidate(1, "X")]
    took = [choose(line, 1000 + ms, frozenset("X"), WAIT_MS).job.number for ms in (0, WAIT_MS - 1, WAIT_MS)]
    assert took == [1, 1, 0]
