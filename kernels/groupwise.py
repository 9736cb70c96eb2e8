"""Group-wise integers: a matrix [N, K] as codes with one float16 scale for every g neighbours along K.

Symmetric: w ~ (code - 2^(bits-1)) * scale. Asymmetric: w ~ (code - zero point) * scale. Scales are positive and already
rounded to float16 when codes are chosen, so that every format that stores them means the same numbers. The last group of a
row may be short. Compiled with numba on first use; float32 arithmetic in a fixed order, so the same input gives the same
bits on every run.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
UInt8 = NDArray[np.uint8]

_SMALLEST = np.float16(2.0**-24)  # the least positive float16: a scale is never zero
_LARGEST = float(np.finfo(np.float16).max)
_INFINITE = np.uint32(0x7F800000)  # the bits of infinity; beyond it only what is not a number
_QUARTERS = 5  # scales that are tried between the largest code below the middle and the one above it


def quantize_symmetric(weights: Float32, bits: int, group: int) -> tuple[UInt8, Float16]:
    """Codes [N, K] around 2^(bits-1), and scales [N, ceil(K/g)], of float32 weights [N, K].

    Eight bits: GGUF's Q8_0, scale = largest magnitude / 127, codes 1 .. 255, rounded by the scale before it is a float16.
    Four and three bits: of the scales largest magnitude / 7 .. 8, or 3 .. 4, the one with the least squared error, codes
    0 .. 15, or 0 .. 7.

    Raises:
        ValueError: a weight is not finite, or too large for a float16 scale.
    """
    largest = _largest_magnitudes(weights, group)
    codes = np.empty(weights.shape, np.uint8)
    if bits == 8:
        scales = largest / np.float32(127)
        inverse = np.float32(1) / np.maximum(scales, np.float32(_SMALLEST))
        _compiled(_code_symmetric)(weights, group, inverse, 1 << (bits - 1), codes)
        return codes, _positive(scales)
    half = 1 << (bits - 1)
    divisors = [half - 1 + quarter / 4 for quarter in range(_QUARTERS)]
    candidates = np.stack([_positive(largest / np.float32(divisor)) for divisor in divisors])
    chosen = np.empty(largest.shape, np.uint8)
    _compiled(_choose_symmetric)(weights, group, candidates.astype(np.float32), half, codes, chosen)
    return codes, np.take_along_axis(candidates, chosen[None].astype(np.intp), axis=0)[0]


def quantize_asymmetric(weights: Float32, bits: int, group: int) -> tuple[UInt8, Float16, UInt8]:
    """Codes [N, K], scales and zero points [N, ceil(K/g)] of float32 weights [N, K]: each group's range, 0 included.

    Raises:
        ValueError: a weight is not finite, or too large for a float16 scale.
    """
    largest = _largest_magnitudes(weights, group)
    span, lowest = np.empty_like(largest), np.empty_like(largest)
    _compiled(_extremes)(weights, group, span, lowest)
    top = (1 << bits) - 1
    scales = _positive(span / np.float32(top))
    zero_points = np.clip(np.rint(-lowest / scales.astype(np.float32)), 0, top).astype(np.uint8)
    codes = np.empty(weights.shape, np.uint8)
    _compiled(_code_asymmetric)(weights, group, scales.astype(np.float32), zero_points, top, codes)
    return codes, scales, zero_points


def dequantize(codes: UInt8, scales: Float16, zero_points: UInt8 | None, bits: int, group: int) -> Float32:
    """The float32 weights [N, K] that codes [N, K], scales and zero points [N, ceil(K/g)] stand for."""
    columns = codes.shape[1]
    scale = np.repeat(scales.astype(np.float32), group, axis=1)[:, :columns]
    if zero_points is None:
        return (codes.astype(np.float32) - np.float32(1 << (bits - 1))) * scale
    zero = np.repeat(zero_points.astype(np.float32), group, axis=1)[:, :columns]
    return (codes.astype(np.float32) - zero) * scale


def pack_pairs(codes: UInt8) -> UInt8:
    """Four-bit codes [N, K], two to a byte, the even column in the low half: [N, ceil(K/2)]."""
    packed = np.zeros((codes.shape[0], (codes.shape[1] + 1) // 2), np.uint8)
    _compiled(_pack_pairs)(codes, packed)
    return packed


def unpack_pairs(packed: UInt8, columns: int) -> UInt8:
    """Four-bit codes [N, columns] of bytes [N, ceil(columns/2)] written by `pack_pairs`."""
    codes = np.empty((packed.shape[0], packed.shape[1] * 2), np.uint8)
    codes[:, 0::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    return codes[:, :columns]


def pad_columns(codes: UInt8, columns: int, value: int) -> UInt8:
    """Codes [N, K] widened to [N, columns] with `value`, itself where it is wide enough."""
    missing = columns - codes.shape[1]
    return codes if missing == 0 else np.pad(codes, ((0, 0), (0, missing)), constant_values=value)


def _largest_magnitudes(weights: Float32, group: int) -> Float32:
    """The largest magnitude of each group [N, ceil(K/g)], after refusing what no float16 scale can stand for."""
    largest = np.empty((weights.shape[0], -(-weights.shape[1] // group)), np.uint32)
    _compiled(_largest_bits)(weights.view(np.uint32), group, largest)
    if largest.max(initial=0) >= _INFINITE:
        raise ValueError("a weight is infinite or not a number")
    magnitudes: Float32 = largest.view(np.float32)
    if magnitudes.max(initial=0) > _LARGEST:
        raise ValueError(f"the weight {float(magnitudes.max()):g} is too large for a float16 scale")
    return magnitudes


def _positive(scales: Float32) -> Float16:
    return np.maximum(scales.astype(np.float16), _SMALLEST)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import numba

    compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    return compiled


def _largest_bits(bits: Any, group: int, largest: Any) -> None:
    """Magnitudes of floats are ordered as their bits are without the sign, and a maximum of integers vectorizes."""
    magnitude = np.uint32(0x7FFFFFFF)
    for row in range(bits.shape[0]):
        for block in range(largest.shape[1]):
            values = bits[row, block * group : (block + 1) * group]
            greatest = np.uint32(0)
            for column in range(values.size):
                greatest = max(greatest, values[column] & magnitude)
            largest[row, block] = greatest


def _extremes(weights: Any, group: int, span: Any, lowest: Any) -> None:
    """Each group's range and least value, 0 included."""
    for row in range(weights.shape[0]):
        for block in range(span.shape[1]):
            least, greatest = np.float32(0), np.float32(0)
            for column in range(block * group, min((block + 1) * group, weights.shape[1])):
                least = min(least, weights[row, column])
                greatest = max(greatest, weights[row, column])
            span[row, block], lowest[row, block] = greatest - least, least


def _code_symmetric(weights: Any, group: int, inverse: Any, zero: int, codes: Any) -> None:
    for row in range(weights.shape[0]):
        for block in range(inverse.shape[1]):
            factor = inverse[row, block]
            for column in range(block * group, min((block + 1) * group, weights.shape[1])):
                value = weights[row, column] * factor
                size = np.floor(np.abs(value) + np.float32(0.5))  # halves away from zero, as C's roundf
                codes[row, column] = np.uint8(zero + np.int32(np.copysign(size, value)))


def _choose_symmetric(weights: Any, group: int, candidates: Any, half: int, codes: Any, chosen: Any) -> None:
    floor, ceiling, lanes = np.float32(-half), np.float32(half - 1), 8
    errors = np.zeros(-(-group // lanes) * lanes, np.float32)
    for row in range(weights.shape[0]):
        for block in range(chosen.shape[1]):
            values = weights[row, block * group : (block + 1) * group]
            best, least = 0, np.float32(np.inf)
            for index in range(candidates.shape[0]):
                for lane in range(values.size, errors.size):  # of the candidate before, in a short group
                    errors[lane] = 0
                scale = candidates[index, row, block]
                inverse = np.float32(1) / scale
                for column in range(values.size):
                    code = min(max(np.rint(values[column] * inverse), floor), ceiling)
                    distance = values[column] - code * scale
                    errors[column] = distance * distance
                # one running sum could not be vectorized; eight, added in this order, can and give the same everywhere
                for start in range(lanes, errors.size, lanes):
                    for lane in range(lanes):
                        errors[lane] += errors[start + lane]
                even, odd = (
                    errors[0] + errors[4] + (errors[2] + errors[6]),
                    errors[1] + errors[5] + (errors[3] + errors[7]),
                )
                error = even + odd
                if error < least:
                    best, least = index, error
            inverse = np.float32(1) / candidates[best, row, block]
            coded = codes[row, block * group : (block + 1) * group]
            for column in range(values.size):
                code = min(max(np.rint(values[column] * inverse), floor), ceiling)
                coded[column] = np.uint8(np.int32(code) + half)
            chosen[row, block] = best


def _code_asymmetric(weights: Any, group: int, scales: Any, zero_points: Any, top: int, codes: Any) -> None:
    for row in range(weights.shape[0]):
        for block in range(scales.shape[1]):
            start, stop = block * group, min((block + 1) * group, weights.shape[1])
            inverse = np.float32(1) / scales[row, block]
            zero = np.float32(zero_points[row, block])
            for column in range(start, stop):
                code = np.rint(weights[row, column] * inverse) + zero
                codes[row, column] = np.uint8(min(max(code, np.float32(0)), np.float32(top)))


def _pack_pairs(codes: Any, packed: Any) -> None:
    for row in range(codes.shape[0]):
        for byte in range(codes.shape[1] // 2):
            packed[row, byte] = codes[row, 2 * byte] | (codes[row, 2 * byte + 1] << 4)
        if codes.shape[1] % 2:
            packed[row, packed.shape[1] - 1] = codes[row, codes.shape[1] - 1]
