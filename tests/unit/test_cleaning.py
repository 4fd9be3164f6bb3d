"""What the owner of a key sees of the server: nothing of its paths."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui_guarded.guard.errors import InvalidWorkflowError
from comfyui_guarded.guard.files.cleaning import Cleaner
from comfyui_guarded.guard.host import Folders
from comfyui_guarded.guard.job import JobState, Result, Verdict

BASE = Path("/srv/comfy ui/ComfyUI") if os.name != "nt" else Path("C:/srv/comfy ui/ComfyUI")
FOLDERS = Folders(BASE / "output", BASE / "temp", BASE / "input", keep=(BASE / "user", Path("/models")), program=BASE)
CLEANER = Cleaner(lambda: FOLDERS, BASE / "user/__guarded")


def seen(value, owner="bot"):
    return CLEANER.clean(value, owner)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{base}/output/own/a_00001_.png", "own/a_00001_.png"),
        ("cannot open '{base}/input/a.png'!", "cannot open 'a.png'!"),
        ("{base}/temp/x/y.png, {base}/output/z.png", "x/y.png, z.png"),
        ("in {base}/custom_nodes/pack/nodes.py", "in nodes.py"),
        ("File \"{base}/execution.py\", line 5", 'File "execution.py", line 5'),
        ("{base}/user/__guarded/guarded.db", "guarded.db"),
        ("{base}", "…"),
        ("{base}/output", "…"),
        ("/models/checkpoints/secret/x.safetensors is broken", "x.safetensors is broken"),
        (os.path.join(sys.prefix, "lib", "site-packages", "torch", "nn.py"), "nn.py"),
        ("{base}ish/x {base}-2/x /a/b.png http://x/{base}", None),
        ("a prompt / with slashes // and \\ others", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_text_keeps_of_a_path_what_is_its_owners(text, shown):
    text = text.format(base=BASE.as_posix())
    assert seen(text) == (text if shown is None else shown)
    assert seen(text, "local") == text


def test_outputs_lose_the_keys_that_say_where_a_file_lies():
    outputs = {
        "5": {"gifs": [{"filename": "a.mp4", "subfolder": "", "type": "output", "fullpath": f"{BASE}/output/a.mp4"}]}
    }
    assert seen(outputs) == {"5": {"gifs": [{"filename": "a.mp4", "subfolder": "", "type": "output"}]}}
    assert seen(outputs, "local") == outputs


def test_errors_and_endings_are_cleaned():
    path = f"{BASE}/custom_nodes/p.py"
    error = InvalidWorkflowError(f"at {path}", details=path, extra_info={"a": [path]}, node_errors={"1": {"e": path}})
    CLEANER.clean_error(error, "bot")
    assert (error.message, error.details, error.extra_info, error.node_errors) == (
        "at p.py", "p.py", {"a": ["p.py"]}, {"1": {"e": "p.py"}},
    )  # fmt: skip
    verdict = Verdict(JobState.FAILED, "generation_failed", path, {"exception_message": path})
    cleaned, result = CLEANER.clean_ending(verdict, Result({"1": {"text": [path]}}), "bot")
    assert cleaned == Verdict(JobState.FAILED, "generation_failed", "p.py", {"exception_message": "p.py"})
    assert result == Result({"1": {"text": ["p.py"]}})
    assert CLEANER.clean_ending(verdict, None, "local") == (verdict, None)


def test_a_refusals_choices_leave_out_the_folders_of_owners():
    listed = (
        "folder: 'x' not in ['guarded-uploads', '3d', 'guarded-uploads/alice-0f/al\\'bum', \"guarded-uploads/a'b\"]"
    )
    config = ["COMBO", {"options": ["3d", "guarded-uploads/alice-0f"]}]
    node_errors = {"1": {"errors": [{"details": listed, "extra_info": {"input_config": config}}]}}
    error = InvalidWorkflowError(listed, node_errors=node_errors)
    CLEANER.clean_error(error, "bot")
    assert "guarded-uploads" not in f"{error.message}{error.node_errors}"
    assert error.node_errors["1"]["errors"][0]["extra_info"] == {"input_config": ["COMBO", {"options": ["3d"]}]}
    assert "folder: 'x' not in ['3d'" in error.message


@pytest.mark.parametrize(
    "end", ["'guarded-uploads…", "'guarded-uploads/alice-76…", "'guarded-uploads/alice-76d8", "\"guarded-uploads/a'b…"]
)
def test_a_refusals_choices_that_were_cut_off_leave_them_out_too(end):
    error = InvalidWorkflowError(f"folder: 'x' not in ['3d', {end}")
    CLEANER.clean_error(error, "bot")
    assert error.message == "folder: 'x' not in ['3d'"
    error = InvalidWorkflowError(f"folder: 'x' not in ['3d', {end}\nLoader 1: Required input is missing")
    CLEANER.clean_error(error, "bot")
    assert error.message == "folder: 'x' not in ['3d'\nLoader 1: Required input is missing"


def test_a_message_of_the_websocket_is_cleaned_and_any_other_left_as_it_is():
    message = json.dumps({"type": "execution_error", "data": {"traceback": [f'  File "{BASE}/x.py"'], "node_id": "5"}})
    assert json.loads(CLEANER.clean_message(message, "bot")) == {
        "type": "execution_error", "data": {"traceback": [], "node_id": "5"},
    }  # fmt: skip
    other = '{"type":  "executed", "data": {"output": "a/b"}}'
    assert CLEANER.clean_message(other, "bot") is other
    assert CLEANER.clean_message(message, "local") is message


@given(
    st.lists(st.sampled_from([str(BASE), "/output", "/input", "/", "x", " ", "'", "..", "\\", ".py", "(", "é"])).map(
        "".join
    )
)
def test_no_text_shows_the_folder_of_the_server(text):
    left = seen(text)
    assert not re.search(rf"(?<![\w.\-/\\]){re.escape(str(BASE))}(?![\w.\-])", left)
