"""Refusals and jobs in words that an agent can act on: what happened, whether it costs anything, what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .api import AWAY, Refused

#: What to do about an error, where "try again" or "do not" is not enough.
_ADVICE: Mapping[str, str] = {
    "invalid_request": "Correct the argument that the message names, and call the tool again.",
    "invalid_workflow": "The graph itself is wrong: correct the node that the message names.",
    "missing_node": "This server lacks what the job needs. Use another tool, or tell the user that its operator must "
    "install it.",
    "policy_violation": "Ask for less (size, steps, frames), or leave out what the message names.",
    "bad_image": "The picture cannot be used. Send another one.",
    "no_face": "Ask the user for another photo, with one face that is clear and large.",
    "too_many_faces": "Ask the user for a photo with fewer faces.",
    "face_too_small": "Ask the user for a photo in which the face is larger.",
    "unauthorized": "The key is missing, wrong, revoked or expired: the user must give a valid one. Do not try again.",
    "forbidden": "This key may not do that. Do not try again.",
    "conflict": "This idempotency_key was used with other arguments. Follow that job, or take a new key for a new job.",
    "not_found": "Look at list_jobs, or at the list of tools, for what there is.",
    "method_not_allowed": "This server does not know the request: it may be too old for this client.",
    "payload_too_large": "Send less: a smaller picture, a shorter text.",
    "artifact_gone": "The file is no longer there. The job itself stays as it was; make the picture anew if it is "
    "still wanted.",
    "cancelled": "It was cancelled. Do not start it again unless the user asks for it.",
    "generation_timeout": "It ran for too long. Ask for less (size, steps, frames) before you try again.",
    "out_of_memory": "It was too large for the graphics card. Ask for less (size, frames) before you try again.",
    "result_blank": "The picture came out empty. Try again with another prompt or seed.",
    AWAY: "Wait a little and call again with the same arguments and the same idempotency_key: that makes no second "
    "job.",
}
_ADVICE = {**_ADVICE, "missing_model": _ADVICE["missing_node"]}
_LATER = "Wait{wait}, then call again with the same arguments and the same idempotency_key."
_AGAIN = "It may succeed if you try again."
_NEVER = "The same call fails again: change something, or tell the user."


def advise(code: str, retryable: bool, retry_after_s: float | None = None) -> str:
    """What to do about an error."""
    if code in _ADVICE:
        return _ADVICE[code]
    if retry_after_s is not None:
        return _LATER.format(wait=f" {retry_after_s:.0f} s")
    return _AGAIN if retryable else _NEVER


def describe_refusal(refused: Refused) -> tuple[str, dict[str, Any]]:
    """A refusal in words, and as facts."""
    lines = [f"{refused.code}: {refused.message}"]
    if refused.details:
        lines.append(refused.details)
    if refused.refund:
        lines.append("No job was made, and nothing is owed for it.")
    elif refused.job_id is not None:
        lines.append(f"There is a job: {refused.job_id}. Its own end says what it costs.")
    lines.append(advise(refused.code, refused.retryable, refused.retry_after_s))
    facts = {
        "error": {
            "code": refused.code,
            "message": refused.message,
            "details": refused.details,
            "user_message": refused.user_message,
            "retryable": refused.retryable,
            "retry_after_s": refused.retry_after_s,
            "extra_info": refused.extra_info,
        },
        "refund": refused.refund,
        "job_id": refused.job_id,
    }
    return "\n".join(lines), facts


def describe_job(job: Mapping[str, Any]) -> str:
    """Where a job stands, in words."""
    name = f"Job {job['job_id']}" + (f" ({job['template']})" if job["template"] else "")
    if job["state"] == "succeeded":
        count = len(job["artifacts"])
        return f"{name} succeeded with {count} {'file' if count == 1 else 'files'}."
    if job["error"] is not None:
        error = job["error"]
        ended = "was cancelled" if job["state"] == "cancelled" else f"failed: {error['code']}: {error['message']}"
        money = "What was taken for it goes back (refund)." if job["refund"] else "It is not refunded."
        return f"{name} {ended}\n{money}\n{advise(error['code'], error['retryable'])}"
    return f"{name} {describe_state(job)}. Call follow_job with this job_id to wait for it; it goes on by itself."


def describe_state(job: Mapping[str, Any]) -> str:
    """The same for one that has not ended, in a few words."""
    if job["state"] == "queued":
        place = f", place {job['position']} in the queue" if job["position"] else ""
        wait = f", about {job['eta_s']:.0f} s until it begins" if job["eta_s"] else ""
        return f"waits{place}{wait}"
    if (progress := job["progress"]) is not None:
        return f"runs: {progress['node_title'] or progress['node_id']}, {progress['percent']} %"
    return {"dispatched": "begins", "validating": "has run; its files are checked"}.get(job["state"], "runs")


def pick_facts(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a program wants to know of a job."""
    kept = ("job_id", "state", "template", "parameters", "position", "eta_s", "progress", "error", "refund", "user")
    facts = {name: job[name] for name in (*kept, "idempotency_key", "created_at_ms", "settled_at_ms")}
    facts["artifacts"] = [
        {
            "uri": name_artifact(job["job_id"], artifact["index"]),
            **{name: artifact[name] for name in ("kind", "filename", "bytes", "width", "height", "duration_s")},
        }
        for artifact in job["artifacts"]
    ]
    return facts


def name_artifact(job_id: str, index: int) -> str:
    """The address of a result among the resources."""
    return f"guarded://jobs/{job_id}/artifacts/{index}"
