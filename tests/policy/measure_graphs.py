"""Run by a real ComfyUI's Python (test_search.py starts it): run small graphs, and measure what reaches one node.

python measure_graphs.py COMFYUI BASE [PACK ...]

The first line of the answer is what `/object_info` would say. After it comes, for each line `{"graph": …, "link": […]}`
of the input, one with what came along that link: `{"sizes": [[what, width, height, how many], …]}`, or `{"error"}`.
With `"seconds"` in the line, the graph may take so many and has less memory, and the answer has `nodes`: what each has
made, also of a graph that fails. There is no server and no queue: ComfyUI's own executor runs the graph.
"""

import asyncio
import gc
import json
import logging
import os
import resource
import select
import signal
import sys
import time

COMFYUI, BASE, *PACKS = sys.argv[1:]
#: What asks for more is ended, and the search goes on.
MEMORY, SECONDS = 10 * 2**30, 5
#: What texts and lists may take beside what the host has at rest.
MORE_MEMORY = 2**30

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what nodes print
sys.argv = ["main.py", "--cpu", "--base-directory", BASE, "--disable-metadata"]
sys.path.insert(0, COMFYUI)
os.chdir(COMFYUI)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import execution  # noqa: E402
import nodes  # noqa: E402
import server  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
logging.disable(logging.CRITICAL)
resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


class Any(str):
    def __ne__(self, other):
        return False


class Measure:
    """Notes the sizes of all that comes in."""

    CATEGORY = "tests"
    INPUT_IS_LIST = True
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    FUNCTION = "measure"
    seen = None

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"of": (Any("*"),)}}

    def measure(self, of):
        Measure.seen = [size for one in of for size in list_sizes(one)]
        return {}


class Vae:
    """Makes latents as small as a model's for films does, of nothing."""

    latent_channels = 16
    latent_dim = 3

    def encode(self, pixels, *_more):
        frames, rows, columns = pixels.shape[0], pixels.shape[1] // 8, pixels.shape[2] // 8
        return torch.zeros(1, 16, (frames - 1) // 4 + 1, rows, columns)

    def spacial_compression_encode(self):
        return 8

    def temporal_compression_decode(self):
        return 4


class FlatVae(Vae):
    latent_channels = 4
    latent_dim = 2

    def encode(self, pixels, *_more):
        return torch.zeros(pixels.shape[0], 4, pixels.shape[1] // 8, pixels.shape[2] // 8)


def stand_in(kind, make):
    """A node class that gives one thing that would take a model."""

    class StandIn:
        CATEGORY = "tests"
        RETURN_TYPES = (kind,)
        FUNCTION = "make"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        def make(self):
            return (make(),)

    return StandIn


def list_sizes(one):
    if isinstance(one, (bool, int, float)):
        return [["number", float(one), 0, 0]]
    if hasattr(one, "get_components"):
        one = one.get_components().images
    if isinstance(one, dict) and "samples" in one:
        samples = one["samples"]
        if not torch.is_tensor(samples) or samples.ndim not in (4, 5):
            return []
        # Some models work on pixels themselves; FLUX.2's and HunyuanImage's latents are told by their channels.
        usual = {3: 1, 64: 32, 128: 16}.get(samples.shape[1], 8)
        scale = 1 if samples.shape[1] == 3 else one.get("downscale_ratio_spacial") or usual
        moments = samples.shape[2] if samples.ndim == 5 else 1
        return [["latent", samples.shape[-1] * scale, samples.shape[-2] * scale, samples.shape[0] * moments]]
    if torch.is_tensor(one) and one.ndim in (3, 4):
        return [["pictures", one.shape[2], one.shape[1], one.shape[0]]]
    return []


def count_texts(value, depth=0):
    """Characters of the texts in what a node gives."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict) and depth < 60 and "pooled_output" not in value:  # which is a condition's
        return sum(count_texts(key, depth + 1) + count_texts(each, depth + 1) for key, each in value.items())
    if isinstance(value, (list, tuple)) and depth < 60:
        return sum(count_texts(each, depth + 1) for each in value)
    return 0


def count_parts(value):
    """What a list within an item holds."""
    return len(value) if isinstance(value, (list, tuple, dict)) else 1


made = {}
get_output_data = execution.get_output_data


async def note_made(prompt_id, unique_id, *more, **named):
    before = time.process_time()
    made[unique_id] = {"seconds": 0, "chars": 0, "items": 0, "parts": 0}
    try:
        found = await get_output_data(prompt_id, unique_id, *more, **named)
    finally:
        made[unique_id]["seconds"] = time.process_time() - before
    outputs = found[0]
    made[unique_id] |= {
        "chars": max((sum(map(count_texts, items)) for items in outputs), default=0),
        "items": max(map(len, outputs), default=0),
        "parts": max((sum(map(count_parts, items)) for items in outputs), default=0),
    }
    return found


execution.get_output_data = note_made


class Server:
    """What the executor asks of a server."""

    client_id = last_node_id = last_prompt_id = None

    def send_sync(self, *_message):
        pass


def describe(name):
    node_class = nodes.NODE_CLASS_MAPPINGS[name]
    if hasattr(node_class, "GET_NODE_INFO_V1"):
        info = node_class.GET_NODE_INFO_V1()
    else:
        kinds = node_class.RETURN_TYPES
        info = {
            "input": node_class.INPUT_TYPES(),
            "output": kinds,
            "output_name": getattr(node_class, "RETURN_NAMES", None) or kinds,
            "is_input_list": bool(getattr(node_class, "INPUT_IS_LIST", False)),
            "output_is_list": list(getattr(node_class, "OUTPUT_IS_LIST", None) or [False] * len(kinds)),
            "output_node": bool(getattr(node_class, "OUTPUT_NODE", False)),
            "python_module": getattr(node_class, "RELATIVE_PYTHON_MODULE", "nodes"),
        }
    sections = [info["input"].get(section) or {} for section in ("required", "optional", "hidden")]
    info["takes_more"] = getattr(node_class, "ACCEPT_ALL_INPUTS", False) or any("no such" in each for each in sections)
    return json.loads(json.dumps(info, default=str))


async def run(graph, link):
    graph = {**graph, "measure": {"class_type": "TestMeasure", "inputs": {"of": link}}}
    Measure.seen = None
    valid, error, outputs, node_errors = await execution.validate_prompt("p", graph, None)
    if not valid or node_errors:
        return {"error": "invalid", "details": json.dumps([error, node_errors], default=str)[:2000]}
    executor = execution.PromptExecutor(
        Server(), cache_type=execution.CacheType.NONE, cache_args={"lru": 0, "ram": 0, "ram_inactive": 0}
    )
    await executor.execute_async(graph, "p", {}, outputs)
    if not executor.success or Measure.seen is None:
        (*_, last) = executor.status_messages
        return {"error": "failed", "details": str(last)[:2000]}
    return {"sizes": Measure.seen}


def tell(text):
    answers.write(text.strip() + "\n")
    answers.flush()


def limit(more):
    """Lets the process take so much more than it has, or as much as any graph may."""
    with open("/proc/self/statm") as pages:
        taken = int(pages.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (min(taken + more, MEMORY) if more else MEMORY, MEMORY))


def measure(line):
    asked = json.loads(line)
    made.clear()
    try:
        limit(MORE_MEMORY if "seconds" in asked else 0)
        found = asyncio.run(run(asked["graph"], asked["link"]))
    except BaseException as error:
        found = {"error": "raised", "details": f"{type(error).__name__}: {error}"[:2000]}
    return {**found, "nodes": made} if "seconds" in asked else found


class Runner:
    """A process that runs one graph after the other, and can be ended whatever one does."""

    def __init__(self):
        asks, self.asks = os.pipe()
        self.answers, answers = os.pipe()
        self.child = os.fork()
        if not self.child:
            with os.fdopen(asks) as lines, os.fdopen(answers, "w") as told:
                for line in lines:
                    told.write(json.dumps(measure(line)) + "\n")
                    told.flush()
            os._exit(0)
        os.close(asks)
        os.close(answers)
        self.lines = os.fdopen(self.answers)

    def ask(self, line):
        """Empty where it took too long, or has died of it."""
        os.write(self.asks, line.encode())
        ready, _, _ = select.select([self.lines], [], [], json.loads(line).get("seconds", SECONDS))
        return self.lines.readline() if ready else ""

    def end(self):
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        os.close(self.asks)
        self.lines.close()


async def prepare():
    server.PromptServer(asyncio.get_running_loop()).send_progress_text = lambda *_text, **_more: None
    await nodes.init_builtin_extra_nodes()
    for pack in PACKS:
        await nodes.load_custom_node(pack, module_parent="custom_nodes")
    nodes.NODE_CLASS_MAPPINGS |= {
        "TestMeasure": Measure,
        "TestVae": stand_in("VAE", Vae),
        "TestFlatVae": stand_in("VAE", FlatVae),
        "TestConditioning": stand_in("CONDITIONING", lambda: [[torch.zeros(1, 77, 64), {"pooled_output": None}]]),
    }


asyncio.run(prepare())
known = {}
for name in nodes.NODE_CLASS_MAPPINGS:
    try:
        known[name] = describe(name)
    except Exception as error:
        sys.stderr.write(f"{name}: {error}\n")
tell(json.dumps(known))
gc.freeze()
runner = Runner()
for line in sys.stdin:
    found = runner.ask(line)
    if not found:
        runner.end()
        runner = Runner()
    tell(found or '{"error": "too much"}')
runner.end()
