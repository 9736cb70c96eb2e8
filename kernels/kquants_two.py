"""Q2_K: super-blocks of sixteen sub-blocks of 16, levels 0 .. 3 times a 4-bit scale less a 4-bit minimum.

Compiled by kernels/kquants.py.
"""

from typing import Any

import numpy as np

from .kquants_affine import fit_affine
from .kquants_scale import fit_positive
from .kquants_tile import (
    CHOSEN,
    CHOSEN_LOW,
    LANES,
    LOW,
    POWER,
    ROWS,
    SCALE,
    SUM_W,
    f32,
    from_half,
    level_near,
    load,
    load_importance,
    load_power,
    nearest,
    store_half,
    weigh_damped,
    weigh_size,
)  # fmt: skip


def quantize_two(values: Any, _bits: Any, out: Any, importance: Any, columns: Any) -> None:
    """Q2_K: without an importance the absolute errors count, under one their squares."""
    tile, state = np.empty(128 * LANES, np.float32), np.zeros(ROWS * LANES, np.float32)
    levels, nibbles, sums = np.empty(256, np.uint8), np.empty(32, np.int64), np.empty(LANES, np.float32)
    important = importance.size > 0
    for start in range(0, values.size, LANES * 16):
        lanes = min(LANES, (values.size - start) // 16)
        load(values, start, lanes, 16, tile)
        if important:
            load_importance(importance, start, lanes, 16, columns, tile)
            load_power(values, start, lanes, 16, 16, state)
            state[POWER * LANES : (POWER + 1) * LANES] *= f32(0.5)
            weigh_damped(16, tile, state)
            sums[:] = state[SUM_W * LANES : (SUM_W + 1) * LANES]
            fit_affine(16, f32(3), f32(-0.9), f32(0.05), 36, False, tile, state)
        else:
            weigh_size(16, tile)
            fit_affine(16, f32(3), f32(-0.5), f32(0.1), 15, True, tile, state)
        for lane in range(0, lanes, 16):
            at = (start // 16 + lane) // 16 * 84
            block = out[at : at + 84]
            _nibbles(lane, important, sums, state, nibbles, block)
            _levels(values, start + lane * 16, lane, block, state, levels)
            _pack(levels, block)


def _nibbles(lane: Any, important: Any, sums: Any, state: Any, nibbles: Any, block: Any) -> None:
    """The 4-bit scales and minima of a super-block, and their float16 units, into its bytes."""
    for group in range(2):
        part = nibbles[16 * group : 16 * group + 16]
        if group == 0:
            numbers = state[SCALE * LANES + lane : SCALE * LANES + lane + 16].copy()
        else:
            numbers = -state[LOW * LANES + lane : LOW * LANES + lane + 16]
        weights = sums[lane : lane + 16]
        unit = fit_positive(numbers, weights, f32(15), part) if important else _in_steps(numbers, part)
        store_half(unit, block, 80 + 2 * group)
    for index in range(16):
        block[index] = (nibbles[index] | nibbles[16 + index] << 4) & 255


def _in_steps(numbers: Any, nibbles: Any) -> Any:
    """The numbers in fifteenths of the largest; that fifteenth."""
    largest = f32(0)
    for index in range(16):
        largest = numbers[index] if numbers[index] > largest else largest
    inverse = f32(15) / largest if largest > f32(0) else f32(0)
    for index in range(16):
        nibbles[index] = nearest(inverse * numbers[index]) & 255
    return largest / f32(15)


def _levels(values: Any, start: Any, lane: Any, block: Any, state: Any, levels: Any) -> None:
    unit = from_half(np.int64(block[80]) | np.int64(block[81]) << 8)
    minimum = from_half(np.int64(block[82]) | np.int64(block[83]) << 8)
    for index in range(16):
        scale, least = unit * f32(block[index] & 15), minimum * f32(block[index] >> 4)
        low, inverse = state[CHOSEN_LOW * LANES + lane + index], state[CHOSEN * LANES + lane + index]
        for position in range(16 * index, 16 * index + 16):
            value = values[start + position]
            if scale != f32(0):
                levels[position] = min(3, max(0, nearest((value + least) / scale)))
            else:
                levels[position] = level_near(inverse * (value - low), f32(3))


def _pack(levels: Any, block: Any) -> None:
    for group in range(2):
        for position in range(32):
            packed = 0
            for part in range(4):
                packed |= levels[128 * group + 32 * part + position] << 2 * part
            block[16 + 32 * group + position] = packed
