"""What the audit hook costs: the events of a start, of small jobs and of a KSampler's, times what each costs.

Counts are exact, whatever else the machine does. Judge by the share of the process's processor time: over 1 % of a
job's, the hook should only alarm, or go.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import _common
from _common import HostProcess

from comfyui_guarded.guard.access.keys import Key, create
from comfyui_guarded.tests.hosts.launch import ROOT

#: Counts the events of the process, and times the guard's hook on what most of them are.
COUNTER = """
import gc, os, sys, time
from aiohttp import web
import folder_paths
import server

NODE_CLASS_MAPPINGS = {}
COUNTS = {"all": 0, "heard": 0}
HEARD = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir",
         "os.truncate", "os.chmod"}


def count(event, args):
    COUNTS["all"] += 1
    COUNTS["heard"] += event in HEARD


sys.addaudithook(count)


def each(hear, *args):
    began = time.thread_time()
    for _ in range(20_000):
        hear(*args)
    return (time.thread_time() - began) / 20_000


#: What an event of Python's takes without the guard's hook, which comes with the first job of a key.
BARE_S = each(id, COUNTS)


@server.PromptServer.instance.routes.get("/tripwire")
async def tripwire(_request):
    gc.unfreeze()  # the guard has frozen what a start makes
    trip = next(one for one in gc.get_objects() if type(one).__name__ == "Tripwire")
    path = os.path.join(folder_paths.get_input_directory(), "x.png")
    module = sys.modules[type(trip).__module__]
    run = module.Run("job", "client", (0, "job", {}, {}, []), "guarded-uploads/nobody")
    return web.json_response({
        **COUNTS,
        "cpu_s": time.process_time(),
        "other_s": max(each(id, COUNTS) - BARE_S, 0.0),
        "unowned_s": each(trip._hear, "open", (path, "r", 0)),
        "owned_s": each(trip._may_touch, run, "open", path, False),
    })
"""


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def save(source: str) -> dict[str, Any]:
    return node("SaveImage", images=[source, 0], filename_prefix="job")


SMALL = {"1": node("FaultSleep", seconds=0.0, checks_interrupt=False, steps=0, seed=1), "2": save("1")}
SAMPLER = {
    "1": node("CheckpointLoaderSimple", ckpt_name="tiny.safetensors"),
    "2": node("CLIPTextEncode", clip=["1", 1], text="a cat"),
    "3": node("EmptyLatentImage", width=256, height=256, batch_size=1),
    "4": node("KSampler", model=["1", 0], positive=["2", 0], negative=["2", 0], latent_image=["3", 0], seed=1, steps=8,
              cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0),
    "5": node("VAEDecode", samples=["4", 0], vae=["1", 2]),
    "6": save("5"),
}  # fmt: skip


def main() -> None:
    parser = _common.make_parser(__doc__, rounds=1)
    parser.add_argument("--jobs", type=int, default=200, help="small jobs; a tenth as many of the KSampler's")
    options = parser.parse_args()
    kind = _common.find_host_kind(options.host)
    with _common.make_base_directory() as base:
        _common.print_headline(kind, options)
        host = HostProcess(kind, base, environment={**_common.NO_LIMITS, "GUARDED_RESULTS__REFUSE_BLANK": "false"})
        pack = base / "custom_nodes" / "aa_counter"
        pack.mkdir()
        (pack / "__init__.py").write_text(COUNTER)
        for more in sorted((Path.home() / "comfy" / "packs").glob("*")) if kind.real else ():
            (base / "custom_nodes" / more.name).symlink_to(more, target_is_directory=True)
        if kind.real:
            (base / "models" / "checkpoints").mkdir(parents=True, exist_ok=True)
            subprocess.run(
                [kind.python, str(ROOT / "tests" / "workflows" / "tiny_checkpoint.py"),
                 str(base / "models" / "checkpoints" / "tiny.safetensors")],
                cwd=kind.main.parent, check=True, capture_output=True,
            )  # fmt: skip
        wanted = Key(key_id="", name="alice", scope="submit", sha256="", created_at_ms=0, webhook_secret="")
        key = create(base / "user" / "__guarded", wanted, same_owner=True)[1]
        with host:
            _measure(host, key, options.jobs)


def _ask(host: HostProcess, path: str, key: str = "", body: Any = None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(host.url + path, data, headers)) as answer:
        return dict(json.load(answer))


def _measure(host: HostProcess, key: str, jobs: int) -> None:
    first = _ask(host, "/tripwire")
    print(f"  before the first job of a key, each event: {first['other_s'] * 1e9:.0f} ns")
    # Since the counter loaded, so without the imports of ComfyUI itself.
    _show("start, with packs", {"all": 0, "heard": 0, "cpu_s": 0.0}, first, owned=False)
    last = first
    graphs = [("small jobs", SMALL, jobs)]
    if host.kind.real:
        graphs.append(("jobs of a KSampler, 8 steps", SAMPLER, max(jobs // 10, 1)))
    for name, graph, count in graphs:
        before = {}
        for seed in range(count + 1):
            for one in graph.values():
                if "seed" in one["inputs"]:
                    one["inputs"]["seed"] = seed
            answer = _ask(host, "/guarded/prompt?wait=120", key, {"prompt": graph})
            assert answer["guard"]["job"]["state"] == "succeeded", answer
            before = before or _ask(host, "/tripwire")  # the first one loads the model
        last = _ask(host, "/tripwire")
        _show(f"{count} {name}", before, last, owned=True)
    print(f"  an event that is none of its business: {last['other_s'] * 1e9:.0f} ns")
    print(f"  a file opened by others: {last['unowned_s'] * 1e6:.2f} us")
    print(f"  a file opened by a job of a key: {last['owned_s'] * 1e6:.1f} us")


def _show(name: str, before: dict[str, Any], after: dict[str, Any], *, owned: bool) -> None:
    events, heard = after["all"] - before["all"], after["heard"] - before["heard"]
    # The route itself calls the hook, which is no event; what it burns is taken off.
    burnt_s = 20_000 * (after["other_s"] + after["unowned_s"] + after["owned_s"]) if before["cpu_s"] else 0.0
    cpu_s = after["cpu_s"] - before["cpu_s"] - burnt_s
    cost_s = (events - heard) * after["other_s"] + heard * after["unowned_s"]
    most_s = cost_s + (heard * after["owned_s"] if owned else 0.0)
    print(f"  {name}: {events} events, {heard} heard, {cpu_s:.2f} s of processor time: ", end="")
    print(f"{100 * most_s / cpu_s:.2f} % at most")


if __name__ == "__main__":
    main()
