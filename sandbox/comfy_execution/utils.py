"""Which prompt and node this thread (or task) executes."""

import contextvars
from types import TracebackType
from typing import NamedTuple


class ExecutionContext(NamedTuple):
    prompt_id: str
    node_id: str
    list_index: int | None


current_executing_context: contextvars.ContextVar[ExecutionContext | None] = contextvars.ContextVar(
    "current_executing_context", default=None
)


def get_executing_context() -> ExecutionContext | None:
    """The node being executed; None between nodes and in threads that a node started."""
    return current_executing_context.get()


class CurrentNodeContext:
    def __init__(self, prompt_id: str, node_id: str, list_index: int | None = None) -> None:
        self.context = ExecutionContext(prompt_id, node_id, list_index)
        self._token: contextvars.Token[ExecutionContext | None] | None = None

    def __enter__(self) -> "CurrentNodeContext":
        self._token = current_executing_context.set(self.context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            current_executing_context.reset(self._token)
