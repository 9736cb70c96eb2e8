"""The numbers that GGUF's blocks stand for, in float32 and in ggml's order of operations. Blocks are bytes [blocks, size]."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


def plain(blocks: UInt8, bits: int, *, minimum: bool) -> Float32:
    """Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: a level times the scale, from the middle level on or from a least value."""
    scale, start = _half(blocks, 0), 4 if minimum else 2
    if bits == 8:
        return scale * blocks[:, start:].view(np.int8).astype(np.float32)
    levels = np.concatenate(_nibbles(blocks[:, -16:]), axis=1)
    if bits == 5:
        levels |= np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little") << np.uint8(4)
    if minimum:
        return scale * levels.astype(np.float32) + _half(blocks, 2)
    return scale * (levels.astype(np.float32) - np.float32(1 << (bits - 1)))


def affine(blocks: UInt8, bits: int) -> Float32:
    """Q4_K and Q5_K: levels times a 6-bit scale less a 6-bit minimum, for 32 neighbours."""
    scales, minima = _sixes(blocks[:, 4:16])
    levels = _interleaved(_nibbles(blocks[:, -128:].reshape(len(blocks), 4, 32)))
    if bits == 5:
        levels |= _planes(blocks[:, 16:48], 8, 1) << np.uint8(4)
    steps = (_half(blocks, 0) * scales)[:, :, None]
    floors = (_half(blocks, 2) * minima)[:, :, None]
    return (steps * levels.astype(np.float32) - floors).reshape(-1, 256)


def three(blocks: UInt8) -> Float32:
    """Q3_K: levels -4 .. 3 times a 6-bit scale, for 16 neighbours."""
    low, high = np.concatenate(_nibbles(blocks[:, 96:104]), axis=1), _planes(blocks[:, 104:108], 4, 2).reshape(-1, 16)
    scales = _half(blocks, 108) * ((low | high << np.uint8(4)).astype(np.float32) - np.float32(32))
    levels = _planes(blocks[:, 32:96].reshape(-1, 2, 32), 4, 2).reshape(-1, 256)
    levels |= _planes(blocks[:, :32], 8, 1).reshape(-1, 256) << np.uint8(2)
    return _times(scales, levels.astype(np.float32) - np.float32(4))


def six(blocks: UInt8) -> Float32:
    """Q6_K: levels -32 .. 31 times an 8-bit scale, for 16 neighbours."""
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    low = np.concatenate(_nibbles(blocks[:, :128].reshape(-1, 2, 64)), axis=2).reshape(-1, 256)
    levels = low | _planes(blocks[:, 128:192].reshape(-1, 2, 32), 4, 2).reshape(-1, 256) << np.uint8(4)
    return _times(scales, levels.astype(np.float32) - np.float32(32))


READERS: Mapping[str, Callable[[UInt8], Float32]] = {
    "Q4_0": lambda blocks: plain(blocks, 4, minimum=False),
    "Q4_1": lambda blocks: plain(blocks, 4, minimum=True),
    "Q5_0": lambda blocks: plain(blocks, 5, minimum=False),
    "Q5_1": lambda blocks: plain(blocks, 5, minimum=True),
    "Q8_0": lambda blocks: plain(blocks, 8, minimum=False),
    "Q3_K": three,
    "Q4_K": lambda blocks: affine(blocks, 4),
    "Q5_K": lambda blocks: affine(blocks, 5),
    "Q6_K": six,
}


def _half(blocks: UInt8, start: int) -> Float32:
    """The float16 that stands at a byte of each block, [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: UInt8) -> tuple[UInt8, UInt8]:
    return packed & np.uint8(15), packed >> np.uint8(4)


def _interleaved(halves: tuple[UInt8, UInt8]) -> UInt8:
    """Runs of 32 by turns from two arrays [blocks, 4, 32]: [blocks, 8, 32]."""
    return np.stack(halves, axis=2).reshape(len(halves[0]), 2 * halves[0].shape[1], 32)


def _planes(packed: UInt8, count: int, bits: int) -> UInt8:
    """Fields [..., count, n] of so many bits, the lowest first, of bytes [..., n]."""
    shifts = (np.arange(count, dtype=np.uint8) * np.uint8(bits))[:, None]
    return (packed[..., None, :] >> shifts) & np.uint8((1 << bits) - 1)


def _sixes(packed: UInt8) -> tuple[Float32, Float32]:
    """Eight 6-bit scales and eight 6-bit minima of 12 bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    low = np.uint8(63)
    scales = np.concatenate([first & low, third & np.uint8(15) | first >> np.uint8(6) << np.uint8(4)], axis=1)
    minima = np.concatenate([second & low, third >> np.uint8(4) | second >> np.uint8(6) << np.uint8(4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _times(scales: Float32, levels: NDArray[Any]) -> Float32:
    """Sixteen levels after the other times one of sixteen scales: [blocks, 256]."""
    numbers: Float32 = scales[:, :, None] * levels.reshape(-1, 16, 16)
    return numbers.reshape(-1, 256)
