"""Scales, zero points and codes of group-wise integers found by search: of least squares, or half-quadratic.

The format is that of `groupwise.py`. Both searches start from the scales that rounding to nearest knows, and go on from the
best: scale and zero point are fitted to the codes, rounded as they are stored, and kept where the error falls.

Half-quadratic: Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023 (https://dropbox.github.io/hqq_blog).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
UInt8 = NDArray[np.uint8]

_SMALLEST = np.float16(2.0**-24)
_LARGEST = np.finfo(np.float16).max
_FITS = 3  # rounds of fitting after the search over scales
_POWER = 0.7  # of the norm that half-quadratic quantization minimizes
_BETA, _GROWTH, _STEPS = 10.0, 1.01, 12  # the reference's, its early stop decided group by group


@dataclass(frozen=True)
class Codes:
    """What stands for weights [N, K] in groups of g: codes [N, K], scales and zero points [N, ceil(K/g)].

    Of a symmetric format every zero point is 2^(bits-1). Scales of GGUF's blocks are float32, and may be zero or negative.
    """

    codes: UInt8
    scales: NDArray[Any]
    zeros: UInt8


def least_squares(weights: Float32, bits: int, group: int, symmetric: bool, importance: Float32 | None = None) -> Codes:
    """Codes of float32 weights [N, K] with the least sum of importance * (weight - stored)^2 that was found.

    `importance` [K] is of each column; without it all columns count alike. Never worse than rounding to nearest.

    Raises:
        ValueError: a weight is not finite, or too large for a float16 scale.
    """
    counted = _counted(weights, importance)
    search = _Search(weights, counted, bits, group, symmetric, 2.0)
    found = search.best(*search.grid(steps=9 if symmetric else 7))
    for _ in range(_FITS):
        found = search.fitted(found, 0.0)
    return found


def half_quadratic(weights: Float32, bits: int, group: int, symmetric: bool) -> Codes:
    """Codes of float32 weights [N, K] with the least sum of |weight - stored|^0.7 that was found: outliers count for little.

    Raises:
        ValueError: a weight is not finite, or too large for a float16 scale.
    """
    search = _Search(weights, _counted(weights, None), bits, group, symmetric, _POWER)
    found = search.best(*search.grid(steps=1))
    for step in range(_STEPS):
        found = search.fitted(found, _BETA * _GROWTH**step)
    return found


def error(weights: Float32, stored: Codes, group: int, importance: Float32 | None = None, power: float = 2.0) -> float:
    """The sum of importance * |weight - stored|^power."""
    distance = np.abs(weights.astype(np.float64) - dequantize(stored, group)) ** power
    return float((distance * _counted(weights, importance)).sum())


def dequantize(stored: Codes, group: int) -> Float32:
    """The weights [N, K] that codes stand for."""
    columns = stored.codes.shape[1]
    scale, zero = (
        np.repeat(values.astype(np.float32), group, axis=1)[:, :columns] for values in (stored.scales, stored.zeros)
    )
    return (stored.codes.astype(np.float32) - zero) * scale


def least_code(bits: int, symmetric: bool) -> int:
    """The least code in use: eight symmetric bits leave out -128, as every engine's own quantizer does."""
    return 1 if symmetric and bits == 8 else 0


@dataclass(frozen=True)
class _Search:
    weights: Float32
    importance: Float32
    bits: int
    group: int
    symmetric: bool
    power: float

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1

    def grid(self, steps: int) -> tuple[Float16, UInt8]:
        """Scales and zero points [candidates, N, groups]: those of rounding to nearest first, then ever smaller ones."""
        least, greatest = _ranges(self.weights, self.group)
        if self.symmetric:
            largest, half = np.maximum(-least, greatest), (1 << self.bits - 1) - 1
            finest = [half + step / 4 for step in range(5)] if self.bits < 8 else [half]
            divisors = [*finest, *(half * (1 + 0.05 * step) for step in range(2 if self.bits < 8 else 1, steps))]
            scales = np.stack([positive(np.divide(largest, one, dtype=np.float32)) for one in divisors])
            return scales, np.full(scales.shape, half + 1, np.uint8)
        pairs = [(1 - 0.05 * step, shift) for step in range(steps) for shift in (0, -1, 1)]
        base = [positive(np.multiply(greatest - least, factor / self.top, dtype=np.float32)) for factor, _ in pairs]
        first = np.rint(-least / base[0].astype(np.float32))
        zeros = [np.clip(first + shift, 0, self.top).astype(np.uint8) for _, shift in pairs]
        return np.stack(base), np.stack(zeros)

    def best(self, scales: Float16, zeros: UInt8) -> Codes:
        """The codes of the best candidate of each group; of equals the first."""
        codes, chosen = np.empty(self.weights.shape, np.uint8), np.empty(scales.shape[1:], np.intp)
        low = least_code(self.bits, self.symmetric)
        candidates = scales.astype(np.float32), zeros.astype(np.float32)
        compiled(_choose)(
            self.weights, self.importance, self.group, *candidates, low, self.top, self.power, codes, chosen
        )
        scale, zero = (np.take_along_axis(values, chosen[None], axis=0)[0] for values in (scales, zeros))
        return Codes(codes, scale, zero)

    def fitted(self, found: Codes, beta: float) -> Codes:
        """The codes after fitting scale and zero point, in each group where that is better.

        With a `beta` the fit is to the weights less their shrunk distances: the half-quadratic step.
        """
        scales, zeros = np.empty(found.scales.shape, np.float32), np.empty(found.scales.shape, np.float32)
        now = found.codes, found.scales.astype(np.float32), found.zeros.astype(np.float32)
        compiled(_fit)(self.weights, self.importance, self.group, *now, beta, self.power, scales, zeros)
        scale = positive(np.clip(scales, 0, _LARGEST))
        if self.symmetric:
            return self.best(np.stack([found.scales, scale]), np.stack([found.zeros] * 2))
        zero = np.clip(np.rint(zeros), 0, self.top).astype(np.uint8)
        tried = [(found.scales, found.zeros), (scale, found.zeros), (found.scales, zero), (scale, zero)]
        return self.best(np.stack([one for one, _ in tried]), np.stack([one for _, one in tried]))


def _counted(weights: Float32, importance: Float32 | None) -> Float32:
    """The importances, their mean one so that no sum runs out of float32."""
    if importance is None or not importance.any():
        return np.ones(weights.shape[1], np.float32)
    scaled: Float32 = (importance / importance.mean(dtype=np.float64)).astype(np.float32)
    return scaled


def _ranges(weights: Float32, group: int) -> tuple[Float32, Float32]:
    """The least and the greatest of each group, 0 among them."""
    if not np.isfinite(weights).all():
        raise ValueError("a weight is infinite or not a number")
    starts = np.arange(0, weights.shape[1], group)
    least = np.minimum(np.minimum.reduceat(weights, starts, axis=1), np.float32(0))
    greatest = np.maximum(np.maximum.reduceat(weights, starts, axis=1), np.float32(0))
    if max(-least.min(initial=0), greatest.max(initial=0)) > _LARGEST:
        raise ValueError(f"the weight {float(np.abs(weights).max()):g} is too large for a float16 scale")
    return least, greatest


def positive(scales: Float32) -> Float16:
    return np.maximum(scales.astype(np.float16), _SMALLEST)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import numba

    made: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    return made


def _choose(
    weights: Any,
    importance: Any,
    group: int,
    scales: Any,
    zeros: Any,
    low: int,
    top: int,
    power: float,
    codes: Any,
    chosen: Any,
) -> None:
    floor, ceiling = np.float32(low), np.float32(top)
    for row in range(weights.shape[0]):
        for block in range(chosen.shape[1]):
            start, stop = block * group, min((block + 1) * group, weights.shape[1])
            best, least = 0, np.inf
            for index in range(scales.shape[0]):
                scale, zero, total = scales[index, row, block], zeros[index, row, block], 0.0
                inverse = np.float32(1) / scale
                for column in range(start, stop):
                    code = min(max(np.rint(weights[row, column] * inverse) + zero, floor), ceiling)
                    distance = weights[row, column] - (code - zero) * scale
                    if power == 2.0:
                        total += importance[column] * (distance * distance)
                    else:
                        total += np.abs(distance) ** power
                    if total >= least:
                        break
                if total < least:
                    best, least = index, total
            scale, zero = scales[best, row, block], zeros[best, row, block]
            inverse = np.float32(1) / scale
            for column in range(start, stop):
                codes[row, column] = np.uint8(min(max(np.rint(weights[row, column] * inverse) + zero, floor), ceiling))
            chosen[row, block] = best


def _fit(
    weights: Any,
    importance: Any,
    group: int,
    codes: Any,
    scales: Any,
    zeros: Any,
    beta: float,
    power: float,
    fitted: Any,
    moved: Any,
) -> None:
    for row in range(weights.shape[0]):
        for block in range(scales.shape[1]):
            scale, zero = scales[row, block], zeros[row, block]
            product, square, shift, total = 0.0, 0.0, 0.0, 0.0
            for column in range(block * group, min((block + 1) * group, weights.shape[1])):
                level = np.float32(codes[row, column]) - zero
                target = weights[row, column]
                if beta > 0:
                    distance = target - level * scale
                    size = np.abs(distance)
                    if size > 0:
                        shrunk = size - size ** (power - 1) / beta
                        if shrunk > 0:
                            target -= np.copysign(np.float32(shrunk), distance)
                product += importance[column] * target * level
                square += importance[column] * level * level
                shift += importance[column] * (codes[row, column] - target / scale)
                total += importance[column]
            fitted[row, block] = product / square if square > 0 and product > 0 else scale
            moved[row, block] = shift / total if total > 0 else zero
