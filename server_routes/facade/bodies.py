"""Bodies as ComfyUI's clients send them: JSON, whatever their content type says."""

from __future__ import annotations
