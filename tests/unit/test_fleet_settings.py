"""Settings that differ between boxes of a fleet: which, and on which box; no value is told."""

import json
from dataclasses import replace

import pytest

from comfyui_guarded.guard.doctor.facts import Facts
from comfyui_guarded.guard.doctor.fleet import check_fleet
from comfyui_guarded.guard.fleet.agreed import (
    MAY_DIFFER,
    SINCE,
    digest,
    find_differences,
    list_other_depots,
    list_other_secrets,
)
from comfyui_guarded.guard.host import Folders
from comfyui_guarded.guard.settings import Settings, load, rows
from comfyui_guarded.guard.store import Box

SECRET = "d1f6a3c2" * 8


def settings_of(**changes):
    environment = {"GUARDED_FLEET__ENABLED": "true", "GUARDED_FLEET__SECRET": SECRET}
    return load(None, {**environment, **{f"GUARDED_{name}": value for name, value in changes.items()}})


def box(name, settings, *, is_alive=True, **status):
    return Box(name, 1, 0, is_alive, status={"settings": digest(settings), **status})


def examine(own, tmp_path, *boxes):
    facts = Facts(tmp_path, {}, own, {}, Folders(None, None, None), True, [], {}, [], None, boxes=boxes)
    return [(line.level, line.message) for line in check_fleet(facts, own)]


def test_boxes_that_agree_are_no_cause_for_a_line(tmp_path):
    here = settings_of(LIMITS__JOBS_PER_MINUTE="6", QUEUE__MAX_JOBS="2", LOG__LEVEL="DEBUG", FACES__DEVICE="cpu")
    there = settings_of(LIMITS__JOBS_PER_MINUTE="6.0", STORE__URL="postgresql://elsewhere/x")
    [(level, message)] = examine(here, tmp_path, box("a", here), box("b", there))
    assert level == "ok"
    assert message.startswith("2 boxes")


def test_each_setting_that_differs_is_named_with_the_boxes_and_without_its_value(tmp_path):
    here = settings_of(FILES__URL="s3://KEY:hunter2@bucket/x", LIMITS__MAX_QUEUED="7")
    there = settings_of(FILES__URL="s3://KEY:hunter3@bucket/x", LIMITS__MAX_QUEUED="7")
    other = settings_of(FILES__URL="s3://KEY:hunter2@bucket/x")
    lines = examine(here, tmp_path, box("a", here), box("b", there), box("c", other), box("d", there, is_alive=False))
    assert [level for level, _message in lines] == ["warning", "warning"]
    assert "files.url" in lines[0][1]
    assert "on b:" in lines[0][1]
    assert "limits.max_queued" in lines[1][1]
    assert "on c:" in lines[1][1]
    told = json.dumps([lines, digest(here), digest(there)])
    assert not any(word in told for word in ("hunter", "bucket", SECRET))


def test_another_secret_is_said_and_nothing_else_can_be_compared(tmp_path):
    here, there = settings_of(LIMITS__MAX_QUEUED="7"), settings_of(FLEET__SECRET="x" * 40)
    [(level, message)] = examine(here, tmp_path, box("a", here), box("b", there))
    assert level == "error"
    assert "b has another fleet.secret" in message
    same = settings_of(FLEET__SECRET="x" * 40, LIMITS__MAX_QUEUED="7")
    assert digest(here)["limits.max_queued"] != digest(same)["limits.max_queued"]  # no dictionary of values fits both


@pytest.mark.parametrize("told", [None, 7, [], {"limits.max_queued": 7}, {"fleet.secret": None, "x.y": "z"}])
def test_whatever_a_box_tells_breaks_nothing(told):
    own = settings_of()
    differences = find_differences(digest(own), [replace(box("b", own), status={"settings": told})])
    assert set(differences) <= {"fleet.secret"}


def test_what_only_another_version_knows_is_left_out():
    own = settings_of()
    there = replace(box("b", own), status={"settings": {**digest(own), "limits.of_tomorrow": "123456789012"}})
    assert find_differences(digest(own), [there]) == {}


def test_the_names_of_what_may_differ_are_settings():
    names = {name for name, _value, _help in rows()} | set(Settings.model_fields) | {"fleet.url"}
    assert names >= MAY_DIFFER


def test_of_boxes_with_different_depots_those_that_came_later_give_way(tmp_path):
    one, other = settings_of(FILES__URL="s3://K:x@bucket/x"), settings_of(FILES__URL="s3://K:x@bucket/y")
    boxes = [box("a", other, **{SINCE: 7}), box("b", one, **{SINCE: 5}), box("c", one, **{SINCE: 9})]
    assert [list_other_depots(each.box, boxes) for each in boxes] == [["b"], [], ["a"]]
    dead = [box("a", other, **{SINCE: 7}), box("b", one, is_alive=False, **{SINCE: 5})]
    assert list_other_depots("a", dead) == []
    keyed = settings_of(FILES__URL="s3://K:z@bucket/x")
    assert list_other_depots("c", [box("b", one, **{SINCE: 5}), box("c", keyed, **{SINCE: 9})]) == []
    [(level, message)] = examine(one, tmp_path, *boxes)
    assert (level, "files.url" in message) == ("error", True)
    odd = [box("a", other, **{SINCE: "x"}), box("b", settings_of(), **{SINCE: 5}), box("c", one, **{SINCE: 6})]
    assert [list_other_depots(each.box, odd) for each in odd] == [[], [], ["b"]], "none at all is another, too"


def test_of_boxes_with_different_secrets_those_that_came_later_give_way():
    """What the one has signed the other refuses; and where their files are they cannot compare."""
    one, other = settings_of(), settings_of(FLEET__SECRET="f00d" * 16, FILES__URL="s3://K:x@bucket/y")
    boxes = [box("a", other, **{SINCE: 7}), box("b", one, **{SINCE: 5}), box("c", one, **{SINCE: 9})]
    assert [list_other_secrets(each.box, boxes) for each in boxes] == [["b"], [], ["a"]]
    assert [list_other_depots(each.box, boxes) for each in boxes] == [[], [], []]
    # The secret is changed, one box after the other: whoever has the new one goes on once the last old one has gone.
    changed = [box("a", other, **{SINCE: 17}), box("b", other, **{SINCE: 18}), box("c", one, **{SINCE: 9})]
    assert [list_other_secrets(each.box, changed) for each in changed] == [["c"], ["c"], []]
    assert list_other_secrets("a", [*changed[:2], replace(changed[2], is_alive=False)]) == []
    silent = replace(box("b", one, **{SINCE: 5}), status={SINCE: 5, "settings": {}})
    assert list_other_secrets("a", [boxes[0], silent]) == [], "it does not tell"
