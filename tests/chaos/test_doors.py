"""Starts that fail: where the server was to be shut, it stays shut to everybody, and says why and how to mend it."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos.conftest import database, fill
from contract.client import PATIENCE_S, Answer, assert_refusal, make_key
from contract.conftest import kinds

from comfyui_guarded.tests.hosts.launch import HostKind, HostProcess

REPO = Path(__file__).parents[2]
#: A start of a real ComfyUI takes its time: `GUARDED_DOORS=everywhere` lets it fail in every way, too.
EVERYWHERE = os.environ.get("GUARDED_DOORS") == "everywhere"

pytestmark = pytest.mark.chaos


@dataclass(frozen=True)
class Way:
    """A way to fail at start.

    Attributes:
        named: what the log must name.
        settings: a settings file; it says which mode is wanted, too, where it can say anything.
        environment: of the server.
        broken: (module, text to put in front of it), in a copy of the package.
        folder: does something to our own folder.
    """

    named: str
    settings: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    broken: tuple[str, str] | None = None
    folder: Callable[[Path], None] | None = None


def _link_to_nothing(own: Path) -> None:
    (own / "guarded.toml").symlink_to(own / "not-mounted.toml")


def _nest_texts(own: Path) -> None:
    (own / "messages").mkdir()
    (own / "messages" / "ru.json").write_text("[" * 20_000)


CLOSED = '[native]\nmode = "closed"\n'
WAYS = {
    "a name that is unknown": Way("queue.max_jbs", f"{CLOSED}[queue]\nmax_jbs = 1\n"),
    "a value out of bounds": Way("queue.max_jobs", f"{CLOSED}[queue]\nmax_jobs = 0\n"),
    "a section that is unknown": Way("qeue", f"{CLOSED}[qeue]\nmax_jobs = 1\n"),
    "a value of the wrong type": Way("janitor", f'{CLOSED}[janitor]\nfloor_free_bytes = "much"\n'),
    "no TOML at all": Way("guarded.toml", f"{CLOSED}max_jobs = = 1\n"),
    "a mode without quotes": Way("guarded.toml", "[native]\nmode = closed\n"),
    "a mode with one quote": Way("guarded.toml", '[native]\nmode = "guarded\n'),
    "a mode that is no mode": Way("native.mode", '[native]\nmode = "clsed"\n'),
    "a section that is nearly native": Way("nativ", '[nativ]\nmode = "closed"\n'),
    "a setting that is nearly mode": Way("native.mod", '[native]\nmod = "guarded"\n'),
    "a variable with one underscore": Way("GUARDED_NATIVE_MODE", environment=(("GUARDED_NATIVE_MODE", "closed"),)),
    "an empty variable": Way("native.mode", environment=(("GUARDED_NATIVE__MODE", ""),)),
    "bytes that are no text": Way("guarded.toml", CLOSED + "# \udcff"),
    "settings that are a folder": Way("guarded.toml", folder=lambda own: (own / "guarded.toml").mkdir()),
    "settings on a disk that is not there": Way("guarded.toml", folder=_link_to_nothing),
    "a secret that is a folder": Way("token.key", CLOSED, folder=lambda own: (own / "token.key").mkdir()),
    "settings that are a pipe": Way("guarded.toml", folder=lambda own: os.mkfifo(own / "guarded.toml")),
    "a number of many digits": Way("guarded.toml, line 4", f"{CLOSED}[queue]\nmax_jobs = {'9' * 10_000}\n"),
    "a value nested without end": Way("guarded.toml, line 3", f"{CLOSED}x = {'[' * 20_000}\n"),
    "a secret that is a pipe": Way("token.key", CLOSED, folder=lambda own: os.mkfifo(own / "token.key")),
    "texts nested without end": Way("messages/ru.json, line 1", CLOSED, folder=_nest_texts),
    "a package that is missing": Way(
        "there_is_no_such_package", CLOSED, broken=("guard/settings.py", "import there_is_no_such_package")
    ),
    "a module with a syntax error": Way("SyntaxError", CLOSED, broken=("guard/store/engine.py", "def (")),
    "a node with an error": Way("ZeroDivisionError", CLOSED, broken=("nodes/validate.py", "1 / 0")),
    "no memory while it loads": Way("MemoryError", CLOSED, broken=("guard/life/settle.py", "bytearray(1 << 62)")),
    "a builder with an error": Way("RecursionError", CLOSED, broken=("app.py", "def f(): f()\nf()")),
}
OFTEN = ("no TOML at all", "a module with a syntax error")


def _cases() -> list[object]:
    return [
        pytest.param(*kind.values, way, id=f"{kind.id}-{way}", marks=kind.marks)
        for kind in kinds()
        for way in (WAYS if EVERYWHERE or not kind.values[0].real else OFTEN)
    ]


def make_host(kind: HostKind, base: Path, way: Way, **environment: str) -> HostProcess:
    package = REPO if way.broken is None else _copy_package(base.parent / "package")
    if way.broken is not None:
        module, text = way.broken
        source = (package / module).read_text()
        # Behind what must stay in front.
        (package / module).write_text(source.replace("\nimport ", f"\n{text}\nimport ", 1))
        assert text in (package / module).read_text()
    own = base / "user" / "__guarded"
    own.mkdir(parents=True)
    if way.settings:
        (own / "guarded.toml").write_bytes(way.settings.encode(errors="surrogateescape"))
    if way.folder is not None:
        way.folder(own)
    host = HostProcess(
        kind,
        base,
        package=package,
        environment={**environment, **dict(way.environment)},
        arguments=("--listen", "0.0.0.0"),
    )
    host.spawn()
    _wait_until_it_serves(host)
    return host


def _copy_package(target: Path) -> Path:
    if not target.exists():
        names = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=REPO, capture_output=True)
        for name in filter(None, names.stdout.decode().split("\0")):
            if not name.startswith(("tests/", "docs/")) and (REPO / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPO / name, target / name)
    return target


def _wait_until_it_serves(host: HostProcess) -> None:
    ends_s = time.monotonic() + 4 * PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", host.port), 1).close()
            return
        except OSError:
            assert host.alive, host.log_tail()
            assert time.monotonic() < ends_s, host.log_tail()
            time.sleep(0.05)


def ask(host: HostProcess, method: str, path: str, address: str = "127.0.0.1", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(address, host.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def addresses() -> list[str]:
    """Loopback, and this machine's address in its network, from which it is anybody."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return ["127.0.0.1", probe.getsockname()[0]]
        except OSError:
            return ["127.0.0.1"]


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
}
DOORS = (
    *(("GET", "/"), ("GET", "/queue"), ("POST", "/prompt"), ("POST", "/api/prompt"), ("OPTIONS", "/prompt")),
    *(("GET", "/view?filename=x.png"), ("GET", "//history"), ("GET", "/%71ueue"), ("GET", "/guarded/../queue")),
    *(("GET", "/guarded/health"), ("GET", "/guarded/"), ("PUT", "/x"), ("GET", "/guarded_faults/routes")),
    ("GET", "/extensions/guarded_faults/x.js"),
)


def assert_shut(host: HostProcess) -> dict:
    """Every route, from everywhere; the answer that all of them give."""
    for address in addresses():
        for method, path in DOORS:
            answer = ask(host, method, path, address)
            assert answer.status == 503, f"{method} {path} at {address}: {answer}\n{host.log_tail()}"
            said = assert_refusal(answer, "server_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        assert ask(host, "GET", "/ws", address, **UPGRADE).status == 503
    return said


def off_line(host: HostProcess) -> str:
    (line,) = (line for line in host.log.read_text().splitlines() if "ComfyUI-Guarded is OFF" in line)
    return line


@pytest.mark.parametrize(("kind", "way"), _cases())
def test_a_server_that_was_to_be_shut_stays_shut_however_its_start_fails(kind: HostKind, way: str, tmp_path: Path):
    host = make_host(kind, tmp_path / "base", WAYS[way])
    try:
        said = assert_shut(host)
        line = off_line(host)
        assert WAYS[way].named in line
        assert "Every route answers 503" in line
        if WAYS[way].broken is None:  # what people can mend is one line
            assert "Traceback" not in host.log.read_text()
        assert said["error"]["extra_info"] == {"off": True, "shut": True}
        assert said["error"]["details"] in line
        assert said["error"]["details"]
        assert not database(host.base).exists(), "off means off"
    finally:
        host.kill()


GONE = Way("there_is_no_such_package", broken=("guard/settings.py", "import there_is_no_such_package"))


@pytest.mark.parametrize("mode", ["guarded", "closed"])
def test_the_environment_says_that_it_must_be_shut_where_nothing_else_can(mode, tmp_path):
    host = make_host(kinds()[0].values[0], tmp_path / "base", GONE, GUARDED_NATIVE__MODE=mode)
    try:
        assert_shut(host)
    finally:
        host.kill()


def test_keys_shut_it_whatever_the_mode(tmp_path):
    make_key(tmp_path / "other", "bot")
    way = Way("queue", "[queue]\nx = 1\n", folder=lambda own: shutil.copy(_keys(tmp_path / "other"), own))
    host = make_host(kinds()[0].values[0], tmp_path / "base", way, GUARDED_NATIVE__MODE="open")
    try:
        assert_shut(host)
        assert "there are keys" in off_line(host)
    finally:
        host.kill()


def _keys(base: Path) -> Path:
    return base / "user" / "__guarded" / "keys.json"


def test_settings_that_do_not_say_which_mode_shut_a_server_that_others_reach(tmp_path):
    host = make_host(kinds()[0].values[0], tmp_path / "base", Way("queue.x", "[queue]\nx = 1\n"))
    try:
        assert_shut(host)
        assert "other machines reach this server" in off_line(host)
    finally:
        host.kill()


@pytest.mark.parametrize(
    "way", [Way("queue.x", '[native]\nmode = "open"  # "guarded" or "closed"\n[queue]\nx = 1\n'), GONE]
)
def test_where_the_mode_is_open_comfyui_goes_on_and_log_page_and_routes_say_it(way, tmp_path):
    host = make_host(kinds()[0].values[0], tmp_path / "base", way)
    try:
        assert ask(host, "GET", "/queue").status == 200
        assert ask(host, "GET", "/guarded_faults/routes").status == 200
        for path in ("/guarded", "/guarded/", "/guarded/ready", "/api/guarded/jobs", "//guarded/x"):
            said = assert_refusal(ask(host, "GET", path), "server_unavailable")
            assert way.named in said["error"]["message"]
        for language, words in (("ru-RU,ru;q=0.9", "ComfyUI-Guarded выключен"), ("de, en", "ComfyUI-Guarded is off")):
            page = ask(host, "GET", "/guarded/", **{"Accept": "text/html,*/*", "Accept-Language": language})
            assert (page.status, page.headers.get_content_type()) == (503, "text/html")
            assert words in page.content.decode()
            assert way.named in page.content.decode()
        assert way.named in off_line(host)
        assert "whoever reaches this server can use it" in off_line(host)
    finally:
        host.kill()


def test_a_value_that_cannot_be_used_is_told_to_the_log_alone(tmp_path):
    """It may be a secret, and who asks may be anybody."""
    way = Way("webhooks.secret", f'{CLOSED}[webhooks]\nsecret = "whsec_not-for-you"\n')
    host = make_host(kinds()[0].values[0], tmp_path / "base", way)
    try:
        said = json.dumps(assert_shut(host))
        page = ask(host, "GET", "/", Accept="text/html").content.decode()
        assert "webhooks.secret" in said
        assert "webhooks.secret" in page
        assert "not-for-you" not in said + page
        assert "not-for-you" in off_line(host)
        assert str(tmp_path) not in said + page
    finally:
        host.kill()


def test_the_doctor_says_what_the_log_says_with_the_server_running_and_without(tmp_path):
    host = make_host(kinds()[0].values[0], tmp_path / "base", WAYS["a name that is unknown"])

    def told() -> list[dict]:
        command = [sys.executable, str(REPO), "doctor", "--user", str(host.base / "user"), "--json"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GUARDED_")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 2, done.stdout + done.stderr
        return json.loads(done.stdout)["lines"]

    try:
        lines = told()
        (running,) = (line for line in lines if line["check"] == "start")
        assert running["message"].removesuffix(".") in off_line(host)
        assert running["mend"] in off_line(host)
        assert "Every route answers 503: native.mode is 'closed'." in running["message"]
        assert any("The server listens on 0.0.0.0" in line["message"] for line in lines)
    finally:
        host.kill()
    (ended,) = (line for line in told() if line["check"] == "start")
    what = "ComfyUI-Guarded is OFF: queue.max_jbs: there is no such setting."
    assert what in ended["message"]
    assert what in running["message"]
    assert ended["mend"] == running["mend"]


@pytest.mark.parametrize("mode", ["guarded", "closed"])
def test_a_full_disk_at_the_first_start_opens_nothing(mode, tmp_path, small_disk):
    """The secrets that a start makes cannot be written; the guard is on all the same, and takes no job."""
    own = tmp_path / "base" / "user" / "__guarded"
    own.parent.mkdir(parents=True)
    own.symlink_to(small_disk)
    fill(small_disk)
    host = HostProcess(kinds()[0].values[0], tmp_path / "base", environment={"GUARDED_NATIVE__MODE": mode})
    host.spawn()
    try:
        _wait_until_it_serves(host)
        for method, path in DOORS:
            answer = ask(host, method, path, **{"X-Forwarded-For": "203.0.113.9"})
            bare = {"/guarded/health": b'{"status": "ok"}', "/guarded/": answer.content}  # the page holds no secret
            assert answer.status in (401, 403) or answer.content == bare.get(path), f"{method} {path}: {answer}"
    finally:
        host.kill()


def test_a_template_that_cannot_be_read_shuts_nothing_and_opens_nothing(tmp_path):
    def put(own: Path) -> None:
        (own / "workflows").mkdir()
        (own / "workflows" / "mine.json").write_text("{")

    host = make_host(kinds()[0].values[0], tmp_path / "base", Way("", CLOSED, folder=put))
    try:
        assert ask(host, "GET", "/queue").status == 200
        assert ask(host, "GET", "/queue", **{"X-Forwarded-For": "203.0.113.9"}).status == 403
        assert "ComfyUI-Guarded is OFF" not in host.log.read_text()
    finally:
        host.kill()
