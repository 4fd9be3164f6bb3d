"""The newer view of the queue and history: /api/jobs."""

import json
import uuid
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from server import PromptServer

STATUSES = ["pending", "in_progress", "completed", "failed", "cancelled"]
PREVIEWABLE = {"images", "video", "audio", "3d", "text"}


def canonical_uuid(value: Any) -> str:
    """The value itself, if it is a UUID in lower case with hyphens.

    Raises
    ------
    ValueError
        For anything else: another spelling would miss every later comparison.
    """
    if not isinstance(value, str) or str(uuid.UUID(value)) != value:
        raise ValueError("not a canonical UUID")
    return value


def register(server: "PromptServer") -> None:
    routes = server.routes

    @routes.get("/api/jobs")
    async def get_jobs(request: web.Request) -> web.Response:
        query = request.rel_url.query
        asked = query.get("status", "").lower().split(",")
        wanted = [part.strip() for part in asked if part.strip()] or STATUSES
        if unknown := [status for status in wanted if status not in STATUSES]:
            listed = ", ".join(STATUSES)
            return _bad(f"Invalid status value(s): {', '.join(unknown)}. Valid values: {listed}")
        sort_by = query.get("sort_by", "created_at").lower()
        if sort_by not in ("created_at", "execution_duration"):
            return _bad("sort_by must be 'created_at' or 'execution_duration'")
        sort_order = query.get("sort_order", "desc").lower()
        if sort_order not in ("asc", "desc"):
            return _bad("sort_order must be 'asc' or 'desc'")
        try:
            limit = int(query["limit"]) if "limit" in query else None
        except ValueError:
            return _bad("limit must be an integer")
        if limit is not None and limit <= 0:
            return _bad("limit must be a positive integer")
        try:
            offset = max(0, int(query.get("offset", "0")))
        except ValueError:
            return _bad("offset must be an integer")

        jobs = [job for job in _all_jobs(server) if job["status"] in wanted]
        if "workflow_id" in query:
            jobs = [job for job in jobs if job.get("workflow_id") == query["workflow_id"]]
        key = _duration_ms if sort_by == "execution_duration" else _created_ms
        jobs.sort(key=key, reverse=sort_order == "desc")
        page = jobs[offset:] if limit is None else jobs[offset : offset + limit]
        pagination = {
            "offset": offset,
            "limit": limit,
            "total": len(jobs),
            "has_more": offset + len(page) < len(jobs),
        }
        return web.json_response({"jobs": page, "pagination": pagination})

    @routes.get("/api/jobs/{job_id}")
    async def get_job(request: web.Request) -> web.Response:
        job_id = request.match_info["job_id"]
        for key, entry in server.prompt_queue.get_history(prompt_id=job_id).items():
            return web.json_response(_from_history(key, entry, in_full=True))
        for job in _waiting_jobs(server):
            if job["id"] == job_id:
                return web.json_response(job)
        return web.json_response({"error": "Job not found"}, status=404)

    @routes.post("/api/jobs/{job_id}/cancel")
    async def cancel_job(request: web.Request) -> web.Response:
        return web.json_response({"cancelled": _cancel(server, request.match_info["job_id"])})

    @routes.post("/api/jobs/cancel")
    async def cancel_jobs(request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except json.JSONDecodeError:
            return _bad("Request body must be valid JSON")
        ids = body.get("job_ids") if isinstance(body, dict) else None
        if not isinstance(ids, list):
            return _bad("job_ids must be a list")
        if invalid := [job_id for job_id in ids if not _is_uuid(job_id)]:
            shown = [job_id if isinstance(job_id, str) else repr(job_id) for job_id in invalid]
            refusal = {"error": "job_ids contains invalid id(s)", "invalid_ids": shown}
            return web.json_response(refusal, status=400)
        cancelled = [_cancel(server, job_id) for job_id in ids]
        return web.json_response({"cancelled": any(cancelled)})


def _bad(message: str) -> web.Response:
    return web.json_response({"error": message}, status=400)


def _is_uuid(value: Any) -> bool:
    try:
        return bool(canonical_uuid(value))
    except ValueError:
        return False


def _cancel(server: "PromptServer", job_id: str) -> bool:
    """Take it out of the queue, or interrupt it if it is running; False for a finished or unknown job."""
    queue = server.prompt_queue
    if queue.delete_queue_item(lambda item: item[1] == job_id):
        return True
    return queue.interrupt_if_running(job_id)


def _waiting_jobs(server: "PromptServer") -> list[dict[str, Any]]:
    running, pending = server.prompt_queue.get_current_queue_volatile()
    jobs = [_from_item(item, "in_progress") for item in running]
    return jobs + [_from_item(item, "pending") for item in pending]


def _all_jobs(server: "PromptServer") -> list[dict[str, Any]]:
    history = server.prompt_queue.get_history()
    return _waiting_jobs(server) + [_from_history(key, entry) for key, entry in history.items()]


def _created_ms(job: dict[str, Any]) -> int:
    return job.get("create_time", 0)


def _duration_ms(job: dict[str, Any]) -> int:
    start, end = job.get("execution_start_time", 0), job.get("execution_end_time", 0)
    return end - start if start and end else 0


def _known(**facts: Any) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _common(item: tuple, status: str) -> dict[str, Any]:
    number, prompt_id, _, extra_data = item[:4]
    return _known(
        id=prompt_id,
        status=status,
        priority=number,
        create_time=extra_data.get("create_time"),
        # Raises for an extra_pnginfo that is no dict; the whole list is a 500 until that entry is gone.
        workflow_id=extra_data.get("extra_pnginfo", {}).get("workflow", {}).get("id"),
    )


def _from_item(item: tuple, status: str) -> dict[str, Any]:
    return _common(item, status) | {"outputs_count": 0, "previewable_outputs_count": 0}


def _from_history(prompt_id: str, entry: dict[str, Any], in_full: bool = False) -> dict[str, Any]:
    status = entry.get("status") or {}
    events = dict(status.get("messages", []))
    ends = ("execution_success", "execution_error", "execution_interrupted")
    ended = next((events[name] for name in ends if name in events), {})
    state = "completed"
    if status.get("status_str") == "error":
        state = "cancelled" if "execution_interrupted" in events else "failed"
    items = list(_output_items(entry.get("outputs", {})))
    files = [item for item in items if "filename" in item]
    job = _common(entry["prompt"], state) | _known(
        execution_start_time=events.get("execution_start", {}).get("timestamp"),
        execution_end_time=ended.get("timestamp"),
        execution_error=events.get("execution_error"),
        outputs_count=len(files),
        previewable_outputs_count=sum(item["mediaType"] in PREVIEWABLE for item in files),
        preview_output=_preview(items),
    )
    if in_full:
        _, _, prompt, extra_data = entry["prompt"][:4]
        job["outputs"] = entry.get("outputs", {})
        job["execution_status"] = entry.get("status")
        job["workflow"] = {"prompt": prompt, "extra_data": extra_data}
    return job


def _output_items(outputs: dict[str, Any]) -> Any:
    for node_id, kinds in outputs.items():
        for kind, items in kinds.items():
            if kind == "animated" or not isinstance(items, list):
                continue
            for item in items:
                if isinstance(item, dict):
                    yield {**item, "nodeId": node_id, "mediaType": item.get("mediaType", kind)}
                elif kind == "text":
                    yield {"content": str(item), "nodeId": node_id, "mediaType": kind}


def _preview(items: list[dict[str, Any]]) -> dict[str, Any] | None:
    """A saved file before a temporary one before text."""
    shown = [item for item in items if item["mediaType"] in PREVIEWABLE]
    rank = {"output": 0, "temp": 1}
    return min(shown, key=lambda item: rank.get(item.get("type", ""), 2), default=None)
