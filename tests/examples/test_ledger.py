"""The books of a bot whose server and itself are killed at random moments: `make ledger` sends 500 photos.

`GUARDED_LEDGER` is how many photos, `GUARDED_LEDGER_KILLS` how often each of the two is killed; `GUARDED_CHAOS_SEED`
repeats a run's decisions.
"""

import asyncio
import contextlib
import itertools
import os
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from contract.client import Client, Job, connected
from examples.conftest import Shop, opened
from faces import photos

from comfyui_guarded.guard import messages
from comfyui_guarded.guard.errors import FAMILY

PHOTOS = int(os.environ.get("GUARDED_LEDGER", "50"))
KILLS = int(os.environ.get("GUARDED_LEDGER_KILLS", "3"))
USERS, FREE_CREDITS = max(PHOTOS // 12, 3), 6
#: So many photos are under way at once; more wait for their turn outside.
AT_ONCE = 10
WITHIN_S = 240.0 + 4 * PHOTOS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(WITHIN_S + 300)]

SETTINGS = {
    "GUARDED_WATCHDOG__JOB_TIMEOUT_S": "2",
    "GUARDED_WATCHDOG__INTERRUPT_GRACE_S": "1",
    "GUARDED_WATCHDOG__MAX_DISOWNED": "4",
    "GUARDED_QUEUE__TIMEOUT_S": "8",
    "GUARDED_UPLOADS__MAX_FILE_BYTES": "60000",
}


@dataclass(frozen=True)
class Kind:
    """What a user sends, how often, and how that ends where nothing else comes in between."""

    weight: int
    ends: str
    photo: str = "face"
    #: What somebody else does to the job meanwhile.
    does: str = ""


#: Caption → what becomes of it.
KINDS = {
    "ok": Kind(24, "succeeded"),
    "slow": Kind(8, "succeeded"),
    "error": Kind(4, "generation_failed"),
    "exit": Kind(3, "generation_failed"),
    "no memory": Kind(4, "out_of_memory"),
    "very slow": Kind(4, "generation_timeout"),
    "hang in Python": Kind(2, "generation_timeout"),
    "hang in C": Kind(2, "generation_timeout"),
    "blank": Kind(4, "result_blank"),
    "half a file": Kind(3, "result_corrupt"),
    "ten bytes": Kind(3, "result_too_small"),
    "no file": Kind(2, "result_missing"),
    "nothing": Kind(2, "result_missing"),
    "dead worker": Kind(3, "worker_died"),
    "dead process": Kind(1, "server_restarted"),
    "a cat": Kind(4, "no_face", photo="cat"),
    "no photo": Kind(2, "bad_image", photo="garbage"),
    "too large": Kind(2, "payload_too_large", photo="large"),
    "slow, cancelled": Kind(4, "cancelled", does="cancel"),
    "slow, interrupted": Kind(4, "interrupted", does="interrupt"),
}


class Chaos:
    """Sends, kills, cancels, interrupts; remembers what it did."""

    def __init__(self, shop: Shop, draw: random.Random) -> None:
        self.shop = shop
        self.draw = draw
        #: Message id of each photo → caption.
        self.sent: dict[int, str] = {}
        self.users: dict[int, int] = {}
        self.host_kills = 0
        self.bot_kills: list[float] = []
        #: Starts and kills of the server, one after the other.
        self._host = asyncio.Lock()

    async def send(self, pictures: dict[str, list[bytes]]) -> None:
        """All photos, each kind at least once where there are enough of them."""
        names = list(KINDS)
        rest = self.draw.choices(names, [kind.weight for kind in KINDS.values()], k=max(PHOTOS - len(names), 0))
        captions = [*names, *rest][:PHOTOS]
        self.draw.shuffle(captions)
        users = itertools.cycle(range(100, 100 + USERS))
        for caption in captions:
            while len(self.sent) - len(self.done()) >= AT_ONCE:  # noqa: ASYNC110, the ledger is a file
                await asyncio.sleep(0.05)
            user, picture = next(users), self.draw.choice(pictures[KINDS[caption].photo])
            message_id = self.shop.messenger.photo(user, picture, caption)
            self.sent[message_id], self.users[message_id] = caption, user
            if self.draw.random() < 0.05:
                self.shop.messenger.again(message_id)

    def done(self) -> list[Any]:
        return self.shop.orders("state = 'done'")

    async def kill(self) -> None:
        """Both of them, one after the other and at random moments, spread over all photos."""
        for number in range(1, KILLS + 1):
            while len(self.sent) < PHOTOS * number // (KILLS + 1):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await asyncio.sleep(self.draw.uniform(0, 1))
            async with self._host:
                self.shop.host.kill()
            self.host_kills += 1
            await asyncio.sleep(self.draw.choice([0, self.draw.uniform(0, 4)]))
            self.shop.bot.kill()
            self.bot_kills.append(time.monotonic())
            self.shop.bot.start()

    async def keep_up(self) -> None:
        """As a supervisor does: a server that is not there is started."""
        while True:
            await asyncio.sleep(0.3)
            assert self.shop.bot.alive, self.shop.bot.tail()
            async with self._host:
                if not self.shop.host.alive:
                    with contextlib.suppress(RuntimeError):  # a job has killed it once more
                        await asyncio.to_thread(self.shop.host.start)

    async def meddle(self, client: Client) -> None:
        """Cancel and interrupt the jobs that are there for it."""
        while True:
            await asyncio.sleep(0.03)
            with contextlib.suppress(OSError, aiohttp.ClientError, asyncio.TimeoutError, AssertionError, ValueError):
                # While the server is being killed, nothing of this need come true.
                for job in await client.jobs("state=queued,running&limit=50"):
                    (caption,) = self.shop.bot.rows(
                        "SELECT caption FROM orders WHERE id = ?", job["metadata"]["order"]
                    )[0]
                    if KINDS[caption].does == "cancel":
                        await client.cancel(job["job_id"])
                    elif KINDS[caption].does == "interrupt" and job["state"] == "running":
                        await client.request("POST", "/interrupt", {"prompt_id": job["job_id"]})


async def test_every_credit_is_accounted_for_whatever_dies_in_between(tmp_path, face, cat, capsys):
    seed = int(os.environ.get("GUARDED_CHAOS_SEED", "0")) or random.SystemRandom().randrange(2**32)
    say(capsys, f"GUARDED_CHAOS_SEED={seed}")
    astronaut = photos.photo("skimage/data/astronaut.png")
    pictures = {
        "face": [face, *(photos.jpeg(photos.sized(astronaut, side)) for side in (200, 300, 320))],
        "cat": [cat],
        "garbage": [face[: len(face) // 2], b"no picture at all"],
        "large": [photos.png(photos.sized(astronaut, 400))],
    }
    began_s = time.monotonic()
    async with opened(tmp_path, SETTINGS, FREE_CREDITS=str(FREE_CREDITS)) as shop, connected(shop.host) as client:
        chaos = Chaos(shop, random.Random(seed))
        aside = [asyncio.create_task(chaos.keep_up()), asyncio.create_task(chaos.meddle(client))]
        work = asyncio.gather(chaos.send(pictures), chaos.kill())
        done, _ = await asyncio.wait([work, *aside], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        await shop.done(*chaos.sent, within_s=WITHIN_S)
        for task in aside:
            task.cancel()
        jobs = await every_job(client)
        await client.assert_takes_jobs()
        told = check(chaos, jobs)
    say(
        capsys,
        f"{PHOTOS} photos of {USERS} users in {time.monotonic() - began_s:.0f} s; the server killed {chaos.host_kills}"
        f" times (and by jobs), the bot {len(chaos.bot_kills)} times; {told}",
    )


def check(chaos: Chaos, jobs: list[Job]) -> str:
    """Hold the bot's ledger, the server's jobs and the messages against one another."""
    bot, messenger = chaos.shop.bot, chaos.shop.messenger
    rows = bot.rows("SELECT id, message_id, chat_id, job_id FROM orders")
    assert Counter(row[1] for row in rows) == Counter(chaos.sent.keys()), "every photo is one order"
    by_order: dict[int, list[Job]] = defaultdict(list)
    for job in jobs:
        if "order" in job["metadata"]:
            by_order[job["metadata"]["order"]].append(job)
    code_of = {text(code, "ru"): code for text in (messages.text, messages.text_of_end) for code in FAMILY}
    outcomes: Counter[str] = Counter()
    spent: Counter[int] = Counter()
    told_again = 0
    for order_id, message_id, user_id, job_id in rows:
        entries, made, words = bot.entries(message_id), by_order[order_id], messenger.answers(message_id)
        said = f"{chaos.sent[message_id]}: {entries}, {made}, {words}"
        assert entries in ([], [("charge", -1)], [("charge", -1), ("refund", 1)]), said
        assert len(made) <= 1, f"two jobs for one credit: {said}"
        assert [job["job_id"] for job in made] == ([job_id] if job_id else []), said
        delivered = bool(made) and made[0]["state"] == "succeeded"
        assert (entries == [("charge", -1)]) is delivered, f"charged is who got a picture, and nobody else: {said}"
        if made:
            assert made[0]["refund"] is not delivered, said
        spent[user_id] += delivered
        assert words, f"no last word: {said}"
        assert {word.method for word in words} == {"sendPhoto" if delivered else "sendMessage"}, said
        assert len({(word.data, *word.texts) for word in words}) == 1, said
        # Once, or once more for each time the bot died after Telegram had heard it and before that was noted down.
        for one, other in itertools.pairwise(words):
            # What it had sent may still be on its way when it dies; the next one needs longer than that to start.
            assert any(one.at_s - 0.3 <= died_s <= other.at_s for died_s in chaos.bot_kills), said
            told_again += 1
        code = made[0]["error"]["code"] if made and made[0]["error"] else code_of.get(words[0].texts[0], "no credit")
        outcomes["succeeded" if delivered else code] += 1
    gifts = bot.rows("SELECT chat_id, credits FROM entries WHERE kind = 'gift'")
    balances = dict(bot.rows("SELECT chat_id, sum(credits) FROM entries GROUP BY chat_id"))
    assert balances == {user_id: credits - spent[user_id] for user_id, credits in gifts}
    assert {credits for _user, credits in gifts} == {FREE_CREDITS}
    if PHOTOS >= 500:
        assert outcomes.keys() >= {kind.ends for kind in KINDS.values()}, outcomes
    charged, refunded = (
        bot.rows("SELECT count(*) FROM entries WHERE kind = ?", kind)[0][0] for kind in ("charge", "refund")
    )
    assert charged - refunded == outcomes["succeeded"] == sum(spent.values())
    return (
        f"{charged} credits taken, {refunded} given back, {outcomes['succeeded']} pictures; {told_again} told twice;"
        f" {dict(outcomes.most_common())}"
    )


async def test_a_ledger_that_is_deleted_half_way_comes_back_right_to_the_last_credit(tmp_path, face, capsys):
    count = max(PHOTOS // 4, 12)
    captions = [name for name in ("ok", "slow", "error", "no memory", "blank", "half a file") for _ in range(count)]
    random.Random(5).shuffle(captions)
    # Generously, since no order is to fail for want of credits that a lost ledger no longer knows to be spent.
    async with opened(tmp_path, SETTINGS, FREE_CREDITS="1000") as shop, connected(shop.host) as client:
        sent = []
        for at, caption in enumerate(captions[:count]):
            sent.append(shop.messenger.photo(100 + at % 4, face, caption))
            if at == count // 2:
                while len(shop.orders("job_id IS NOT NULL")) < 4:  # noqa: ASYNC110, the ledger is a file
                    await asyncio.sleep(0.05)
                shop.bot.kill()
                for suffix in ("", "-wal", "-shm", "-journal"):
                    shop.bot.ledger.with_name(shop.bot.ledger.name + suffix).unlink(missing_ok=True)
                shop.bot.start()
        await shop.done(*sent[count // 2 + 1 :], within_s=WITHIN_S)
        while shop.orders("state != 'done'"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        jobs = {job["job_id"]: job for job in await every_job(client) if "order" in job["metadata"]}
    rows = shop.bot.rows("SELECT message_id, chat_id, job_id FROM orders WHERE job_id IS NOT NULL")
    assert {job_id for *_, job_id in rows} == jobs.keys(), "each job is one order's, also those of the lost ledger"
    assert len(jobs) > count // 2
    spent: Counter[int] = Counter()
    for message_id, chat_id, job_id in rows:
        delivered = jobs[job_id]["state"] == "succeeded"
        assert shop.bot.entries(message_id) == [("charge", -1), *([] if delivered else [("refund", 1)])], jobs[job_id]
        assert shop.messenger.answers(message_id), "everybody has heard how it ended"
        spent[chat_id] += delivered
    balances = dict(shop.bot.rows("SELECT chat_id, sum(credits) FROM entries GROUP BY chat_id"))
    assert balances == {chat_id: 1000 - spent[chat_id] for chat_id in balances}
    say(
        capsys,
        f"a ledger deleted after {count // 2} photos: {len(jobs)} orders are in it again, {sum(spent.values())} paid",
    )


async def every_job(client: Client) -> list[Job]:
    jobs: list[Job] = []
    before = ""
    while True:
        page = await client.get(f"/guarded/jobs?limit=500{before}")
        jobs += page["jobs"]
        if not page["next"]:
            return jobs
        before = f"&before={page['next']}"


def say(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(line)  # noqa: T201, the figures are what `make ledger` is run for
