"""Decide whether all, a part or nothing of a prompt can run."""

import inspect
import logging
import traceback
from typing import Any

import nodes
from comfy_execution.graph import get_input_info
from comfy_execution.node_call import get_input_data, map_over_lists, resolve

Error = dict[str, Any]
CONVERSIONS: dict[str, type] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
LONGEST_LIST_SHOWN = 20


def full_type_name(klass: type) -> str:
    name = klass.__qualname__
    return name if klass.__module__ == "builtins" else f"{klass.__module__}.{name}"


def validate_node_input(received_type: Any, input_type: Any, strict: bool = False) -> bool:
    """Whether an output of one type may go into an input of another; both may be unions, `"A,B"`."""
    # Written with != because some packs make an any-type by overriding __ne__ of a str.
    if not received_type != input_type or "*" in (received_type, input_type):  # noqa: SIM202
        return True
    if isinstance(received_type, list) and input_type == "COMBO":
        return True
    if not isinstance(received_type, str) or not isinstance(input_type, str):
        return False
    received = {part.strip() for part in received_type.split(",")}
    wanted = {part.strip() for part in input_type.split(",")}
    if "*" in received | wanted:
        return True
    return received <= wanted if strict else bool(received & wanted)


async def validate_prompt(
    prompt_id: str, prompt: dict[str, Any], partial_execution_list: list[str] | None
) -> tuple[bool, Error | None, list[str], dict[str, Any]]:
    """Return validity, error, the output nodes that can run, and what is wrong with each node.

    One good output is enough: then the answer is valid although `node_errors` is not empty. Constants are
    converted in place. A node without `inputs` that no output needs is not noticed (ComfyUI neither).
    """
    outputs = []
    for node_id, node in prompt.items():
        # `in` first, so that a node that is text or null is a TypeError or AttributeError, a plain 500.
        class_def = nodes.NODE_CLASS_MAPPINGS.get(node["class_type"]) if "class_type" in node else None
        if class_def is None:
            return False, _missing_node_type(node_id, node), [], {}
        wanted = partial_execution_list is None or node_id in partial_execution_list
        if getattr(class_def, "OUTPUT_NODE", False) is True and wanted:
            outputs.append(node_id)
    if not outputs:
        return False, _prompt_error("prompt_no_outputs", "Prompt has no outputs", ""), [], {}

    validator = _Validator(prompt_id, prompt)
    good_outputs: list[str] = []
    failures: list[Error] = []
    node_errors: dict[str, Any] = {}
    for node_id in outputs:
        valid, errors = await validator.validate_output(node_id)
        if valid:
            good_outputs.append(node_id)
            continue
        failures += errors
        logging.error("Failed to validate prompt for output %s, it will be ignored: %s", node_id, errors)
        # Nodes below a faulty one are invalid too, but have no error of their own to show.
        for faulty_id, (ok, reasons) in validator.done.items():
            if not ok and reasons:
                entry = node_errors.setdefault(
                    faulty_id,
                    {
                        "errors": reasons,
                        "dependent_outputs": [],
                        "class_type": prompt[faulty_id]["class_type"],
                    },
                )
                entry["dependent_outputs"].append(node_id)
    if good_outputs:
        return True, None, good_outputs, node_errors
    details = "\n".join(f"{error['message']}: {error['details']}" for error in failures)
    error = _prompt_error("prompt_outputs_failed_validation", "Prompt outputs failed validation", details)
    return False, error, [], node_errors


class _Validator:
    """Validate nodes and their ancestors, each once for all outputs."""

    def __init__(self, prompt_id: str, prompt: dict[str, Any]) -> None:
        self.prompt_id = prompt_id
        self.prompt = prompt
        self.done: dict[str, tuple[bool, list[Error]]] = {}
        self.path: list[str] = []

    async def validate_output(self, node_id: str) -> tuple[bool, list[Error]]:
        try:
            return await self._validate(node_id)
        except Exception as error:
            reason = _input_error(
                "exception_during_validation",
                "Exception when validating node",
                str(error),
                exception_type=full_type_name(type(error)),
                traceback=traceback.format_tb(error.__traceback__),
            )
            self.done[node_id] = False, [reason]
            return self.done[node_id]

    async def _validate(self, node_id: str) -> tuple[bool, list[Error]]:
        if node_id in self.done:
            return self.done[node_id]
        if node_id in self.path:
            return self._cycle(node_id)
        inputs = self.prompt[node_id]["inputs"]
        class_def = nodes.NODE_CLASS_MAPPINGS[self.prompt[node_id]["class_type"]]
        declared = class_def.INPUT_TYPES()
        custom = getattr(class_def, "VALIDATE_INPUTS", None)
        spec = inspect.getfullargspec(custom) if custom is not None else None
        custom_args = spec.args if spec else []
        takes_all = spec is not None and spec.varkw is not None

        errors: list[Error] = []
        ancestors_valid = True
        received_types: dict[str, Any] = {}
        for name in [*declared.get("required", {}), *declared.get("optional", {})]:
            kind, category, options = get_input_info(class_def, name, declared)
            info = (kind, options)
            if name not in inputs:
                if category == "required":
                    error = _input_error("required_input_missing", "Required input is missing", name, input_name=name)
                    errors.append(error)
            elif isinstance(inputs[name], list):
                check_type = "input_types" not in custom_args
                found, ok = await self._check_link(node_id, name, info, check_type, received_types)
                errors += found
                ancestors_valid = ancestors_valid and ok
            else:
                skip_range = takes_all or name in custom_args
                errors += _check_constant(inputs, name, info, skip_range)
        if custom is not None and (custom_args or takes_all):
            names = None if takes_all else custom_args
            errors += await self._check_custom(node_id, class_def, names, custom_args, received_types)

        # A cycle found further down has already left its error on this node.
        valid, known = self.done.get(node_id, (True, []))
        errors = known + [error for error in errors if error not in known]
        self.done[node_id] = valid and ancestors_valid and not errors, errors
        return self.done[node_id]

    async def _check_link(
        self, node_id: str, name: str, info: tuple, check_type: bool, received_types: dict[str, Any]
    ) -> tuple[list[Error], bool]:
        link = self.prompt[node_id]["inputs"][name]
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            facts = {"input_name": name, "input_config": info, "received_value": link}
            return [_input_error("bad_linked_input", message, name, **facts)], True
        source, slot = link
        source_class = nodes.NODE_CLASS_MAPPINGS[self.prompt[source]["class_type"]]
        received = received_types[name] = source_class.RETURN_TYPES[slot]
        if check_type and not validate_node_input(received, info[0]):
            details = f"{name}, received_type({received}) mismatch input_type({info[0]})"
            facts = {"input_name": name, "input_config": info, "received_type": received, "linked_node": link}
            return [
                _input_error("return_type_mismatch", "Return type mismatch between linked nodes", details, **facts)
            ], True
        self.path.append(node_id)
        try:
            valid, _ = await self._validate(source)
            return [], valid
        except Exception as error:
            reason = _input_error(
                "exception_during_inner_validation",
                "Exception when validating inner node",
                str(error),
                input_name=name,
                input_config=info,
                exception_message=str(error),
                exception_type=full_type_name(type(error)),
                traceback=traceback.format_tb(error.__traceback__),
                linked_node=link,
            )
            self.done[source] = False, [reason]
            return [], False
        finally:
            self.path.pop()

    async def _check_custom(
        self,
        node_id: str,
        class_def: Any,
        names: list[str] | None,
        custom_args: list[str],
        received_types: dict[str, Any],
    ) -> list[Error]:
        data = get_input_data(self.prompt[node_id]["inputs"], class_def, node_id)
        data = {name: value for name, value in data.items() if names is None or name in names}
        if "input_types" in custom_args:
            data["input_types"] = [received_types]
        calls = await map_over_lists(self.prompt_id, node_id, class_def, data, "VALIDATE_INPUTS")
        refusals = [answer for answer in await resolve(calls) if answer is not True]
        # The host cannot know which input was meant, so it blames each of them.
        return [
            _input_error(
                "custom_validation_failed",
                "Custom validation failed for node",
                name if answer is False else f"{name} - {answer}",
                input_name=name,
            )
            for name in data
            for answer in refusals
        ]

    def _cycle(self, node_id: str) -> tuple[bool, list[Error]]:
        path = [*self.path[self.path.index(node_id) :], node_id]
        members = list(dict.fromkeys(path))
        shown = " -> ".join(f"{member} ({self.prompt[member]['class_type']})" for member in path)
        for member in members:
            facts = {"node_id": member, "cycle_nodes": members}
            error = _input_error("dependency_cycle", "Dependency cycle detected", shown, **facts)
            self.done[member] = False, [error]
        return self.done[node_id]


def _check_constant(inputs: dict[str, Any], name: str, info: tuple, skip_range: bool) -> list[Error]:
    """Convert a constant in place and compare it with the input's options."""
    kind, options = info
    value = inputs[name]
    try:
        if isinstance(value, dict) and "__value__" in value:
            value = inputs[name] = value["__value__"]
        if isinstance(kind, str) and kind in CONVERSIONS:
            value = inputs[name] = CONVERSIONS[kind](value)
    except Exception as error:
        message = f"Failed to convert an input value to a {kind} value"
        facts = {
            "input_name": name,
            "input_config": info,
            "received_value": value,
            "exception_message": str(error),
        }
        return [_input_error("invalid_input_type", message, f"{name}, {value}, {error}", **facts)]
    if skip_range:
        return []

    facts = {"input_name": name, "input_config": info, "received_value": value}
    # NaN is neither below nor above any limit, so it passes.
    if "min" in options and value < options["min"]:
        return [
            _input_error("value_smaller_than_min", f"Value {value} smaller than min of {options['min']}", name, **facts)
        ]
    if "max" in options and value > options["max"]:
        return [
            _input_error("value_bigger_than_max", f"Value {value} bigger than max of {options['max']}", name, **facts)
        ]
    if isinstance(kind, list) or kind == "COMBO":
        choices = kind if isinstance(kind, list) else options.get("options", [])
        values = value if options.get("multiselect", False) and isinstance(value, list) else [value]
        wrong = [one for one in values if one not in choices]
        if wrong:
            shown = str(choices)
            if len(choices) > LONGEST_LIST_SHOWN:
                shown = f"(list of length {len(choices)})"
                facts["input_config"] = None
            details = f"{name}: {', '.join(map(repr, wrong))} not in {shown}"
            return [_input_error("value_not_in_list", "Value not in list", details, **facts)]
    return []


def _input_error(type_: str, message: str, details: str, **extra_info: Any) -> Error:
    return {"type": type_, "message": message, "details": details, "extra_info": extra_info}


_prompt_error = _input_error


def _missing_node_type(node_id: str, node: dict[str, Any]) -> Error:
    title = node.get("_meta", {}).get("title")
    if "class_type" not in node:
        shown = title or f"ID #{node_id}"
        message = f"Node '{shown}' has no class_type. The workflow may be corrupted or a custom node is missing."
        facts = {"node_id": node_id, "class_type": None, "node_title": title}
    else:
        title = node.get("_meta", {}).get("title", node["class_type"])
        message = f"Node '{title}' not found. The custom node may not be installed."
        facts = {"node_id": node_id, "class_type": node["class_type"], "node_title": title}
    return _input_error("missing_node_type", message, f"Node ID '#{node_id}'", **facts)
