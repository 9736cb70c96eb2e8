"""Core ML packages opened in one of two ways, alike to whoever runs them: by Core ML itself, or by the interpreter of MIL."""

import platform
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError, Port
from .mil import package
from .mil.interpreter import Program
from .refusal import Refusal

Arrays = Mapping[str, NDArray[Any]]
UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE", "all": "ALL"}
SYSTEM = 15  # the first macOS that has states and functions


class Model(Protocol):
    """An opened package."""

    def begin(self) -> Any:
        """The state of a new sequence."""

    def copied(self, state: Any) -> Any:
        """Another state that holds the same, and goes its own way."""

    def run(self, function: str, inputs: Arrays, state: Any) -> tuple[Arrays, Any]:
        """Outputs by name, and the state after them; the one given is used up."""


class InterpretedModel:
    """A package run by the interpreter. Its states are never written to."""

    def __init__(self, path: Path) -> None:
        self._program = Program(path)

    def begin(self) -> Any:
        return self._program.function().states()

    def copied(self, state: Any) -> Any:
        return state

    def run(self, function: str, inputs: Arrays, state: Any) -> tuple[Arrays, Any]:
        return self._program.function(function).run(inputs, state)


class NativeModel:
    """A package run by Core ML: a model for each function, over states that all of them share.

    Written to coremltools' documentation and tested on a stand-in for it, which no Mac is needed for, and proves no Mac.
    """

    def __init__(self, path: Path, provider: str) -> None:
        model = package.read(path).model
        several = len(model.functions) > 1
        self._states = [feature.name for feature in model.functions[model.default].described_states]
        self._default = model.default
        self._models = {name: _loaded(path, provider, name if several else None) for name in model.functions}

    def begin(self) -> Any:
        return _called(self._models[self._default].make_state) if self._states else None

    def copied(self, state: Any) -> Any:
        copy = self.begin()
        for name in self._states:
            _called(copy.write_state, name, _called(state.read_state, name))
        return copy

    def run(self, function: str, inputs: Arrays, state: Any) -> tuple[Arrays, Any]:
        return _called(self._models[function or self._default].predict, dict(inputs), state), state


class CachedModel:
    """A package whose keys and values are inputs and outputs, as a model with a state."""

    def __init__(self, model: Model, caches: Sequence[Port]) -> None:
        self._model = model
        self._caches = caches

    def begin(self) -> Any:
        return {port.name: np.zeros([int(size) for size in port.shape], port.dtype) for port in self._caches}

    def copied(self, state: Any) -> Any:
        return state

    def run(self, function: str, inputs: Arrays, state: Any) -> tuple[Arrays, Any]:
        outputs, _ = self._model.run(function, {**inputs, **state}, None)
        return outputs, {name: outputs[f"new_{name}"] for name in state}


def native_refusal() -> str | None:
    """Why this Mac cannot run packages, with the command that would help; None where it can."""
    from importlib.util import find_spec

    system = platform.mac_ver()[0]
    if int(system.split(".")[0]) < SYSTEM:
        return Refusal(f"Core ML runs these packages from macOS {SYSTEM} on, and this is macOS {system}", "system")
    if find_spec("coremltools") is None:
        return Refusal(
            "package coremltools is not installed. Install it with", "package", 'pip install "ossicle[coreml]"'
        )
    return None


def _loaded(path: Path, provider: str, function: str | None) -> Any:
    with _without("torch", "tensorflow", "sklearn"):
        import coremltools

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # a model that Core ML refuses is a warning until it is run
            units = coremltools.ComputeUnit[UNITS[provider]]
            return coremltools.models.MLModel(str(path), compute_units=units, function_name=function)
    except Exception as reason:
        raise EngineError(
            f"engine 'coreml' refuses '{path}': {reason}. Check the bundle with: ossicle inspect BUNDLE"
        ) from reason


def _called(call: Any, *arguments: Any) -> Any:
    # What Core ML raises through coremltools has no base of its own but Exception.
    try:
        return call(*arguments)
    except Exception as reason:
        raise EngineError(f"engine 'coreml' failed: {reason}") from reason


@contextmanager
def _without(*packages: str) -> Iterator[None]:
    """As if these were not installed: coremltools imports what it can convert from, and nothing is converted here."""
    absent = [name for name in packages if name not in sys.modules]
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(absent))  # None: an import of it fails
    try:
        yield
    finally:
        for name in absent:
            del modules[name]
