"""NVIDIA's driver through ctypes: what comes with every GPU, and no package to install.

https://docs.nvidia.com/cuda/cuda-driver-api/
"""

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from .contract import EngineError

_NAMES = {"win32": ("nvcuda.dll",), "linux": ("libcuda.so.1",)}
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class Gpu:
    """The first GPU of this machine."""

    name: str
    compute_capability: int  # 89 is 8.9
    memory: int  # bytes
    driver: int  # the newest CUDA that the driver has, 13010 is 13.1


def device() -> Gpu:
    """The GPU that engines run on.

    Raises:
        EngineError: there is none, or no driver for it.
    """
    library = driver()
    handle, version, major, minor = (ctypes.c_int() for _ in range(4))
    name, memory = ctypes.create_string_buffer(128), ctypes.c_size_t()
    call(library.cuDriverGetVersion, ctypes.byref(version))
    call(library.cuDeviceGet, ctypes.byref(handle), 0)
    call(library.cuDeviceGetName, name, len(name), handle)
    call(library.cuDeviceGetAttribute, ctypes.byref(major), _MAJOR, handle)
    call(library.cuDeviceGetAttribute, ctypes.byref(minor), _MINOR, handle)
    call(library.cuDeviceTotalMem_v2, ctypes.byref(memory), handle)
    return Gpu(name.value.decode(), major.value * 10 + minor.value, memory.value, version.value)


@cache
def driver() -> Any:
    """The driver's library, ready for calls.

    Raises:
        EngineError: it is not installed, or finds no GPU.
    """
    for name in _NAMES.get(sys.platform, ()):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        call(library.cuInit, 0)
        return library
    raise EngineError("there is no NVIDIA driver on this machine. Install it from https://www.nvidia.com/drivers")


def call(function: Any, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        EngineError: it failed, with the driver's word for why.
    """
    status = function(*arguments)
    if status:
        raise EngineError(f"the NVIDIA driver failed in {function.__name__}: {_reason(status)}. See: nvidia-smi")


def _reason(status: int) -> str:
    text = ctypes.c_char_p()
    ctypes.CDLL(_NAMES[sys.platform][0]).cuGetErrorString(status, ctypes.byref(text))
    return text.value.decode() if text.value else f"error {status}"
