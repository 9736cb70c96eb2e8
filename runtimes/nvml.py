"""NVIDIA's GPUs by NVML through ctypes: it comes with every driver, and needs no package.

https://docs.nvidia.com/deploy/nvml-api/
"""

import ctypes
from typing import Any

from .accelerators import Accelerator
from .machine import Machine

NAMES = {"Linux": ("libnvidia-ml.so.1",), "Windows": ("nvml.dll",)}
MOST = 64  # GPUs that are asked for


class _Memory(ctypes.Structure):
    """nvmlMemory_t"""

    _fields_ = tuple((name, ctypes.c_ulonglong) for name in ("total", "free", "used"))


def nvidia_gpus(machine: Machine) -> tuple[Accelerator, ...]:
    """The GPUs that NVIDIA's driver has; none where it is not loaded."""
    for name in NAMES.get(machine.system, ()):
        library = machine.library(name)
        if library is not None and _done(library, "nvmlInit_v2"):
            try:
                return _gpus(library)
            finally:
                _done(library, "nvmlShutdown")
    return ()


def _gpus(library: Any) -> tuple[Accelerator, ...]:
    count = ctypes.c_uint()
    _done(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    driver = _text(library, "nvmlSystemGetDriverVersion")
    handles = [_handle(library, index) for index in range(min(count.value, MOST))]
    return tuple(_gpu(library, handle, driver) for handle in handles if handle is not None)


def _gpu(library: Any, handle: ctypes.c_void_p, driver: str | None) -> Accelerator:
    held, major, minor = _Memory(), ctypes.c_int(), ctypes.c_int()
    # a GPU that shares the machine's memory has none to tell of
    own = _done(library, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(held))
    known = _done(library, "nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
    return Accelerator(
        kind="gpu",
        vendor="nvidia",
        name=_text(library, "nvmlDeviceGetName", handle) or "NVIDIA GPU",
        driver=driver or "unknown",
        memory=held.total if own and held.total else None,
        capability=f"{major.value}.{minor.value}" if known else None,
    )


def _handle(library: Any, index: int) -> ctypes.c_void_p | None:
    handle = ctypes.c_void_p()
    found = _done(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
    return handle if found else None


def _text(library: Any, function: str, *arguments: Any) -> str | None:
    buffer = ctypes.create_string_buffer(96)
    found = _done(library, function, *arguments, buffer, ctypes.c_uint(len(buffer)))
    return buffer.value.decode("utf-8", "replace") if found else None


def _done(library: Any, function: str, *arguments: Any) -> bool:
    """Whether NVML has this function, and did it."""
    called = getattr(library, function, None)
    return called is not None and called(*arguments) == 0
