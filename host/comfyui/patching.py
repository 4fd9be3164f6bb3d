"""Put functions of ours in front of ComfyUI's.

Every wrapper passes on all arguments that it does not know: one with fixed arguments once killed every worker when
ComfyUI added a keyword (ComfyUI #10514).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

#: A function or bound method of ComfyUI, whose signature changes from version to version.
Native = Callable[..., Any]


def wrap_method(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace an attribute of one instance; `wrapper` gets the native method, then the arguments of the call."""
    native: Native = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: wrapper(native, *args, **kwargs))


def replace_function(native: Native, replacement: Callable[..., Any]) -> None:
    """Replace a function in every module that has it under its name: most callers have imported the name."""
    name = native.__name__
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is native:
            setattr(module, name, replacement)
