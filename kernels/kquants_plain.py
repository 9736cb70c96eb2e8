"""Blocks of 32 with scales of their own: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0. Compiled by kernels/kquants.py."""

from typing import Any

import numpy as np

from .kquants_affine import fit_affine
from .kquants_scale import fit_symmetric
from .kquants_tile import (
    CHOSEN,
    CHOSEN_LOW,
    LANES,
    LOW,
    ROWS,
    SCALE,
    f32,
    level_near,
    load,
    load_importance,
    load_row_power,
    nearest,
    store_half,
    truncated,
    weigh_damped,
)  # fmt: skip


def quantize_plain(values: Any, bits: Any, out: Any) -> None:
    """Q4_0, Q5_0 and Q8_0: the extreme value of a block of 32 becomes the outermost level."""
    size, half, levels = 2 + 4 * bits, f32(1 << (bits - 1)), np.empty(32, np.uint8)
    for start in range(0, values.size, 32):
        block = out[start // 32 * size : start // 32 * size + size]
        largest, extreme = f32(0), f32(0)
        for position in range(start, start + 32):
            if np.abs(values[position]) > largest:
                largest, extreme = np.abs(values[position]), values[position]
        scale = largest / f32(127) if bits == 8 else extreme / -half
        inverse = f32(1) / scale if scale != f32(0) else f32(0)
        store_half(scale, block, 0)
        for position in range(32):
            level = values[start + position] * inverse
            if bits == 8:
                away = np.copysign(np.floor(np.abs(level) + f32(0.5)), level)
                block[2 + position] = truncated(away) & 255
            else:
                levels[position] = min(2 * np.int64(half) - 1, truncated(level + (half + f32(0.5))))
        if bits != 8:
            _pack_plain(levels, bits, block, 2)


def quantize_plain_affine(values: Any, bits: Any, out: Any) -> None:
    """Q4_1 and Q5_1: the range of a block of 32 in equal steps."""
    size, top, levels = 4 + 4 * bits, f32((1 << bits) - 1), np.empty(32, np.uint8)
    for start in range(0, values.size, 32):
        block = out[start // 32 * size : start // 32 * size + size]
        low, high = values[start], values[start]
        for position in range(start, start + 32):
            low = values[position] if values[position] < low else low
            high = values[position] if values[position] > high else high
        scale = (high - low) / top
        inverse = f32(1) / scale if scale != f32(0) else f32(0)
        store_half(scale, block, 0)
        store_half(low, block, 2)
        for position in range(32):
            level = truncated((values[start + position] - low) * inverse + f32(0.5))
            levels[position] = min(np.int64(top), level)
        _pack_plain(levels, bits, block, 4)


def quantize_weighted(values: Any, bits: Any, out: Any, importance: Any, columns: Any) -> None:
    """Q4_0 and Q5_0 under an importance."""
    tile, state = np.empty(128 * LANES, np.float32), np.zeros(ROWS * LANES, np.float32)
    size, half, levels = 2 + 4 * bits, f32(1 << (bits - 1)), np.empty(32, np.uint8)
    power, row = f32(0), -1
    for start in range(0, values.size, LANES * 32):
        lanes = min(LANES, (values.size - start) // 32)
        power, row = load_row_power(values, start, lanes, columns, power, row, state)
        load(values, start, lanes, 32, tile)
        load_importance(importance, start, lanes, 32, columns, tile)
        weigh_damped(32, tile, state)
        fit_symmetric(32, half, tile, state)
        for lane in range(lanes):
            at, inverse = (start // 32 + lane) * size, state[CHOSEN * LANES + lane]
            block = out[at : at + size]
            store_half(state[SCALE * LANES + lane], block, 0)
            for position in range(32):
                level = nearest(inverse * tile[position * LANES + lane])
                level = min(np.int64(half) - 1, max(-np.int64(half), level)) + np.int64(half)
                levels[position] = level if inverse != f32(0) else 0
            _pack_plain(levels, bits, block, 2)


def quantize_weighted_affine(values: Any, bits: Any, out: Any, importance: Any, columns: Any) -> None:
    """Q4_1 and Q5_1 under an importance."""
    tile, state = np.empty(128 * LANES, np.float32), np.zeros(ROWS * LANES, np.float32)
    size, top, levels = 4 + 4 * bits, f32((1 << bits) - 1), np.empty(32, np.uint8)
    power, row = f32(0), -1
    for start in range(0, values.size, LANES * 32):
        lanes = min(LANES, (values.size - start) // 32)
        power, row = load_row_power(values, start, lanes, columns, power, row, state)
        load(values, start, lanes, 32, tile)
        load_importance(importance, start, lanes, 32, columns, tile)
        weigh_damped(32, tile, state)
        fit_affine(32, top, f32(-0.9), f32(0.05), 36, False, tile, state)
        for lane in range(lanes):
            at, inverse = (start // 32 + lane) * size, state[CHOSEN * LANES + lane]
            block, low = out[at : at + size], state[CHOSEN_LOW * LANES + lane]
            store_half(state[SCALE * LANES + lane], block, 0)
            store_half(state[LOW * LANES + lane], block, 2)
            for position in range(32):
                levels[position] = level_near(inverse * (tile[position * LANES + lane] - low), top)
            _pack_plain(levels, bits, block, 4)


def _pack_plain(levels: Any, bits: Any, block: Any, at: Any) -> None:
    if bits == 5:
        for position in range(32):
            block[at + position // 8] |= (levels[position] >> 4) << position % 8
        at += 4
    for position in range(16):
        block[at + position] = levels[position] & 15 | (levels[position + 16] & 15) << 4
