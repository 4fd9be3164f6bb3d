"""docs/deploy.md's commands in order, in a fresh environment, up to where a GPU or gigabytes are needed.

pip lines run for real; `git clone` copies the packs that lie here (`GUARDED_PACKS`, else ~/comfy/packs), and `curl`
asks a server of the test's own. `GUARDED_FRESH=1` runs it: it installs half a gigabyte, and writes three.
"""

import http.server
import io
import json
import os
import re
import shutil
import subprocess
import threading
import urllib.request
import zipfile
from pathlib import Path

import pytest
from package.conftest import ROOT

from comfyui_guarded.guard.templates.manifest import Template
from comfyui_guarded.tests.hosts.launch import free_port, real_kinds

PACKS = Path(os.environ.get("GUARDED_PACKS") or Path.home() / "comfy" / "packs")
NEEDED = ("ComfyUI-LivePortraitKJ", "ComfyUI-VideoHelperSuite", "ComfyUI_IPAdapter_plus")
ASTRONAUT = ROOT / ".venv" / "photos" / "skimage" / "data" / "astronaut.png"
#: Chapters of which every command runs, but for these lines.
CHAPTERS = ("1. ComfyUI", "2. This package", "3. A key for the bot, and one for you", "6. Models")
NOT_HERE = {
    r"^sudo ": "a user of its own, and root",
    r"pip install torch ": "an index of its own, gigabytes: ComfyUI's environment is lent instead",
    r"pip install -r requirements\.txt$": "likewise",
    r"torch\.cuda": "a GPU",
    r"^AUTH=|\$AUTH|python3 -c .import json,sys; \[print": "a server: at the end",
    r"models fetch z_image$": "gigabytes; tests/unit/test_models.py",
}
#: What the lent environment must not bring, since the manual's lines do.
OWN = re.compile("onnx|cv2|opencv|mediapipe|insightface|google|protobuf|skimage|scikit_image|pykalman|imageio", re.I)
IMPORTS = """
import cv2, google.protobuf, insightface.app, mediapipe, numpy, onnx, onnxruntime
from mediapipe.framework.formats import landmark_pb2
landmark_pb2.NormalizedLandmarkList()
print("imported", google.protobuf.__version__, onnx.__version__, numpy.__version__)
"""

pytestmark = [
    pytest.mark.skipif(not os.environ.get("GUARDED_FRESH"), reason="GUARDED_FRESH=1 installs half a gigabyte"),
    pytest.mark.skipif(not real_kinds(), reason="needs a real ComfyUI, in COMFYUI_PATH or ~/comfy/ComfyUI"),
    pytest.mark.skipif(not all((PACKS / name).is_dir() for name in NEEDED), reason=f"needs {', '.join(NEEDED)}"),
    pytest.mark.timeout(3000),
]


def commands():
    """The lines of the chapters' shell blocks, each with a comment where it is left out."""
    manual = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for chapter in CHAPTERS:
        text = manual[manual.index(f"\n## {chapter}\n") :]
        text = text[: text.find("\n## ", 5)]
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines():
                why = next((why for pattern, why in NOT_HERE.items() if re.search(pattern, line)), None)
                yield line if why is None else f"# not here: {why}"


def make_weights(name: str, size: int) -> bytes:
    """A file of that size which begins as its format does, with zeros for weights."""
    if name.endswith(".onnx"):  # a graph, the seventh field of a message
        length = size - 6
        return (
            b"\x3a" + bytes(0x80 | length >> 7 * at & 0x7F for at in range(4)) + bytes([length >> 28]) + bytes(length)
        )
    if name.endswith((".bin", ".pth", ".pt", ".ckpt")):
        return b"\x80\x02" + bytes(size - 2)
    return bytes(size)


class _Files(http.server.BaseHTTPRequestHandler):
    """Stand-ins of the sizes that the manifests say: whole by their headers, or as long as they must be."""

    sizes: dict[str, int]
    asked: list[str]

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.asked.append(name)
        content = self._make(name)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _make(self, name):
        if name.endswith(".safetensors"):
            header = json.dumps({"w": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
            return len(header).to_bytes(8, "little") + header + bytes(8)
        if name.endswith(".zip"):
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
                for each, size_mb in self.sizes.items():
                    if name.removesuffix(".zip") in each:
                        file.writestr(each.removeprefix("models/"), make_weights(each, size_mb * 10**6))
            return archive.getvalue()
        return make_weights(name, self.sizes[name] * 10**6)

    def log_message(self, *_args):
        pass


@pytest.fixture
def hub():
    manifests = [Template.read(path).manifest for path in (ROOT / "workflows" / "api").glob("*.toml")]
    _Files.sizes = {model.file: model.size_mb for manifest in manifests for model in manifest.models}
    _Files.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def write_shims(folder, kind, hub):
    """`git`, `curl` and `python3` that stay on this machine."""
    folder.mkdir()
    tree = kind.main.parent
    tools = {name: shutil.which(name) for name in ("git", "curl", "tar")}
    base = subprocess.run(
        [kind.python, "-c", "import sys; print(sys._base_executable)"], capture_output=True, text=True
    )
    listed = f"{tools['git']} -C {ROOT} ls-files -z --cached --others --exclude-standard"
    texts = {
        "git": f"""
            [ "$1" = clone ] || exit 2
            name=$(basename "$2")
            case $name in
                ComfyUI) cp -r {tree} ComfyUI && rm -rf ComfyUI/models ComfyUI/user ComfyUI/custom_nodes/* && \\
                    mkdir -p ComfyUI/models ;;
                ComfyUI-Guarded) mkdir "$3" && {listed} \\
                    | {tools["tar"]} -C {ROOT} --null -T - --ignore-failed-read -cf - | {tools["tar"]} -C "$3" -xf - ;;
                *) cp -r "{PACKS}/$name" . ;;
            esac""",
        "curl": f"""
            args=()
            for each; do
                each=${{each//https:\\/\\/huggingface.co/{hub}}}
                args+=("${{each//https:\\/\\/github.com/{hub}}}")
            done
            exec {tools["curl"]} --noproxy '*' "${{args[@]}}" """,
        "python3": f'\nexec {base.stdout.strip()} "$@"',
    }
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)


def lend_environment(kind, folder):
    """ComfyUI's own packages, but for what the manual installs; a .pth of the fresh environment leads there."""
    folder.mkdir()
    ask = "import json, site; print(json.dumps(site.getsitepackages()))"
    for site in json.loads(subprocess.run([kind.python, "-c", ask], capture_output=True, text=True, check=True).stdout):
        for entry in Path(site).iterdir():
            if not OWN.match(entry.name) and not entry.name.startswith(("pip", "setuptools", "__")):
                (folder / entry.name).symlink_to(entry)


def test_the_manual_s_commands_lead_to_templates_that_are_ready(tmp_path, hub):
    kind = real_kinds()[0]
    home = tmp_path / "comfy"
    home.mkdir()
    shutil.copy(ASTRONAUT, home / "me.jpg")
    write_shims(tmp_path / "bin", kind, hub)
    lend_environment(kind, tmp_path / "lent")
    lines = []
    for line in commands():
        line = line.replace("/home/comfy", str(home)).replace("main.py --quick", "main.py --cpu --quick")
        # It warns of what the test leaves out: 1; of errors: 2.
        lines.append(f"{line} || [ $? -eq 1 ]" if line.endswith(" doctor") else line)
        if line.startswith("python3 -m venv"):
            lines.append(f"echo {tmp_path}/lent > $(echo venv/lib/python3*/site-packages)/lent.pth")
    script = tmp_path / "manual.sh"
    script.write_text("\n".join(["set -euxo pipefail", f"cd {home}", *lines, ""]))
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "ComfyUI-Guarded is on" in done.stdout
    assert "478" in done.stdout.split(), "the landmarks of a face"
    assert "antelopev2.zip" in _Files.asked

    python = str(home / "ComfyUI" / "venv" / "bin" / "python")
    imported = subprocess.run(
        [python, "-c", IMPORTS], env=environment, capture_output=True, text=True, check=True
    ).stdout
    protobuf, onnx, numpy = imported.split()[-3:]
    assert (protobuf.split(".")[0], onnx.split(".")[:2], numpy.split(".")[0]) == ("4", ["1", "18"], "2")

    key = re.findall(r"gk_[\w-]+", done.stdout)[-1]
    listed = {each["name"]: each for each in ask_server(python, home / "ComfyUI", environment, key)}
    for name in ("photo_check", "sdxl", "sdxl_face", "liveportrait"):
        assert listed[name]["ready"], listed[name]["reasons"]


def ask_server(python, tree, environment, key):
    port = free_port()
    log = tree.parent / "server.log"
    with open(log, "w") as file:
        server = subprocess.Popen(
            [python, "main.py", "--cpu", "--disable-api-nodes", "--listen", "127.0.0.1", "--port", str(port)],
            cwd=tree, env=environment, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/guarded/workflows", headers={"Authorization": f"Bearer {key}"}
    )
    try:
        while server.poll() is None:
            try:
                with direct.open(request, timeout=60) as answer:
                    return json.load(answer)["workflows"]
            except OSError:
                threading.Event().wait(1)
        raise AssertionError(log.read_text()[-3000:])
    finally:
        server.kill()
        server.wait()
