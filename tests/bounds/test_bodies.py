"""One request cannot stall the server, nor fill its memory: two judges over every body that was seen to do so."""

import asyncio

import pytest
from bounds.judges import MIB, Patient
from bounds.shapes import ROWS, Row
from contract.conftest import hosts

#: Beyond what native ComfyUI's loop stands still for the same body.
SPARE_S = 0.05
#: Memory that a server takes now and then by itself, of whatever it does.
SPARE_BYTES = 24 * MIB
TRIES = 3

pytestmark = pytest.mark.serial


def rows(*, native: bool) -> pytest.MarkDecorator:
    chosen = [row for row in ROWS if row.is_native is native]
    return pytest.mark.parametrize("row", chosen, ids=lambda row: row.name.replace(" ", "_"))


@rows(native=True)
async def test_a_prompt_stalls_the_loop_no_longer_than_native_and_takes_four_times_its_size(
    row: Row, ours: Patient, bare: Patient, key: dict[str, str]
):
    await judge(row, ours, bare, key)


@hosts(lambda kind: not kind.real, "host_kind")  # the host has no part in it
@rows(native=False)
async def test_another_request_does_not_stall_the_loop_and_takes_four_times_its_size(
    row: Row, ours: Patient, key: dict[str, str]
):
    await judge(row, ours, None, key)


async def judge(row: Row, ours: Patient, bare: Patient | None, key: dict[str, str]) -> None:
    body = row.make()
    headers = {**row.headers, **(key if row.keyed else {})}
    told = []
    for _ in range(TRIES):
        native = await bare.measure("/prompt", body, row.headers) if bare is not None else None
        cost = await ours.measure(row.path, body, headers)
        told.append(f"ours {cost}; native {native}")
        allowed_s = SPARE_S + (native.stall_s if native is not None else 0)
        allowed_bytes = SPARE_BYTES + max(4 * len(body), native.memory_bytes if native is not None else 0)
        if cost.stall_s <= allowed_s and cost.memory_bytes <= allowed_bytes:
            break
        await asyncio.sleep(0.5)
    else:
        pytest.fail("\n".join(told))
    print(told[-1])  # noqa: T201
    assert 200 <= cost.status < 500, told
    assert row.keyed or cost.status == 401, told
    assert len(cost.answer) < 64 * 1024, "an answer quotes what came"
