"""Put functions of ours in front of ComfyUI's.

Every wrapper passes on all arguments that it does not know: one with fixed arguments once killed every worker when
ComfyUI added a keyword (ComfyUI #10514).
"""

from __future__ import annotations

import os
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


def is_of_host(function: Any) -> bool:
    """Whether the code of a function is ComfyUI's own or ours, and not a pack's that has put one in its place."""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    path = os.path.abspath(code.co_filename)
    if os.path.dirname(path) == os.path.dirname(os.path.abspath(__file__)):
        return not hasattr(function, "__wrapped__") or is_of_host(function.__wrapped__)
    program = os.path.dirname(os.path.abspath(sys.modules["server"].__file__ or ""))
    return os.path.relpath(path, program).partition(os.sep)[0] not in (os.pardir, "custom_nodes")
