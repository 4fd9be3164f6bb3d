"""Every route of the application, asked by everybody: nobody, a wrong key, another's key, the own key, an operator."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from contract.client import PATIENCE_S, Answer, Client, assert_refusal, connected, make_key, picture, text
from contract.conftest import kinds

from comfyui_guarded import server_routes
from comfyui_guarded.guard.access.keys import revoke
from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess, sandbox_kind

#: Says that a proxy has passed the request on: it then comes from anywhere, and loopback does not count.
ELSEWHERE = {"X-Forwarded-For": "203.0.113.9"}
WHO = ("nobody", "wrong", "other", "owner", "operator")


@dataclass
class Box:
    """A server with three keys; every request comes from elsewhere."""

    client: Client
    keys: dict[str, str]

    async def ask(self, who: str, method: str, path: str, **options: Any) -> Answer:
        headers = {**ELSEWHERE, **(options.pop("headers", None) or {})}
        if who == "wrong":
            headers["Authorization"] = "Bearer gk_00000000_" + "A" * 43
        elif who != "nobody":
            headers["Authorization"] = f"Bearer {self.keys[who]}"
        return await self.client.request(method, path, headers=headers, **options)


@contextlib.asynccontextmanager
async def opened(kind: HostKind, base: Path, **environment: str) -> AsyncIterator[Box]:
    process = HostProcess(kind, base, environment=environment)
    keys = {
        "owner": make_key(base, "owner"),
        "other": make_key(base, "other"),
        "operator": make_key(base, "boss", scope="operate"),
    }
    await asyncio.to_thread(process.start)
    try:
        async with connected(process) as client:
            yield Box(client, keys)
    finally:
        await asyncio.to_thread(process.stop)


# The guarded routes. -----------------------------------------------------------------------------------------

#: How a route is called so that it succeeds, and what it then answers. A route that is not here is called without a
#: body and answers 200. `{job_id}` is a job of `owner`.
CALLS: dict[tuple[str, str], tuple[dict[str, Any], int]] = {
    ("POST", "/prompt"): ({"body": {"prompt": text()}}, 200),
    ("POST", "/tokens"): ({"body": {"path": "/guarded/jobs"}}, 200),
    ("GET", "/open"): ({"query": "?once=nothing"}, 401),
    ("POST", "/face-check"): ({"raw": b"no picture"}, 422),
    ("GET", "/ws"): ({}, 400),  # it is no websocket that asks
    ("POST", "/mcp"): ({}, 400),  # it is no message of an agent
    ("GET", "/fleet/stream"): ({}, 404),  # there are no other boxes
    ("POST", "/fleet/has"): ({"body": {}}, 404),
    ("POST", "/fleet/prompt"): ({"body": {}}, 404),
    ("GET", "/fleet/results/{job_id}/{index}/{which}"): ({}, 404),
    ("POST", "/webhooks/{webhook_id}/redeliver"): ({}, 404),
    ("GET", "/events"): ({"query": "?wait=0"}, 200),
    ("POST", "/drain"): ({"query": "?off=1"}, 200),
    ("POST", "/janitor/sweep"): ({"query": "?dry_run=1"}, 200),
    ("POST", "/janitor/adopt"): ({"body": {}}, 200),
    ("POST", "/janitor/native"): ({"body": {"sweep": False}}, 200),
    ("POST", "/workflows/{name}"): ({"body": {}}, 400),  # it names no photo
    ("GET", "/view"): ({"query": "?filename=nothing.png"}, 404),
    ("POST", "/upload/image"): ({}, 400),
    ("POST", "/upload/mask"): ({}, 400),
    ("POST", "/jobs/cancel"): ({"body": {"job_ids": []}}, 200),
    ("POST", "/keys"): ({"body": {"name": "late", "same_owner": True}}, 200),
    ("POST", "/models/fetch"): ({"body": {"folder": "vae", "file": "nobody-lacks-it"}}, 404),
    ("POST", "/models/stop"): ({"body": {"folder": "vae", "file": "nobody-lacks-it"}}, 404),
    ("POST", "/keys/{key_id}/limits"): ({"body": {}}, 404),
    ("DELETE", "/keys/{key_id}"): ({}, 404),
    ("POST", "/alarms/seen"): ({"body": {}}, 200),
    ("POST", "/api/jobs/cancel"): ({"body": {"job_ids": []}}, 200),
}


#: Another's job is not there; ComfyUI's clients learn that from an answer that says nothing.
EMPTY = {("POST", "/api/jobs/{job_id}/cancel")}


def call_of(route: server_routes.Route) -> tuple[dict[str, Any], int]:
    plain = CALLS.get((route.method, route.path.removeprefix("/api")), ({}, 200))
    return CALLS.get((route.method, route.path), plain)


def path_of(route: server_routes.Route, job_id: str) -> str:
    path = re.sub(r"\{(job|prompt)_id(:[^}]*)?\}", job_id, route.path)
    for name, value in {
        "name": "photo_check",
        "index": "0",
        "which": "original",
        "webhook_id": "msg_0",
        "key_id": "00000000",
        "file": "page.js",
        "node_class": "LoadImage",
    }.items():
        path = path.replace(f"{{{name}}}", value)
    assert "{" not in path, f"say in {Path(__file__).name} what stands for the variable part of {route.path}"
    return path + str(call_of(route)[0].get("query", ""))


def expected(route: server_routes.Route, who: str) -> int:
    good = call_of(route)[1]
    if route.open:
        return good
    if who in ("nobody", "wrong"):
        return 401
    if route.operate:
        return good if who == "operator" else 403
    if "{job_id}" in route.path and who == "other" and (route.method, route.path) not in EMPTY:
        return 404
    return good


async def test_every_guarded_route_answers_everybody_as_it_should(tmp_path: Path) -> None:
    async with opened(sandbox_kind(), tmp_path) as box:
        job_id = await own_job(box)
        seen, wanted = {}, {}
        for route in server_routes.ROUTES:
            options = {name: value for name, value in call_of(route)[0].items() if name != "query"}
            for who in WHO:
                answer = await box.ask(who, route.method, f"/guarded{path_of(route, job_id)}", **options)
                if answer.status in (401, 403, 404):
                    assert_refusal(answer)
                seen[route.method, route.path, who] = answer.status
                wanted[route.method, route.path, who] = expected(route, who)
        assert seen == wanted


async def own_job(box: Box) -> str:
    answer = await box.ask("owner", "POST", "/guarded/prompt?wait=60", body={"prompt": picture()})
    assert answer.status == 200, answer
    assert answer.json["guard"]["job"]["state"] == "succeeded", answer
    return str(answer.json["prompt_id"])


async def test_a_path_that_does_not_exist_says_so_only_to_clients(tmp_path: Path) -> None:
    async with opened(sandbox_kind(), tmp_path) as box:
        assert_refusal(await box.ask("nobody", "GET", "/guarded/nothing"), "unauthorized")
        assert_refusal(await box.ask("owner", "GET", "/guarded/nothing"), "not_found")
        assert_refusal(await box.ask("owner", "PUT", "/guarded/prompt"), "method_not_allowed")


async def test_an_owner_sees_its_own_jobs_and_an_operator_everybodys(tmp_path: Path) -> None:
    async with opened(sandbox_kind(), tmp_path) as box:
        job_id = await own_job(box)
        seen = {}
        for who in ("owner", "other", "operator"):
            jobs = (await box.ask(who, "GET", "/guarded/jobs")).json["jobs"]
            seen[who] = [(job["job_id"], job["owner"]) for job in jobs]
        assert seen == {"owner": [(job_id, "owner")], "other": [], "operator": [(job_id, "owner")]}
        refused = await box.ask("other", "POST", "/guarded/prompt", body={"prompt": text(), "prompt_id": job_id})
        assert_refusal(refused, "conflict", 409)


async def test_an_idempotency_key_is_its_owners_alone(tmp_path: Path) -> None:
    async with opened(sandbox_kind(), tmp_path) as box:
        key = {"Idempotency-Key": "one"}
        made = [
            (await box.ask(who, "POST", "/guarded/prompt", body={"prompt": text(who)}, headers=key)).json["prompt_id"]
            for who in ("owner", "other")
        ]
        assert len(set(made)) == 2


async def test_a_key_that_is_made_or_revoked_counts_within_seconds(tmp_path: Path) -> None:
    async with opened(sandbox_kind(), tmp_path) as box:
        box.keys["late"] = make_key(tmp_path, "late")

        async def status() -> int:
            return (await box.ask("late", "GET", "/guarded/jobs")).status

        await box.client.polled(status, lambda status: status == 200)
        revoke(tmp_path / "user" / "__guarded", "late", 1)
        await box.client.polled(status, lambda status: status == 401)


async def test_a_revoked_key_hears_nothing_more(tmp_path: Path) -> None:
    async with opened(sandbox_kind(), tmp_path) as box:
        headers = {**ELSEWHERE, "Authorization": f"Bearer {box.keys['owner']}"}
        url = box.client.host.url + "/guarded"
        session = box.client.session
        async with (
            session.ws_connect(f"{url}/ws", headers=headers) as ws,
            session.get(f"{url}/events", headers=headers) as stream,
        ):
            assert (await ws.receive(PATIENCE_S)).type is aiohttp.WSMsgType.TEXT
            assert stream.status == 200
            revoke(tmp_path / "user" / "__guarded", "owner", 1)
            while (await ws.receive(PATIENCE_S)).type not in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                pass
            while await stream.content.readline():  # until it ends
                pass


async def test_a_token_serves_a_picture_without_a_header(tmp_path: Path) -> None:
    async with opened(sandbox_kind(), tmp_path) as box:
        job_id = await own_job(box)
        path = f"/guarded/jobs/{job_id}/artifacts/0"
        made = (await box.ask("owner", "POST", "/guarded/tokens", body={"path": f"{path}?preview=webp"})).json
        for url in (made["url"], "/api" + made["url"]):
            picture_of = await box.ask("nobody", "GET", url)
            assert (picture_of.status, picture_of.headers["Content-Type"]) == (200, "image/webp")
        assert_refusal(
            await box.ask("nobody", "DELETE", f"/guarded/jobs/{job_id}?token={made['token']}"), "unauthorized"
        )
        assert_refusal(await box.ask("nobody", "GET", f"/guarded/jobs/{job_id}?token={made['token']}"), "unauthorized")
        # The token of somebody to whom that job does not exist opens nothing.
        made = (await box.ask("other", "POST", "/guarded/tokens", body={"path": path})).json
        assert_refusal(await box.ask("nobody", "GET", made["url"]), "not_found")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"null", b'{"path": 7}', b'{"path": "x"}', b'{"path": "/\\n"}',
    b'{"path": "/x", "ttl_s": -1}', b'{"path": "/x", "ttl_s": NaN}', b'{"path": "/x", "y": 1}', b"\xff", b"[" * 9999,
])  # fmt: skip
async def test_a_token_for_nonsense_is_refused(client: Client, body: bytes) -> None:
    assert_refusal(await client.request("POST", "/guarded/tokens", raw=body), "invalid_request")


# ComfyUI's own routes. ---------------------------------------------------------------------------------------


async def walked(box: Box, who: str) -> dict[tuple[str, str], tuple[int, bool]]:
    """Status, and whether it was the guard that said no, for every route outside /guarded, static files included."""
    routes = [(method, path) for method, path in await box.client.get("/guarded_faults/routes")]
    assert ("GET", "/prompt") in routes
    assert ("GET", "/ws") in routes
    assert len(routes) > 40
    # Nor the fault that stops the event loop for whoever may ask for it.
    others = re.compile("(/api)?/(guarded(/|$)|guarded_faults/loop/hang$)")
    paths = [(method, path) for method, path in routes if not others.match(path)]
    paths += [("GET", "/nothing/here"), ("PUT", "/prompt"), ("GET", "/extensions/ComfyUI-Guarded/guarded.js"),
              ("GET", "//prompt"), ("POST", "/api//prompt"), ("GET", "/%70rompt"), ("GET", "/guarded/../queue"),
              ("GET", "/guardedx"), ("OPTIONS", "/prompt"), ("HEAD", "/queue")]  # fmt: skip
    seen = {}
    for method, path in paths:
        filled = re.sub(r"\{[^}]*\}", "x", path)
        answer = await box.ask(who, "POST" if method == "*" else method, filled)
        # A HEAD has no body to tell by.
        ours = method == "HEAD" and answer.headers.get("Content-Type", "").startswith("application/json")
        is_refusal = answer.status in (401, 403) and (ours or b'"guard"' in answer.content)
        seen[method, path] = (answer.status, is_refusal)
    return seen


@pytest.mark.parametrize("kind", kinds())
async def test_in_closed_mode_nothing_of_comfyui_answers_from_elsewhere(kind: HostKind, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, GUARDED_NATIVE__MODE="closed") as box:
        for who in WHO:
            seen = await walked(box, who)
            assert {route: told for route, told in seen.items() if told != (403, True)} == {}, who
        await own_job(box)
        # This machine is as it was.
        assert (await box.client.request("GET", "/queue")).status == 200
        assert await box.client.native_submit(text())


@pytest.mark.parametrize("kind", kinds())
async def test_in_guarded_mode_every_path_wants_a_key_from_elsewhere(kind: HostKind, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, GUARDED_NATIVE__MODE="guarded") as box:
        for who in ("nobody", "wrong"):
            seen = await walked(box, who)
            assert {route: told for route, told in seen.items() if told != (401, True)} == {}, who
        seen = await walked(box, "owner")
        refused = {route for route, (_status, is_refusal) in seen.items() if is_refusal}
        twins = {(route.method, prefix + route.path) for route in server_routes.NATIVE for prefix in ("", "/api")}
        twins |= {("HEAD", path) for method, path in twins if method == "GET"}
        assert not refused & twins
        assert {route for route in seen if route not in refused} <= twins | ODD_SPELLINGS
        assert all(seen[route][0] == 403 for route in refused)
        answered = await walked(box, "operator")
        assert [route for route, (_status, is_refusal) in answered.items() if is_refusal] == []
        html = await box.ask("nobody", "GET", "/", headers={"Accept": "text/html,*/*"})
        assert html.headers["WWW-Authenticate"].startswith("Basic")
        # This machine, a job of the editor's included, is let in without a key.
        assert (await box.client.request("GET", "/queue")).status == 200
        await box.client.settled(await box.client.native_submit(picture()))


#: Other spellings of a route that is answered in place of ComfyUI's.
ODD_SPELLINGS = {("GET", "/guarded/../queue"), ("GET", "//prompt"), ("POST", "/api//prompt"), ("GET", "/%70rompt")}
