"""Agents' messages: the package that reads them is not ours, so they are bounded before it has them."""

import asyncio
import json

import pytest
from bounds.judges import MIB, Patient, read_peak
from bounds.shapes import JSON
from contract.conftest import hosts

pytest.importorskip("mcp")

#: The package and our own code, whichever host is behind them.
pytestmark = [pytest.mark.serial, hosts(lambda kind: not kind.real, "host_kind")]

STALL_S = 0.05
ACCEPT = {"Accept": "application/json, text/event-stream"}
LARGE = 20
#: Of four messages of 14 MiB, each with what is made of it; all of them at once took 1.3 GiB.
ALLOWED_BYTES = 700 * MIB


def call_tool(arguments: bytes) -> bytes:
    head = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"run_workflow","arguments":'
    return head + arguments + b"}}"


WIDE = {
    "lists": call_tool(b'{"prompt":{"1":[' + b",".join([b"[]"] * 190_000) + b"]}}"),
    "arguments": call_tool(b"{" + b",".join(b'"k%d":1' % number for number in range(150_000)) + b"}"),
    "an answer": b'{"jsonrpc":"2.0","id":1,"result":{"a":[' + b",".join([b"[]"] * 190_000) + b"]}}",
    "as many as may be": call_tool(b'{"prompt":{"1":[' + b",".join([b"[]"] * 14_500) + b"]}}"),
}


@pytest.mark.parametrize("name", WIDE)
async def test_messages_of_many_values_do_not_stall_the_loop(name: str, ours: Patient, key: dict[str, str]):
    status, answer = await ours.send("/guarded/mcp", call_tool(b"{}"), {**JSON, **ACCEPT, **key})
    assert status == 200, answer  # the first one loads the package
    told = []
    for _ in range(3):
        told.append(await ours.measure("/guarded/mcp", WIDE[name], {**JSON, **ACCEPT, **key}))
        if told[-1].stall_s <= STALL_S:
            break
    print(*told, sep="\n")  # noqa: T201
    assert min(cost.stall_s for cost in told) <= STALL_S
    assert told[-1].status == (200 if name == "as many as may be" else 413)


async def test_large_messages_of_a_key_wait_for_each_other(ours: Patient, key: dict[str, str]):
    graph = json.dumps({"prompt": {"1": ["a" * (MIB - 16)] * 14}}).encode()
    before = read_peak(ours.host.pid, afresh=True)
    sending = [ours.send("/guarded/mcp", call_tool(graph), {**JSON, **ACCEPT, **key}) for _ in range(LARGE)]
    answers = await asyncio.gather(*sending)
    grown = read_peak(ours.host.pid) - before
    print(f"+{grown / MIB:.0f} MiB")  # noqa: T201
    assert all(status == 200 and b"invalid_workflow" in answer for status, answer in answers), answers[0]
    assert grown < ALLOWED_BYTES
