"""The download of models, from a server that does what servers do on a bad day."""

import hashlib
import os
import threading
from argparse import ArgumentParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from chaos.conftest import small_disk

from comfyui_guarded.guard.models import command
from comfyui_guarded.guard.models.fetch import FetchError, fetch
from comfyui_guarded.guard.models.sources import Source, find_source
from comfyui_guarded.guard.templates.manifest import Model

__all__ = ["small_disk"]

MODEL = b"\x80\x02" + os.urandom(2_999_998)  # begins as PyTorch wrote before 1.6
SHA256 = hashlib.sha256(MODEL).hexdigest()


class Hub:
    """A web server: `behave` answers a request."""

    def __init__(self):
        self.asked = []
        self.behave = self.serve
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.asked.append((self.path, dict(self.headers)))
                self.close_connection = True
                hub.behave(self)

            def log_message(self, *_args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def serve(self, request, data=MODEL, most=None, tag='"one"', length=True):
        """As a good server, but after `most` bytes the connection ends."""
        begin = 0
        if (asked := request.headers.get("Range")) and request.headers.get("If-Range") == tag:
            begin = int(asked[len("bytes=") : -1])
        request.send_response(206 if begin else 200)
        request.send_header("ETag", tag)
        if length:
            request.send_header("Content-Length", str(len(data) - begin))
        request.end_headers()
        request.wfile.write(data[begin : None if most is None else begin + most])


@pytest.fixture
def hub():
    made = Hub()
    yield made
    made.server.shutdown()
    made.server.server_close()


def get(hub, folder, **more):
    target = folder / "checkpoints" / "model.safetensors"
    fetch(Source(f"{hub.url}/model"), target, pause=lambda _s: None, **{"size_mb": 3, "sha256": SHA256, **more})
    return target


def left(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_connection_that_breaks_off_is_gone_on_with_and_nothing_is_fetched_twice(hub, tmp_path):
    hub.behave = lambda request: hub.serve(request, most=1_000_000)
    assert get(hub, tmp_path).read_bytes() == MODEL
    assert [headers.get("Range") for _path, headers in hub.asked] == [None, "bytes=1000000-", "bytes=2000000-"]
    assert left(tmp_path) == ["model.safetensors"]


def test_a_source_that_keeps_breaking_off_is_given_up_and_gone_on_with_another_day(hub, tmp_path):
    hub.behave = lambda request: hub.serve(request, most=1_000_000 if len(hub.asked) == 1 else 0)
    with pytest.raises(FetchError, match="keeps breaking off"):
        get(hub, tmp_path)
    assert left(tmp_path) == ["model.safetensors.part", "model.safetensors.part.etag"]
    hub.asked.clear()
    hub.behave = hub.serve
    assert get(hub, tmp_path).read_bytes() == MODEL
    assert [headers.get("Range") for _path, headers in hub.asked] == ["bytes=1000000-"]


def test_two_who_download_the_same_file_do_not_write_into_one_another_s(hub, tmp_path):
    gate, came = threading.Event(), threading.Event()

    def stall(request):
        hub.serve(request, most=1_000_000)
        came.set()
        gate.wait(60)

    hub.behave = stall
    first = threading.Thread(target=get, args=(hub, tmp_path))
    first.start()
    assert came.wait(60)
    with pytest.raises(FetchError, match="somebody else"):
        get(hub, tmp_path)
    hub.behave = hub.serve
    gate.set()
    first.join(60)
    assert (tmp_path / "checkpoints" / "model.safetensors").read_bytes() == MODEL
    assert left(tmp_path) == ["model.safetensors"]


def test_a_file_that_has_changed_meanwhile_is_fetched_from_its_beginning(hub, tmp_path):
    other = os.urandom(3_000_000)

    def change(request):
        if len(hub.asked) == 1:
            hub.serve(request, other, most=1_000_000, tag='"old"')
        else:
            hub.serve(request, tag='"new"')

    hub.behave = change
    assert get(hub, tmp_path).read_bytes() == MODEL


@pytest.mark.parametrize("size_mb", [1, 9])
def test_a_source_that_has_another_size_than_the_manifest_says_gets_no_disk(hub, tmp_path, size_mb):
    with pytest.raises(FetchError, match="the manifest says"):
        get(hub, tmp_path, size_mb=size_mb)
    assert left(tmp_path) == []


def test_a_source_that_does_not_say_its_size_is_stopped_where_it_is_too_large(hub, tmp_path):
    hub.behave = lambda request: hub.serve(request, os.urandom(12_000_000), length=False)
    with pytest.raises(FetchError, match="the manifest says"):
        get(hub, tmp_path)
    assert "model.safetensors" not in left(tmp_path)


def test_other_bytes_of_the_right_size_never_get_the_name(hub, tmp_path):
    hub.behave = lambda request: hub.serve(request, b"x" * 3_000_000)
    with pytest.raises(FetchError, match="SHA-256"):
        get(hub, tmp_path)
    assert left(tmp_path) == ["model.safetensors.part.etag"], "the wrong bytes are gone"
    hub.behave = hub.serve
    assert get(hub, tmp_path).read_bytes() == MODEL


def test_the_hubs_own_word_counts_where_the_manifest_has_no_hash(hub, tmp_path):
    def lead_on(request):
        if request.path == "/model":
            request.send_response(302)
            request.send_header("Location", f"{hub.url}/blob")
            request.send_header("X-Linked-Etag", f'"{SHA256}"')
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            hub.serve(request, b"x" * 3_000_000 if len(hub.asked) == 2 else MODEL)

    hub.behave = lead_on
    with pytest.raises(FetchError, match="SHA-256"):
        get(hub, tmp_path, sha256="")
    assert get(hub, tmp_path, sha256="").read_bytes() == MODEL


def test_the_token_goes_to_the_hub_and_to_no_host_that_it_leads_to(hub, tmp_path):
    elsewhere = Hub()

    def lead_on(request):
        request.send_response(302)
        request.send_header("Location", f"{elsewhere.url}/blob")
        request.send_header("Content-Length", "0")
        request.end_headers()

    hub.behave = lead_on
    model = Model(file="m.bin", folder="x", size_mb=3, source="https://huggingface.co/a/b", licence="")
    source = find_source(model, {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret"})
    assert source.url == f"{hub.url}/a/b/resolve/main/m.bin"
    fetch(source, tmp_path / "m.bin", size_mb=3)
    elsewhere.server.shutdown()
    elsewhere.server.server_close()
    assert hub.asked[0][1]["Authorization"] == "Bearer hf_secret"
    assert "Authorization" not in elsewhere.asked[0][1]
    own = Model(file="m", folder="x", size_mb=3, source="", licence="", url="https://elsewhere.example/m")
    assert find_source(own, {"HF_TOKEN": "hf_secret"}).token is None


def test_a_refusal_says_what_may_help(hub, tmp_path):
    def refuse(request):
        request.send_response(403)
        request.send_header("Content-Length", "0")
        request.end_headers()

    hub.behave = refuse
    with pytest.raises(FetchError, match=r"403.*HF_TOKEN"):
        get(hub, tmp_path)
    assert len(hub.asked) == 1


def test_a_disk_that_is_too_small_is_told_before_and_one_that_fills_up_keeps_what_has_come(hub, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 2_500_000)
    with pytest.raises(FetchError, match="MB free"):
        get(hub, small_disk)
    hub.behave = lambda request: hub.serve(request, length=False)
    with pytest.raises(FetchError, match="the disk is full"):
        get(hub, small_disk)
    names = left(small_disk)
    assert "model.safetensors" not in names
    assert "model.safetensors.part" in names
    ballast.unlink()
    hub.behave = hub.serve
    assert get(hub, small_disk).read_bytes() == MODEL


def test_the_command_lists_sizes_and_licences_and_fetches_what_is_not_here(hub, tmp_path, monkeypatch):
    package = tmp_path / "custom_nodes" / "guarded"
    templates = package / "workflows" / "api"
    templates.mkdir(parents=True)
    (tmp_path / "models").mkdir()
    (templates / "one.json").write_text('{"1": {"class_type": "X", "inputs": {"name": ""}}}')
    (templates / "one.toml").write_text(
        f"""
outputs = ["1"]
parameters = {{}}
title.en = "One"
description.en = "One."
[[models]]
file = "m.bin"
folder = "checkpoints"
size_mb = 3
source = "https://huggingface.co/a/b"
licence = "MIT"
sha256 = "{SHA256}"
into = ["1.name"]
[[models]]
file = "by_hand.bin"
folder = "checkpoints"
size_mb = 3
source = "https://example.com/page"
licence = "research only"
"""
    )
    parser = ArgumentParser()
    command.add_arguments(parser)
    said = []

    def run(*words):
        said.clear()
        return command.run(parser.parse_args(words), {"HF_ENDPOINT": hub.url}, package, said.append)

    assert run("list", "one") == 0
    assert said == ["m.bin: 3 MB, MIT", "by_hand.bin: 3 MB, research only"]
    assert run("fetch", "one") == 1, "one must be got by hand"
    assert any("by hand from https://example.com/page" in line for line in said)
    assert (tmp_path / "models" / "checkpoints" / "m.bin").read_bytes() == MODEL
    assert run("fetch", "one") == 1
    assert len(hub.asked) == 1, "what is here is not fetched again"
    assert run("fetch", "other") == 2
