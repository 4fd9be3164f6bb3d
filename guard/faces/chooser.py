"""Choose a detector among those on this machine, say why, and load it once, at the first use."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from typing_extensions import TypedDict

from ..errors import InvalidRequestError, MissingModelError, ServerUnavailableError
from . import Detector, centerface, onnx
from .centerface import CenterFace, is_installed
from .insightface import InsightFace, Pack, find_packs, list_roots
from .onnx import Device, OnnxruntimeBody, Runtime

log = logging.getLogger("guarded.faces")

AUTO = "auto"
#: A setting or a node may ask for these, or for one pack as `insightface/<pack>`.
CHOICES = (AUTO, "centerface", "insightface")


class ChoiceBody(TypedDict):
    """The detector (null: none), why it is that one, and the package that runs it (null: none)."""

    detector: str | None
    reason: str
    device: Device
    runtime: Runtime | None
    loaded: bool


class FaceFacts(ChoiceBody):
    """The detector, and the state of onnxruntime."""

    onnxruntime: OnnxruntimeBody


@dataclass(frozen=True)
class Choice:
    """The detector that finds the faces, and why.

    Attributes:
        detector: `centerface` or `insightface/<pack>`.
        reason: one line for the operator.
        device: where it runs; until it is loaded, where it should run.
        runtime: the package that runs it; until it is loaded, the one that should.
        loaded: whether it is in memory.
    """

    detector: str
    reason: str
    device: Device
    runtime: Runtime = "onnxruntime"
    loaded: bool = False

    def body(self) -> ChoiceBody:
        """As JSON."""
        return {
            "detector": self.detector,
            "reason": self.reason,
            "device": self.device,
            "runtime": self.runtime,
            "loaded": self.loaded,
        }


class Chooser:
    """Knows the detectors of this machine. Any thread; loading and choosing block, so not the event loop.

    Args:
        models: ComfyUI's model folders, which may hold `insightface/models/<pack>`.
        detector: `auto`, `centerface`, `insightface`, or `insightface/<pack>`.
        device: `cuda` works only where CUDAExecutionProvider does.
        threads: of onnxruntime for one look, of torch for looks at once; None: a few.
    """

    def __init__(
        self,
        models: Callable[[], Iterable[Path]] = lambda: (),
        detector: str = AUTO,
        device: Device = "cpu",
        threads: int | None = None,
    ) -> None:
        self._models = models
        self._detector = detector
        self._device: Device = device
        self._threads = threads
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[Choice, Detector]] = {}

    def get(self, detector: str | None = None) -> Detector:
        """The detector of that name (None: the setting's), loaded at the first call.

        Raises:
            ServerUnavailableError: it cannot be loaded; with `auto`, CenterFace cannot either.
            MissingModelError: the pack that was asked for is not there; the setting's is the server's fault.
            InvalidRequestError: there is no detector of that name.
        """
        asked = detector or self._detector
        # Outside the lock, so that a loaded detector does not wait while another one loads.
        if asked in self._loaded:
            return self._loaded[asked][1]
        with self._lock:
            if asked not in self._loaded:
                choice, ready = self._load(asked)
                self._loaded[asked] = choice, ready
                words = choice.detector, choice.device.upper(), choice.runtime, choice.reason
                log.info("faces: %s on the %s (%s): %s", *words)
            return self._loaded[asked][1]

    def choice(self, detector: str | None = None) -> Choice:
        """The detector that `get` has loaded or would try first. Looks at folders; opens no model."""
        asked = detector or self._detector
        if asked in self._loaded:
            return self._loaded[asked][0]
        return self._choose(asked)[0]

    def facts(self) -> FaceFacts:
        """The choice and onnxruntime's state, for health and doctor. Imports onnxruntime: not for the event loop.

        torch, which takes seconds, is only looked for.
        """
        state = onnx.read_state()
        choice: ChoiceBody
        try:
            choice = self.choice().body()
        except (ServerUnavailableError, InvalidRequestError) as error:
            choice = {
                "detector": None, "reason": error.message, "device": self._device, "runtime": None, "loaded": False
            }  # fmt: skip
        needs_it = choice["detector"] != centerface.NAME and self._detector != AUTO
        if state.providers or choice["loaded"] or choice["detector"] is None:
            pass
        elif is_installed("torch") and not needs_it:
            choice = {**choice, "detector": centerface.NAME, "runtime": "torch"}
        else:
            missing = "onnxruntime is not" if needs_it else "neither onnxruntime nor torch is"
            problem = state.problem or f"{missing} installed."
            reason = f"No face can be looked for: {problem}"
            choice = {**choice, "detector": None, "reason": reason, "runtime": None}
        return {**choice, "onnxruntime": state.body()}

    def _choose(self, asked: str) -> tuple[Choice, Pack | None]:
        if asked == "centerface":
            return self._choose_centerface("It was asked for by name."), None
        if asked not in CHOICES and not asked.startswith("insightface/"):
            raise InvalidRequestError(
                f"There is no face detector {asked!r}; there are {', '.join(CHOICES)} and insightface/<pack>.",
                extra_info={"detector": asked, "detectors": list(CHOICES)},
            )
        packs = find_packs(list_roots(self._models()))
        if asked == AUTO:
            if not packs:
                return self._choose_centerface("No InsightFace pack is there."), None
            if importlib.util.find_spec("insightface") is None:
                return self._choose_centerface(
                    f"The pack {packs[0].name} is there, but insightface is not installed."
                ), None
            reason = f"The InsightFace pack {packs[0].name} is there."
            return Choice(f"insightface/{packs[0].name}", reason, self._device), packs[0]
        name = asked.partition("/")[2]
        pack = next((pack for pack in packs if name in ("", pack.name)), None)
        if pack is None:
            is_own = asked == self._detector
            raise (ServerUnavailableError if is_own else MissingModelError)(
                f"The InsightFace pack {name} is not there." if name else "No InsightFace pack is there.",
                details="Packs are looked for in ComfyUI's models/insightface/models and in ~/.insightface/models.",
                extra_info={"detector": asked, "packs": [pack.name for pack in packs]},
                retry_after_s=60 if is_own else None,
            )
        return Choice(f"insightface/{pack.name}", "It was asked for by name.", self._device), pack

    def _choose_centerface(self, reason: str) -> Choice:
        runtime: Runtime = "onnxruntime" if is_installed("onnxruntime") or not is_installed("torch") else "torch"
        return Choice(centerface.NAME, reason, self._device, runtime)

    def _load(self, asked: str) -> tuple[Choice, Detector]:
        choice, pack = self._choose(asked)
        ready: CenterFace | InsightFace
        if pack is None:
            ready = CenterFace(self._device, self._threads)
        else:
            try:
                ready = InsightFace(pack, self._device, self._threads)
            except ServerUnavailableError as error:
                if asked != AUTO:
                    raise
                log.warning("faces: the pack %s is not used: %s %s", pack.name, error.message, error.details)
                choice = self._choose_centerface(f"The pack {pack.name} is there but cannot be used: {error.message}")
                ready = CenterFace(self._device, self._threads)
        reason = choice.reason
        if self._device == "cuda" and ready.device == "cpu":
            reason += f" On the CPU, since {onnx.CUDA if ready.runtime == 'onnxruntime' else 'CUDA'} is not there."
        return replace(choice, reason=reason, device=ready.device, runtime=ready.runtime, loaded=True), ready
