"""Codes of a matrix with little error in what it gives: tr((W - Q) H (W - Q)^T), where H is the mean of x x^T over its inputs.

Columns are rounded one after the other, and what each one's rounding costs is made good in those that are still to come:
Frantar et al., GPTQ, 2022 (https://arxiv.org/abs/2210.17323). Scales are fixed beforehand, so that columns may come in any
order. Then codes and scales are moved one at a time where that lowers the same error.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rounding import Codes, compiled, dequantize, least_code, least_squares, positive

Float32 = NDArray[np.float32]
Float = NDArray[Any]

_WIDE = 4096  # columns from which on float32 has to do
_BLOCK = 128


@dataclass(frozen=True)
class Solver:
    """Makes codes of matrices with the same inputs, of the mean x x^T [K, K]; factors it once, when first asked.

    `sweeps` is how often codes and scales are moved after the columns are solved.
    """

    hessian: Float32
    bits: int
    group: int
    symmetric: bool
    sweeps: int = 2

    def quantize(self, weights: Float32) -> Codes:
        """Codes of float32 weights [N, K]. Rows do not depend on each other.

        Raises:
            ValueError: a weight or the Hessian is not finite, or a weight too large for a float16 scale.
        """
        form = self.bits, self.group, self.symmetric
        order, upper = self._factored
        fixed = least_squares(weights, *form, np.ascontiguousarray(np.diagonal(self.hessian)))
        found = solve(weights, order, upper, fixed, *form)
        for _ in range(self.sweeps):
            found = _scales_moved(weights, self.hessian, codes_moved(weights, self.hessian, found, *form), self.group)
        return min((fixed, found), key=lambda one: error(weights, self.hessian, one, self.group))

    @cached_property
    def _factored(self) -> tuple[NDArray[np.intp], Float]:
        return factor(self.hessian)


def error(weights: Float32, hessian: Float32, stored: Codes, group: int) -> float:
    """tr((W - Q) H (W - Q)^T)"""
    distance = weights - dequantize(stored, group)
    return float(np.einsum("nk,nk->", distance @ hessian, distance, dtype=np.float64))


def factor(hessian: Float32, damping: float = 0.01) -> tuple[NDArray[np.intp], Float]:
    """The order of columns, of most activation first, and the upper U with U^T U the inverse of H in that order.

    `damping`, as a share of the mean, is added to the diagonal.

    Raises:
        ValueError: H is not finite, or not positive definite even so.
    """
    diagonal = np.diagonal(hessian)
    if not np.isfinite(diagonal).all():
        raise ValueError("what was measured of its inputs is not finite")
    order = np.argsort(-diagonal, kind="stable")
    try:
        lower = np.linalg.cholesky(_flipped(hessian, order[::-1], damping))
    except np.linalg.LinAlgError as reason:
        raise ValueError("what was measured of its inputs is not positive definite") from reason
    _invert(lower)
    return order, lower[::-1, ::-1]


def _flipped(hessian: Float32, order: NDArray[np.intp], damping: float) -> Float:
    """H in this order with its diagonal damped, a matrix of its own."""
    kind = np.float64 if len(order) <= _WIDE else np.float32
    flipped: Float = hessian[np.ix_(order, order)].astype(kind, copy=False)
    flipped[np.diag_indices_from(flipped)] += max(damping * float(np.diagonal(hessian).mean(dtype=np.float64)), 1e-8)
    return flipped


def _invert(lower: Float) -> None:
    """Put the inverse of a lower triangle in its place: half by half, so that little else is in memory."""
    if len(lower) <= _BLOCK:
        lower[...] = np.tril(np.linalg.inv(lower))
        return
    half = len(lower) // 2
    first, below, last = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert(first)
    _invert(last)
    below[...] = -(last @ below @ first)


def solve(
    weights: Float32, order: NDArray[np.intp], upper: Float, fixed: Codes, bits: int, group: int, symmetric: bool
) -> Codes:
    """GPTQ itself: codes in the scales and zero points of `fixed`, columns in this order, `upper` as `factor` gives it."""
    rest = weights[:, order].astype(upper.dtype)
    places = order // group
    codes = np.empty(weights.shape, np.uint8)
    low, top = least_code(bits, symmetric), (1 << bits) - 1
    for start in range(0, len(order), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(order)))
        scales, zeros = (values[:, places[block]].astype(np.float32) for values in (fixed.scales, fixed.zeros))
        now, errors = np.ascontiguousarray(rest[:, block]), np.empty_like(rest[:, block])
        coded = np.ascontiguousarray(fixed.codes[:, order[block]])
        compiled(_solve_block)(now, np.ascontiguousarray(upper[block, block]), scales, zeros, low, top, coded, errors)
        codes[:, order[block]] = coded
        rest[:, block.stop :] -= errors @ upper[block, block.stop :]
    return Codes(codes, fixed.scales, fixed.zeros)


def codes_moved(weights: Float32, hessian: Float32, found: Codes, bits: int, group: int, symmetric: bool) -> Codes:
    """Each code moved to where the error is least while the others stay."""
    rest = weights - dequantize(found, group)
    codes = found.codes.copy()
    places = np.arange(weights.shape[1]) // group
    low, top = least_code(bits, symmetric), (1 << bits) - 1
    for start in range(0, weights.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, weights.shape[1]))
        slopes = rest @ hessian[:, block]
        curvature = np.ascontiguousarray(hessian[block, block])
        scales = found.scales[:, places[block]].astype(np.float32)
        coded, moved = np.ascontiguousarray(codes[:, block]), np.ascontiguousarray(rest[:, block])
        compiled(_move_block)(moved, slopes, curvature, scales, low, top, coded)
        codes[:, block], rest[:, block] = coded, moved
    return Codes(codes, found.scales, found.zeros)


def _scales_moved(weights: Float32, hessian: Float32, found: Codes, group: int) -> Codes:
    """Each scale moved to where the error is least while all else stays, as far as float16 goes."""
    rest = weights - dequantize(found, group)
    scales = found.scales.copy()
    for place, start in enumerate(range(0, weights.shape[1], group)):
        block = slice(start, min(start + group, weights.shape[1]))
        levels = found.codes[:, block].astype(np.float32) - found.zeros[:, place : place + 1]
        slope = np.einsum("nk,nk->n", rest @ hessian[:, block], levels)
        curvature = np.einsum("nk,nk->n", levels @ hessian[block, block], levels)
        now = scales[:, place].astype(np.float32)
        wanted = now + np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
        rounded = positive(np.clip(wanted, 0, np.finfo(np.float16).max))
        step = rounded.astype(np.float32) - now
        step[step * (step * curvature - 2 * slope) >= 0] = 0
        scales[step != 0, place] = rounded[step != 0]
        rest[:, block] -= step[:, None] * levels
    return Codes(found.codes, scales, found.zeros)


def _solve_block(rest: Any, upper: Any, scales: Any, zeros: Any, low: int, top: int, codes: Any, errors: Any) -> None:
    for row in range(rest.shape[0]):
        for column in range(rest.shape[1]):
            scale, zero = scales[row, column], zeros[row, column]
            if scale != 0:
                codes[row, column] = np.uint8(min(max(np.rint(rest[row, column] / scale) + zero, low), top))
            code = np.float32(codes[row, column])
            lost = (rest[row, column] - (code - zero) * scale) / upper[column, column]
            errors[row, column] = lost
            for later in range(column + 1, rest.shape[1]):
                rest[row, later] -= lost * upper[column, later]


def _move_block(rest: Any, slopes: Any, hessian: Any, scales: Any, low: int, top: int, codes: Any) -> None:
    for row in range(rest.shape[0]):
        for column in range(rest.shape[1]):
            scale, before = scales[row, column], codes[row, column]
            if hessian[column, column] <= 0 or scale == 0:
                continue
            wanted = before + slopes[row, column] / hessian[column, column] / scale
            code = np.uint8(min(max(np.rint(wanted), low), top))
            if code == before:
                continue
            step = (np.float32(code) - np.float32(before)) * scale
            codes[row, column] = code
            rest[row, column] -= step
            for other in range(rest.shape[1]):
                slopes[row, other] -= step * hessian[column, other]
