"""MIL's element types and tensors.

A float16 tensor is carried by float32 numbers that are float16's. So products accumulate in float32 at the speed of BLAS, and
what an operation gives is rounded once, when it is done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Element:
    """An element type: its name in MIL, bits as stored, the numpy types that store and that carry it.

    `record` is its number in a file of weights, MILBlob's BlobDataType; 0 where it has none.
    """

    name: str
    bits: int
    stored: str  # sub-byte types: of a byte's worth, unpacked
    carried: str
    record: int = 0

    @property
    def is_float(self) -> bool:
        return self.name in ("fp16", "fp32")

    @property
    def is_signed(self) -> bool:
        return self.name.startswith("int")


# By their numbers in MIL's protobuf, `DataType`.
ELEMENTS: Mapping[int, Element] = {
    1: Element("bool", 8, "?", "?"),
    2: Element("string", 0, "U", "U"),
    10: Element("fp16", 16, "<f2", "<f4", 1),
    11: Element("fp32", 32, "<f4", "<f4", 2),
    21: Element("int8", 8, "i1", "i1", 4),
    22: Element("int16", 16, "<i2", "<i2", 6),
    23: Element("int32", 32, "<i4", "<i4", 14),
    25: Element("int4", 4, "i1", "i1", 8),
    31: Element("uint8", 8, "u1", "u1", 3),
    32: Element("uint16", 16, "<u2", "<u2", 7),
    33: Element("uint32", 32, "<u4", "<u4", 15),
    35: Element("uint4", 4, "u1", "u1", 11),
    36: Element("uint2", 2, "u1", "u1", 10),
    37: Element("uint1", 1, "u1", "u1", 9),
    38: Element("uint6", 6, "u1", "u1", 13),
    39: Element("uint3", 3, "u1", "u1", 12),
}
BY_NAME: Mapping[str, Element] = {element.name: element for element in ELEMENTS.values()}

FP16, FP32, INT32, BOOL = (BY_NAME[name] for name in ("fp16", "fp32", "int32", "bool"))


@dataclass(frozen=True)
class Tensor:
    """Numbers of one element type. Nobody writes to the array: operations share what they do not change."""

    element: Element
    array: Array = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


@dataclass(frozen=True)
class TensorType:
    """A declared type; a dimension None is any, a shape None is of any rank."""

    element: Element
    shape: tuple[int | None, ...] | None

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is of this type."""
        return tensor.element == self.element and fits(self.shape, tensor.shape)


def fits(declared: tuple[int | None, ...] | None, shape: Sequence[int]) -> bool:
    """Whether a shape is one that was declared."""
    if declared is None:
        return True
    return len(declared) == len(shape) and all(d in (None, s) for d, s in zip(declared, shape, strict=True))


def described(value: Tensor | TensorType) -> str:
    """A type in words: "fp16 [1, ?, 64]"."""
    if value.shape is None:
        return f"{value.element.name} of any rank"
    return f"{value.element.name} [{', '.join('?' if size is None else str(size) for size in value.shape)}]"


def computed(element: Element, array: Array) -> Tensor:
    """A tensor of what an operation computed, rounded to its element type; float16 overflows to infinity.

    Raises:
        ValueError: it computed fractions where the type has none.
    """
    if np.asarray(array).dtype.kind == "f" and not element.is_float and element != BOOL:
        raise ValueError(f"it does not give {element.name}")
    if element == FP16:
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.asarray(array, np.float32).astype(np.float16).astype(np.float32)
    return Tensor(element, np.asarray(array, element.carried))


def zeros(of: TensorType) -> Tensor:
    """The tensor of zeros of a type.

    Raises:
        ValueError: its shape is not fixed.
    """
    if of.shape is None or None in of.shape:
        raise ValueError(f"{described(of)} has no fixed shape")
    return Tensor(of.element, np.zeros([size or 0 for size in of.shape], of.element.carried))


def widened(element: Element, stored: Array) -> Tensor:
    """A tensor of numbers as they are stored."""
    return Tensor(element, np.asarray(stored, element.carried))


def unpacked(raw: Array, element: Element, count: int) -> Array:
    """The first `count` numbers of packed bytes: int8 or uint8, the first in the lowest bits."""
    bits = np.unpackbits(np.asarray(raw, np.uint8), count=count * element.bits, bitorder="little")
    places = (1 << np.arange(element.bits)).astype(np.uint8)
    codes = bits.reshape(count, element.bits) @ places
    if not element.is_signed:
        return np.asarray(codes, np.uint8)
    top = 1 << (element.bits - 1)
    return ((codes ^ top).astype(np.int16) - top).astype(np.int8)


def from_bytes(raw: Array, element: Element, shape: tuple[int, ...]) -> Tensor:
    """The tensor that bytes hold, all of them.

    Raises:
        ValueError: they are not as many as the shape asks for.
    """
    count, size = prod(shape), stored_bytes(element, shape)
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes are stored where {element.name} {list(shape)} has {size}")
    numbers = unpacked(raw, element, count) if element.bits < 8 else raw.view(element.stored)
    return widened(element, numbers.reshape(shape))


def stored_bytes(element: Element, shape: Sequence[int]) -> int:
    """Bytes that a tensor takes in a file."""
    return -(-prod(shape) * element.bits // 8)
