"""The container of `deploy/`, as far as it goes without Docker and a GPU.

What the Dockerfile runs is run, word for word, in a fresh folder (with the sandbox for ComfyUI), and so are its command
and its health check. apt-get and useradd are left out: they would change this machine.
"""

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import urllib.request
from pathlib import Path

import pytest
import yaml
from pathspec import GitIgnoreSpec

from comfyui_guarded.guard.settings import Settings
from comfyui_guarded.tests.hosts.launch import FAULTS, ROOT, SANDBOX, free_port

DEPLOY = ROOT / "deploy"
MANUAL = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
#: Of the machine itself.
LEFT_OUT = ("apt-get", "useradd")
PATIENCE_S = 120.0

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the image is Linux")


def read_dockerfile():
    """(instruction, its text) in order, without comments, as Docker reads them."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


STEPS = read_dockerfile()


def of(instruction):
    return [text for name, text in STEPS if name == instruction]


def read_compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def read_ignored():
    # Docker's patterns are anchored, git's are not.
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    anchored = [line if line.startswith(("#", "**")) else f"/{line}" for line in lines]
    return GitIgnoreSpec.from_lines(anchored)


def list_copied():
    """What `COPY .` takes: what is in git, but for what the ignore file names."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    ignored = read_ignored()
    return [name for name in listed.stdout.splitlines() if not ignored.match_file(name) and (ROOT / name).is_file()]


# What it says. -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path(sys.executable).with_name("hadolint").exists(), reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say():
    linter = str(Path(sys.executable).with_name("hadolint"))
    done = subprocess.run([linter, str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout
    bad = subprocess.run([linter, "-"], input="FROM python\nRUN cd /tmp\n", capture_output=True, text=True)
    assert bad.returncode, "it lets anything pass"


def test_the_compose_file_has_the_shape_of_one():
    checker = str(Path(sys.executable).with_name("check-jsonschema"))
    command = [checker, "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_confines_the_server_and_lets_its_job_end():
    server = read_compose()["services"]["comfyui"]
    assert set(server["build"]["args"]) <= {text.split("=")[0] for text in of("ARG")}
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert "ports" not in server, "past the proxy"
    assert int(server["stop_grace_period"].rstrip("s")) > Settings().watchdog.shutdown_grace_s
    assert {mount.split(":")[1] for mount in server["volumes"]} >= set(of("VOLUME"))
    assert of("USER") == ["1000:1000"], "it runs as root"
    assert server["expose"] == of("EXPOSE")


def test_the_proxy_is_the_manual_s():
    (manual,) = re.findall(r"```caddy\n(.*?)```", MANUAL, re.S)
    here = re.sub(r" +# for the editor.*", "", manual).replace("gpu.example.org", "{$DOMAIN}")
    assert here.replace("127.0.0.1:8188", "comfyui:8188") == (DEPLOY / "Caddyfile").read_text(encoding="utf-8")


def test_the_image_has_neither_tests_nor_the_models_that_are_mounted():
    copied = list_copied()
    assert {"__init__.py", "requirements.txt", "requirements-mcp.txt", "guard/__init__.py"} <= set(copied)
    assert [name for name in copied if name.startswith(("tests/", "sandbox/", ".", "build/"))] == []
    models = [
        mount.split(":")[0].removeprefix("./")
        for mount in read_compose()["services"]["comfyui"]["volumes"]
        if "models" in mount
    ]
    assert [read_ignored().match_file(f"deploy/{folder}/checkpoints/large.safetensors") for folder in models] == [True]


# What it does. -------------------------------------------------------------------------------------------------


class Image:
    """The image's folders, `/opt` and `/data`, below one of the test's own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self.folder = root
        self.environment = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}
        for text in of("ARG"):
            name, _, value = text.partition("=")
            self.environment[name] = value.strip('"')

    def here(self, text: str) -> str:
        text = re.sub(r"(?<![\w.])/(opt|data)(?=/|\b)", rf"{self.root}/\1", text)
        return text.replace("8188", str(self.port)).replace("0.0.0.0", "127.0.0.1")

    def build(self) -> None:
        for name, text in STEPS:
            if name == "WORKDIR":
                self.folder = Path(self.here(text))
            elif name == "ENV":
                self.environment |= dict(pair.split("=", 1) for pair in self.here(text).split())
            elif name == "COPY":
                source, target = text.split()
                assert source == "."
                for file in list_copied():
                    place = self.folder / target / file
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / file, place)
            elif name == "RUN" and not any(word in text for word in LEFT_OUT):
                self.run(self.here(text))
                if "-m venv" in text:  # it finds the packages that are here, and pip need fetch none
                    (site,) = (self.root / "opt" / "venv" / "lib").glob("python*/site-packages")
                    (site / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, command: str) -> None:
        (shell,) = of("SHELL")
        done = subprocess.run(
            [*json.loads(shell), command], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def start(self) -> subprocess.Popen:
        (entry,), (command,) = of("ENTRYPOINT"), of("CMD")
        # The sandbox wants to be told what ComfyUI's own folder is.
        command = [*json.loads(self.here(entry)), *json.loads(self.here(command)), "--base-directory", str(self.folder)]
        with open(self.root / "server.log", "ab") as log:
            return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)

    def is_healthy(self) -> bool:
        (check,) = of("HEALTHCHECK")
        command = json.loads(self.here(check).partition("CMD ")[2])
        return subprocess.run(command, env=self.environment, capture_output=True).returncode == 0

    def list_opt(self) -> dict[str, tuple[int, int]]:
        found = (path for path in (self.root / "opt").rglob("*") if not path.is_symlink())
        return {str(path): ((seen := path.stat()).st_mtime_ns, seen.st_size) for path in found}


@pytest.fixture
def image(tmp_path):
    (tmp_path / "data").mkdir()
    comfyui = tmp_path / "comfyui"
    shutil.copytree(SANDBOX, comfyui, ignore=shutil.ignore_patterns("__pycache__"))
    (comfyui / "requirements.txt").write_text("aiohttp\n")
    shutil.copytree(FAULTS, comfyui / "custom_nodes" / FAULTS.name, ignore=shutil.ignore_patterns("__pycache__"))
    (comfyui / "models").mkdir()
    (comfyui / "models" / "here").touch()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(comfyui)]
    for words in (["init", "-q", "-b", "here"], ["add", "--all", "--force"], ["commit", "-q", "-m", "here"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    made = Image(tmp_path)
    made.environment |= {"COMFYUI": "here", "COMFYUI_URL": comfyui.as_uri(), "TORCH": "packaging"}
    made.build()
    return made


async def test_it_builds_starts_is_healthy_and_lets_its_job_end(image):
    keys = [*("keys", "create", "my-bot", "--user"), str(image.root / "data" / "user")]
    before = image.list_opt()
    server = image.start()
    try:
        for _ in range(int(PATIENCE_S * 4)):
            assert server.poll() is None, (image.root / "server.log").read_text()[-3000:]
            if await asyncio.to_thread(image.is_healthy):
                break
            await asyncio.sleep(0.25)
        else:
            raise AssertionError((image.root / "server.log").read_text()[-3000:])
        python = str(image.root / "opt" / "venv" / "bin" / "python")
        words = [python, "custom_nodes/ComfyUI-Guarded", *keys]
        told = subprocess.run(words, cwd=image.folder, env=image.environment, capture_output=True, text=True)
        (key,) = re.findall(r"gk_\S+", told.stdout + told.stderr)
        await asyncio.sleep(2.5)  # the server looks every second

        def post(job, wait_s):
            url = f"http://127.0.0.1:{image.port}/guarded/prompt?wait={wait_s}"
            request = urllib.request.Request(
                url, json.dumps({"prompt": job}).encode(), {"Authorization": f"Bearer {key}"}
            )
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return json.loads(answer.read())["guard"]

        steps = {
            "class_type": "FaultSleep",
            "inputs": {"seconds": 3.0, "checks_interrupt": True, "steps": 30, "seed": 0},
        }
        save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
        running = asyncio.create_task(asyncio.to_thread(post, {"1": steps, "2": save}, 60))
        states = []
        while "running" not in states:
            await asyncio.sleep(0.1)
            states = await asyncio.to_thread(_list_states, image, key)
        server.send_signal(signal.SIGTERM)
        job = (await running)["job"]
        assert (job["state"], job["refund"]) == ("succeeded", False), job
        assert await asyncio.to_thread(server.wait, PATIENCE_S) is not None
        assert image.list_opt() == before, "it writes where the root is read-only"
        assert list((image.root / "data" / "output").rglob("*.png"))
    finally:
        server.kill()
        server.wait()


def _list_states(image, key):
    url = f"http://127.0.0.1:{image.port}/guarded/jobs"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return [job["state"] for job in json.loads(answer.read())["jobs"]]
