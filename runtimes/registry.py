"""Which runtimes there are: one module beside this one for each."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from .base import Runtime

# Modules beside this one that hold a RUNTIME.
NAMES = ("onnxruntime", "openvino", "llamacpp", "llamacpp_mtmd", "coreml", "tensorrt")


def runtimes() -> tuple[Runtime, ...]:
    """Every runtime, usable or not."""
    return tuple(import_module(f"{__package__}.{name}").RUNTIME for name in NAMES)


def installed(package: str) -> str | None:
    """The version of a package; None where none of this name is installed (onnxruntime-gpu brings onnxruntime)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
