"""Palettes: a matrix [N, K] as codes into tables of 2^bits float16 levels, one table for every so many rows.

The levels of a table are the one-dimensional k-means of its rows' numbers: the best partition there is, by dynamic
programming over cells (Wang and Song, https://doi.org/10.32614/RJ-2011-015, with the rows of the recurrence filled by
divide and conquer). Up to `CELLS` numbers are a cell each; more share cells of equal width. Compiled with numba on first
use; the same input gives the same bits on every run.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
UInt8 = NDArray[np.uint8]
Float64 = NDArray[np.float64]

CELLS = 2048
ROWS = 16  # that share a table, where their number allows
_LARGEST = float(np.finfo(np.float16).max)


def height(rows: int) -> int:
    """How many rows share a table, in a matrix of so many."""
    return math.gcd(rows, ROWS)


def fit(weights: Float32, rows: int, levels: int) -> tuple[Float16, UInt8]:
    """Tables [N / rows, levels], each in rising order, and codes [N, K] of float32 weights [N, K].

    `rows`: how many share a table; it divides N. A table of fewer different numbers than levels repeats its last.

    Raises:
        ValueError: a weight is not finite, or too large for float16.
    """
    if not np.abs(weights).max(initial=0) <= _LARGEST:
        raise ValueError("a weight is not a number, infinite or too large for float16")
    tables = np.empty((weights.shape[0] // rows, levels), np.float16)
    for index in range(len(tables)):
        values = weights[index * rows : (index + 1) * rows].ravel()
        tables[index] = _best_levels(*_cells(values), levels)
    codes = np.empty(weights.shape, np.uint8)
    _compiled(_code)(weights, rows, _thresholds(tables), codes)
    return tables, codes


def look_up(tables: Float16, codes: UInt8, rows: int) -> Float32:
    """The float32 weights [N, K] that codes [N, K] stand for."""
    spread = np.repeat(tables.astype(np.float32), rows, axis=0)
    return np.take_along_axis(spread, codes.astype(np.intp), axis=1)


def _cells(values: Float32) -> tuple[Float64, Float64]:
    """How many numbers each cell holds, in rising order and none empty, and their sums."""
    if values.size <= CELLS:
        distinct, times = np.unique(values, return_counts=True)
        return times.astype(np.float64), distinct.astype(np.float64) * times
    counts, sums = np.zeros(CELLS), np.zeros(CELLS)
    _compiled(_histogram)(values, values.min(), values.max(), counts, sums)
    return counts[counts > 0], sums[counts > 0]


def _best_levels(counts: Float64, sums: Float64, levels: int) -> Float64:
    """The means of the partition into so many runs of cells that has the least squared error.

    The squared error is a constant less the sum over runs of (sum of numbers)^2 / count, which is what is made largest.
    """
    size, used = counts.size, min(levels, counts.size)
    before, total = (np.concatenate([[0.0], np.cumsum(values)]) for values in (counts, sums))
    best = np.concatenate([[0.0], total[1:] ** 2 / before[1:]])
    starts = np.zeros((used, size + 1), np.int32)  # where the last of r + 1 runs over the first i cells begins
    for run in range(1, used):
        best = _compiled(_extended)(best, before, total, run, starts[run])
    ends = [size]
    for run in range(used - 1, -1, -1):
        ends.append(int(starts[run, ends[-1]]))
    ends.reverse()
    means = np.diff(total[ends]) / np.diff(before[ends])
    return np.concatenate([means, np.full(levels - used, means[-1])])


def _thresholds(tables: Float16) -> Float32:
    """Halfway between neighbouring levels: above them the higher one is nearer."""
    wide = tables.astype(np.float32)
    return (wide[:, 1:] + wide[:, :-1]) / np.float32(2)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import numba

    compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    return compiled


def _histogram(values: Any, least: Any, greatest: Any, counts: Any, sums: Any) -> None:
    span = np.float64(greatest) - np.float64(least)
    scale = counts.size / span if span > 0 else 0.0
    for value in values:
        cell = min(int((np.float64(value) - least) * scale), counts.size - 1)
        counts[cell] += 1
        sums[cell] += value


def _extended(best: Any, counts: Any, sums: Any, runs: int, starts: Any) -> Any:
    """The gain of the best partition of the first i cells into one run more than `runs`, and in `starts` where that begins.

    `counts` and `sums` are those of all cells before each. The best start never falls as the end rises, so the one of the
    middle end bounds those of both halves.
    """
    gains = np.full(best.size, -1.0)
    pending = np.empty((best.size + 1, 4), np.int32)
    pending[0] = np.array([runs + 1, best.size - 1, runs, best.size - 2])
    waiting = 1
    while waiting:
        waiting -= 1
        low, high, least, greatest = pending[waiting]
        end = (low + high) // 2
        for start in range(least, min(greatest, end - 1) + 1):
            total = sums[end] - sums[start]
            gain = best[start] + total * total / (counts[end] - counts[start])
            if gain > gains[end]:
                gains[end], starts[end] = gain, start
        if low < end:
            pending[waiting] = np.array([low, end - 1, least, starts[end]])
            waiting += 1
        if end < high:
            pending[waiting] = np.array([end + 1, high, starts[end], greatest])
            waiting += 1
    return gains


def _code(weights: Any, shared: int, thresholds: Any, codes: Any) -> None:
    """How many of its table's thresholds lie below each weight."""
    for row in range(weights.shape[0]):
        bounds = thresholds[row // shared]
        for column in range(weights.shape[1]):
            value = weights[row, column]
            low, high = 0, bounds.size
            while low < high:
                middle = (low + high) // 2
                if value > bounds[middle]:
                    low = middle + 1
                else:
                    high = middle
            codes[row, column] = low
