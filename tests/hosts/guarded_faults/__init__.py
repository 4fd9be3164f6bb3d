"""Nodes that misbehave on purpose, for tests. They load in the sandbox and in a real ComfyUI."""

from . import checks, heart, known, packs, routes  # noqa: F401 (they add routes)
from .gpu import FaultGpuAssert, FaultGpuKernel, FaultGpuMemory
from .hang import (
    FaultAsyncHang,
    FaultHangBetween,
    FaultHangC,
    FaultHangPython,
    FaultHoldGil,
    FaultPreview,
    FaultProgram,
    FaultSleep,
    FaultSwallow,
    FaultThreads,
    FaultTicks,
)
from .output import (
    FaultBlackImage,
    FaultClock,
    FaultGatedImage,
    FaultLateImage,
    FaultMissingFile,
    FaultNoOutput,
    FaultOddReport,
    FaultOutsideFile,
    FaultReadFile,
    FaultText,
    FaultTinyFile,
    FaultTruncatedImage,
)
from .reach import (
    FaultEither,
    FaultFetch,
    FaultFollow,
    FaultGossip,
    FaultJoin,
    FaultOpen,
    FaultReadPath,
    FaultRecord,
    FaultReport,
    FaultRequeue,
    FaultWrite,
)
from .stop import FaultKillProcess, FaultKillWorker, FaultRaise
from .validation import FaultAsyncValidation, FaultValidation

NODE_CLASS_MAPPINGS = {
    cls.__name__: cls
    for cls in (
        FaultSleep,
        FaultPreview,
        FaultHangC,
        FaultHangPython,
        FaultProgram,
        FaultSwallow,
        FaultAsyncHang,
        FaultHangBetween,
        FaultHoldGil,
        FaultThreads,
        FaultTicks,
        FaultRaise,
        FaultKillWorker,
        FaultKillProcess,
        FaultTruncatedImage,
        FaultTinyFile,
        FaultLateImage,
        FaultGatedImage,
        FaultMissingFile,
        FaultOutsideFile,
        FaultNoOutput,
        FaultText,
        FaultClock,
        FaultReadFile,
        FaultOddReport,
        FaultBlackImage,
        FaultValidation,
        FaultAsyncValidation,
        FaultGpuMemory,
        FaultGpuAssert,
        FaultGpuKernel,
        FaultEither,
        FaultFetch,
        FaultFollow,
        FaultGossip,
        FaultJoin,
        FaultOpen,
        FaultReadPath,
        FaultRecord,
        FaultReport,
        FaultRequeue,
        FaultWrite,
    )
}
NODE_DISPLAY_NAME_MAPPINGS = {name: f"Fault: {name.removeprefix('Fault')}" for name in NODE_CLASS_MAPPINGS}
