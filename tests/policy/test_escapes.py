"""Each way around the limits that is known, and what is like it and harmless; see `escapes` and its likes."""

import json

import pytest
from policy.escapes import CASES, Case
from policy.escapes_counted import COUNTED
from policy.escapes_left import LEFT
from policy.escapes_made import MADE
from policy.escapes_way import WAY
from policy.known import describe

from comfyui_guarded.guard.errors import PolicyViolationError
from comfyui_guarded.guard.settings import PolicySettings
from comfyui_guarded.guard.submit.policy import Policy


@pytest.mark.parametrize("case", [*CASES, *COUNTED, *LEFT, *MADE, *WAY], ids=lambda case: case.name.replace(" ", "-"))
def test_the_profile_judges_as_was_written_down(case: Case) -> None:
    policy = Policy(PolicySettings.model_validate({"profile": "a5000"}), describe=describe)
    if case.limit is None:
        policy.check(case.graph, case.media)
        return
    with pytest.raises(PolicyViolationError) as caught:
        policy.check(case.graph, case.media)
    error = caught.value
    assert error.details == f"policy.{case.limit}"
    assert error.extra_info["node_id"] in case.graph
    assert error.extra_info["value"] is None or error.extra_info["value"] > error.extra_info["limit"]
    json.dumps(error.body("ru"), allow_nan=False)
