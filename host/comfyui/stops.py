"""The prompts that somebody has stopped, until the worker lets go of them."""

from __future__ import annotations

import comfy.model_management


class JobStopped(BaseException):
    """Ends a job that swallowed its stop or never checks for one. No node's `except Exception` catches it."""


class Stops:
    """Any thread: each method does one operation of a set, or two whose order does not matter."""

    def __init__(self) -> None:
        self._asked: set[str] = set()
        #: Those of them that a check has raised once already.
        self._raised: set[str] = set()

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self._asked

    def __bool__(self) -> bool:
        return bool(self._asked)

    def ask(self, prompt_id: str) -> None:
        """Stop the prompt at its next check."""
        self._asked.add(prompt_id)

    def forget(self, prompt_id: str) -> None:
        """The worker has let go of the prompt."""
        self._asked.discard(prompt_id)
        self._raised.discard(prompt_id)

    def check(self, prompt_id: str | None) -> None:
        """Raise ComfyUI's InterruptProcessingException, and JobStopped from the second time on, if it was stopped.

        The thread that runs the prompt.
        """
        if prompt_id is None or prompt_id not in self._asked:
            return
        if prompt_id in self._raised:
            raise JobStopped()  # a node has swallowed the first one
        self._raised.add(prompt_id)
        raise comfy.model_management.InterruptProcessingException()
