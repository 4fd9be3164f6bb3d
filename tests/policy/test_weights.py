"""What the host tells of its models is what their makers publish, and what ComfyUI plans with."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from comfyui_guarded.tests.hosts.launch import HostKind, real_kinds

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]

ALIAS = Path(__file__).parents[2] / "alias.py"
#: Bytes of the weights that sample, as published for 16 bits, and ComfyUI's `memory_usage_factor`; see
#: `comfy/supported_models.py` (for Wan `dim / 2222`).
PUBLISHED = {"sd15": (1.72e9, 1.0), "sdxl": (5.135e9, 0.8), "wan": (32.79e9, 5120 / 2222)}


@pytest.fixture(scope="module", params=real_kinds() or [None], ids=lambda kind: kind.name if kind else "no ComfyUI")
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    kind: HostKind | None = request.param
    if kind is None:
        pytest.skip("no ComfyUI is found; COMFYUI_PATH names one")
    return weigh(kind, tmp_path_factory.mktemp("weights") / "base")


def weigh(kind: HostKind, base: Path) -> dict[str, Any]:
    """What the host tells of stand-ins for models, which lie in its `models/checkpoints` under `base` after that."""
    script = Path(__file__).with_name("weigh_models.py")
    done = subprocess.run(
        [kind.python, str(script), str(kind.main.parent), str(base), str(ALIAS)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_weighs_what_is_published_and_works_in_what_its_host_plans(told: dict[str, Any], name: str) -> None:
    weights, factor = PUBLISHED[name]
    assert told[name]["weights_bytes"] == pytest.approx(weights, rel=0.01)
    assert told[name]["cell_bytes"] == pytest.approx(2 * 0.01 * 2**20 * factor, rel=0.3)
    assert (told[name]["side"], told[name]["frames"]) == (8, 4 if name == "wan" else 1)
    assert told[name]["in_parts"] is True
    assert told[name]["spare_bytes"] >= 0.8 * 2**30


def test_eight_bits_weigh_half(told: dict[str, Any]) -> None:
    assert told["wan8"]["weights_bytes"] * 2 == told["wan"]["weights_bytes"]
    assert told["wan8"]["cell_bytes"] == told["wan"]["cell_bytes"]


def test_of_what_is_no_model_nothing_is_told(told: dict[str, Any]) -> None:
    assert [told[name] for name in ("other", "broken", "missing")] == [None, None, None]


def test_the_host_says_whether_all_weights_must_be_there_and_whether_there_is_a_card(told: dict[str, Any]) -> None:
    assert told["sdxl, all on the card"]["in_parts"] is False
    assert told["sdxl, without a card"] is None
