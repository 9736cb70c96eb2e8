"""Keys and values of the fused decoder: buffers that outlive a step, in this process or on a provider's device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .onnxruntime_session import engine_call


class Cache(Protocol):
    """Keys and values [batch, heads, width, head_dim] of each layer; a row's tokens are at the left."""

    @property
    def width(self) -> int: ...

    def row(self, index: int) -> "Cache":
        """One row, in the same memory."""

    def kept(self, rows: Sequence[int]) -> "Cache":
        """These rows, in memory of their own."""

    def held(self) -> list[NDArray[Any]]:
        """Keys and values in this process, layer by layer."""

    def longer(self, width: int) -> "Cache":
        """The same with room for `width` tokens, in memory of its own."""

    def bind(self, binding: Any, past: Sequence[str], present: Sequence[str]) -> None:
        """Let a run read it as `past` and write `present` in place."""


def filled_cache(arrays: list[NDArray[Any]], memory: str) -> Cache:
    """A cache of these keys and values on a device; on the CPU it is these arrays."""
    if memory == "cpu":
        return HostCache(arrays)
    return DeviceCache([on_device(array, memory) for array in arrays], memory, 0, len(arrays[0]))


def on_device(array: NDArray[Any], memory: str) -> Any:
    """An array as an OrtValue on a device; on the CPU it shares the array's memory."""
    from onnxruntime import OrtValue

    held = np.asarray(array, order="C")
    return OrtValue.ortvalue_from_numpy(held) if memory == "cpu" else OrtValue.ortvalue_from_numpy(held, memory, 0)


def run_bound(session: Any, binding: Any, inputs: Mapping[str, NDArray[Any]]) -> Any:
    """The outputs of a run over what is bound, and inputs of this process."""
    for name, value in inputs.items():
        binding.bind_cpu_input(name, np.asarray(value, order="C"))
    engine_call(session.run_with_iobinding, binding)
    return binding.get_outputs()


@dataclass(frozen=True)
class HostCache:
    """A cache in this process: an array per layer and kind."""

    arrays: list[NDArray[Any]]

    @property
    def width(self) -> int:
        return int(self.arrays[0].shape[2])

    def row(self, index: int) -> Cache:
        return HostCache([array[index : index + 1] for array in self.arrays])

    def kept(self, rows: Sequence[int]) -> Cache:
        return HostCache([array[list(rows)] for array in self.arrays])

    def held(self) -> list[NDArray[Any]]:
        return self.arrays

    def longer(self, width: int) -> Cache:
        return HostCache([_longer(array, width) for array in self.arrays])

    def bind(self, binding: Any, past: Sequence[str], present: Sequence[str]) -> None:
        for name, output, array in zip(past, present, self.arrays, strict=True):
            value = on_device(array, "cpu")
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(output, value)


@dataclass(frozen=True)
class DeviceCache:
    """A cache on a device: an OrtValue per layer and kind, of which `count` rows from `first` on are meant."""

    values: list[Any]
    memory: str
    first: int
    count: int

    @property
    def width(self) -> int:
        return int(self.values[0].shape()[2])

    def row(self, index: int) -> Cache:
        return DeviceCache(self.values, self.memory, self.first + index, 1)

    def kept(self, rows: Sequence[int]) -> Cache:
        return self._of([value.numpy()[[self.first + row for row in rows]] for value in self.values])

    def held(self) -> list[NDArray[Any]]:
        return [value.numpy()[self.first : self.first + self.count] for value in self.values]

    def longer(self, width: int) -> Cache:
        return self._of([_longer(array, width) for array in self.held()])

    def bind(self, binding: Any, past: Sequence[str], present: Sequence[str]) -> None:
        for name, output, value in zip(past, present, self.values, strict=True):
            _, *sizes = value.shape()
            dtype = np.dtype(np.float16 if "float16" in value.data_type() else np.float32)
            place = value.data_ptr() + self.first * prod(sizes) * dtype.itemsize
            binding.bind_input(name, self.memory, 0, dtype.type, (self.count, *sizes), place)
            binding.bind_output(output, self.memory, 0, dtype.type, (self.count, *sizes), place)

    def _of(self, arrays: list[NDArray[Any]]) -> Cache:
        return filled_cache(arrays, self.memory)


def _longer(array: NDArray[Any], width: int) -> NDArray[Any]:
    longer = np.zeros((*array.shape[:2], width, array.shape[3]), array.dtype)
    longer[:, :, : array.shape[2]] = array
    return longer
