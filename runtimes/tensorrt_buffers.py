"""Memory that graphs read and write, by address: on a device, or on this machine where the device is stood in for."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Allocation(Protocol):
    """Memory that is given back with its last owner."""

    address: int


class Device(Protocol):
    """Where buffers lie. Whatever it does is done when a call returns, or in order before the next run of a graph."""

    def allocate(self, size: int) -> Allocation:
        """`size` bytes of zeros."""

    def write(self, address: int, values: NDArray[Any]) -> None:
        """Copy contiguous values from this process to an address."""

    def read(self, address: int, values: NDArray[Any]) -> None:
        """Copy as many bytes as contiguous `values` take from an address into them."""

    def copy(self, target: "Block", source: "Block", width: int, rows: int) -> None:
        """Copy the first `width` bytes of each of `rows` rows."""


@dataclass(frozen=True)
class Block:
    """Rows of bytes: where the first begins, and how far apart rows are."""

    address: int
    pitch: int


@dataclass(frozen=True)
class Buffer:
    """A dense array on a device."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    memory: Allocation = field(repr=False)  # kept as long as anything lies in it

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def row(self, index: int) -> "Buffer":
        """One element along the first axis, [1, ...], in the same memory."""
        step = self.size // self.shape[0]
        return Buffer(self.address + index * step, (1, *self.shape[1:]), self.dtype, self.memory)


class Graph(Protocol):
    """An opened graph: an engine, or what stands in for it."""

    @property
    def device(self) -> Device:
        """Where what it reads and writes lies."""

    def run(
        self, profile: int, inputs: Mapping[str, Buffer], numbers: Mapping[str, int], outputs: Mapping[str, Buffer]
    ) -> None:
        """Compute the outputs, each as large as it becomes; `numbers` are the inputs that are one integer.

        Raises:
            EngineError: the engine failed.
        """


class Scratch:
    """Buffers by name for what comes and goes with every run: at the same address until one has to be larger."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held: dict[str, tuple[int, Allocation]] = {}

    def take(self, name: str, shape: Sequence[int], dtype: Any) -> Buffer:
        """The buffer of this name, of any content."""
        kind = np.dtype(dtype)
        size = prod(shape) * kind.itemsize
        if name not in self._held or self._held[name][0] < size:
            self._held[name] = size, self._device.allocate(size)
        memory = self._held[name][1]
        return Buffer(memory.address, tuple(shape), kind, memory)

    def put(self, name: str, values: NDArray[Any]) -> Buffer:
        """The buffer of this name, with these values."""
        buffer = self.take(name, values.shape, values.dtype)
        self._device.write(buffer.address, np.ascontiguousarray(values))
        return buffer

    def get(self, buffer: Buffer) -> NDArray[Any]:
        """What a buffer holds."""
        values = np.empty(buffer.shape, buffer.dtype)
        self._device.read(buffer.address, values)
        return values


class HostMemory:
    """Zeros in this process."""

    def __init__(self, size: int) -> None:
        self._bytes = np.zeros(max(size, 1), np.uint8)
        self.address = self._bytes.ctypes.data


class Host:
    """This machine's own memory as a device."""

    def allocate(self, size: int) -> Allocation:
        return HostMemory(size)

    def write(self, address: int, values: NDArray[Any]) -> None:
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def read(self, address: int, values: NDArray[Any]) -> None:
        ctypes.memmove(values.ctypes.data, address, values.nbytes)

    def copy(self, target: Block, source: Block, width: int, rows: int) -> None:
        for row in range(rows):
            ctypes.memmove(target.address + row * target.pitch, source.address + row * source.pitch, width)


def host_array(buffer: Buffer) -> NDArray[Any]:
    """A buffer of this machine's memory as an array, sharing it."""
    held = (ctypes.c_uint8 * buffer.size).from_address(buffer.address)
    return np.ctypeslib.as_array(held).view(buffer.dtype).reshape(buffer.shape)
