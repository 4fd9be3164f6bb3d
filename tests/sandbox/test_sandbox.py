"""What the sandbox does on its own: loading, files, queue, sockets, memory flags."""

import io
import json
import signal
import time
import urllib.error
import urllib.request
import uuid

import numpy as np
import pytest
from PIL import Image
from sandbox.conftest import Host, start_sandbox

PLUGIN = """
import threading
from aiohttp import web
from server import PromptServer
from .helper import VALUE
import execution, folder_paths, nodes, comfy.model_management, comfy.utils, comfy_execution.utils, sys

server = PromptServer.instance
facts = {
    "module": __name__,
    "worker": hasattr(sys.modules["__main__"], "prompt_worker"),
    "threads": threading.active_count(),
    "frozen": server.app.frozen,
    "system_user": folder_paths.get_system_user_directory("guarded"),
}

@web.middleware
async def mark(request, handler):
    response = await handler(request)
    response.headers["X-Plugin"] = VALUE
    return response

server.app.middlewares.append(mark)

@server.routes.get("/plugin")
async def plugin(request):
    return web.json_response(facts)

class Node:
    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    def run(self):
        context = comfy_execution.utils.get_executing_context()
        return (f"{context.prompt_id} {context.node_id}",)

NODE_CLASS_MAPPINGS = {"PluginContext": Node, "SaveImage": Node}
NODE_DISPLAY_NAME_MAPPINGS = {"PluginContext": "Context"}
WEB_DIRECTORY = "./js"
"""


@pytest.fixture
def with_plugin(tmp_path):
    """A sandbox whose custom_nodes has a link to a plugin's folder, and one broken plugin."""
    source = tmp_path / "elsewhere.d"
    (source / "js").mkdir(parents=True)
    (source / "js" / "hello.js").write_text("export {};")
    (source / "__init__.py").write_text(PLUGIN)
    (source / "helper.py").write_text("VALUE = 'yes'")
    custom_nodes = tmp_path / "base" / "custom_nodes"
    (custom_nodes / "broken").mkdir(parents=True)
    (custom_nodes / "broken" / "__init__.py").write_text("raise RuntimeError('broken')")
    (custom_nodes / "my.plugin").symlink_to(source)
    host = start_sandbox(tmp_path / "base", "--disable-api-nodes", "--database-url", "sqlite:///x", "--cpu")
    yield host
    host.stop()


def test_a_plugin_loads_before_the_worker_and_its_routes_are_mirrored(with_plugin: Host):
    status, facts = with_plugin.request("/plugin")
    assert status == 200
    assert facts == with_plugin.request("/api/plugin")[1]
    assert facts["module"] == str(with_plugin.base / "custom_nodes/my.plugin").replace(".", "_x_")
    assert facts["worker"]
    assert (facts["threads"], facts["frozen"]) == (1, False)
    assert facts["system_user"] == str(with_plugin.base / "user/__guarded")


def test_a_plugins_nodes_scripts_and_middleware_work(with_plugin: Host, nodes):
    assert with_plugin.request("/extensions")[1] == ["/extensions/my.plugin/hello.js"]
    with urllib.request.urlopen(with_plugin.url + "/extensions/my.plugin/hello.js") as response:
        assert response.headers["X-Plugin"] == "yes"
    info = with_plugin.request("/object_info")[1]
    assert info["PluginContext"]["python_module"] == "custom_nodes.my.plugin"
    assert info["SaveImage"]["output_node"], "a plugin does not override a class of the host"
    prompt = {"7": nodes.node("PluginContext"), "8": nodes.node("PreviewAny", source=["7", 0])}
    prompt_id = with_plugin.submit(prompt)
    assert with_plugin.wait(prompt_id)["outputs"]["8"]["text"] == [f"{prompt_id} 7"]


def test_temp_is_wiped_at_start_and_sigint_stops_the_server(tmp_path):
    old = tmp_path / "temp/old.png"
    old.parent.mkdir()
    old.write_bytes(b"x")
    host = start_sandbox(tmp_path)
    assert not old.exists()
    assert old.parent.is_dir()
    host.process.send_signal(signal.SIGINT)
    assert host.process.wait(timeout=5) == 0


def upload(host: Host, content: bytes, name: str, **fields: str):
    parts = [f'name="{key}"\r\n\r\n{value}'.encode() for key, value in fields.items()]
    parts.append(f'name="image"; filename="{name}"\r\n\r\n'.encode() + content)
    body = b"".join(b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    with urllib.request.urlopen(urllib.request.Request(host.url + "/upload/image", body, headers)) as response:
        return json.loads(response.read())


def png(color: tuple[int, ...], size: tuple[int, int] = (16, 8), **save) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA" if len(color) == 4 else "RGB", size, color).save(buffer, "png", **save)
    return buffer.getvalue()


def test_uploads_are_renamed_unless_equal_or_overwriting(sandbox):
    red, blue = png((255, 0, 0)), png((0, 0, 255))
    names = [
        upload(sandbox, red, "u.png")["name"],
        upload(sandbox, red, "u.png")["name"],
        upload(sandbox, blue, "u.png")["name"],
        upload(sandbox, blue, "u.png", overwrite="true")["name"],
    ]
    assert names == ["u.png", "u.png", "u (1).png", "u.png"]
    assert (sandbox.base / "input/u.png").read_bytes() == blue
    assert upload(sandbox, red, "v.png", subfolder="a/b") == {"name": "v.png", "subfolder": "a/b", "type": "input"}


def test_an_upload_cannot_leave_its_folder(sandbox):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        upload(sandbox, b"x", "x.png", subfolder="../..")
    assert refusal.value.code == 400
    refusal.value.close()


def test_a_loaded_image_comes_out_as_it_went_in(sandbox, nodes):
    upload(sandbox, png((10, 200, 30, 128)), "in.png", overwrite="1")
    prompt = {"1": nodes.node("LoadImage", image="in.png"), "2": nodes.save("loaded")}
    (image,) = sandbox.run(prompt, extra_data={"extra_pnginfo": {"workflow": {"id": "w"}}})["outputs"]["2"]["images"]
    content = sandbox.request(f"/view?filename={image['filename']}")[1]
    saved = Image.open(io.BytesIO(content))
    assert np.asarray(saved)[0, 0].tolist() == [10, 200, 30]
    assert json.loads(saved.info["workflow"]) == {"id": "w"}
    assert json.loads(saved.info["prompt"])["1"]["class_type"] == "LoadImage"
    preview = sandbox.request(f"/view?filename={image['filename']}&preview=webp;50")[1]
    assert Image.open(io.BytesIO(preview)).format == "WEBP"


def test_exif_rotation_is_applied(sandbox, nodes):
    exif = Image.Exif()
    exif[0x0112] = 6
    upload(sandbox, png((1, 2, 3), exif=exif), "turned.png")
    prompt = {"1": nodes.node("LoadImage", image="turned.png [input]"), "2": nodes.save("turned")}
    (image,) = sandbox.run(prompt)["outputs"]["2"]["images"]
    with Image.open(sandbox.base / "output" / image["filename"]) as saved:
        assert saved.size == (8, 16)


def test_a_changed_input_file_runs_again(sandbox, nodes):
    prompt = {"1": nodes.node("LoadImage", image="changing.png"), "2": nodes.save("changing")}
    upload(sandbox, png((1, 1, 1)), "changing.png")
    first, second = sandbox.run(prompt), sandbox.run(prompt)
    upload(sandbox, png((2, 2, 2)), "changing.png", overwrite="true")
    third = sandbox.run(prompt)
    assert first["outputs"] == second["outputs"] != third["outputs"]


def test_queued_prompts_run_in_order_of_number_and_can_be_deleted(sandbox, nodes):
    running = sandbox.submit(nodes.fault("FaultSleep", seconds=0.6, checks_interrupt=True, steps=0))
    time.sleep(0.1)
    late, deleted = sandbox.submit(nodes.saved("late")), sandbox.submit(nodes.saved("deleted"))
    front = sandbox.submit(nodes.saved("front"), front=True)
    _, queue = sandbox.request("/queue")
    assert [len(item) for item in queue["queue_running"] + queue["queue_pending"]] == [5] * 4
    sandbox.request("/queue", {"delete": [deleted]})
    assert sandbox.request("/prompt")[1]["exec_info"]["queue_remaining"] == 3
    assert sandbox.request(f"/api/jobs/{running}/cancel", {})[1] == {"cancelled": True}
    sandbox.wait(late)
    order = list(sandbox.request("/history")[1])
    assert order.index(running) < order.index(front) < order.index(late)
    assert deleted not in order


def test_free_unloads_models_and_forgets_results(sandbox, nodes):
    first = sandbox.run(nodes.saved("free"))["outputs"]
    sandbox.request("/free", {"unload_models": True, "free_memory": True})
    deadline_s = time.monotonic() + 5
    while "unload_all_models, call" not in sandbox.log.read_text() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert "unload_all_models, call" in sandbox.log.read_text()
    time.sleep(0.05)
    assert sandbox.run(nodes.saved("free"))["outputs"] != first


def test_a_prompt_id_is_kept(sandbox, nodes):
    prompt_id = str(uuid.uuid4())
    assert sandbox.submit(nodes.saved("kept"), prompt_id=prompt_id) == prompt_id


def test_the_root_is_plain_text(sandbox):
    status, content = sandbox.request("/")
    assert (status, b"sandbox" in content) == (200, True)


@pytest.mark.serial
def test_a_no_op_prompt_is_answered_quickly(sandbox, nodes):
    body = {"prompt": nodes.saved("quick")}
    took_ms = []
    for _ in range(60):
        started_s = time.perf_counter()
        assert sandbox.request("/prompt", body)[0] == 200
        took_ms.append((time.perf_counter() - started_s) * 1000)
    # A new connection each time, on a busy machine: far above the 1 ms that it is, far below a mistake.
    assert sorted(took_ms)[30] < 20
