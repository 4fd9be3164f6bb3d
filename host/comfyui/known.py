"""Prompts that differ from one that ComfyUI's handler has accepted in nothing that the handler looks at closely.

Of a number, a text or a switch ComfyUI checks the kind and the bounds, and of most prompts only those change from one
to the next: the words, the seed. So its answer to a prompt is that to every prompt of the same form. A form is the
prompt with each such value left out that has the kind and keeps the bounds; what is not declared to be one stands in it
as it is. A choice is looked for in the list that its class offers now, since an operator may delete a model.

The handler itself says when a form is worth knowing: where it would have been given the very item that is made here. A
node that checks its inputs by code of its own may look at anything, so its prompts have no form.
"""

from __future__ import annotations

import enum
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import execution
import nodes

from ...guard.graph import is_link
from ...guard.life.secrets import SECRET_NAMES
from .kept import KEPT_S, checks_itself
from .patching import is_of_host
from .report import QueueItem

#: So many forms are known, the newest; and none with more characters, or of a prompt that has more in all: to learn it
#: would take the event loop longer than it saves.
_FORMS = 256
_CHARACTERS, _CHARACTERS_IN_ALL = 2**14, 2**16
#: What a part of a form takes beside its characters.
_PART = 8
#: So many node classes are.
_CLASSES = 1000
#: A larger whole number may change as a float.
_EXACT = 2**53

#: The fields of a body whose meaning is known here.
_FIELDS = frozenset({"prompt", "prompt_id", "client_id", "extra_data"})
_KINDS: Mapping[str, tuple[type, ...]] = {"INT": (int,), "FLOAT": (float, int), "STRING": (str,), "BOOLEAN": (bool,)}

Key = tuple[Any, ...]


class _NoForm(Exception):
    """The prompt has none, or nobody knows it."""


class _Free(NamedTuple):
    """An input of which ComfyUI checks the kind and the bounds alone."""

    kinds: tuple[type, ...]
    least: float | None
    most: float | None


class _Class(NamedTuple):
    """A node class, as it declared itself a while ago."""

    node_class: Any
    due_s: float
    #: Whether its nodes have a form.
    has_form: bool
    free: Mapping[str, _Free]
    #: The inputs that offer a choice.
    choices: frozenset[str]


class Form:
    """What of one prompt ComfyUI's handler looks at.

    Attributes:
        whole: the free inputs, by node and name, that may be floats and have a whole number: ComfyUI makes it a float.
        extra: the body's own `extra_data`, as it came.
        before: the prompt as it came, once it is to be learned from.
    """

    def __init__(self, key: Key, whole: list[tuple[str, str]], extra: dict[str, Any]) -> None:
        self.key = key
        self.whole = whole
        self.extra = extra
        self.before = ""


class _Answer(NamedTuple):
    """What the handler has made of a prompt of that form.

    Attributes:
        judges: the functions that have judged it.
        becomes: of each of :attr:`Form.whole`, whether it has become a float.
        length, has_time: of the queue item, and whether it says when it was made.
    """

    due_s: float
    judges: tuple[Any, ...]
    outputs: tuple[str, ...]
    becomes: tuple[bool, ...]
    length: int
    has_time: bool


class Known:
    """The forms that the handler has accepted lately. Event loop."""

    def __init__(self, prompt_server: Any) -> None:
        """`prompt_server` is ComfyUI's own, untyped object."""
        self._server = prompt_server
        self._answers: dict[Key, _Answer] = {}
        self._classes: dict[str, _Class] = {}

    def find_form(self, body: Any) -> Form | None:
        """The form of a body for ComfyUI's handler; None where it has none, or holds a class that is not known yet.

        Nothing that a node class raises comes out.
        """
        try:
            return self._find_form(body)
        except KeyboardInterrupt:
            raise
        except BaseException:  # the handler meets it again, and has an answer
            return None

    def make(self, form: Form, body: dict[str, Any]) -> QueueItem | None:
        """The item that the handler would make of the body; None where it has to be asked."""
        answer = self._answers.get(form.key)
        if answer is None or answer.due_s <= time.monotonic() or answer.judges != _find_judges():
            form.before = json.dumps(body["prompt"])
            return None
        prompt = body["prompt"]
        for (node_id, name), becomes in zip(form.whole, answer.becomes, strict=True):
            if becomes:
                prompt[node_id]["inputs"][name] = float(prompt[node_id]["inputs"][name])
        extra = body.get("extra_data", {})
        if "client_id" in body:
            extra["client_id"] = body["client_id"]
        if answer.has_time:
            extra["create_time"] = int(time.time() * 1000)
        number = self._server.number
        self._server.number += 1
        item = (number, body["prompt_id"], prompt, extra, list(answer.outputs))
        return item if answer.length == len(item) else (*item, {})

    def learn(self, form: Form | None, body: dict[str, Any], item: QueueItem) -> None:
        """The handler has made that item of the body."""
        try:
            if form is None:
                self._learn_classes(body["prompt"])
            elif form.before:
                self._learn_answer(form, body, item)
        except KeyboardInterrupt:
            raise
        except BaseException:  # out of a node class that is asked for its inputs
            return

    def _find_form(self, body: Any) -> Form | None:
        extra = body.get("extra_data", {})
        if not _FIELDS.issuperset(body) or any(name in extra for name in SECRET_NAMES):
            return None
        now_s = time.monotonic()
        mappings = nodes.NODE_CLASS_MAPPINGS
        parts: list[Any] = []
        whole: list[tuple[str, str]] = []
        length = left_out = 0
        for node_id, node in body["prompt"].items():
            name = node["class_type"]
            known = self._classes.get(name)
            if known is None or known.due_s <= now_s or known.node_class is not mappings.get(name):
                self._classes.pop(name, None)
                return None
            if not known.has_form:
                return None
            inputs, free = node["inputs"], known.free
            parts += node_id, name, len(inputs)
            length += len(node_id) + len(name) + _PART
            if known.choices:
                _check_choices(known, inputs)
            for each, value in inputs.items():
                kind = type(value)
                length += len(each) + _PART
                declared = free.get(each)
                if declared is not None and kind in declared.kinds and _keeps(declared, value):
                    parts += each, kind
                    if kind is str:
                        left_out += len(value)
                    if kind is int and declared.kinds[0] is float:
                        whole.append((node_id, each))
                elif kind is str:
                    parts += each, value
                    length += len(value)
                elif kind is list and len(value) == 2 and type(value[0]) is str and type(value[1]) is int:
                    parts += each, (value[0], value[1])
                elif value is None or kind in (int, float, bool):
                    parts += each, (repr(value),)  # 1, 1.0 and True are not the same
                else:
                    return None
            if length > _CHARACTERS or length + left_out > _CHARACTERS_IN_ALL:
                return None
        return Form(tuple(parts), whole, dict(extra))

    def _learn_classes(self, prompt: Mapping[str, Any]) -> None:
        for node in prompt.values():
            name = node["class_type"]
            if name in self._classes:
                continue
            node_class = nodes.NODE_CLASS_MAPPINGS[name]
            if len(self._classes) >= _CLASSES:
                self._classes.clear()
            self._classes[name] = _read_class(node_class)

    def _learn_answer(self, form: Form, body: dict[str, Any], item: QueueItem) -> None:
        prompt, before = body["prompt"], json.loads(form.before)
        becomes = tuple(type(prompt[node_id]["inputs"][name]) is float for node_id, name in form.whole)
        for (node_id, name), is_float in zip(form.whole, becomes, strict=True):
            if is_float:
                before[node_id]["inputs"][name] = float(before[node_id]["inputs"][name])
        extra = dict(item[3])
        has_time = "create_time" not in form.extra and extra.pop("create_time", None) is not None
        expected = {**form.extra, **({"client_id": body["client_id"]} if "client_id" in body else {})}
        is_as_made_here = (
            all(map(is_of_host, _find_judges()))
            and item[1] == body["prompt_id"]
            and item[2] is prompt
            and json.dumps(prompt) == json.dumps(before)
            and extra == expected
            and all(type(output) is str for output in item[4])
            and (len(item) == 5 or (len(item) == 6 and item[5] == {}))
        )
        if is_as_made_here:
            while len(self._answers) >= _FORMS:
                del self._answers[next(iter(self._answers))]
            due_s = time.monotonic() + KEPT_S
            judges = _find_judges()
            self._answers[form.key] = _Answer(due_s, judges, tuple(item[4]), becomes, len(item), has_time)


def _find_judges() -> tuple[Any, ...]:
    """ComfyUI's functions that validate, unless a pack has put its own in their place."""
    return execution.validate_prompt, getattr(execution, "validate_inputs", execution.validate_prompt)


def _read_class(node_class: Any) -> _Class:
    due_s = time.monotonic() + KEPT_S
    none = _Class(node_class, due_s, False, {}, frozenset())
    if checks_itself(node_class):
        return none
    free: dict[str, _Free] = {}
    choices: set[str] = set()
    for name, kind, options in _list_inputs(node_class.INPUT_TYPES()):
        if isinstance(kind, (list, tuple)) or kind == "COMBO":
            choices.add(name)
        elif not _is_plain(kind) or kind.startswith("COMFY_"):
            return none  # it may be like everything; what other inputs there are may depend on it
        elif kind in _KINDS:
            least, most = options.get("min"), options.get("max")
            are_numbers = all(bound is None or type(bound) in (int, float) for bound in (least, most))
            are_bounds = ("min" in options) == (least is not None) and ("max" in options) == (most is not None)
            if are_numbers and are_bounds and (kind in ("INT", "FLOAT") or (least is None and most is None)):
                free[name] = _Free(_KINDS[kind], least, most)
    return _Class(node_class, due_s, True, free, frozenset(choices))


def _is_plain(kind: Any) -> bool:
    """Whether a type is a text that is like no other; of ComfyUI's own some are members of an enumeration."""
    return type(kind) is str or (
        isinstance(kind, str) and isinstance(kind, enum.Enum) and "__eq__" not in vars(type(kind))
    )


def _list_inputs(declared: Any) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """(name, type, options) of each input that ComfyUI validates. Raises _NoForm where that cannot be listed."""
    if type(declared) is not dict:
        raise _NoForm
    seen: set[str] = set()
    for section in ("required", "optional"):
        inputs = declared.get(section, {})
        if type(inputs) is not dict:  # some claim to have every name
            raise _NoForm
        for name, info in inputs.items():
            options = info[1] if len(info) > 1 else {}
            if not isinstance(options, dict):
                raise _NoForm
            if name not in seen:  # what is required is not optional
                seen.add(name)
                yield name, info[0], options


def _check_choices(known: _Class, inputs: Mapping[str, Any]) -> None:
    """Raises _NoForm where what is chosen is not offered now."""
    for name, kind, options in _list_inputs(known.node_class.INPUT_TYPES()):
        if name in known.choices and name in inputs and not is_link(value := inputs[name]):
            offered = kind if isinstance(kind, (list, tuple)) else options.get("options", [])
            if value not in offered:
                raise _NoForm


def _keeps(free: _Free, value: Any) -> bool:
    """Whether a value keeps the bounds, as ComfyUI compares it."""
    if free.least is not None and value < free.least:
        return False
    if free.most is not None and value > free.most:
        return False
    return type(value) is not int or free.kinds[0] is not float or -_EXACT <= value <= _EXACT
