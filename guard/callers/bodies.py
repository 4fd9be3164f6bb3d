"""Jobs in the shapes in which ComfyUI shows its prompts, as types."""

# Without `from __future__ import annotations`: compiling each annotation from its text would make a start slower.
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import NotRequired, TypeAliasType, TypedDict

from ..job import JobBody

#: What `/queue` and `/history` show of a prompt.
QueueRow = TypeAliasType(
    "QueueRow",
    Annotated[
        list[Any],
        Field(
            min_length=5,
            max_length=5,
            description="`[number, prompt_id, prompt, extra_data, outputs_to_execute]`, as ComfyUI has it.",
        ),
    ],
)


class QueueBody(TypedDict):
    """ComfyUI's `/queue`."""

    queue_running: list[QueueRow]
    queue_pending: list[QueueRow]


class HistoryStatus(TypedDict):
    """How a prompt ended. `messages` are pairs: ComfyUI's event and its data."""

    status_str: Literal["success", "error"]
    completed: bool
    messages: list[list[Any]]


class HistoryNode(TypedDict):
    """Where the outputs of a node belong."""

    node_id: str
    display_node: str
    parent_node: str | None
    real_node_id: str


class HistoryEntry(TypedDict):
    """A settled job as an entry of ComfyUI's `/history`, with `guard`, the job itself.

    `prompt_gone`: its prompt is no longer kept, and shown as an empty graph.
    """

    prompt: QueueRow
    outputs: dict[str, Any]
    status: HistoryStatus
    meta: dict[str, HistoryNode]
    guard: JobBody
    prompt_gone: NotRequired[Literal[True]]


class ExecutionError(TypedDict):
    """ComfyUI's `execution_error`; without a node, both are empty."""

    prompt_id: str
    timestamp: int | None
    node_id: str
    node_type: str
    executed: list[str]
    exception_message: str
    exception_type: str
    traceback: list[str]
    current_inputs: dict[str, Any]
    current_outputs: list[Any]


Status = Literal["pending", "in_progress", "completed", "failed", "cancelled"]


class ListedJob(TypedDict):
    """A job as ComfyUI's `/api/jobs` lists it; what has not happened is left out. Times are milliseconds."""

    id: str
    status: Status
    priority: int
    create_time: int
    execution_start_time: NotRequired[int]
    execution_end_time: NotRequired[int]
    execution_error: NotRequired[ExecutionError]
    outputs_count: int
    previewable_outputs_count: int
    preview_output: NotRequired[dict[str, Any]]
    workflow_id: NotRequired[str]


class SentWorkflow(TypedDict):
    """The prompt as it was sent."""

    prompt: dict[str, Any]
    extra_data: dict[str, Any]


class ListedJobInFull(ListedJob):
    """A job as ComfyUI's `/api/jobs/{id}` answers it; once it has settled, with its outputs and its workflow.

    `prompt_gone`: its prompt is no longer kept, and shown as an empty graph.
    """

    outputs: NotRequired[dict[str, Any]]
    execution_status: NotRequired[HistoryStatus]
    workflow: NotRequired[SentWorkflow]
    prompt_gone: NotRequired[Literal[True]]
