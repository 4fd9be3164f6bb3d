"""Forward a prompt to another box of the fleet, where this one lacks a node class or a model that the other has.

    /guarded/fleet/has       whether that box has these node classes and models
    /guarded/fleet/prompt    a job for a caller whom another box has identified; it is forwarded no further

Both are for boxes alone. What a box asks is signed: the caller, the options and the digest of the body, which is the
caller's own. A caller's headers are never looked at there.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from ..guard.bounds import COMMAND, read_json
from ..guard.errors import ForbiddenError, GuardError, NotFoundError, ServerUnavailableError, UnauthorizedError
from ..guard.fleet import Membership, Signatures
from ..guard.life.secrets import SECRET_NAMES
from ..guard.quotas.threads import run_beside, work
from ..guard.store.members import Box, Member
from .about import About
from .asked import read_body
from .connections import OWNER
from .prompt import admit, answer_at_once
from .table import PREFIX, Call, Route, respond

log = logging.getLogger("guarded.fleet")

HAS, PROMPT = "/fleet/has", "/fleet/prompt"
#: What is asked besides the body: JSON in Base64.
FACTS = "X-Guarded-Facts"
FACTS_BYTES = 6000
#: So many boxes are asked, those with the fewest jobs first, and each may take so long.
BOXES, HAS_S, PROMPT_S = 32, 5.0, 120.0
#: So many names are asked for; a prompt that lacks more is nobody's.
NAMES, NAMES_BYTES = 1000, 2**18
#: Beside what the caller has sent, an answer has so much.
ANSWER_BYTES = 2**20

#: Of a box that does not know these routes, or this box.
_IS_NO_ANSWER = frozenset({401, 403, 404, 405})


@dataclass(frozen=True)
class Answered:
    """What the other box has answered, and is the answer to the caller, too."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class Forwards:
    """Asks the other boxes. Event loop."""

    def __init__(self, membership: Membership, signatures: Signatures, find_own: Callable[[], str]) -> None:
        """`find_own`: the name of this box."""
        self._membership = membership
        self._signatures = signatures
        self._find_own = find_own
        self._session: aiohttp.ClientSession | None = None

    async def forward(self, call: Call, raw: bytes, template: str, refusal: GuardError) -> Answered | None:
        """Have another box take the job that this one refuses for what it lacks. None: none has it, or can be asked.

        Raises ServerUnavailableError where nobody knows whether the other one has taken it.
        """
        lacking = _find_lacking(refusal)
        if lacking is None:
            return None
        own = self._find_own()
        boxes = [each for each in self._membership.boxes if each.is_alive and each.max_jobs and each.url]
        boxes = sorted((each for each in boxes if each.box != own), key=lambda each: each.running / each.max_jobs)
        if await work(len(raw), _has_secrets, raw):  # credentials go nowhere in the clear
            boxes = [each for each in boxes if str(each.url).startswith("https:")]
        body = json.dumps(lacking).encode()
        if not boxes or len(body) > NAMES_BYTES:
            return None
        found = await asyncio.gather(*(self._has(each, body) for each in boxes[:BOXES]))
        box = next((each for each, has in zip(boxes, found, strict=False) if has), None)
        return None if box is None else await self._send(box, call, raw, template)

    async def _has(self, box: Box, body: bytes) -> bool:
        try:
            answer = await self._post(box, HAS, {}, body, HAS_S, {}, ANSWER_BYTES)
            return answer.status == 200 and json.loads(answer.body) == {"has": True}
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as error:
            log.debug("%s does not say what it has: %s", box.box, error)
            return False

    async def _send(self, box: Box, call: Call, raw: bytes, template: str) -> Answered | None:
        headers = call.request.headers
        told = {name: headers[name] for name in ("Idempotency-Key", "Accept-Language") if name in headers}
        facts = {"key_id": call.client.key_id, "owner": call.client.owner, "template": template, **told}
        if len(json.dumps(facts)) * 4 // 3 > FACTS_BYTES:
            return None
        most = call.services.settings.policy.max_body_bytes + ANSWER_BYTES
        try:
            answer = await self._post(box, PROMPT, facts, raw, PROMPT_S, told, most)
        except (aiohttp.ClientConnectorError, ValueError) as error:
            log.warning("%s cannot be reached at %s: %s; a prompt for it is refused", box.box, box.url, error)
            return None
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            log.warning("%s has not answered to a prompt: %s", box.box, error)
            raise ServerUnavailableError(
                "Another server was to take this job, and has not answered; it may have taken it.",
                details="With the same Idempotency-Key it is safe to ask again.",
                retry_after_s=1,
            ) from error
        return None if answer.status in _IS_NO_ANSWER else answer

    async def _post(
        self,
        box: Box,
        path: str,
        facts: Mapping[str, Any],
        body: bytes,
        within_s: float,
        told: Mapping[str, str],
        most: int,
    ) -> Answered:
        digest = await work(len(body), _digest, body)
        text = base64.urlsafe_b64encode(json.dumps({**facts, "body": digest}).encode()).decode()
        headers = {**told, FACTS: text, **self._signatures.sign(f"{path} {text}", box.box)}
        address, timeout = f"{box.url}{PREFIX}{path}", aiohttp.ClientTimeout(total=within_s)
        session = self._open_session()
        async with session.post(address, data=body, headers=headers, timeout=timeout, allow_redirects=False) as answer:
            read = bytearray()
            async for chunk in answer.content.iter_any():
                read += chunk
                if len(read) > most:
                    raise aiohttp.ClientPayloadError("the answer is too long")
            kept = ("Idempotency-Replayed", "Retry-After")
            return Answered(
                answer.status, bytes(read), {name: answer.headers[name] for name in kept if name in answer.headers}
            )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(sock_connect=HAS_S), cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session


def make_forwards(
    membership: Membership | None, member: Member | None, signatures: Signatures | None
) -> Forwards | None:
    """None where this server is in no fleet."""
    if membership is None or member is None or signatures is None:
        return None
    return Forwards(membership, signatures, lambda: member.box)


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _has_secrets(raw: bytes) -> bool:
    return any(name.encode() in raw for name in SECRET_NAMES)


def _find_lacking(refusal: GuardError) -> dict[str, list[str]] | None:
    """The names of the node classes and models that a refusal names; None where it names none, or too many."""
    info = refusal.extra_info
    classes = [str(name) for name in info.get("classes", ())]
    models = [str(model["file"]) for model in info.get("models", ())]
    models += [str(info["value"])] if "value" in info else []
    return {"classes": classes, "models": models} if 0 < len(classes) + len(models) <= NAMES else None


# The box that is asked. ---------------------------------------------------------------------------------------------


def _read_facts(call: Call, path: str) -> dict[str, Any]:
    """What another box says of its request. Raises ForbiddenError, NotFoundError where none does."""
    signatures = call.services.signatures
    if signatures is None:
        raise NotFoundError("This server takes nothing from others.")
    headers = call.request.headers
    text = headers.get(FACTS, "")
    if signatures.read_asker(headers, f"{path} {text}") is None:
        raise ForbiddenError("This is for the other servers of the fleet.")
    facts: dict[str, Any] = read_json(base64.urlsafe_b64decode(text), COMMAND)  # a box has signed it
    return facts


async def _read_signed(call: Call, facts: Mapping[str, Any], most: int) -> bytes:
    raw = await read_body(call, most)
    if await work(len(raw), _digest, raw) != facts["body"]:
        raise ForbiddenError("This is not what the other server has signed.")
    return raw


async def post_has(call: Call) -> web.StreamResponse:
    """Whether this box has node classes and models, for another box of its fleet."""
    facts = _read_facts(call, HAS)
    raw = await _read_signed(call, facts, NAMES_BYTES)
    asked = await work(len(raw), read_json, raw, COMMAND)
    host = call.services.host
    graph = {str(at): {"class_type": name} for at, name in enumerate(asked["classes"])}
    if host.missing_classes(graph):
        return respond({"has": False})

    def has_all() -> bool:
        kinds = _list_kinds(host.model_folders())
        return all(any(host.find_model(kind, name) is not None for kind in kinds) for name in asked["models"])

    return respond({"has": not asked["models"] or await run_beside(has_all)})


def _list_kinds(folders: list[Path]) -> list[str]:
    return sorted({each.name for folder in folders if folder.is_dir() for each in folder.iterdir() if each.is_dir()})


async def post_forwarded(call: Call) -> web.StreamResponse:
    """A job that another box of the fleet has been asked for, and cannot run."""
    facts = _read_facts(call, PROMPT)
    client = call.services.access.find_caller(facts["key_id"], facts["owner"])
    if client is None:
        raise UnauthorizedError("The caller's key is not known here.")
    call.request[OWNER] = client.owner
    turn = await call.services.quotas.begin_request(client)
    turn.end, turn.is_vain = call.turn.end, call.turn.is_vain
    try:
        own = replace(call, client=client, turn=turn)
        raw = await _read_signed(own, facts, call.services.settings.policy.max_body_bytes)
        told = {name: facts.get(name) for name in ("Idempotency-Key", "Accept-Language")}
        return await answer_at_once(own, await admit(own, raw, (), 0, facts["template"], told))
    finally:
        turn.close()


ROUTES = [
    Route("POST", HAS, post_has, open=True, own_protocol=True, about=About({200: None})),
    Route("POST", PROMPT, post_forwarded, open=True, own_protocol=True, submits=True, about=About({200: None})),
]
