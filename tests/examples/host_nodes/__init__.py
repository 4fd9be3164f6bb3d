"""An output node that ends as its text says: with a picture, or in any of the ways in which a job may fail."""

from typing import Any

import nodes


def _run(class_type: str, **inputs: Any) -> Any:
    return nodes.NODE_CLASS_MAPPINGS[class_type]().run(**inputs)


class EndingByText:
    CATEGORY = "guarded/tests"
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES: tuple[str, ...] = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"image": ("IMAGE",), "text": ("STRING", {"default": ""}), "steps": ("INT", {"default": 1})}
        return {"required": required}

    def run(self, image: Any, text: str, steps: int) -> dict[str, Any]:
        match text:
            case "slow":
                _run("FaultSleep", seconds=0.5, checks_interrupt=True, steps=25)
            case "slow, cancelled" | "slow, interrupted":
                _run("FaultSleep", seconds=1.5, checks_interrupt=True, steps=25)
            case "very slow":
                _run("FaultSleep", seconds=3600.0, checks_interrupt=True, steps=0)
            case "hang in Python":
                _run("FaultHangPython", seconds=3600.0)
            case "hang in C":
                _run("FaultHangC", seconds=4.0)
            case "error":
                _run("FaultRaise", kind="value_error", message="on purpose")
            case "no memory":
                _run("FaultRaise", kind="out_of_memory", message="on purpose")
            case "exit":
                _run("FaultRaise", kind="system_exit", message="on purpose")
            case "dead worker":
                _run("FaultKillWorker", when="handing_back", kind="system_exit")
            case "dead process":
                _run("FaultKillProcess")
            case "blank":
                (image,) = _run("FaultBlackImage", width=1024, height=1024, nan=False)
            case "half a file":
                return dict(_run("FaultTruncatedImage", filename_prefix="ending"))
            case "ten bytes":
                return dict(_run("FaultTinyFile", filename_prefix="ending"))
            case "no file":
                return dict(_run("FaultMissingFile", filename_prefix="ending"))
            case "nothing":
                return dict(_run("FaultNoOutput", filename_prefix="ending"))
        return dict(nodes.NODE_CLASS_MAPPINGS["SaveImage"]().save_images(image, "ending"))


class NumberByText:
    """Its one input is what comes out, as the policy sees it."""

    CATEGORY = "guarded/tests"
    FUNCTION = "run"
    RETURN_TYPES = ("INT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"default": ""})}}

    def run(self, text: str) -> tuple[int]:
        return (int(text) if text.isdigit() else 1,)


NODE_CLASS_MAPPINGS = {"EndingByText": EndingByText, "NumberByText": NumberByText}
