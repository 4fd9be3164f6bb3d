"""Five boxes, three owners and the example bot, while boxes are killed, frozen, cut off and have wrong clocks, and the
engine, the depot and the bot are killed: each job has one verdict for good, and every file is what it was.

`GUARDED_FLEET_CHAOS_S=1200` for a long one, `GUARDED_CHAOS_SEED` to repeat a run's decisions.
"""

import asyncio
import contextlib
import hashlib
import os
import random
import time
import urllib.error
import urllib.request
from collections import Counter
from types import SimpleNamespace

import pytest
from chaos.test_clock import WallClock
from chaos.test_depot import Folder
from contract.client import KeyedClient, connected, make_key
from contract.conftest import put_photo
from examples.conftest import HOST_NODES, BotProcess, Shop
from examples.telegram import telegram
from examples.test_ledger import FREE_CREDITS, check, every_job
from faces import photos
from fleet.actors import Balancer, EventReader, Owner
from fleet.conftest import LEASE_S, hold_to_verdicts, until
from fleet.link import Link

SECONDS = float(os.environ.get("GUARDED_FLEET_CHAOS_S", "60"))
BOXES, OWNERS = 5, ("ann", "ben", "cat")
HOUR_S = 3600
CAPTIONS = ("ok", "slow", "error", "no memory", "blank", "half a file", "no file", "nothing", "a cat", "no photo")

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900 + 3 * SECONDS)]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Faults:
    """What happens to the fleet; each is over, and what it has hurt is mended, when its call returns."""

    def __init__(self, boxes, links, clocks, engine, depot, bot, rng):
        self.boxes, self._links, self._clocks = boxes, links, clocks
        self._engine, self._depot, self._bot, self._rng = engine, depot, bot, rng
        self.bot_kills = []
        self.count = Counter()

    def run(self, seconds):
        """One or two at a time, of different things."""
        ends_s = time.monotonic() + seconds
        asyncio.run(self._run(ends_s))

    async def _run(self, ends_s):
        while time.monotonic() < ends_s:
            hurt = self._rng.sample([*range(BOXES), "engine", "depot", "bot"], self._rng.choice([1, 1, 2]))
            await asyncio.gather(*(asyncio.to_thread(self._hurt, each) for each in hurt))
            await asyncio.sleep(self._rng.uniform(0.2, 1.5))

    def _hurt(self, which):
        if isinstance(which, int):
            fault = self._rng.choice([self.kill, self.kill, self.freeze, self.freeze, self.cut_off, self.move_clock])
            self.count[fault.__name__] += 1
            fault(which)
        else:
            self.count[f"kill_{which}"] += 1
            getattr(self, f"kill_{which}")()

    def _pause(self):
        """Now shorter than a lease, now longer."""
        time.sleep(self._rng.choice([0.2, 0.8, 1.6]) * LEASE_S)

    def kill(self, number):
        self.boxes[number].kill()
        if self._rng.random() < 0.5:
            self._pause()
        self._clocks[number].set(self._rng.choice([-HOUR_S, 0, HOUR_S]))
        self.boxes[number].start()

    def freeze(self, number):
        self.boxes[number].freeze()
        self._pause()
        self.boxes[number].thaw()

    def cut_off(self, number):
        self._links[number].cut()
        self._pause()
        self._links[number].mend()

    def move_clock(self, number):
        self._clocks[number].set(self._rng.choice([-HOUR_S, 0, HOUR_S]))

    def kill_engine(self):
        self._engine.kill()
        if self._rng.random() < 0.5:
            self._pause()
        self._engine.start()

    def kill_depot(self):
        self._depot.put_away()
        self._pause()
        self._depot.bring_back()

    def kill_bot(self):
        self._bot.kill()
        self.bot_kills.append(time.monotonic())
        self._bot.start()


@pytest.fixture
def depot(tmp_path):
    """No S3: it refuses what is signed with a clock that is an hour off."""
    return Folder(tmp_path / "depot")


@pytest.fixture
def links(engine):
    """Taken down once the boxes are gone."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Link(engine.port))) for _ in range(BOXES)]


@pytest.fixture
def hurt(tmp_path, links, depot, fleet, engine):
    """Boxes, each with a clock and a way to the engine of its own; and the keys by their owners."""
    settings = {
        "GUARDED_FILES__URL": depot.url,
        "GUARDED_QUEUE__TIMEOUT_S": "3600",
        "GUARDED_WATCHDOG__JOB_TIMEOUT_S": "60",
        "GUARDED_LIMITS__MAX_REQUESTS": "0",
    }
    clocks, keys = [], {}
    for number, link in enumerate(links):
        (tmp_path / f"clock{number}").mkdir()
        clocks.append(WallClock(tmp_path / f"clock{number}"))
        clocks[-1].set((0, HOUR_S, -HOUR_S, 0, 0)[number])
        box = fleet.make(url=engine.url(port=link.port), shares=False, **settings, **clocks[-1].environment)
        put_photo(box.base)
        (box.base / "custom_nodes" / "ending_by_text").symlink_to(HOST_NODES, target_is_directory=True)
        if not keys:
            keys = {name: make_key(box.base, name) for name in (*OWNERS, "bot")}
            keys["operator"] = make_key(box.base, "operator", "operate")
            box.start()
        else:
            box.spawn()
    for box in fleet.boxes:
        box.wait_ready()
        until(lambda box=box: (box.ask("GET", "/guarded/jobs", key=keys["bot"]) or [0])[0] == 200)
    return clocks, keys


async def test_whatever_dies_each_job_has_one_verdict_and_each_file_is_there(
    hurt, links, fleet, depot, engine, tmp_path, capsys
):
    seed = int(os.environ.get("GUARDED_CHAOS_SEED", "0")) or random.SystemRandom().randrange(2**32)
    with capsys.disabled():
        print(f"GUARDED_CHAOS_SEED={seed}")  # noqa: T201
    (clocks, keys), boxes = hurt, fleet.boxes
    owners = [Owner(name, keys[name], boxes, seed + at) for at, name in enumerate(OWNERS)]
    readers = [EventReader(keys["operator"], boxes, seed + at) for at in range(2)]
    async with telegram() as messenger:
        with contextlib.closing(Balancer(boxes)) as balancer:
            environment = {"GUARDED_KEY": keys["bot"], "FREE_CREDITS": str(FREE_CREDITS)}
            bot = BotProcess(tmp_path, messenger.url, balancer.url, **environment)
            faults = Faults(boxes, links, clocks, engine, depot, bot, random.Random(seed))
            shop = Shop(messenger, bot, boxes[0])
            try:
                bot.start()
                for actor in (*owners, *readers):
                    actor.start()
                sending = asyncio.create_task(send(shop, random.Random(seed)))
                await asyncio.to_thread(faults.run, SECONDS)
                sending.cancel()
                for actor in owners:
                    await asyncio.to_thread(actor.stop)
                for box in boxes:
                    await asyncio.to_thread(until, box.is_ready)
                sent = {message["message_id"]: message.get("caption", "") for message in photo_messages(messenger)}
                await shop.done(*sent, within_s=300)
            finally:
                await asyncio.to_thread(bot.kill)
            await asyncio.to_thread(hold_to_verdicts, fleet, owners, keys["operator"])
            last_id = fleet.ask("SELECT max(event_id) FROM transitions")[0][0]
            for reader in readers:
                await asyncio.to_thread(until, lambda reader=reader: reader.seen[-1:] and reader.seen[-1][0] >= last_id)
                await asyncio.to_thread(reader.stop)
            async with connected(boxes[0]) as client:
                jobs = await every_job(KeyedClient(client, keys["operator"]))
            told = check(SimpleNamespace(shop=shop, sent=sent, bot_kills=faults.bot_kills), jobs)
    hold_to_order(fleet, readers)
    stretches = count_turns(fleet)
    assert_fair(stretches)
    files = await asyncio.to_thread(hold_to_files, boxes, keys["operator"], jobs)
    with capsys.disabled():
        print(  # noqa: T201, the figures are what the long run is for
            f"{SECONDS:g} s, {dict(faults.count)}: {sum(len(owner.acknowledged) for owner in owners)} jobs taken, "
            f"{sum(owner.repeated for owner in owners)} submits repeated, {sum(job['attempts'] > 1 for job in jobs)} "
            f"jobs begun more than once, {len(readers[0].seen)} events over "
            f"{sum(reader.connections for reader in readers)} connections, {files} files, "
            f"turns {dict(sum(stretches, Counter()))} in {len(stretches)} stretches; {told}"
        )


async def send(shop, rng):
    """Photos for the bot, a few under way at once; a user has credits for six."""
    face = photos.jpeg(photos.sized(photos.photo("skimage/data/astronaut.png"), 256))
    pictures = {
        "a cat": photos.jpeg(photos.sized(photos.photo("skimage/data/chelsea.png"), 256)),
        "no photo": b"no picture at all",
    }
    number = 0
    while True:
        await asyncio.sleep(0.3)
        if len(list(photo_messages(shop.messenger))) - len(shop.orders("state = 'done'")) < 4:
            caption = rng.choice(CAPTIONS)
            shop.messenger.photo(100 + number // 5, pictures.get(caption, face), caption)
            number += 1


def photo_messages(messenger):
    return [update["message"] for update in messenger._all if "photo" in update.get("message", {})]


def hold_to_order(fleet, readers):
    changes = fleet.ask("SELECT event_id, job_id, state FROM transitions ORDER BY event_id")
    for reader in readers:
        seen = [change for change in reader.seen if change[0] <= changes[-1][0]]
        assert seen == changes, f"missed {len(set(changes) - set(seen))} of {len(changes)}"


def count_turns(fleet):
    """Turns of each owner in each stretch in which all of them had jobs that waited."""
    query = "SELECT job_id, owner, changes.state FROM transitions AS changes JOIN jobs USING (job_id)"
    waiting, owner_of, stretches = Counter(), {}, [Counter()]
    for job_id, owner, state in fleet.ask(f"{query} ORDER BY changes.event_id"):
        if state == "queued":
            waiting[owner] += job_id not in owner_of
            owner_of[job_id] = owner
            continue
        if state == "dispatched" and owner in OWNERS and all(waiting[each] for each in OWNERS):
            stretches[-1][owner] += 1
        if owner_of.pop(job_id, None):
            waiting[owner] -= 1
        if stretches[-1] and not all(waiting[each] for each in OWNERS):
            stretches.append(Counter())
    return [turns for turns in stretches if turns]


def assert_fair(stretches):
    """A stretch may end in the middle of a round: then somebody has had one turn more, and mostly the same one."""
    total = sum(stretches, Counter()).total()
    assert total > 0
    counts = [[turns[owner] for owner in OWNERS] for turns in stretches]
    unfair = sum(max(max(each) - min(each) - 1, 0) for each in counts)
    assert unfair <= 0.05 * total, (unfair, counts)


def hold_to_files(boxes, key, jobs):
    """Fetch each file of each success, at any box; how many there are."""
    files = 0
    for job in jobs:
        for artifact in job["artifacts"]:
            data = until(lambda artifact=artifact: fetch(random.choice(boxes), key, artifact["url"]))
            assert hashlib.sha256(data).hexdigest() == artifact["sha256"], (job["job_id"], artifact)
            files += 1
    return files


def fetch(box, key, path):
    asked = urllib.request.Request(box.url + path, headers={"Authorization": f"Bearer {key}"})
    try:
        with _DIRECT.open(asked, timeout=30) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        if error.code == 503:  # the box that has it is about to put it into the depot
            return None
        raise
