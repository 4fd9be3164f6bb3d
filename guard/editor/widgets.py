"""Know the inputs and widgets that the editor gives a node of a class, by the host's description of the class.

The kinds are those of ComfyUI's own frontend (1.27 to 1.49). Of an input whose kind only a pack's script knows, the
file itself tells whether it is a widget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .read import Slot, Widget

#: Kinds of inputs that are widgets, with what each holds before anybody has set it.
_KINDS: dict[str, Any] = {
    "INT": 0,
    "FLOAT": 0,
    "BOOLEAN": False,
    "STRING": "",
    "COMBO": None,
    "MARKDOWN": "",
    "TEXTAREA": "",
    "COLOR": "#000000",
    "COLORS": [],
    "CURVE": {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"},
    "RANGE": {"min": 0.0, "max": 1.0},
    "BOUNDING_BOX": {"x": 0, "y": 0, "width": 512, "height": 512},
    "BOUNDING_BOXES": [],
    "IMAGECOMPARE": ["", ""],
    "CHART": {},
    "GALLERIA": [],
    "PAINTER": "",
    "COMPOSITOR": {},
    "VIDEO_EDIT": None,
    "IMAGEUPLOAD": "image",
    "AUDIOUPLOAD": "",
    "AUDIO_UI": "",
    "AUDIO_RECORD": "",
    "WEBCAM": "",
    "LOAD_3D": "",
    "LOAD_3D_ADVANCED": "",
    "LOAD_3D_ANIMATION": "",
    "PREVIEW_3D": "",
    "PREVIEW_3D_ANIMATION": "",
    "COMFY_DYNAMICCOMBO_V3": None,
}

#: Buttons and players: they show something, and hold nothing for the server.
_UNSENT = frozenset({"IMAGEUPLOAD", "AUDIOUPLOAD", "AUDIO_UI"})

#: These get a widget after them that says what becomes of the number when it has been used.
_SEEDS = frozenset({"seed", "noise_seed"})

_UPLOADS = ("image_upload", "animated_image_upload", "video_upload")
_PLAYERS = frozenset({"LoadAudio", "SaveAudio", "PreviewAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced"})
_SHOWS_3D = frozenset({"Preview3D", "Preview3DAnimation", "SaveGLB"})
_BUTTONS_3D = {"upload 3d model": "upload3dmodel", "upload extra resources": "uploadExtraResources", "clear": "clear"}
_VIEWPORTS = frozenset(
    {"Preview3DAdvanced", "Save3DAdvanced", "PreviewGaussianSplat", "PreviewPointCloud", "SaveGaussianSplat",
     "SavePointCloud"}
)  # fmt: skip


class Spec:
    """One input as the host describes it: `[kind, options]`, where a list of choices stands for the kind COMBO."""

    def __init__(self, name: str, given: Any) -> None:
        pair = list(given) if isinstance(given, (list, tuple)) else []
        kind = pair[0] if pair else "UNKNOWN"
        options = pair[1] if len(pair) > 1 and isinstance(pair[1], Mapping) else {}
        if isinstance(kind, (list, tuple)):
            options = {**options, "options": list(kind)}
            kind = "COMBO"
        self.name = name
        self.socket = kind if isinstance(kind, str) else "UNKNOWN"
        self.options: Mapping[str, Any] = options
        self.forced = bool(options.get("forceInput"))
        chosen = options.get("widgetType")
        self.kind = chosen if isinstance(chosen, str) else self.socket


class Body:
    """The inputs and widgets of one node, as the editor makes them for its class.

    `drawn` are the names of the inputs that the file shows as widgets.
    """

    def __init__(self, class_type: str, info: Mapping[str, Any], drawn: frozenset[str] = frozenset()) -> None:
        self.inputs: list[Slot] = []
        self.widgets: list[Widget] = []
        self._class_type = class_type
        self._drawn = drawn
        specs = list(_list_specs(class_type, info))
        self.specs = [spec for spec in specs if spec.kind not in ("IMAGEUPLOAD", "AUDIOUPLOAD", "AUDIO_UI")]
        for spec in specs:
            self._add_socket(spec)
        for spec in specs:
            self._add_widget(spec)
        if class_type == "CustomCombo" and self.widgets:
            self.widgets.append(Widget("index", "INDEX", -1, {}))
            self._add_option()
        if class_type == "WebcamCapture":
            self.widgets.append(Widget("waiting for camera...", "BUTTON", "capture", {}, sent=False))

    def put(self, values: list[Any]) -> None:
        """Put the values of the file into the widgets, in order. Some widgets bring others as they get theirs."""
        at = 0
        for value in self._drop_forced(values):
            while at < len(self.widgets) and not self.widgets[at].stored:
                at += 1
            if at == len(self.widgets):
                return
            self.set(self.widgets[at], value)
            at += 1

    def put_by_name(self, values: Mapping[str, Any]) -> None:
        at = 0
        while at < len(self.widgets):
            widget = self.widgets[at]
            if widget.name in values:
                self.set(widget, values[widget.name])
            at += 1

    def set(self, widget: Widget, value: Any) -> None:
        if widget.kind == "INDEX":
            return
        widget.value = value
        if widget.kind == "COMFY_DYNAMICCOMBO_V3":
            self._unfold(widget)
        elif widget.kind == "OPTION" and widget is self.widgets[-1] and value:
            self._add_option()

    def _drop_forced(self, values: list[Any]) -> list[Any]:
        """Without the values that files of before 1.16 hold for inputs that have no widget any more."""
        names = {widget.name for widget in self.widgets}
        forced: list[bool] = []
        for spec in self.specs:
            if spec.name in names or spec.forced:
                forced += [spec.forced, False] if spec.options.get("control_after_generate") else [spec.forced]
        if len(forced) != len(values):
            return values
        return [value for value, dropped in zip(values, forced, strict=True) if not dropped]

    def _is_widget(self, spec: Spec) -> bool:
        if spec.forced:
            return False
        return spec.kind in _KINDS or (spec.name in self._drawn and not spec.kind.startswith("COMFY_"))

    def _add(self, spec: Spec) -> None:
        self._add_socket(spec)
        self._add_widget(spec)

    def _add_socket(self, spec: Spec) -> None:
        if self._is_widget(spec):
            return
        template = spec.options.get("template")
        if spec.socket == "COMFY_AUTOGROW_V3" and isinstance(template, Mapping):
            self._add_grown(spec.name, template)
        elif spec.socket == "COMFY_MATCHTYPE_V3" and isinstance(template, Mapping):
            self._add(Spec(spec.name, [template.get("allowed_types"), {**spec.options, "template": None}]))
        else:
            self.inputs.append(Slot(spec.name, spec.socket))

    def _add_grown(self, name: str, template: Mapping[str, Any]) -> None:
        """The inputs of a list that grows, one more than it must have."""
        names, given = template.get("names"), template.get("input")
        least = template.get("min", 1)
        least = least if isinstance(least, int) else 1
        inside = list(_list_inputs(given)) if isinstance(given, Mapping) else []
        for ordinal in range(max(1, least + 1)):
            for spec in inside:
                if isinstance(names, list):
                    if ordinal >= len(names):
                        return
                    base = str(names[ordinal])
                else:
                    base = f"{template.get('prefix', '') if len(inside) == 1 else spec.name}{ordinal}"
                self._add(Spec(f"{name}.{base}", [spec.socket, spec.options]))

    def _add_widget(self, spec: Spec) -> None:
        if not self._is_widget(spec):
            return
        options = spec.options
        widget = Widget(spec.name, spec.kind, _choose_default(spec), options)
        if spec.kind == "LOAD_3D":
            if any(widget.name == "model_file" for widget in self.widgets):
                self.widgets += [Widget(name, "BUTTON", value, {}) for name, value in _BUTTONS_3D.items()]
            shown = "viewport_state" if self._class_type in _VIEWPORTS else "image"
            self.widgets.append(Widget(shown, spec.kind, "", options))
        elif spec.kind == "PREVIEW_3D":
            self.widgets.append(Widget("image", spec.kind, "", options))
        else:
            widget.sent = spec.kind not in _UNSENT
            widget.stored = spec.kind not in ("AUDIO_UI", "IMAGECOMPARE")
            self.widgets.append(widget)
            self.widgets += _list_companions(spec, widget)
        self.inputs.append(Slot(spec.name, spec.socket, widget=spec.name))
        if spec.kind == "COMFY_DYNAMICCOMBO_V3":
            self._unfold(widget)

    def _unfold(self, combo: Widget) -> None:
        """Give the node the inputs of what is chosen, in the place of those of what was chosen before."""
        inside = f"{combo.name}."
        self.inputs = [slot for slot in self.inputs if not slot.name.startswith(inside)]
        self.widgets = [widget for widget in self.widgets if not widget.name.startswith(inside)]
        chosen = next((each for each in _list_choices(combo) if each.get("key") == combo.value), None)
        if chosen is None or not isinstance(chosen.get("inputs"), Mapping):
            return
        at = next(index for index, widget in enumerate(self.widgets) if widget is combo) + 1
        slot_at = next((index for index, slot in enumerate(self.inputs) if slot.name == combo.name), -1) + 1
        after, slots_after = self.widgets[at:], self.inputs[slot_at:]
        del self.widgets[at:], self.inputs[slot_at:]
        for spec in _list_inputs(chosen["inputs"]):
            self._add(Spec(inside + spec.name, [spec.socket, spec.options]))
        self.widgets += after
        self.inputs += slots_after

    def _add_option(self) -> None:
        self.widgets.append(Widget(f"option{len(self.widgets) - 1}", "OPTION", "", {}))


def find_index(widgets: list[Widget]) -> int:
    """Which of its options a `CustomCombo` has chosen."""
    chosen = widgets[0].value
    return next((at for at, widget in enumerate(widgets[2:]) if widget.value == chosen), -1)


def _list_specs(class_type: str, info: Mapping[str, Any]) -> Iterator[Spec]:
    """The inputs of a class in the editor's order, with the buttons and players that it adds."""
    given = info.get("input")
    given = given if isinstance(given, Mapping) else {}
    groups = {side: dict(given.get(side) or {}) for side in ("required", "optional")}
    required = groups["required"]
    if class_type in _PLAYERS:
        required["audioUI"] = ["AUDIO_UI", {}]
    if class_type in _SHOWS_3D:
        required["image"] = ["PREVIEW_3D", {}]
    uploads = [name for name, spec in required.items() if any(Spec(name, spec).options.get(flag) for flag in _UPLOADS)]
    if uploads and Spec(uploads[0], required[uploads[0]]).socket == "COMBO":
        required["upload"] = ["IMAGEUPLOAD", {}]
    if "audio" in required and Spec("audio", required["audio"]).options.get("audio_upload") is True:
        required["upload"] = ["AUDIOUPLOAD", {}]
    order = info.get("input_order")
    order = order if isinstance(order, Mapping) else {}
    done: set[str] = set()
    for side, inputs in groups.items():
        for name in order.get(side) or ():
            if name in inputs and name not in done:
                done.add(name)
                yield Spec(name, inputs[name])
    for inputs in groups.values():
        for name, spec in inputs.items():
            if name not in done:
                done.add(name)
                yield Spec(name, spec)


def _list_inputs(given: Mapping[str, Any]) -> Iterator[Spec]:
    for side in ("required", "optional"):
        inputs = given.get(side)
        if isinstance(inputs, Mapping):
            yield from (Spec(name, spec) for name, spec in inputs.items())


def _list_choices(combo: Widget) -> list[Mapping[str, Any]]:
    choices = combo.options.get("options")
    return [each for each in choices if isinstance(each, Mapping)] if isinstance(choices, list) else []


def _choose_default(spec: Spec) -> Any:
    default, options = spec.options.get("default"), spec.options.get("options")
    if spec.kind == "COMFY_DYNAMICCOMBO_V3":
        return next((each.get("key") for each in options or () if isinstance(each, Mapping)), None)
    if spec.kind == "COMBO":
        if spec.options.get("multi_select"):
            return []
        first = options[0] if isinstance(options, list) and options else None
        return default or first or ("Loading..." if spec.options.get("remote") else None)
    if spec.kind == "VIDEO_EDIT" and default is None:
        parts = {
            "trim": {"start_time": 0, "duration": 0},
            "crop": {"x": 0, "y": 0, "width": 0, "height": 0},
        }
        return {name: part for name, part in parts.items() if name in spec.options.get("features", parts)}
    if spec.kind in _UNSENT:
        return _KINDS[spec.kind]
    return _KINDS.get(spec.kind) if default is None else default


def _list_companions(spec: Spec, widget: Widget) -> Iterator[Widget]:
    """The widgets that come after some: they have places among the values, and are not sent."""
    control = spec.options.get("control_after_generate")
    if control is None:
        control = spec.kind == "INT" and spec.name in _SEEDS
    if control and spec.kind in ("INT", "FLOAT", "COMBO"):
        yield Widget(control if isinstance(control, str) else "control_after_generate", "CONTROL", None, {}, sent=False)
        if spec.kind == "COMBO" and not spec.options.get("multi_select"):
            yield Widget("control_filter_list", "CONTROL", "", {}, sent=False)
    if spec.kind == "BOUNDING_BOX":
        for name in ("x", "y", "width", "height"):
            yield Widget(name, "CONTROL", widget.value.get(name), {}, sent=False)
