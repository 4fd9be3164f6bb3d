"""The `progress_state` event: one picture of all nodes of a prompt that have started."""

from enum import Enum
from typing import Any

from comfy_api.feature_flags import supports_feature
from comfy_execution.graph import DynamicPrompt
from protocol import BinaryEventTypes


class NodeState(Enum):
    Pending = "pending"
    Running = "running"
    Finished = "finished"
    Error = "error"


class ProgressHandler:
    """Hear of every change; all methods are optional."""

    enabled = True

    def __init__(self, name: str) -> None:
        self.name = name

    def set_registry(self, registry: "ProgressRegistry") -> None: ...
    def start_handler(self, node_id: str, state: dict, prompt_id: str) -> None: ...
    def update_handler(
        self, node_id: str, value: float, max_value: float, state: dict, prompt_id: str, image: Any = None
    ) -> None: ...
    def finish_handler(self, node_id: str, state: dict, prompt_id: str) -> None: ...
    def reset(self) -> None: ...


class WebUIProgressHandler(ProgressHandler):
    """Send the whole picture to the prompt's client, or to everybody when it has none."""

    def __init__(self, server_instance: Any) -> None:
        super().__init__("webui")
        self.server_instance = server_instance
        self.registry: ProgressRegistry | None = None

    def set_registry(self, registry: "ProgressRegistry") -> None:
        self.registry = registry

    def start_handler(self, node_id: str, state: dict, prompt_id: str) -> None:
        self._send(prompt_id)

    def update_handler(
        self, node_id: str, value: float, max_value: float, state: dict, prompt_id: str, image: Any = None
    ) -> None:
        self._send(prompt_id)
        server = self.server_instance
        if image is not None and supports_feature(
            server.sockets_metadata, server.client_id, "supports_preview_metadata"
        ):
            dynprompt = self.registry.dynprompt
            metadata = {
                "node_id": node_id,
                "prompt_id": prompt_id,
                "display_node_id": dynprompt.get_display_node_id(node_id),
                "parent_node_id": dynprompt.get_parent_node_id(node_id),
                "real_node_id": dynprompt.get_real_node_id(node_id),
            }
            event = BinaryEventTypes.PREVIEW_IMAGE_WITH_METADATA
            server.send_sync(event, (image, metadata), server.client_id)

    def finish_handler(self, node_id: str, state: dict, prompt_id: str) -> None:
        self._send(prompt_id)

    def _send(self, prompt_id: str) -> None:
        if self.registry is None:
            return
        dynprompt = self.registry.dynprompt
        picture = {
            node_id: {
                "value": entry["value"],
                "max": entry["max"],
                "state": entry["state"].value,
                "node_id": node_id,
                "prompt_id": prompt_id,
                "display_node_id": dynprompt.get_display_node_id(node_id),
                "parent_node_id": dynprompt.get_parent_node_id(node_id),
                "real_node_id": dynprompt.get_real_node_id(node_id),
            }
            for node_id, entry in self.registry.nodes.items()
            if entry["state"] is not NodeState.Pending
        }
        server = self.server_instance
        server.send_sync("progress_state", {"prompt_id": prompt_id, "nodes": picture}, server.client_id)


class ProgressRegistry:
    """The nodes of the prompt that runs now, and who wants to hear of them."""

    def __init__(self, prompt_id: str, dynprompt: DynamicPrompt) -> None:
        self.prompt_id = prompt_id
        self.dynprompt = dynprompt
        self.nodes: dict[str, dict[str, Any]] = {}
        self.handlers: dict[str, ProgressHandler] = {}

    def register_handler(self, handler: ProgressHandler) -> None:
        self.handlers[handler.name] = handler

    def ensure_entry(self, node_id: str) -> dict[str, Any]:
        return self.nodes.setdefault(node_id, {"state": NodeState.Pending, "value": 0, "max": 1})

    def start_progress(self, node_id: str) -> None:
        entry = self.ensure_entry(node_id)
        entry.update(state=NodeState.Running, value=0.0, max=1.0)
        for handler in self._listeners():
            handler.start_handler(node_id, entry, self.prompt_id)

    def update_progress(self, node_id: str, value: float, max_value: float, image: Any = None) -> None:
        entry = self.ensure_entry(node_id)
        entry.update(state=NodeState.Running, value=value, max=max_value)
        for handler in self._listeners():
            handler.update_handler(node_id, value, max_value, entry, self.prompt_id, image)

    def finish_progress(self, node_id: str) -> None:
        entry = self.ensure_entry(node_id)
        entry.update(state=NodeState.Finished, value=entry["max"])
        for handler in self._listeners():
            handler.finish_handler(node_id, entry, self.prompt_id)

    def reset_handlers(self) -> None:
        for handler in self.handlers.values():
            handler.reset()

    def _listeners(self) -> list[ProgressHandler]:
        return [handler for handler in self.handlers.values() if handler.enabled]


global_progress_registry = ProgressRegistry("", DynamicPrompt({}))


def get_progress_state() -> ProgressRegistry:
    return global_progress_registry


def reset_progress_state(prompt_id: str, dynprompt: DynamicPrompt) -> None:
    global global_progress_registry
    global_progress_registry.reset_handlers()
    global_progress_registry = ProgressRegistry(prompt_id, dynprompt)


def add_progress_handler(handler: ProgressHandler) -> None:
    registry = get_progress_state()
    handler.set_registry(registry)
    registry.register_handler(handler)
