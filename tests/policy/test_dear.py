"""Ways around the limits that a profile with `strict` must see; see `escapes_dear`."""

import pytest
from policy.escapes import Case
from policy.escapes_dear import DEAR
from policy.known import describe

from comfyui_guarded.guard.errors import PolicyViolationError
from comfyui_guarded.guard.settings import PolicySettings
from comfyui_guarded.guard.submit.policy import Policy


@pytest.mark.parametrize("case", DEAR, ids=lambda case: case.name.replace(" ", "-"))
def test_the_profile_with_strict_judges_as_was_written_down(case: Case) -> None:
    policy = Policy(PolicySettings.model_validate({"profile": "a5000", "strict": True}), describe=describe)
    if case.limit is None:
        policy.check(case.graph, case.media)
        return
    with pytest.raises(PolicyViolationError) as caught:
        policy.check(case.graph, case.media)
    assert caught.value.details == f"policy.{case.limit}"
    assert caught.value.extra_info["node_id"] in case.graph
