"""A real S3-compatible server, SeaweedFS out of a wheel, and addresses that botocore signs for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config

from comfyui_guarded.tests.hosts.launch import free_port

#: A server that starts on a busy machine.
READY_WITHIN_S = 120.0
ACCESS, SECRET = "AKIDOFTESTS", "a-secret-of-the-tests"
BUCKET = "results"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def find_program() -> str | None:
    """The server's program: beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class S3:
    """One bucket of one server on loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "List", "Write"],
        }
        (self._folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        program = find_program()
        assert program is not None
        ports = [f"-{name}.port={free_port()}" for name in ("master", "volume", "filer")]
        grpc = [f"-{name}.port.grpc={free_port()}" for name in ("master", "volume", "filer", "s3")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    "server",
                    f"-dir={self._folder}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-master.telemetry=false",
                    "-volume.max=5",
                    "-master.volumeSizeLimitMB=64",
                    *ports,
                    *grpc,
                    "-s3",
                    f"-s3.port={self.port}",
                    # Its catalogues would listen on ports of their own, of which two servers cannot both have one.
                    f"-s3.port.iceberg={free_port()}",
                    f"-s3.port.lance={free_port()}",
                    f"-s3.config={self._folder / 's3.json'}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        ends_s = time.monotonic() + READY_WITHIN_S
        while True:
            assert self._process.poll() is None, (self._folder / "log").read_text()[-3000:]
            try:
                if self.get("") is not None or self._ask("PUT", self._sign("create_bucket", {"Bucket": BUCKET})) == 200:
                    return
            except OSError:
                pass
            assert time.monotonic() < ends_s, (self._folder / "log").read_text()[-3000:]
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def sign_put(self, key: str, expires_in_s: int = 3600, version: str = "s3v4", **more: Any) -> str:
        return self._sign("put_object", {"Bucket": BUCKET, "Key": key, **more}, expires_in_s, version)

    def get(self, key: str) -> tuple[bytes, str] | None:
        """An object and its type; None where there is none. Without a key: the bucket's list."""
        asked = {"Bucket": BUCKET, "Key": key} if key else {"Bucket": BUCKET}
        try:
            with _DIRECT.open(self._sign("get_object" if key else "list_objects_v2", asked), timeout=30) as answer:
                return answer.read(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            if error.code not in (403, 404, 500, 503):
                raise
            return None

    def _ask(self, method: str, url: str) -> int:
        try:
            with _DIRECT.open(urllib.request.Request(url, method=method), timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def _sign(self, what: str, asked: dict[str, Any], expires_in_s: int = 3600, version: str = "s3v4") -> str:
        client = botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.url,
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            config=Config(signature_version=version, s3={"addressing_style": "path"}),
        )
        return str(client.generate_presigned_url(what, Params=asked, ExpiresIn=expires_in_s))


@contextmanager
def serving(folder: Path) -> Iterator[S3]:
    store = S3(folder)
    try:
        store.start()
        yield store
    finally:
        store.stop()
