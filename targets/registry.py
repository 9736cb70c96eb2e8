"""The targets there are, by the word the user types."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import distributions
from typing import Any

from .contract import RecipeError, Target

_TARGETS = {
    "onnx": ("onnx", "Onnx"),
    "openvino": ("openvino", "Openvino"),
    "gguf": ("gguf", "Gguf"),
    "coreml": ("coreml", "Coreml"),
    "tensorrt": ("tensorrt", "Tensorrt"),
}

# The engine that each format is run by; variants of it have its name and more behind a hyphen.
ENGINES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "gguf": "llamacpp",
    "coreml": "coreml",
    "tensorrt": "tensorrt",
}

# Formats whose engine takes audio embeddings from another's encoder, and the one to build beside where there is no other.
ENCODER_BESIDE = {"gguf": "onnx"}

# Packages that decide what a format's files hold, beside those that every build uses.
_TOOLS = {
    "openvino": ("openvino", "openvino-tokenizers"),
    "coreml": ("coremltools",),
    "tensorrt": ("tensorrt-rtx",),
}


def names() -> tuple[str, ...]:
    """Every target that can be built for."""
    return tuple(_TARGETS)


def tools(targets: Iterable[str]) -> dict[str, str]:
    """The versions of the packages that decide what these targets' files hold, of those that are installed."""
    packages = sorted({package for name in targets for package in _TOOLS.get(name, ())})
    found = ((package, next(iter(distributions(name=package)), None)) for package in packages)
    return {package: one.version for package, one in found if one is not None}


def check_named(targets: Sequence[str]) -> None:
    """Refuse to build for nothing.

    Raises:
        RecipeError: with the targets there are.
    """
    if not targets:
        raise RecipeError(f"no target is named (there are: {', '.join(_TARGETS)}). Give one, such as --target onnx")


def target(name: str, **options: Any) -> Target:
    """The target of this name; `options` are those that its class has.

    Raises:
        RecipeError: there is none.
    """
    if name not in _TARGETS:
        raise RecipeError(f"target '{name}' is unknown (there are: {', '.join(_TARGETS)}). See: ossicle targets")
    module, kind = _TARGETS[name]
    made: Target = getattr(import_module(f".{module}", __package__), kind)(**options)
    return made
