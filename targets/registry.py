"""The targets there are, by the word the user types."""

from importlib import import_module

from .contract import RecipeError, Target

_TARGETS = {"onnx": ("onnx", "Onnx"), "openvino": ("openvino", "Openvino"), "gguf": ("gguf", "Gguf")}


def names() -> tuple[str, ...]:
    """Every target that can be built for."""
    return tuple(_TARGETS)


def target(name: str) -> Target:
    """The target of this name.

    Raises:
        RecipeError: there is none.
    """
    if name not in _TARGETS:
        raise RecipeError(f"target '{name}' is unknown (there are: {', '.join(_TARGETS)}). See: ossicle targets")
    module, kind = _TARGETS[name]
    made: Target = getattr(import_module(f".{module}", __package__), kind)()
    return made
