"""Run CenterFace on torch, which every ComfyUI has, where there is no onnxruntime."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ServerUnavailableError
from .network import Step, read_network
from .onnx import Device, default_threads, explain_missing

_Floats = npt.NDArray[np.float32]


class TorchNetwork:
    """The network of one file, on threads of its own; several threads may use it at once.

    Each of its threads computes alone. torch would share every one of the 122 steps among all cores, and its threads
    spin while they wait for each other: on cores that ComfyUI needs too, a look took five to fifteen times as much of
    the processor.
    """

    def __init__(self, file: Path, device: Device = "cpu", threads: int | None = None) -> None:
        """Load the weights.

        Raises:
            ServerUnavailableError: torch is missing, or the file is no network.
        """
        try:
            import torch
        except Exception as error:
            raise explain_missing("torch", error) from None
        try:
            self._steps, weights = read_network(file)
        except (OSError, ValueError, IndexError) as error:
            raise ServerUnavailableError(
                f"The face detection model {file.name} does not load.",
                details=f"{type(error).__name__}: {error}",
                extra_info={"model": file.name},
                retry_after_s=60,
            ) from None
        self.device: Device = "cuda" if device == "cuda" and torch.cuda.is_available() else "cpu"
        self._torch: Any = torch
        self._weights = {name: self._give(weight) for name, weight in weights.items()}
        self._done_with = _find_last_uses(self._steps)
        count = threads or default_threads()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="guarded-faces-torch")
        self._start(count)

    def run(self, outputs: Sequence[str], inputs: dict[str, _Floats]) -> list[_Floats]:
        """As InferenceSession.run: the named outputs of the named inputs."""
        return self._threads.submit(self._look, list(outputs), inputs).result()

    def _start(self, count: int) -> None:
        """Start all threads, each to compute alone.

        torch keeps the number for each thread, and one more for threads to come, which is put back at once: so nothing
        of ComfyUI's computes otherwise than before.
        """
        torch = self._torch
        usual = torch.get_num_threads()
        together = threading.Barrier(count, timeout=60)

        def compute_alone(_number: int) -> None:
            torch.get_num_threads()  # takes the number of threads to come, which would otherwise happen later
            torch.set_num_threads(1)
            together.wait()

        list(self._threads.map(compute_alone, range(count)))
        torch.set_num_threads(usual)

    def _give(self, array: _Floats) -> Any:
        """The array as torch has it, the channels of each pixel side by side: half of the work is one pixel each."""
        values = self._torch.from_numpy(array).to(self.device)
        return values.to(memory_format=self._torch.channels_last) if values.ndim == 4 else values

    def _look(self, outputs: list[str], inputs: dict[str, _Floats]) -> list[_Floats]:
        with self._torch.inference_mode():
            values = {name: self._give(array) for name, array in inputs.items()}
            for step, done_with in zip(self._steps, self._done_with, strict=True):
                values[step.output] = self._take(step, [values.get(n, self._weights.get(n)) for n in step.inputs])
                for name in done_with.difference(outputs):
                    values.pop(name, None)
            return [values[name].cpu().numpy() for name in outputs]

    def _take(self, step: Step, given: list[Any]) -> Any:
        functional, how = self._torch.nn.functional, step.attributes
        match step.kind:
            case "Conv":
                bias = given[2] if len(given) > 2 else None
                pads = how["pads"][:2]
                return functional.conv2d(*given[:2], bias, how["strides"], pads, how["dilations"], how["group"])
            case "ConvTranspose":
                return functional.conv_transpose2d(*given, None, how["strides"], how["pads"][:2])
            case "BatchNormalization":
                values, weight, bias, mean, variance = given
                return functional.batch_norm(values, mean, variance, weight, bias, eps=how["epsilon"])
            case "Relu":
                return self._torch.relu(given[0])
            case "Add":
                return given[0] + given[1]
            case "Sigmoid":
                return self._torch.sigmoid(given[0])
        raise ValueError(f"There is no {step.kind} in CenterFace.")


def _find_last_uses(steps: list[Step]) -> list[set[str]]:
    """For each step the names that no later one reads, so that a look keeps no more memory than it needs."""
    last = {name: number for number, step in enumerate(steps) for name in step.inputs}
    uses: list[set[str]] = [set() for _ in steps]
    for name, number in last.items():
        uses[number].add(name)
    return uses
