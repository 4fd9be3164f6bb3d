"""What the code host reads: workflows, issue forms, and the check that stands before a release."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def release(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", root / ".ci" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", "workflows/*.yml"),
        ("github-issue-forms", "ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", "ISSUE_TEMPLATE/config.yml"),
        ("dependabot", "dependabot.yml"),
    ],
)
def test_the_code_host_can_read_what_is_written_for_it(root: Path, schema: str, files: str) -> None:
    found = sorted((root / ".github").glob(files))
    assert found
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, found)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_token_of_the_registry_goes_to_one_pinned_action_only(root: Path) -> None:
    """A moved tag or branch must not get the secret."""
    text = (root / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert text.count("secrets.") == 1
    assert re.search(r"uses: Comfy-Org/publish-node-action@[0-9a-f]{40}\n", text)


PYPROJECT = '[project]\nversion = "1.2.3"\n'
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-01-02\n\n- New.\n\n## [1.2.2] - 2026-01-01\n\n- Old.\n"


def test_the_notes_of_a_release_are_those_of_its_version(release: ModuleType) -> None:
    assert release.notes("v1.2.3", PYPROJECT, CHANGELOG) == "- New."


@pytest.mark.parametrize(
    ("tag", "pyproject", "changelog", "why"),
    [
        ("1.2.3", PYPROJECT, CHANGELOG, "form"),
        ("v1.2.4", PYPROJECT, CHANGELOG, r"pyproject\.toml says 1\.2\.3"),
        ("v1.2.3", PYPROJECT, CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n- Newer.\n"), "Unreleased"),
        ("v1.2.3", PYPROJECT, CHANGELOG.replace(" - 2026-01-02", ""), "headed"),
        ("v1.2.3", PYPROJECT, CHANGELOG.replace("1.2.3", "1.3.0"), "headed"),
        ("v1.2.3", PYPROJECT, CHANGELOG.replace("- New.", ""), "says nothing"),
        ("v1.2.3", PYPROJECT, "# Changelog\n", "headed"),
    ],
)
def test_nothing_is_released_whose_versions_do_not_agree(
    release: ModuleType, tag: str, pyproject: str, changelog: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        release.notes(tag, pyproject, changelog)
