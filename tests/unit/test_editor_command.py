"""`python … convert`: a workflow's file in, a prompt out, by a saved description of node classes or a server's."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from unit.test_editor_convert import INFO, LOAD, SAVE, converted, file, node

ROOT = Path(__file__).parents[2]
WORKFLOW = file(LOAD, SAVE, links=[(9, 1, 0, 9, 0, "IMAGE")])
KEY = "gk_secret"


def run(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT), "convert", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    for name, value in (("workflow", WORKFLOW), ("info", INFO)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return str(tmp_path / "workflow.json"), str(tmp_path / "info.json")


def test_the_prompt_comes_on_standard_output_or_into_a_file(files: tuple[str, str], tmp_path: Path):
    done = run(files[0], "--object-info", files[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == converted(WORKFLOW)
    out = tmp_path / "prompt.json"
    done = run("-", "--object-info", files[1], "--out", str(out), given=json.dumps(WORKFLOW))
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads(out.read_text()) == converted(WORKFLOW)


def test_what_cannot_be_converted_is_said_with_its_node(files: tuple[str, str]):
    done = run("-", "--object-info", files[1], given=json.dumps(file(node(7, "SetNode"))))
    assert (done.returncode, done.stdout) == (1, "")
    assert "Node 7 (SetNode)" in done.stderr
    assert "invalid_workflow: frontend_only" in done.stderr


@pytest.mark.parametrize("given", ["{", "[]", '{"1": {"class_type": "X", "inputs": {}}}', "[" * 100_000])
def test_what_is_no_workflow_is_said_to_be_none(files: tuple[str, str], given: str):
    done = run("-", "--object-info", files[1], given=given)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("Authorization") == f"Bearer {KEY}" and self.path == "/guarded/object_info"
            body = json.dumps(INFO if allowed else {}).encode()
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_a_running_server_is_asked_with_a_key(files: tuple[str, str], server: str):
    done = run(files[0], "--url", server, "--key", KEY)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == converted(WORKFLOW)
    refused = run(files[0], "--url", server)
    assert refused.returncode == 2
    assert "--key" in refused.stderr


def test_where_no_server_answers_it_says_what_to_do(files: tuple[str, str]):
    done = run(files[0], "--url", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "--object-info" in done.stderr
