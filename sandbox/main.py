"""Start the sandbox: folders, custom nodes, routes, the worker thread, the web server.

python sandbox/main.py --base-directory DIR [--port 8188] [--extra-custom-node PATH ...]
"""

import asyncio
import gc
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import comfy.options

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402, the command line has to be open first
import comfy.utils  # noqa: E402
import execution  # noqa: E402
import folder_paths  # noqa: E402
import nodes  # noqa: E402
import server  # noqa: E402
from comfy.cli_args import args, ignored_args, parser  # noqa: E402
from comfy_api.feature_flags import supports_feature  # noqa: E402
from comfy_execution.progress import get_progress_state  # noqa: E402
from comfy_execution.utils import get_executing_context  # noqa: E402
from protocol import BinaryEventTypes  # noqa: E402

GC_INTERVAL_S = 10.0
IDLE_WAIT_S = 1000.0


def prompt_worker(q: execution.PromptQueue, server_instance: server.PromptServer) -> None:
    """Take prompts from the queue for ever. It catches nothing: what escapes the executor ends this thread."""
    executor = execution.PromptExecutor(server_instance, _cache_type(), {"lru": args.cache_lru})
    need_gc = False
    last_gc_s = 0.0
    while True:
        timeout_s = max(0.0, GC_INTERVAL_S - (time.perf_counter() - last_gc_s)) if need_gc else IDLE_WAIT_S
        queue_item = q.get(timeout=timeout_s)
        if queue_item is not None:
            _work(q, server_instance, executor, *queue_item)
            need_gc = True

        flags = q.get_flags()
        free_memory = flags.get("free_memory", False)
        if flags.get("unload_models", free_memory):
            comfy.model_management.unload_all_models()
            need_gc, last_gc_s = True, 0.0
        if free_memory:
            executor.reset()
        if need_gc and time.perf_counter() - last_gc_s > GC_INTERVAL_S:
            gc.collect()
            comfy.model_management.soft_empty_cache()
            need_gc, last_gc_s = False, time.perf_counter()


def _work(
    q: execution.PromptQueue,
    server_instance: server.PromptServer,
    executor: execution.PromptExecutor,
    item: tuple,
    item_id: int,
) -> None:
    started_s = time.perf_counter()
    _, prompt_id, prompt, extra_data, outputs, secrets = item
    server_instance.last_prompt_id = prompt_id
    executor.execute(prompt, prompt_id, extra_data | secrets, outputs)
    status = execution.PromptQueue.ExecutionStatus(
        status_str="success" if executor.success else "error",
        completed=executor.success,
        messages=executor.status_messages,
    )
    q.task_done(item_id, executor.history_result, status=status, process_item=_without_secrets)
    client_id = server_instance.client_id
    if client_id is not None:
        server_instance.send_sync("executing", {"node": None, "prompt_id": prompt_id}, client_id)
    logging.info("Prompt executed in %.2f seconds", time.perf_counter() - started_s)


def _without_secrets(item: tuple) -> tuple:
    return item[:5] + item[6:]


def _cache_type() -> execution.CacheType:
    if args.cache_classic:
        return execution.CacheType.CLASSIC
    if args.cache_lru > 0:
        return execution.CacheType.LRU
    return execution.CacheType.NONE if args.cache_none else execution.CacheType.RAM_PRESSURE


def hijack_progress(server_instance: server.PromptServer) -> None:
    """Turn every step of a progress bar into an interrupt check, `progress_state` and `progress`."""

    def hook(
        value: float,
        total: float,
        preview_image: Any,
        prompt_id: str | None = None,
        node_id: str | None = None,
    ) -> None:
        context = get_executing_context()
        if context is not None:
            prompt_id, node_id = prompt_id or context.prompt_id, node_id or context.node_id
        comfy.model_management.throw_exception_if_processing_interrupted()
        prompt_id = prompt_id or server_instance.last_prompt_id
        node_id = node_id or server_instance.last_node_id
        get_progress_state().update_progress(node_id, value, total, preview_image)
        step = {"value": value, "max": total, "prompt_id": prompt_id, "node": node_id}
        client_id = server_instance.client_id
        server_instance.send_sync("progress", step, client_id)
        if preview_image is not None and not supports_feature(
            server_instance.sockets_metadata, client_id, "supports_preview_metadata"
        ):
            server_instance.send_sync(BinaryEventTypes.UNENCODED_PREVIEW_IMAGE, preview_image, client_id)

    comfy.utils.set_progress_bar_global_hook(hook)


def cleanup_temp() -> None:
    shutil.rmtree(folder_paths.get_temp_directory(), ignore_errors=True)


def make_folders() -> None:
    for folder in (
        folder_paths.get_input_directory(),
        folder_paths.get_output_directory(),
        folder_paths.get_user_directory(),
        *folder_paths.get_folder_paths("custom_nodes"),
    ):
        os.makedirs(folder, exist_ok=True)


def start_comfyui(
    asyncio_loop: asyncio.AbstractEventLoop | None = None,
) -> tuple[asyncio.AbstractEventLoop, server.PromptServer, Callable[[], Awaitable[None]]]:
    """Build everything in ComfyUI's order; return the loop, the server, and the coroutine function that serves."""
    cleanup_temp()
    make_folders()
    loop = asyncio_loop or asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    prompt_server = server.PromptServer(loop)
    loop.run_until_complete(nodes.init_extra_nodes())
    prompt_server.add_routes()
    hijack_progress(prompt_server)
    worker_args = (prompt_server.prompt_queue, prompt_server)
    threading.Thread(target=prompt_worker, daemon=True, args=worker_args).start()
    os.makedirs(folder_paths.get_temp_directory(), exist_ok=True)

    async def start_all() -> None:
        await prompt_server.setup()
        addresses = [(address, args.port) for address in args.listen.split(",")]
        await asyncio.gather(prompt_server.start_multi_address(addresses), prompt_server.publish_loop())

    return loop, prompt_server, start_all


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="[%(levelname)s] %(message)s", stream=sys.stderr)
    if args.base_directory is None:
        parser.error("--base-directory is needed: the sandbox keeps nothing in its own folder")
    if ignored_args:
        logging.info("ignored: %s", " ".join(ignored_args))
    event_loop, _, serve = start_comfyui()
    try:
        event_loop.run_until_complete(serve())
    except KeyboardInterrupt:
        logging.info("Stopped server")
    finally:
        cleanup_temp()
