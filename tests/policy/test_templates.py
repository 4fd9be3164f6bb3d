"""ComfyUI's own templates pass a profile that is meant for such a card, and the walk finds what a person finds in them.

The templates are found where the real host's Python has them; only their names and the judgement are kept here.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from contract.client import PlainClient
from policy.known import TEMPLATES, read_info

from comfyui_guarded.guard.cost.classes import NodeClasses
from comfyui_guarded.guard.cost.labour import find_labour
from comfyui_guarded.guard.cost.values import Media
from comfyui_guarded.guard.cost.walk import Walk
from comfyui_guarded.guard.editor.resolve import convert
from comfyui_guarded.guard.errors import PolicyViolationError
from comfyui_guarded.guard.graph import Declared
from comfyui_guarded.guard.settings import PolicySettings
from comfyui_guarded.guard.submit.policy import Policy
from comfyui_guarded.tests.hosts.launch import HostProcess, real_kinds

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(360)]

SHIPPED = "lib/python*/site-packages/comfyui_workflow_templates_json/templates"
#: What the templates' inputs are taken to hold, which do not come with them.
FILES = {
    "LoadImage": Media(1024, 1024),
    "LoadVideo": Media(832, 480, 121, 121 / 24, 24),
    "LoadAudio": Media(0, 0, 0, 20),
}

Prompts = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prompts, dict[str, Any]]:
    """Every template as a prompt, and the classes of the newest host."""
    kinds = [kind for kind in real_kinds() if list(Path(kind.python).parents[1].glob(SHIPPED))]
    if not kinds:
        pytest.skip("no ComfyUI with comfyui-workflow-templates is found; COMFYUI_PATH names one")
    with HostProcess(kinds[0], tmp_path_factory.mktemp("walk"), guarded=False) as host:
        client = PlainClient(host)
        info = client.get("/object_info").json
        client.close()
    (folder, *_) = Path(kinds[0].python).parents[1].glob(SHIPPED)
    prompts = {}
    for name in TEMPLATES["passes"]:
        if (path := folder / f"{name}.json").is_file():
            prompts[name] = convert(json.loads(path.read_text("utf-8")), info.get, 10_000)
    return prompts, info


def describe(info: dict[str, Any]) -> Any:
    return lambda class_type: read_info(info[class_type]) if class_type in info else Declared()


def load(prompt: dict[str, Any]) -> dict[str, Media]:
    return {node_id: FILES[node["class_type"]] for node_id, node in prompt.items() if node["class_type"] in FILES}


def judge(policy: Policy, prompt: dict[str, Any], media: dict[str, Media]) -> str:
    try:
        policy.check(prompt, media)
    except PolicyViolationError as error:
        return f"{error.details}: {error.extra_info['input']}"
    return "passes"


@pytest.mark.parametrize("files", [False, True], ids=["without-files", "with-files"])
def test_no_template_is_refused_wrongly(known: tuple[Prompts, dict[str, Any]], files: bool) -> None:
    prompts, info = known
    assert len(prompts) > len(TEMPLATES["passes"]) * 0.8, "another version of the templates: write its judgement down"
    policy = Policy(PolicySettings.model_validate({"profile": "a5000"}), describe=describe(info))
    judged = {name: judge(policy, prompt, load(prompt) if files else {}) for name, prompt in prompts.items()}
    assert {name: verdict for name, verdict in judged.items() if verdict != "passes"} == {}


def test_strict_refuses_only_what_cannot_be_known(known: tuple[Prompts, dict[str, Any]]) -> None:
    prompts, info = known
    policy = Policy(PolicySettings.model_validate({"profile": "a5000", "strict": True}), describe=describe(info))
    judged = {name: judge(policy, prompt, load(prompt)) for name, prompt in prompts.items()}
    refused = {name: verdict for name, verdict in judged.items() if verdict != "passes"}
    assert refused == {name: f"policy.strict: {of}" for name, of in TEMPLATES["unknown"].items() if name in prompts}


def test_the_walk_finds_what_a_person_finds(known: tuple[Prompts, dict[str, Any]]) -> None:
    prompts, info = known
    classes = NodeClasses(describe(info))
    for name, (node_id, pixels, frames, steps) in TEMPLATES["heaviest"].items():
        walk = Walk(prompts[name], classes, load(prompts[name]))
        (found,) = [amount for amount in walk.amounts if amount.node_id == node_id]
        assert (found.extent.area, max(found.extent.frames, 1), found.steps) == (pixels, frames, steps), name


def test_no_template_does_more_than_a_key_may_ask_for(known: tuple[Prompts, dict[str, Any]]) -> None:
    prompts, info = known
    classes = NodeClasses(describe(info))
    faults = {name: find_labour(prompt, classes, PolicySettings().max_text_chars) for name, prompt in prompts.items()}
    assert {name: fault for name, fault in faults.items() if fault is not None} == {}
