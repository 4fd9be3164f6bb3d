"""Whose deliveries hang holds up nobody else's, whether they are to one receiver or each to another one."""

import asyncio

import pytest
from unit.fakes import LONG_S, new_job, settings

from comfyui_guarded.guard.events.outbox import Outbox
from comfyui_guarded.guard.job import SUCCESS, Webhook
from comfyui_guarded.server_routes.sender import Sender

#: More than are sent at once, and of which another one comes after all of them.
MANY = 40


class Hanging(Sender):
    """Sends to receivers that never answer."""

    def __init__(self, store, clock):
        super().__init__(Outbox(settings().webhooks, store, lambda _owner: "whsec_" + "A" * 43 + "=", clock), 1)
        self.sending = []

    async def attempt(self, delivery):
        self.sending.append(delivery.owner)
        await asyncio.Event().wait()


def finish(store, owner, url):
    job_id = store.submit(new_job(owner=owner, webhook=Webhook(url)), 10**6).result(LONG_S).job.job_id
    store.claim("local", 10**6).result(LONG_S)
    for step in (store.start, store.validate, lambda job_id: store.settle(job_id, SUCCESS), store.release):
        step(job_id).result(LONG_S)


@pytest.mark.parametrize("url", ["https://a.example/", "https://{}.example/"], ids=["one_receiver", "many_receivers"])
async def test_what_is_due_behind_an_owner_whose_receivers_hang_is_sent_at_once(url, store, clock):
    for number in range(MANY):
        finish(store, "greedy", url.format(number))
    finish(store, "other", "https://other.example/")
    sender = Hanging(store, clock)
    await sender.turn()
    await asyncio.sleep(0)
    assert sender.sending.count("other") == 1
    assert 8 <= sender.sending.count("greedy") <= 16
    for task in sender._under_way.values():
        task.cancel()
