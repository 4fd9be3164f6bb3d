"""What one box has given out holds on the others: keys, tokens, sign-ins, and what a command has made."""

import json
import secrets
import urllib.error
import urllib.request

import pytest
from contract.client import make_key, sleep
from fleet.conftest import until

from comfyui_guarded.guard.access import keys as keys_of_a_file
from comfyui_guarded.guard.access.sign_in import digest
from comfyui_guarded.guard.store.postgres_address import read_address
from comfyui_guarded.guard.store.postgres_once import OnceStore

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(360)]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(box, path, key=None, body=None, method=None, **headers):
    """Status and JSON of the answer."""
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(box.url + path, data, headers, method=method)
    try:
        with _DIRECT.open(asked, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_facts):
        return None


def sign_in(box, fleet):
    """The cookie of a browser that follows a link of the command `open` on one box."""
    token = secrets.token_urlsafe(32)
    OnceStore(read_address(fleet.engine.url())).put_sign_in(digest(token), 60_000).result()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())
    with pytest.raises(urllib.error.HTTPError) as caught:
        opener.open(f"{box.url}/guarded/open?once={token}", timeout=30)
    with caught.value as answer:
        assert answer.code == 303
        return answer.headers["Set-Cookie"].partition(";")[0]


def test_keys_tokens_and_limits_of_one_box_hold_on_all(fleet):
    settings = {"GUARDED_ACCESS__TRUST_LOOPBACK": "false", "GUARDED_LIMITS__JOBS_PER_MINUTE": "0.01"}
    first = fleet.make(**settings)
    operator = make_key(first.base, "ops", scope="operate")  # in its file, before it was in a fleet
    first.start()
    second = fleet.start(**settings, GUARDED_QUEUE__TIMEOUT_S="77")
    until(lambda: ask(second, "/guarded/keys", operator)[0] == 200)
    status, made = ask(second, "/guarded/keys", operator, {"name": "bot"})
    assert status == 200
    bot = made["secret"]
    until(lambda: ask(first, "/guarded/jobs", bot)[0] == 200)
    job_id = ask(first, "/guarded/prompt", bot, {"prompt": sleep(0.1)})[1]["prompt_id"]
    assert until(lambda: (job := ask(second, f"/guarded/jobs/{job_id}", bot)[1])["state"] == "succeeded" and job)
    assert ask(second, "/guarded/prompt", bot, {"prompt": sleep(0.1)})[0] == 429, "that was the one job in 100 minutes"
    path = f"/guarded/jobs/{job_id}"
    status, token = ask(first, "/guarded/tokens", bot, {"path": path, "ttl_s": 60})
    assert status == 200
    assert ask(second, token["url"])[0] == 200
    assert ask(second, "/guarded/jobs", None)[0] == 401
    assert ask(first, f"/guarded/keys/{made['key_id']}", operator, method="DELETE")[0] == 200
    until(lambda: ask(second, "/guarded/jobs", bot)[0] == 401)
    assert ask(second, token["url"])[0] == 401

    signed_in = {"Cookie": sign_in(first, fleet)}
    for box in (first, second):
        assert ask(box, "/guarded/keys", **signed_in)[0] == 200

    def says():
        lines = ask(first, "/guarded/doctor", operator)[1]["lines"]
        return [line["message"] for line in lines if line["check"] == "fleet" and line["level"] == "warning"]

    [line] = until(says)
    assert line.startswith("queue.timeout_s is not the same")
    keys_of_a_file.revoke(second.base / "user" / "__guarded", "ops", 1)  # as a command that knows of no fleet
    until(lambda: ask(first, "/guarded/keys", operator)[0] == 401)
