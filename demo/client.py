"""Talk to the guard as a bot would: HTTP and JSON, with the standard library alone."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Far longer than any request of the tour takes; this only ends a hang.
REQUEST_WITHIN_S = 90.0
LONG_POLL_S = 5.0


class TourError(Exception):
    """The tour, or this scene of it, cannot go on; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Answer:
    """One HTTP answer. `raw` is its body in bytes, `body` the JSON object in it."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        try:
            decoded = json.loads(self.raw)
        except ValueError:
            decoded = None
        if not isinstance(decoded, dict):
            raise TourError(f"HTTP {self.status} without a JSON object: {self.raw[:200]!r}")
        return decoded

    @property
    def guard(self) -> dict[str, Any]:
        """What the guard adds to ComfyUI's own answer."""
        guard: dict[str, Any] = self.body.get("guard") or {}
        return guard


class Client:
    """The guard's API at one server."""

    def __init__(self, url: str) -> None:
        self.url = url
        # The server is on this machine: a proxy that the environment names cannot reach it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def request(self, method: str, path: str, body: Any = None) -> Answer:
        """Raises OSError where no answer comes."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"} if data else {}, method=method
        )
        try:
            with self._opener.open(request, timeout=REQUEST_WITHIN_S) as response:
                return Answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return Answer(refusal.code, refusal.headers, refusal.read())

    def post(self, prompt: Any, *, wait_s: float = 0, **guard: Any) -> Answer:
        """Submit a prompt; `guard` is the request's own `guard` object."""
        path = f"/guarded/prompt?wait={wait_s:g}" if wait_s else "/guarded/prompt"
        return self.request("POST", path, {"prompt": prompt, **({"guard": guard} if guard else {})})

    def submit(self, prompt: Any, **guard: Any) -> str:
        """Submit a prompt, and return its job's id. Raises TourError if the guard refuses it."""
        answer = self.post(prompt, **guard)
        if answer.status != 200:
            raise TourError(f"refused with HTTP {answer.status}: {answer.raw.decode(errors='replace')[:300]}")
        return str(answer.body["prompt_id"])

    def job(self, job_id: str, wait_s: float = 0) -> dict[str, Any]:
        """The job as JSON; with `wait_s`, once its state has changed or that time has passed."""
        answer = self.request("GET", f"/guarded/jobs/{job_id}" + (f"?wait={wait_s:g}" if wait_s else ""))
        if answer.status != 200:
            raise TourError(f"HTTP {answer.status} for job {job_id}: {answer.raw.decode(errors='replace')[:300]}")
        return answer.body

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self.request("DELETE", f"/guarded/jobs/{job_id}").body

    def wait_settled(self, job_id: str, within_s: float = 60) -> dict[str, Any]:
        """Wait until the job has settled. Raises TourError if that takes longer than `within_s`."""
        ends_s = time.monotonic() + within_s
        job = self.job(job_id)
        while job["settled_at_ms"] is None:
            rest_s = ends_s - time.monotonic()
            if rest_s <= 0:
                raise TourError(f"a job is still {job['state']} after {within_s:g} s")
            job = self.job(job_id, wait_s=min(max(rest_s, 0.1), LONG_POLL_S))
        return job

    def wait_running(self, job_id: str, within_s: float = 60) -> dict[str, Any]:
        """Wait until the worker has the job. Raises TourError if it settles first or stays in the queue too long."""
        ends_s = time.monotonic() + within_s
        # No long poll: it returns at the next change, which may be the job's end.
        while (job := self.job(job_id))["state"] != "running":
            if job["settled_at_ms"] is not None or time.monotonic() > ends_s:
                raise TourError(f"a job that should run is {job['state']} {(job['error'] or {}).get('code', '')}")
            time.sleep(0.02)
        return job

    def list_open_jobs(self) -> list[str]:
        states = "queued,dispatched,running,validating"
        return [job["job_id"] for job in self.request("GET", f"/guarded/jobs?limit=500&state={states}").body["jobs"]]
