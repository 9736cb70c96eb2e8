"""Which runtimes there are: one module beside this one for each."""

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from ..targets.contract import EngineError
from .base import Runtime

# Modules beside this one that hold a RUNTIME.
NAMES = ("onnxruntime", "openvino", "llamacpp", "llamacpp_mtmd", "coreml", "tensorrt")


def runtimes() -> tuple[Runtime, ...]:
    """Every runtime, usable or not."""
    return tuple(import_module(f"{__package__}.{name}").RUNTIME for name in NAMES)


def runtime(name: str) -> Runtime:
    """The runtime of this name.

    Raises:
        EngineError: there is none.
    """
    known = runtimes()
    for one in known:
        if one.name == name:
            return one
    raise unknown(name, known)


def unknown(engine: str, known: Sequence[Runtime]) -> EngineError:
    """The error that an engine of this name is not known."""
    possible = ", ".join(["auto", *(one.name for one in known)])
    return EngineError(f"engine '{engine}' is unknown (it can be: {possible}). See them with: ossicle doctor")


def installed(package: str) -> str | None:
    """The version of a package; None where none of this name is installed (onnxruntime-gpu brings onnxruntime)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
