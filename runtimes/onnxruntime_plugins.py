"""Execution providers that are packages of their own: libraries that ONNX Runtime loads by their path, beside any build of it.

A package says where its library lies (`get_library_path`); the library says on which of the machine's devices it computes.
https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/usage.html
"""

import importlib
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from .refusal import Refusal


def is_installed(package: str) -> bool:
    """Whether the package of a provider is here; no package: no."""
    return bool(package) and find_spec(package) is not None


def refusal(package: str, engine: str, hardware: str) -> str | None:
    """Why the provider `engine` of an installed package cannot be used on devices of this kind; None where it can.

    `hardware` is "CPU", "GPU" or "NPU", or "" where any will do.
    """
    import onnxruntime

    if reason := _registered(onnxruntime, package, engine):
        return f"onnxruntime {onnxruntime.__version__} cannot load the library of package {package}: {reason}"
    if devices(engine, hardware):
        return None
    offered = sorted({kind(device) for device in devices(engine)})
    wanted, rest = hardware or "device", f" (it has: {', '.join(offered)})" if offered else ""
    return Refusal(
        f"the library of package {package} finds no {wanted} here{rest}. Check the driver of the device that it is for",
        "device",
    )


def devices(engine: str, hardware: str = "") -> list[Any]:
    """What the provider `engine` computes on here, as ONNX Runtime's OrtEpDevice, once its library is registered."""
    import onnxruntime

    return [
        device
        for device in onnxruntime.get_ep_devices()
        if device.ep_name == engine and hardware in ("", kind(device))
    ]  # fmt: skip


def kind(device: Any) -> str:
    """ "CPU", "GPU" or "NPU"."""
    return str(device.device.type.name)


@cache
def _registered(onnxruntime: ModuleType, package: str, engine: str) -> str:
    """Register the library of a package under its provider's name, once in a process; the reason where that fails, or ""."""
    # Packages and ONNX Runtime raise what they like: RuntimeError, OSError, and exceptions of their own.
    try:
        library = importlib.import_module(package).get_library_path()
        onnxruntime.register_execution_provider_library(engine, str(library))
    except Exception as reason:
        return " ".join(str(reason).split()) or type(reason).__name__
    return ""
