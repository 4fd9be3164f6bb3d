"""Who uses a fleet while it is being hurt: bots with a key each, readers of events, and the balancer in front."""

import contextlib
import http.client
import json
import random
import socket
import threading
import time
import urllib.request
import uuid

from contract.client import photo_copy, sleep
from contract.conftest import PHOTO
from fleet.conftest import TERMINAL, read_verdict

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Actor(threading.Thread):
    """A thread whose end shows how it went."""

    def __init__(self, name):
        super().__init__(name=name, daemon=True)
        self.error = None
        self._is_over = threading.Event()

    def run(self):
        try:
            self.act()
        except BaseException as error:  # a thread of its own: the test raises it
            self.error = error

    def stop(self):
        self._is_over.set()
        self.join()
        if self.error is not None:
            raise self.error


class Owner(Actor):
    """Keeps some jobs waiting, cancels and looks, at whichever box answers; remembers what it was told of each.

    A submit without an answer is repeated with its Idempotency-Key, mostly at another box.
    """

    OPEN = 7

    def __init__(self, name, key, boxes, seed):
        super().__init__(name)
        self.key, self.boxes, self.random = key, boxes, random.Random(seed)
        #: By job: the verdict that somebody was told, or None.
        self.told = {}
        self.contradicted = []
        self.repeated = self.refused = 0
        self._unanswered = None

    @property
    def acknowledged(self):
        return list(self.told)

    def act(self):
        while not self._is_over.wait(0.05):
            box = self.random.choice(self.boxes)
            if len(self._open) < self.OPEN:
                self._submit(box)
            if jobs := self._open or self.acknowledged:
                self._look(box, self.random.choice(jobs))

    @property
    def _open(self):
        return [job_id for job_id, verdict in self.told.items() if verdict is None]

    def _submit(self, box):
        if self._unanswered is None:
            prompt = photo_copy(PHOTO) if self.random.random() < 0.3 else sleep(self.random.choice([0.0, 0.2, 0.4]))
            self._unanswered = {"Idempotency-Key": uuid.uuid4().hex}, {"prompt": prompt}
        else:
            self.repeated += 1
        headers, body = self._unanswered
        answer = box.ask("POST", "/guarded/prompt", body, timeout_s=10, key=self.key, headers=headers)
        if answer is None or answer[0] == 503:
            return
        self._unanswered = None
        assert answer[0] == 200, answer
        self.told.setdefault(answer[1]["prompt_id"], None)

    def _look(self, box, job_id):
        method = "DELETE" if self.random.random() < 0.04 else "GET"
        answer = box.ask(method, f"/guarded/jobs/{job_id}", timeout_s=10, key=self.key)
        if answer is None or answer[0] in (502, 503, 504):
            return
        assert answer[0] == 200, answer
        self.hear(job_id, answer[1])

    def hear(self, job_id, job):
        if job["state"] in TERMINAL:
            verdict = read_verdict(job)
            if self.told[job_id] not in (None, verdict):
                self.contradicted.append((job_id, self.told[job_id], verdict))
            self.told[job_id] = verdict


class EventReader(Actor):
    """Reads all events from the first one on, now at this box and now at that, and goes on behind the last it has."""

    def __init__(self, key, boxes, seed):
        super().__init__("reader")
        self._key, self._boxes, self._random = key, boxes, random.Random(seed)
        self.seen = []
        self.connections = 0
        self._last_id = 0

    def act(self):
        while not self._is_over.is_set():
            try:
                self._read(self._random.choice(self._boxes), self._random.uniform(0.5, 6))
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)

    def _read(self, box, for_s):
        headers = {"Authorization": f"Bearer {self._key}", "Last-Event-ID": str(self._last_id)}
        asked = urllib.request.Request(f"{box.url}/guarded/events?wait={for_s:.1f}", headers=headers)
        with _DIRECT.open(asked, timeout=for_s + 5) as answer:
            self.connections += 1
            fields = {}
            for line in answer:
                text = line.decode().rstrip("\r\n")
                if text:
                    name, _, value = text.partition(": ")
                    fields[name] = value
                    continue
                if "data" in fields and "id" in fields:
                    self._last_id = int(fields["id"])
                    job = json.loads(fields["data"])
                    self.seen.append((self._last_id, job["job_id"], job["state"]))
                fields = {}


class Balancer:
    """What stands in front of the boxes for a bot that knows one address: each connection goes to one that is ready."""

    LOOK_S = 0.3

    def __init__(self, boxes):
        self._boxes = boxes
        self._ready = dict.fromkeys(range(len(boxes)), False)
        self._pairs = {number: [] for number in self._ready}
        self._random = random.Random(1)
        self._is_over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        for work in (self._accept, *((lambda number=number: self._watch(number)) for number in self._ready)):
            threading.Thread(target=work, daemon=True).start()

    def close(self):
        self._is_over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for number in self._ready:
            self._drop(number)

    def _watch(self, number):
        while not self._is_over.wait(self.LOOK_S):
            self._ready[number] = self._boxes[number].is_ready(timeout_s=2)
            if not self._ready[number]:
                self._drop(number)

    def _drop(self, number):
        pairs, self._pairs[number] = self._pairs[number], []
        for end in (end for pair in pairs for end in pair):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _address = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        ready = [number for number, is_ready in self._ready.items() if is_ready]
        number = self._random.choice(ready) if ready else None
        with client, contextlib.suppress(OSError):
            if number is None:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self._boxes[number].port)) as box:
                self._pairs[number].append((client, box))
                back = threading.Thread(target=_pump, args=(box, client), daemon=True)
                back.start()
                _pump(client, box)
                back.join()


def _pump(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
