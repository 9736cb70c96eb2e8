"""What stands in GGUF's blocks: levels, and the scales and minima that make numbers of them, in ggml's order of operations.

A number is scale * (level - middle) - minimum, in float32. Blocks are bytes [blocks, size].
Formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from collections.abc import Callable, Mapping, Sequence
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
class Counts:
    """Scales or minima of a block's sub-blocks: whole numbers from `lowest` to `highest`, times the float16 at byte `unit`.

    Counts are float32 [blocks, sub-blocks]; `put` writes them into blocks, and is not there where all are the same.
    """

    unit: int
    lowest: int
    highest: int
    read: Callable[[UInt8], Float32]
    put: Callable[[UInt8, Float32], None] | None = None

    def numbers(self, blocks: UInt8) -> Float32:
        """The scales or minima [blocks, sub-blocks]."""
        return self.units(blocks) * self.read(blocks)

    def units(self, blocks: UInt8) -> Float32:
        """What counts are multiplied with [blocks, 1]."""
        return np.ascontiguousarray(blocks[:, self.unit : self.unit + 2]).view(np.float16).astype(np.float32)

    def write(self, counts: Float32, units: Float32, blocks: UInt8) -> None:
        """Put counts [blocks, sub-blocks] and units [blocks, 1] in their place."""
        blocks[:, self.unit : self.unit + 2] = np.ascontiguousarray(units, np.float16).view(np.uint8)
        if self.put:
            self.put(blocks, counts)


@dataclass(frozen=True)
class Form:
    """How blocks of a format are read. Sub-blocks are of equal size.

    `signed`: levels stand in two's complement, from -middle on.
    """

    planes: tuple[Plane, ...]
    middle: int
    scales: Counts
    minima: Counts | None = None
    signed: bool = False

    def levels(self, blocks: UInt8) -> UInt8:
        """The levels [blocks, columns], from 0 on."""
        first = _gathered(self.planes, blocks)
        return first ^ np.uint8(self.middle) if self.signed else first

    def with_levels(self, blocks: UInt8, levels: UInt8) -> UInt8:
        """These blocks with other levels [blocks, columns], and all else as it is."""
        changed = blocks.copy()
        _spread(self.planes, levels ^ np.uint8(self.middle) if self.signed else levels, changed)
        return changed

    def numbers(self, blocks: UInt8) -> Float32:
        """What blocks stand for [blocks, columns]."""
        scales = self.scales.numbers(blocks)
        centred = self.levels(blocks).astype(np.float32) - np.float32(self.middle)
        found = scales[:, :, None] * centred.reshape(*scales.shape, centred.shape[1] // scales.shape[1])
        if self.minima is not None:
            found -= self.minima.numbers(blocks)[:, :, None]
        return found.reshape(centred.shape)


def _gathered(planes: Sequence[Plane], blocks: UInt8) -> UInt8:
    first, *others = (plane.read(blocks) for plane in planes)
    for other in others:
        first |= other
    return first


def _spread(planes: Sequence[Plane], levels: UInt8, blocks: UInt8) -> None:
    for plane in planes:
        plane.write(levels, blocks)


def _one(unit: int, count: int = 1) -> Counts:
    """A number for the whole block."""
    return Counts(unit, count, count, lambda blocks: np.full((len(blocks), 1), count, np.float32))


def _fields(unit: int, bits: int, planes: Sequence[Plane], part: slice, middle: int = 0) -> Counts:
    """Counts of so many bits, less a middle, that are a part of what planes hold."""

    def read(blocks: UInt8) -> Float32:
        return _gathered(planes, blocks)[:, part].astype(np.float32) - np.float32(middle)

    def put(blocks: UInt8, counts: Float32) -> None:
        held = _gathered(planes, blocks)
        held[:, part] = (counts + np.float32(middle)).astype(np.uint8)
        _spread(planes, held, blocks)

    return Counts(unit, -middle, (1 << bits) - 1 - middle, read, put)


def _sixes(unit: int, at: int) -> Counts:
    """Eight 6-bit counts: four in the low bits of the bytes from `at` on, four in the bits above them and in nibbles."""
    nibble, low = np.uint8(at), np.uint8(63)  # scales stand in the low nibbles, minima in the high ones

    def read(blocks: UInt8) -> Float32:
        first, shared = blocks[:, 4 + at : 8 + at], blocks[:, 12:16]
        second = shared >> nibble & np.uint8(15) | first >> np.uint8(6) << np.uint8(4)
        counts: Float32 = np.concatenate([first & low, second], axis=1).astype(np.float32)
        return counts

    def put(blocks: UInt8, counts: Float32) -> None:
        first, second = np.split(counts.astype(np.uint8), 2, axis=1)
        blocks[:, 4 + at : 8 + at] = first | second >> np.uint8(4) << np.uint8(6)
        kept = blocks[:, 12:16] & np.uint8(0xF0 >> at)
        blocks[:, 12:16] = kept | (second & np.uint8(15)) << nibble

    return Counts(unit, 0, 63, read, put)


def _octets(unit: int, start: int, count: int) -> Counts:
    """Counts of eight bits in two's complement, from byte `start` on."""
    place = slice(start, start + count)

    def put(blocks: UInt8, counts: Float32) -> None:
        blocks[:, place] = counts.astype(np.int8).view(np.uint8)

    def read(blocks: UInt8) -> Float32:
        counts: Float32 = blocks[:, place].view(np.int8).astype(np.float32)
        return counts

    return Counts(unit, -128, 127, read, put)


_TWO = (Plane(0, 1, 16, 4),)
_THREE = Plane(96, 1, 8, 4), Plane(104, 1, 4, 2, 4)

FORMS: Mapping[str, Form] = {
    "Q4_0": Form((Plane(2, 1, 16, 4),), 8, _one(0)),
    "Q4_1": Form((Plane(4, 1, 16, 4),), 0, _one(0), _one(2, -1)),
    "Q5_0": Form((Plane(6, 1, 16, 4), Plane(2, 4, 1, 1, 4)), 16, _one(0)),
    "Q5_1": Form((Plane(8, 1, 16, 4), Plane(4, 4, 1, 1, 4)), 0, _one(0), _one(2, -1)),
    "Q8_0": Form((Plane(2, 1, 32, 8),), 128, _one(0), signed=True),
    "Q2_K": Form((Plane(16, 2, 32, 2),), 0, _fields(80, 4, _TWO, slice(16)), _fields(82, 4, _TWO, slice(16, 32))),
    "Q3_K": Form((Plane(32, 2, 32, 2), Plane(0, 1, 32, 1, 2)), 4, _fields(108, 6, _THREE, slice(16), 32)),
    "Q4_K": Form((Plane(16, 4, 32, 4),), 0, _sixes(0, 0), _sixes(2, 4)),
    "Q5_K": Form((Plane(48, 4, 32, 4), Plane(16, 1, 32, 1, 4)), 0, _sixes(0, 0), _sixes(2, 4)),
    "Q6_K": Form((Plane(0, 2, 64, 4), Plane(128, 2, 32, 2, 4)), 32, _octets(208, 192, 16)),
}
