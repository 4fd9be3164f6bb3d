"""Which box of a fleet takes which job: by models, memory, and what each could not run; owners keep their turns."""

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from postgres import MEMORY
from unit import stores
from unit.fakes import LONG_S, new_job
from unit.stores import look_into, make_schema, only_postgres, server
from unit.test_fleet_store import expire, kill, reap, sync

from comfyui_guarded.guard.clock import Clock
from comfyui_guarded.guard.errors import MissingNodeError, OutOfMemoryError
from comfyui_guarded.guard.graph import Declared
from comfyui_guarded.guard.job import JobState
from comfyui_guarded.guard.store import Member, Refused
from comfyui_guarded.guard.store.postgres_address import read_address
from comfyui_guarded.guard.store.postgres_fleet import FleetStore
from comfyui_guarded.guard.submit.needs import find_placement
from comfyui_guarded.guard.weight import Placement

pytestmark = only_postgres

LEASE_MS, WAIT_MS = 600_000, 20_000
LACKS = Refused(MissingNodeError.code, is_of_needs=True)
INVALID = Refused("invalid_workflow")
SMALL = Refused(OutOfMemoryError.code, wants_memory=True)


def open_box(path, name, vram_mb=None, wait_ms=WAIT_MS):
    member = Member(name, LEASE_MS, 4, vram_mb=vram_mb, affinity_wait_ms=wait_ms)
    store = FleetStore(read_address(server().url(make_schema(path))), Clock(), member, open_now=False)
    store.serve("local", 2)
    assert store.trouble is None, store.trouble
    return store


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs"


@pytest.fixture
def boxes(path):
    opened = []

    def start(name, *facts, **more):
        opened.append(open_box(path, name, *facts, **more))
        return opened[-1]

    yield start
    for store in opened:
        with contextlib.suppress(Exception):
            store.close()


def submit(store, model=None, *, vram=None, needs=None, **facts):
    models = (model,) if model else ()
    placement = Placement(needs or f"of {model}", models, vram)
    return store.submit(new_job(placement=placement, **facts), 10**9).result(LONG_S).job.job_id


def take(store):
    """A claim; its job is let go of as one that runs."""
    claimed = store.claim("local", 10**9).result(LONG_S)
    return claimed and claimed.job


def taken(store):
    job = take(store)
    return job and job.job_id


def put_back(store, job, refused=LACKS):
    return store.put_back(job.job_id, job.token, refused).result(LONG_S)


def let_pass(path, ms):
    """Time goes on, for whatever was noted."""
    with look_into(path) as db:
        for table, column in (("jobs", "passed_at_ms"), ("refusals", "at_ms")):
            db.execute(f"UPDATE {table} SET {column} = {column} - ?", (ms,))
        db.execute("SELECT 1").fetchone()


def test_jobs_whose_model_is_loaded_go_first_until_one_has_been_passed_over_for_long_enough(boxes, path):
    one, two = boxes("one"), boxes("two")
    first, other, *same = (submit(one, model) for model in "XYXXXX")
    assert taken(one) == first
    assert taken(one) == same[0]
    let_pass(path, WAIT_MS - 5_000)
    assert taken(one) == same[1]
    let_pass(path, WAIT_MS)
    assert taken(one) == other, "it had waited long enough"
    assert taken(two) == same[2]


def test_no_job_goes_before_one_of_a_higher_priority_or_of_another_owner(boxes):
    one = boxes("one")
    submit(one, "X", owner="a")
    taken(one)
    high = submit(one, "Y", owner="a", priority=1)
    low = submit(one, "X", owner="a")
    theirs = submit(one, "Y", owner="b")
    assert [taken(one) for _ in range(3)] == [theirs, high, low], "a has had a turn"


def test_a_wait_of_nothing_leaves_the_order_alone(boxes):
    one = boxes("one", wait_ms=0)
    ids = [submit(one, model) for model in "XYXY"]
    assert [taken(one) for _ in ids] == ids


def test_users_of_an_owner_take_their_turns_in_the_order_of_the_line(boxes):
    one = boxes("one")
    submit(one, "X", user="u")
    taken(one)
    ids = [submit(one, model, user="u") for model in "YXXX"]
    assert taken(one) == ids[1]
    new = submit(one, "Y", user="new")
    with_y_loaded = [taken(one) for _ in range(2)]
    assert new not in with_y_loaded
    assert taken(one) == ids[0]
    assert taken(one) == new, "it has come in at the round that is served, which is the first in line's"


def test_a_small_card_takes_what_fits_and_a_large_one_the_rest(boxes):
    small, large = boxes("small", 8_000), boxes("large", 24_000)
    big, fits = submit(small, "X", vram=20_000), submit(small, "X", vram=6_000)
    assert taken(small) == fits
    assert take(small) is None
    assert taken(large) == big


def test_where_no_card_is_large_enough_the_largest_takes_the_job(boxes, path):
    small, large = boxes("small", 8_000), boxes("large", 24_000)
    huge = submit(small, vram=80_000)
    assert take(small) is None
    expire(path, "large")
    assert taken(small) == huge
    assert take(large) is None


def test_what_a_box_refuses_goes_back_to_its_place_and_all_of_its_kind_to_others(boxes, path):
    one, two = boxes("one"), boxes("two")
    first, second, third = (submit(one, model) for model in "XXY")
    job = take(one)
    assert job.job_id == first
    assert put_back(one, job)
    sync(two)
    assert two.get(first).result(LONG_S).state is JobState.QUEUED
    assert one.locate(first).result(LONG_S).position == 1
    assert taken(one) == third, "the second is of the kind that it lacks"
    assert [taken(two), taken(two)] == [first, second]
    assert one.leased == 1


def test_a_box_tries_again_after_some_minutes_and_after_it_has_begun_anew(boxes, path):
    one, _two = boxes("one"), boxes("two")
    ids = [submit(one, "X") for _ in range(2)]
    put_back(one, take(one))
    assert take(one) is None
    let_pass(path, 600_000)
    job = take(one)
    assert job.job_id == ids[0]
    put_back(one, job)
    assert take(one) is None
    kill(one)
    assert taken(boxes("one")) == ids[0]


def test_a_job_that_every_live_box_has_refused_ends_with_the_last_error(boxes, path):
    one, two = boxes("one"), boxes("two")
    ids = [submit(one, "X") for _ in range(2)]
    assert put_back(one, take(one))
    job = take(two)
    assert not put_back(two, job)
    assert two.get(job.job_id).result(LONG_S).state is JobState.DISPATCHED, "whoever has it ends it"
    again = take(one)
    assert again.job_id == ids[1], "nobody else is left to try"
    assert not put_back(one, again)


def test_a_box_that_only_accepts_is_none_that_might_run_a_job(boxes, path):
    one, front = boxes("one"), boxes("front")
    with look_into(path) as db:
        db.execute("UPDATE boxes SET max_jobs = 0 WHERE box = 'front'")
        db.execute("SELECT 1").fetchone()
    submit(front, "X")
    assert not put_back(one, take(one))


def test_a_box_that_dies_leaves_its_jobs_to_one_that_had_refused_them(boxes, path):
    one, _two = boxes("one"), boxes("two")
    job_id = submit(one, "X")
    put_back(one, take(one))
    expire(path, "two")
    assert taken(one) == job_id


def test_a_prompt_that_is_invalid_here_says_nothing_of_others_of_its_kind(boxes):
    one, two = boxes("one"), boxes("two")
    first, second = submit(one, "X"), submit(one, "X")
    assert put_back(one, take(one), INVALID)
    assert taken(one) == second
    assert taken(two) == first


def test_a_job_that_ran_out_of_memory_goes_to_a_larger_card_once(boxes):
    small, large, _huge = boxes("small", 8_000), boxes("large", 24_000), boxes("huge", 48_000)
    submit(small, "X")
    job = take(small)
    small.start(job.job_id).result(LONG_S)
    assert put_back(small, job, SMALL)
    assert take(small) is None
    job = take(large)
    large.start(job.job_id).result(LONG_S)
    assert not put_back(large, job, SMALL)


def test_a_job_that_ran_out_of_memory_on_the_largest_card_ends(boxes):
    _small, large = boxes("small", 8_000), boxes("large", 24_000)
    submit(large)
    job = take(large)
    large.start(job.job_id).result(LONG_S)
    assert not put_back(large, job, SMALL)


def test_a_job_whose_secrets_are_here_alone_goes_nowhere(boxes):
    one, _two = boxes("one"), boxes("two")
    submit(one, "X", has_secrets=True)
    assert not put_back(one, take(one))
    plain = submit(one, "X")
    assert taken(one) == plain


def test_an_owner_whose_job_was_put_back_has_its_turn_again(boxes):
    one, two = boxes("one"), boxes("two")
    lacked = submit(one, "X", owner="a")
    mine, theirs = submit(one, "Y", owner="a"), [submit(one, "Y", owner="b") for _ in range(2)]
    put_back(one, take(one))
    assert [taken(one) for _ in range(3)] == [mine, theirs[0], theirs[1]]
    assert taken(two) == lacked


def test_a_run_that_was_taken_from_a_box_is_not_put_back_by_it(boxes, path):
    one, two = boxes("one"), boxes("two")
    submit(one, "X")
    job = take(one)
    expire(path, "one")
    reap(two)
    again = take(two)
    assert put_back(one, job), "there is nothing to end"
    assert two.get(job.job_id).result(LONG_S).state is JobState.DISPATCHED
    assert again.job_id == job.job_id


def test_thousands_of_jobs_that_a_box_cannot_run_do_not_hide_one_that_it_can(boxes, path):
    small, _large = boxes("small", 8_000), boxes("large", 24_000)
    futures = [
        small.submit(new_job(placement=Placement(f"kind {number % 50}", (), 20_000)), 10**9) for number in range(3_000)
    ]
    for future in futures:
        future.result(LONG_S)
    fits = submit(small, "X", vram=4_000)
    assert taken(small) == fits
    assert take(small) is None


# What a prompt needs. -----------------------------------------------------------------------------------------------

LOADS = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/a.safetensors"}},
    "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "lora_name": "b.safetensors", "strength": 1.0}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "as in a.safetensors"}},
}


def describe(class_type):
    return Declared({"text": "STRING"}) if class_type == "CLIPTextEncode" else Declared()


def changed(node, **inputs):
    return {**LOADS, node: {**LOADS[node], "inputs": {**LOADS[node]["inputs"], **inputs}}}


def test_the_models_of_a_prompt_are_its_choices_of_files_but_for_loras():
    assert find_placement(LOADS, describe).models == ("sd/a.safetensors",)


def test_needs_are_the_same_whatever_a_prompt_says_with_the_same_classes_and_files():
    needs = find_placement(LOADS, describe).needs
    assert find_placement(changed("3", text="b.safetensors"), describe).needs == needs
    assert find_placement(changed("2", strength=0.5), describe).needs == needs
    assert find_placement(changed("2", lora_name="c.safetensors"), describe).needs != needs
    assert find_placement({"1": LOADS["1"]}, describe).needs != needs
    vram = {"least_gb": 7.5, "usual_gb": 9.0, "node_id": "1", "model": "a", "family": "SD15"}
    placed = find_placement(LOADS, describe, vram)
    assert placed.min_vram_mb == 7680
    assert placed.needs != needs


# All at once. -------------------------------------------------------------------------------------------------------

KINDS = ("P", "Q", "R")
VRAMS = (None, 20_000)
CARDS = {"small": 8_000, "large": 24_000, "third": 24_000}


@dataclass
class Waiting:
    """A job as its owner thinks of it."""

    job_id: str
    owner: str
    priority: int
    number: int
    kind: str
    vram: int | None
    passed_s: float | None = None

    @property
    def rank(self):
        return -self.priority, self.number


@dataclass
class Known:
    """What the machine expects of one box."""

    can: set[str] = field(default_factory=set)
    loaded: str | None = None


class PlacingMachine(RuleBasedStateMachine):
    """Boxes of different nodes and cards take jobs, and put back what they cannot run."""

    @initialize(cans=st.tuples(*[st.sets(st.sampled_from(KINDS), min_size=1) for _ in CARDS]))
    def begin(self, cans):
        stores.use("postgres")
        self.folder = Path(tempfile.mkdtemp(prefix="guarded-placing-", dir=MEMORY))
        self.path = self.folder / "jobs"
        self.boxes = {name: open_box(self.path, name, vram) for name, vram in CARDS.items()}
        self.known = {name: Known(can) for name, can in zip(CARDS, cans, strict=True)}
        self.waiting, self.now_s, self.numbers, self.turn = {}, 0.0, 0, 0
        #: By owner, the turn in which it was served last; by (kind, memory) and box, when that was refused.
        self.served, self.refused = {}, {}

    def teardown(self):
        if hasattr(self, "boxes"):
            for store in self.boxes.values():
                kill(store)
            shutil.rmtree(self.folder)
        stores.use("sqlite")

    @rule(
        owner=st.sampled_from("abc"),
        kind=st.sampled_from(KINDS),
        vram=st.sampled_from(VRAMS),
        priority=st.integers(0, 1),
        count=st.integers(1, 3),
    )
    def submit(self, owner, kind, vram, priority, count):
        for _ in range(count):
            job_id = submit(
                self.boxes["small"], kind, vram=vram, needs=f"{kind} {vram}", owner=owner, priority=priority
            )
            self._join(owner)
            self.numbers += 1
            self.waiting[job_id] = Waiting(job_id, owner, priority, self.numbers, kind, vram)

    @rule(s=st.sampled_from([1, 15, 30, 700]))
    def time_passes(self, s):
        self.now_s += s
        let_pass(self.path, s * 1000)

    @rule(name=st.sampled_from(sorted(CARDS)))
    def claim(self, name):
        box, known = self.boxes[name], self.known[name]
        owners = [owner for owner in self._order() if self._list_able(owner, name)]
        job = take(box)
        if job is None:
            assert not owners, "it might have taken a job"
            return
        taken = self.waiting.pop(job.job_id)
        assert owners
        assert taken.owner == owners[0], "another owner's turn"
        able = sorted([*self._list_able(taken.owner, name), taken], key=lambda each: each.rank)
        first = able[0]
        assert taken in able
        assert taken.priority == first.priority
        if taken is not first:
            assert taken.kind == known.loaded != first.kind
            assert first.passed_s is None or self.now_s - first.passed_s < WAIT_MS / 1000, "it starves"
            first.passed_s = self.now_s if first.passed_s is None else first.passed_s
        assert self._may(taken, name)
        if taken.kind in known.can:
            known.loaded = taken.kind
            self.turn += 1
            self.served[taken.owner] = self.turn
            return
        self._refuse(box, job, taken, name)

    def _refuse(self, box, job, taken, name):
        self.refused[taken.kind, taken.vram, name] = self.now_s
        others = [other for other in CARDS if not self._has_refused(taken, other)]
        assert put_back(box, job) is bool(others)
        if others:
            self.waiting[taken.job_id] = taken
        else:
            self.turn += 1
            self.served[taken.owner] = self.turn

    def _join(self, owner):
        if not any(job.owner == owner for job in self.waiting.values()):
            first = min((self.served.get(job.owner, 0) for job in self.waiting.values()), default=0)
            is_last = first == max(self.served.values(), default=0) > 0
            self.served[owner] = max(self.served.get(owner, 0), first - is_last)

    def _order(self):
        owners = {job.owner for job in self.waiting.values()}
        return sorted(owners, key=lambda owner: (self.served.get(owner, 0), owner))

    def _list_able(self, owner, name):
        return [job for job in self.waiting.values() if job.owner == owner and self._may(job, name)]

    def _may(self, job, name):
        able = [box for box in CARDS if not self._has_refused(job, box)] or list(CARDS)
        fits = [box for box in able if CARDS[box] >= (job.vram or 0)]
        return name in (fits or [box for box in able if CARDS[box] == max(CARDS[each] for each in able)])

    def _has_refused(self, job, box):
        at_s = self.refused.get((job.kind, job.vram, box))
        return at_s is not None and self.now_s - at_s < 600


PlacingMachine.TestCase.settings = settings(
    max_examples=max(settings().max_examples // 20, 3), stateful_step_count=40, deadline=None
)
TestPlacing = pytest.mark.timeout(LONG_S * 2)(only_postgres(PlacingMachine.TestCase))
