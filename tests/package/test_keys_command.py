"""`python custom_nodes/<folder> keys …`, as an operator types it."""

import argparse
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from comfyui_guarded.alias import ROOT
from comfyui_guarded.guard.access import command
from comfyui_guarded.guard.client import KeyLimits


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """A ComfyUI that has been started once, with this package in it."""
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "ComfyUI-Guarded").symlink_to(ROOT, target_is_directory=True)
    (tmp_path / "user").mkdir()
    return tmp_path


def keys(comfyui: Path, *arguments: str) -> tuple[int, list[str]]:
    """Exit status and lines of the command, typed in ComfyUI's folder."""
    command = [sys.executable, "custom_nodes/ComfyUI-Guarded", "keys", *arguments]
    done = subprocess.run(command, cwd=comfyui, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def test_a_key_is_printed_once_listed_without_its_secret_and_revoked(comfyui: Path) -> None:
    status, lines = keys(comfyui, "create", "my-bot", "--jobs-per-minute", "6", "--max-queued", "2", "--expires", "30d")
    secret = lines[0]
    assert status == 0
    assert secret.startswith("gk_")
    status, listed = keys(comfyui, "list")
    assert status == 0
    assert len(listed) == 1
    assert "my-bot  submit  active until " in listed[0]
    assert "jobs/min 6  queued 2" in listed[0]
    assert secret.rpartition("_")[2] not in listed[0]
    assert keys(comfyui, "create", "my-bot")[0] == 2
    assert keys(comfyui, "create", "my-bot", "--same-owner", "--scope", "operate")[0] == 0
    assert keys(comfyui, "revoke", "my-bot")[0] == 0
    assert all("revoked" in line for line in keys(comfyui, "list")[1])
    assert keys(comfyui, "revoke", "my-bot")[0] == 2
    assert (comfyui / "user" / "__guarded" / "keys.json").is_file()


def test_what_a_key_may_ask_for_is_listed(comfyui: Path) -> None:
    options = (
        "--allow-nodes",
        "KSampler, Save*",
        "--deny-nodes",
        "Load*",
        "--profile",
        "a5000",
        "--max-pixels",
        "1000000",
    )
    assert keys(comfyui, "create", "my-bot", *options, "--max-steps", "30", "--templates-only")[0] == 0
    listed = keys(comfyui, "list")[1][0]
    assert "pixels 1000000  steps 30  profile a5000  only KSampler,Save*  not Load*  templates only" in listed


def test_without_a_user_folder_the_command_says_what_to_do(comfyui: Path) -> None:
    (comfyui / "user").rmdir()
    status, lines = keys(comfyui, "create", "bot")
    assert status == 2
    assert "--user" in lines[0]
    assert list(comfyui.glob("user*")) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "../x"),
        ("create", "local"),
        ("create", "bot", "--max-queued", "0"),
        ("create", "bot", "--jobs-per-minute", "nan"),
        ("create", "bot", "--expires", "soon"),
        ("create", "bot", "--scope", "root"),
        ("create", "bot", "--profile", "b300"),
        ("create", "bot", "--max-steps", "0"),
        ("create", "bot", "--max-pixels", "many"),
        ("create", "bot", "--allow-nodes", " , "),
    ],
)
def test_a_key_that_cannot_be_made_is_refused_and_nothing_is_written(comfyui: Path, arguments: tuple[str, ...]) -> None:
    assert keys(comfyui, *arguments)[0] == 2
    assert not (comfyui / "user" / "__guarded" / "keys.json").exists()


def test_no_limit_of_a_key_is_forgotten_anywhere() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = vars(parser.parse_args(["create", "bot"]))
    manual, contract = ((ROOT / "docs" / name).read_text("utf-8") for name in ("access.md", "http.md"))
    texts = [json.loads((ROOT / "js" / "panel" / f"{language}.json").read_text("utf-8")) for language in ("en", "ru")]
    for limit in fields(KeyLimits):
        assert options[limit.name] == limit.default, limit.name
        assert f"`--{limit.name.replace('_', '-')}" in manual, limit.name
        assert f"`{limit.name}`" in contract, limit.name
        assert all(f"limit_{limit.name}" in table for table in texts), limit.name
