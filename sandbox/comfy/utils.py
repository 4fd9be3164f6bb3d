"""The progress bar that nodes drive."""

import time
from collections.abc import Callable
from typing import Any

PROGRESS_BAR_HOOK: Callable[..., None] | None = None
PROGRESS_BAR_ENABLED = True

# Between the first and the last step, the host reports only what is new enough and far enough.
MIN_INTERVAL_S = 0.1
MIN_STEP_PERCENT = 0.5


def set_progress_bar_global_hook(function: Callable[..., None] | None) -> None:
    """Install `function(value, total, preview, prompt_id=None, node_id=None)` for bars made from now on."""
    global PROGRESS_BAR_HOOK
    PROGRESS_BAR_HOOK = function


class ProgressBar:
    def __init__(self, total: float, node_id: str | None = None) -> None:
        self.total = total
        self.current: float = 0
        self.node_id = node_id
        self.hook = PROGRESS_BAR_HOOK
        self._reported_at_s = 0.0
        self._reported: float | None = None

    def update(self, value: float) -> None:
        self.update_absolute(self.current + value)

    def update_absolute(self, value: float, total: float | None = None, preview: Any = None) -> None:
        if total is not None:
            self.total = total
        self.current = min(value, self.total)
        now_s = time.perf_counter()
        if self.hook is None or not (preview is not None or self._is_due(now_s)):
            return
        self.hook(self.current, self.total, preview, node_id=self.node_id)
        self._reported_at_s = now_s
        self._reported = self.current

    def _is_due(self, now_s: float) -> bool:
        if self._reported is None or self.current >= self.total:
            return True
        step_percent = 100 * (self.current - self._reported) / self.total
        return now_s - self._reported_at_s >= MIN_INTERVAL_S and step_percent >= MIN_STEP_PERCENT
