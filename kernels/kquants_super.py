"""Super-blocks of 256: Q4_K and Q5_K of eight sub-blocks, Q3_K and Q6_K of sixteen. Compiled by kernels/kquants.py."""

from typing import Any

import numpy as np

from .kquants_affine import fit_affine
from .kquants_scale import fit_by_turns, fit_positive, fit_symmetric
from .kquants_tile import (
    CHOSEN,
    CHOSEN_LOW,
    LANES,
    LOW,
    NOTHING,
    ROWS,
    SCALE,
    SHIFT,
    SPAN,
    SUM_W,
    TAME,
    B,
    W,
    f32,
    from_half,
    level_near,
    load,
    load_importance,
    load_power,
    nearest,
    store_half,
    weigh_damped,
    weigh_near,
    weigh_square,
)  # fmt: skip


def quantize_affine(values: Any, bits: Any, out: Any, importance: Any, columns: Any) -> None:
    """Q4_K and Q5_K: eight sub-blocks of 32, levels times a 6-bit scale less a 6-bit minimum."""
    tile, state = np.empty(128 * LANES, np.float32), np.zeros(ROWS * LANES, np.float32)
    levels, six = np.empty(256, np.uint8), np.empty(16, np.int64)
    important, top, size = importance.size > 0, f32((1 << bits) - 1), 16 + 32 * bits
    for start in range(0, values.size, LANES * 32):
        lanes = min(LANES, (values.size - start) // 32)
        load(values, start, lanes, 32, tile)
        if important:
            load_importance(importance, start, lanes, 32, columns, tile)
            load_power(values, start, lanes, 8, 32, state)
            weigh_damped(32, tile, state)
            sums = state[SUM_W * LANES : SUM_W * LANES + LANES].copy()
            fit_affine(32, top, f32(-0.9), f32(0.05), 36, False, tile, state)
        else:
            weigh_near(32, tile, state)
            sums = state[:0]
            first = f32(-1) if bits == 4 else f32(-0.5)
            fit_affine(32, top, first, f32(0.1), 20 if bits == 4 else 15, False, tile, state)
        for lane in range(0, lanes, 8):
            at = (start // 32 + lane) // 8 * size
            block = out[at : at + size]
            _sixes(lane, bits, sums, state, six, block)
            _level_affine(values, start + lane * 32, lane, top, six, block, state, levels)
            _pack_affine(levels, bits, block)


def _sixes(lane: Any, bits: Any, sums: Any, state: Any, six: Any, block: Any) -> None:
    """The 6-bit scales and minima of a super-block, and their float16 units into its bytes."""
    scales = state[SCALE * LANES + lane : SCALE * LANES + lane + 8]
    minima = -state[LOW * LANES + lane : LOW * LANES + lane + 8]
    if sums.size > 0:
        weights = sums[lane : lane + 8]
        store_half(fit_positive(scales, weights, f32(63), six[:8]), block, 0)
        store_half(fit_positive(minima, weights, f32(63), six[8:]), block, 2)
        if bits == 5:
            six[:] = np.minimum(six, 63)
        _pack_sixes(six, block)
        return
    for group in range(2):
        numbers, largest = (minima if group else scales), f32(0)
        for index in range(8):
            largest = numbers[index] if numbers[index] > largest else largest
        inverse = f32(63) / largest if largest > f32(0) else f32(0)
        for index in range(8):
            six[8 * group + index] = min(63, nearest(inverse * numbers[index]) & 255)
        store_half(largest / f32(63), block, 2 * group)
    _pack_sixes(six, block)


def _pack_sixes(six: Any, block: Any) -> None:
    """Scales and minima into a block's bytes, and back: a negative one, as of weights of 0, is not what was put in."""
    for index in range(4):
        block[4 + index] = six[index] | six[4 + index] >> 4 << 6
        block[8 + index] = six[8 + index] | six[12 + index] >> 4 << 6
        block[12 + index] = six[4 + index] & 15 | (six[12 + index] & 15) << 4
    for index in range(4):
        six[index], six[8 + index] = block[4 + index] & 63, block[8 + index] & 63
        six[4 + index] = block[12 + index] & 15 | block[4 + index] >> 6 << 4
        six[12 + index] = block[12 + index] >> 4 | block[8 + index] >> 6 << 4


def _level_affine(values: Any, start: Any, lane: Any, top: Any, six: Any, block: Any, state: Any, levels: Any) -> None:
    unit = from_half(np.int64(block[0]) | np.int64(block[1]) << 8)
    minimum = from_half(np.int64(block[2]) | np.int64(block[3]) << 8)
    for index in range(8):
        scale, least = unit * f32(six[index]), minimum * f32(six[8 + index])
        low, inverse = state[CHOSEN_LOW * LANES + lane + index], state[CHOSEN * LANES + lane + index]
        for position in range(32 * index, 32 * index + 32):
            value = values[start + position]
            if scale != f32(0):
                levels[position] = min(np.int64(top), max(0, nearest((value + least) / scale)))
            else:
                levels[position] = level_near(inverse * (value - low), top)


def _pack_affine(levels: Any, bits: Any, block: Any) -> None:
    low = 16
    if bits == 5:
        low = 48
        for position in range(32):
            high = 0
            for index in range(8):
                high |= (levels[32 * index + position] >> 4) << index
            block[16 + position] = high
    for index in range(4):
        for position in range(32):
            lower, upper = levels[64 * index + position] & 15, levels[64 * index + 32 + position] & 15
            block[low + 32 * index + position] = lower | upper << 4


def quantize_symmetric(values: Any, bits: Any, out: Any, importance: Any, columns: Any) -> None:
    """Q3_K and Q6_K: sixteen sub-blocks of 16, levels times a 6-bit or 8-bit scale."""
    tile, state = np.empty(128 * LANES, np.float32), np.zeros(ROWS * LANES, np.float32)
    levels, scales, unit = np.empty(256, np.uint8), np.empty(16, np.int64), f32(0)
    important, half, size = importance.size > 0, f32(1 << (bits - 1)), 110 if bits == 3 else 210
    again, second = np.zeros(128 * LANES, np.float32), np.zeros(ROWS * LANES, np.float32)
    spread = np.empty(256, np.float32)
    for start in range(0, values.size, LANES * 16):
        lanes = min(LANES, (values.size - start) // 16)
        load(values, start, lanes, 16, tile)
        if important:
            load_importance(importance, start, lanes, 16, columns, tile)
        if bits == 3 and not important:
            fit_by_turns(16, half, tile, state)
        elif bits == 3:
            load_power(values, start, lanes, 16, 16, state)
            weigh_damped(16, tile, state)
            fit_symmetric(16, half, tile, state)
            _fit_scales(lanes, again, second, state)
        else:
            if not important:
                weigh_square(16, tile)
            fit_symmetric(16, half, tile, state)
        for lane in range(0, lanes, 16):
            at = (start // 16 + lane) // 16 * size
            block = out[at : at + size]
            if bits == 3 and important:
                unit = _fitted_scales(lane // 16, again, second, scales)
            else:
                unit = _scaled(lane, 32 if bits == 3 else 128, state, scales)
            unit = store_half(unit, block, size - 2)
            if bits == 6 and _is_nothing(lane, state):
                continue
            if _spread(lane, unit, scales, state, spread):
                _divide(values[start + lane * 16 : start + lane * 16 + 256], spread, half, levels)
            else:
                _level_symmetric(
                    values, start, lane, half, unit, scales, bits == 3 and not important, tile, state, levels
                )
            if bits == 3:
                _pack_three(levels, scales, block)
            else:
                _pack_six(levels, scales, block)


def _is_nothing(lane: Any, state: Any) -> Any:
    largest = f32(0)
    for index in range(lane, lane + 16):
        largest = max(largest, np.abs(state[SCALE * LANES + index]))
    return largest < NOTHING


def _scaled(lane: Any, half: Any, state: Any, scales: Any) -> Any:
    """The scales of a super-block as integers from -half, and their unit: the largest one becomes -half."""
    largest, extreme = f32(0), f32(0)
    for index in range(16):
        scale = state[SCALE * LANES + lane + index]
        if np.abs(scale) > largest:
            largest, extreme = np.abs(scale), scale
    if extreme == f32(0) or (half == 128 and largest < NOTHING):
        scales[:] = -half if half == 32 else 0
        return f32(0)
    inverse = f32(-half) / extreme
    for index in range(16):
        rounded = nearest(inverse * state[SCALE * LANES + lane + index])
        scales[index] = min(half - 1, max(-half, rounded) if half == 32 else rounded)
    return f32(1) / inverse


def _fit_scales(lanes: Any, again: Any, second: Any, state: Any) -> None:
    """Fit the scales of each super-block as if they were a block, under the summed weights of the sub-blocks."""
    for lane in range(lanes):
        at = lane % 16 * LANES + lane // 16
        again[at] = state[SCALE * LANES + lane]
        again[W * LANES + at] = state[SUM_W * LANES + lane]
    fit_symmetric(16, f32(32), again, second)


def _fitted_scales(block: Any, again: Any, second: Any, scales: Any) -> Any:
    inverse = second[CHOSEN * LANES + block]
    for index in range(16):
        level = nearest(inverse * again[index * LANES + block])
        scales[index] = min(31, max(-32, level)) if inverse != f32(0) else -32
    return second[SCALE * LANES + block]


def _level_symmetric(
    values: Any,
    start: Any,
    lane: Any,
    half: Any,
    unit: Any,
    scales: Any,
    by_turns: Any,
    tile: Any,
    state: Any,
    levels: Any,
) -> None:
    for index in range(16):
        scale, inverse = unit * f32(scales[index]), state[CHOSEN * LANES + lane + index]
        empty = state[SPAN * LANES + lane + index] < NOTHING
        for position in range(16 * index, 16 * index + 16):
            value = values[start + lane * 16 + position]
            if scale != f32(0):
                level = _clamped(value / scale, half)
            elif empty:
                level = 0
            elif by_turns:
                level = np.int64(tile[(B + position % 16) * LANES + lane + index] + half)
            else:
                level = _clamped(inverse * value, half)
            levels[position] = level


def _clamped(value: Any, half: Any) -> Any:
    return min(2 * np.int64(half) - 1, max(0, nearest(value) + np.int64(half)))


def _divide(values: Any, scales: Any, half: Any, levels: Any) -> None:
    """The levels of a super-block none of which is beyond what SHIFT can round; the plain loop becomes vectors."""
    for position in range(256):
        level = values[position] / scales[position] + SHIFT - SHIFT
        level = level if level < half - f32(1) else half - f32(1)
        level = level if level > -half else -half
        levels[position] = np.uint8(level + half)


def _spread(lane: Any, unit: Any, scales: Any, state: Any, spread: Any) -> Any:
    """Each sub-block's scale at each of its positions; whether no quotient of them can leave the range that SHIFT rounds."""
    tame = True
    for index in range(16):
        scale = unit * f32(scales[index])
        tame &= np.abs(scale) * TAME > state[SPAN * LANES + lane + index]
        for position in range(16):
            spread[16 * index + position] = scale
    return tame


def _pack_three(levels: Any, scales: Any, block: Any) -> None:
    for index in range(4):
        for part in range(4):
            scale = scales[4 * part + index] + 32
            block[96 + index + 4 * (part % 2)] |= (scale & 15) << 4 * (part // 2)
            block[104 + index] |= scale >> 4 << 2 * part
    for position in range(32):
        high = 0
        for part in range(8):
            high |= (levels[32 * part + position] >> 2) << part
        block[position] = high
    for group in range(2):
        for position in range(32):
            low = 0
            for part in range(4):
                low |= (levels[128 * group + 32 * part + position] & 3) << 2 * part
            block[32 + 32 * group + position] = low


def _pack_six(levels: Any, scales: Any, block: Any) -> None:
    for index in range(16):
        block[192 + index] = scales[index] & 255
    for group in range(2):
        low, high, at = 64 * group, 128 + 32 * group, 128 * group
        for position in range(32):
            first, second = levels[at + position], levels[at + 32 + position]
            third, fourth = levels[at + 64 + position], levels[at + 96 + position]
            block[low + position] = first & 15 | (third & 15) << 4
            block[low + 32 + position] = second & 15 | (fourth & 15) << 4
            block[high + position] = first >> 4 | second >> 4 << 2 | third >> 4 << 4 | fourth >> 4 << 6
