"""The Grafana dashboard and the alert rules: against a real Prometheus that scrapes a server at work."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from contract.client import connected, picture, raises, sleep

from comfyui_guarded.guard.operators import families

FOLDER = Path(__file__).resolve().parents[2] / "observability"
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]

#: What the stand-in does not do: a GPU, webhooks, photos, a worker that hangs, and a fleet.
IDLE = re.compile("gpu|webhook|face_checks|timeouts|interrupts|replacements|fleet")


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{sys.prefix}/tools/usr/bin") or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: `make` gets it from Debian's package prometheus where apt-get is; or install it")
    return found


def family_names() -> set[str]:
    found = {value for value in vars(families).values() if isinstance(value, families.Family)}
    return {f"{one.name}{end}" for one in found for end in ("", "_bucket", "_sum", "_count")}


def test_each_query_asks_for_metrics_that_there_are():
    rules = (FOLDER / "alerts.yml").read_text(encoding="utf-8")
    asked = set(re.findall(r"\bguarded_\w+", "\n".join([*QUERIES, rules])))
    assert asked - family_names() == set()
    assert len(asked) > 20


def test_no_panel_lies_over_another_or_has_anothers_number():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24
                assert taken.setdefault((x, y), str(panel["id"])) == str(panel["id"])


def test_each_alert_fires_on_what_it_is_for_and_not_on_what_is_near_it():
    done = subprocess.run(
        [tool("promtool"), "test", "rules", "alerts_test.yml"], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    named = re.findall(r"alert: (\w+)", (FOLDER / "alerts.yml").read_text(encoding="utf-8"))
    tested = (FOLDER / "alerts_test.yml").read_text(encoding="utf-8")
    assert [name for name in named if f'alertname="{name}"' not in tested] == []


@pytest.fixture
async def prometheus(tmp_path: Path) -> AsyncIterator[Callable[[int], Any]]:
    """Starts Prometheus on a server's port; it answers with a function that asks it."""
    processes: list[subprocess.Popen[bytes]] = []
    async with aiohttp.ClientSession() as session:

        def start(target: int) -> Any:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            (tmp_path / "prometheus.yml").write_text(
                "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
                f"rule_files: [{json.dumps(str(FOLDER / 'alerts.yml'))}]\n"
                "scrape_configs:\n"
                "  - job_name: guarded\n"
                "    metrics_path: /guarded/metrics\n"
                f'    static_configs: [{{targets: ["127.0.0.1:{target}"]}}]\n'
            )
            command = [
                tool("prometheus"),
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'series'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

            async def ask(query: str) -> list[Any]:
                try:
                    async with session.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}) as answer:
                        body = await answer.json() if answer.status != 503 else {}  # it reads what it has yet
                except aiohttp.ClientConnectionError:  # it is not up yet
                    return []
                assert body.get("status") in ("success", None), (query, body)
                return list(body["data"]["result"]) if "data" in body else []

            return ask

        yield start
    for process in processes:
        process.kill()
        process.wait()


async def test_a_real_prometheus_answers_every_query_of_the_dashboard(sandbox: Callable[..., Any], prometheus: Any):
    tool("prometheus")
    host = sandbox()
    async with connected(host) as client:
        ask = prometheus(host.port)
        running = await client.admitted(sleep(3600))
        await client.running(running)
        await client.submit({"1": {"class_type": "NoSuchNode", "inputs": {}}})
        await client.polled(lambda: ask('up{job="guarded"} == 1'), bool)
        await client.cancel(running)
        for prompt in (picture(), raises("value_error"), picture()):
            await client.run(prompt)
        for raw in QUERIES:
            query = raw.replace("$__rate_interval", "1m").replace("$instance", ".*")
            if IDLE.search(query):
                await ask(query)  # it is well formed
            else:
                assert await client.polled(lambda query=query: ask(query), bool), query
        assert await ask("ALERTS{alertstate='firing'}") == []
