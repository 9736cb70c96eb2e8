"""ossicle compiles a trained audio-language model once, lowers it to every edge runtime, and runs it on the best engine."""

from typing import Any

__version__ = "0.1.0"

_DOORS = {
    "build": "compiler.pipeline",
    "load": "runtimes.opening",
    "transcribe_corpus": "runtimes.corpus_run",
    "doctor": "runtimes.device",
    "bench": "runtimes.bench",
}


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'ossicle' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_DOORS[name]}"), name)


def __dir__() -> list[str]:
    return [*_DOORS, "__version__"]
