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
        counts, sums = _cells(values)
        tables[index] = _compiled(_best_levels)(counts, sums, levels)
    codes = np.empty(weights.shape, np.uint8)
    _compiled(_code)(weights, rows, _thresholds(tables), codes)
    return tables, codes


def look_up(tables: Float16, codes: UInt8, rows: int) -> Float32:
    """The float32 weights [N, K] that codes [N, K] stand for."""
    spread = np.repeat(tables.astype(np.float32), rows, axis=0)
    return np.take_along_axis(spread, codes.astype(np.intp), axis=1)


def _cells(values: Float32) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many numbers each cell holds, in rising order and none empty, and their sums."""
    if values.size <= CELLS:
        distinct, times = np.unique(values, return_counts=True)
        return times.astype(np.float64), distinct.astype(np.float64) * times
    counts, sums = np.zeros(CELLS), np.zeros(CELLS)
    _compiled(_histogram)(values, values.min(), values.max(), counts, sums)
    return counts[counts > 0], sums[counts > 0]


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


def _best_levels(counts: Any, sums: Any, levels: int) -> Any:
    """The means of the partition into so many runs of cells that has the least squared error.

    The squared error is a constant less the sum over runs of (sum of numbers)^2 / (count), which is what is made largest.
    """
    size = counts.size
    before_counts, before_sums = np.zeros(size + 1), np.zeros(size + 1)
    before_counts[1:], before_sums[1:] = np.cumsum(counts), np.cumsum(sums)
    used = min(levels, size)
    starts = np.zeros((used, size + 1), np.int32)  # where the last of r + 1 runs over the first i cells begins
    best = np.empty(size + 1)
    best[0] = 0.0
    for stop in range(1, size + 1):
        best[stop] = before_sums[stop] ** 2 / before_counts[stop]
    pending = np.empty((2 * size + 2, 4), np.int32)
    for run in range(1, used):
        following = np.full(size + 1, -1.0)
        pending[0, 0], pending[0, 1], pending[0, 2], pending[0, 3] = run + 1, size, run, size - 1
        waiting = 1
        while waiting:  # the best start never falls as the end rises: the middle end bounds both halves
            waiting -= 1
            low, high, least, greatest = pending[waiting]
            middle = (low + high) // 2
            for start in range(least, min(greatest, middle - 1) + 1):
                total = before_sums[middle] - before_sums[start]
                gain = best[start] + total * total / (before_counts[middle] - before_counts[start])
                if gain > following[middle]:
                    following[middle], starts[run, middle] = gain, start
            if low < middle:
                pending[waiting, 0], pending[waiting, 1] = low, middle - 1
                pending[waiting, 2], pending[waiting, 3] = least, starts[run, middle]
                waiting += 1
            if middle < high:
                pending[waiting, 0], pending[waiting, 1] = middle + 1, high
                pending[waiting, 2], pending[waiting, 3] = starts[run, middle], greatest
                waiting += 1
        best = following
    means = np.empty(levels)
    stop = size
    for run in range(used - 1, -1, -1):
        start = starts[run, stop] if run else 0
        means[run] = (before_sums[stop] - before_sums[start]) / (before_counts[stop] - before_counts[start])
        stop = start
    means[used:] = means[used - 1]
    return means


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
