"""What stands in GGUF's blocks: levels, and the scales and minima that make numbers of them, in ggml's order of operations.

A number is scale * (level - middle) - minimum, in float32. Blocks are bytes [blocks, size].
Formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Plane:
    """The bits of a block's levels from bit `shift` on, `bits` of each: bytes [runs, width] from byte `start` on.

    A byte of a run holds a level in each of its fields, the lowest first; the levels of a field are neighbours.
    """

    start: int
    runs: int
    width: int
    bits: int
    shift: int = 0

    def read(self, blocks: UInt8) -> UInt8:
        """These bits of all levels [blocks, levels]."""
        packed = blocks[:, self._bytes].reshape(len(blocks), self.runs, 1, self.width)
        fields: UInt8 = (packed >> self._fields & self._mask) << np.uint8(self.shift)
        return fields.reshape(len(blocks), self._levels)

    def write(self, levels: UInt8, blocks: UInt8) -> None:
        """Put these bits of all levels [blocks, levels] in their place."""
        bits = levels >> np.uint8(self.shift) & self._mask
        fields = bits.reshape(len(blocks), self.runs, len(self._fields), self.width) << self._fields
        packed = np.bitwise_or.reduce(fields, axis=2)
        blocks[:, self._bytes] = packed.reshape(len(blocks), self.runs * self.width)

    @property
    def _levels(self) -> int:
        return self.runs * self.width * 8 // self.bits

    @property
    def _bytes(self) -> slice:
        return slice(self.start, self.start + self.runs * self.width)

    @property
    def _fields(self) -> UInt8:
        return np.arange(0, 8, self.bits, dtype=np.uint8)[:, None]

    @property
    def _mask(self) -> np.uint8:
        return np.uint8((1 << self.bits) - 1)


@dataclass(frozen=True)
class Form:
    """How blocks of a format are read. Scales and minima are [blocks, sub-blocks] of equal size.

    `signed`: levels stand in two's complement, from -middle on.
    """

    planes: tuple[Plane, ...]
    middle: int
    scales: Callable[[UInt8], Float32]
    minima: Callable[[UInt8], Float32] | None = None
    signed: bool = False

    def levels(self, blocks: UInt8) -> UInt8:
        """The levels [blocks, columns], from 0 on."""
        first, *others = (plane.read(blocks) for plane in self.planes)
        for other in others:
            first |= other
        return first ^ np.uint8(self.middle) if self.signed else first

    def with_levels(self, blocks: UInt8, levels: UInt8) -> UInt8:
        """These blocks with other levels [blocks, columns], and all else as it is."""
        changed = blocks.copy()
        for plane in self.planes:
            plane.write(levels ^ np.uint8(self.middle) if self.signed else levels, changed)
        return changed

    def numbers(self, blocks: UInt8) -> Float32:
        """What blocks stand for [blocks, columns]."""
        scales = self.scales(blocks)
        centred = self.levels(blocks).astype(np.float32) - np.float32(self.middle)
        found = scales[:, :, None] * centred.reshape(*scales.shape, centred.shape[1] // scales.shape[1])
        if self.minima is not None:
            found -= self.minima(blocks)[:, :, None]
        return found.reshape(centred.shape)


def _half(blocks: UInt8, start: int) -> Float32:
    """The float16 that stands at a byte of each block, [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _sixes(packed: UInt8) -> tuple[Float32, Float32]:
    """Eight 6-bit scales and eight 6-bit minima of 12 bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    low = np.uint8(63)
    scales = np.concatenate([first & low, third & np.uint8(15) | first >> np.uint8(6) << np.uint8(4)], axis=1)
    minima = np.concatenate([second & low, third >> np.uint8(4) | second >> np.uint8(6) << np.uint8(4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _two_scales(blocks: UInt8) -> Float32:
    return _half(blocks, 80) * (blocks[:, :16] & np.uint8(15)).astype(np.float32)


def _two_minima(blocks: UInt8) -> Float32:
    return _half(blocks, 82) * (blocks[:, :16] >> np.uint8(4)).astype(np.float32)


def _affine_scales(blocks: UInt8) -> Float32:
    return _half(blocks, 0) * _sixes(blocks[:, 4:16])[0]


def _affine_minima(blocks: UInt8) -> Float32:
    return _half(blocks, 2) * _sixes(blocks[:, 4:16])[1]


def _three_scales(blocks: UInt8) -> Float32:
    low, high = Plane(96, 1, 8, 4).read(blocks), Plane(104, 1, 4, 2, 4).read(blocks)
    return _half(blocks, 108) * ((low | high).astype(np.float32) - np.float32(32))


def _six_scales(blocks: UInt8) -> Float32:
    return _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)


def _first_half(blocks: UInt8) -> Float32:
    return _half(blocks, 0)


def _second_half_negated(blocks: UInt8) -> Float32:
    return -_half(blocks, 2)


FORMS: Mapping[str, Form] = {
    "Q4_0": Form((Plane(2, 1, 16, 4),), 8, _first_half),
    "Q4_1": Form((Plane(4, 1, 16, 4),), 0, _first_half, _second_half_negated),
    "Q5_0": Form((Plane(6, 1, 16, 4), Plane(2, 4, 1, 1, 4)), 16, _first_half),
    "Q5_1": Form((Plane(8, 1, 16, 4), Plane(4, 4, 1, 1, 4)), 0, _first_half, _second_half_negated),
    "Q8_0": Form((Plane(2, 1, 32, 8),), 128, _first_half, signed=True),
    "Q2_K": Form((Plane(16, 2, 32, 2),), 0, _two_scales, _two_minima),
    "Q3_K": Form((Plane(32, 2, 32, 2), Plane(0, 1, 32, 1, 2)), 4, _three_scales),
    "Q4_K": Form((Plane(16, 4, 32, 4),), 0, _affine_scales, _affine_minima),
    "Q5_K": Form((Plane(48, 4, 32, 4), Plane(16, 1, 32, 1, 4)), 0, _affine_scales, _affine_minima),
    "Q6_K": Form((Plane(0, 2, 64, 4), Plane(128, 2, 32, 2, 4)), 32, _six_scales),
}
