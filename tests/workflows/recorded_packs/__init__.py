"""Stand-ins for the packs that templates need: they take what the real ones were recorded to take, and do nothing.

A real ComfyUI loads this folder as a custom node, so that its own validation judges the whole graph of a template.
"""

import json
from pathlib import Path

import folder_paths

SPECS = Path(__file__).resolve().parent.parent / "specs"
CORE = "comfyui"


def _input(spec):
    options = {name: spec[name] for name in ("default", "min", "max", "step") if name in spec}
    if "models" in spec:
        kind = spec["models"]
        if kind not in folder_paths.folder_names_and_paths:
            folder = str(Path(folder_paths.models_dir) / kind)
            folder_paths.folder_names_and_paths[kind] = ([folder], folder_paths.supported_pt_extensions)
        return (folder_paths.get_filename_list(kind), options)
    if "files" in spec:
        folder = Path(folder_paths.get_input_directory())
        return (sorted(path.name for path in folder.iterdir() if path.is_file()), options)
    return (spec["choices"] if "choices" in spec else spec["type"], options)


def _class(name, spec):
    def input_types(cls):
        sections = {"required": {}, "optional": {}}
        for each, wanted in spec["inputs"].items():
            sections["optional" if wanted.get("optional") else "required"][each] = _input(wanted)
        return sections

    def run(self, **_inputs):
        raise RuntimeError(f"{name} is only recorded here")

    members = {"RETURN_TYPES": tuple(spec["outputs"]), "FUNCTION": "run", "CATEGORY": "recorded", "run": run}
    if spec.get("output_node"):
        members["OUTPUT_NODE"] = True
    return type(name, (), {**members, "INPUT_TYPES": classmethod(input_types)})


NODE_CLASS_MAPPINGS = {
    name: _class(name, spec)
    for path in sorted(SPECS.glob("*.json"))
    if path.stem != CORE
    for name, spec in json.loads(path.read_text())["nodes"].items()
}
