"""A tile: 32 blocks transposed, so that the lanes of a vector hold the same position of neighbouring blocks.

What reads blocks and importances into a tile, what weighs their positions, and numbers rounded as ggml rounds them. Compiled by
kernels/kquants.py. Row r of a tile, or of the state, is [r * LANES : (r + 1) * LANES].
"""

from typing import Any

import numpy as np

f32 = np.float32

LANES = 32
# Positions in a loop short enough to be unrolled: then the loop around it, over lanes, becomes vectors, sums in registers.
STRIP = 16
# Rows of a tile from which on: the weights of the blocks' positions, and two rows of products for each position.
W, A, B = 32, 64, 96
# Rows of the state: one value for each lane.
LOW, SPAN, SUM_W, SUM_X, LEAST, SCALE, CHOSEN_LOW, CHOSEN = 0, 1, 2, 3, 4, 5, 6, 7
INVERSE, SUM_L, SUM_LL, SUM_XL, TRY, TRY_MIN, ERROR, POWER = 8, 9, 10, 11, 12, 13, 14, 15
ROWS = 16
SHIFT = np.float32(12582912.0)  # 1.5 * 2^23: added and taken off again, it rounds half to even
TAME = np.float32(2.0**20)  # numbers below it are rounded by SHIFT as by `nearest`
NOTHING = np.float32(1e-15)  # a block of smaller values is a block of zeros
LARGEST = np.float32(3.4028234663852886e38)


def largest(bits: Any) -> Any:
    """The largest magnitude of float32 numbers, as its bits: they stand in the order of magnitudes, with NaN above all."""
    most = np.int32(0)
    for index in range(bits.size):
        magnitude = np.int32(bits[index] & np.int32(0x7FFFFFFF))
        most = magnitude if magnitude > most else most
    return most


def nearest(value: Any) -> Any:
    """ggml's rounding, its answers to what is out of range or not a number included."""
    return (np.int64(np.float32(value + SHIFT).view(np.int32)) & 0x7FFFFF) - 0x400000


def level_near(value: Any, top: Any) -> Any:
    """The level 0 .. top nearest to a number as a search rounds it: 0 for what is none."""
    value = value if value > f32(0) else f32(0)
    return nearest(value if value < top else top)


def truncated(value: Any) -> Any:
    """C's conversion to an 8-bit integer on x86: 0 where the value is out of range."""
    return np.int64(value) if np.abs(value) < f32(1e9) else np.int64(0)


def _to_half(value: Any) -> Any:
    """The bits of the nearest float16, halves to even."""
    bits = np.int64(np.float32(value).view(np.uint32))
    sign, magnitude = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if magnitude > 0x7F800000:
        return sign | 0x7E00
    if magnitude >= 0x47800000:
        return sign | 0x7C00
    if magnitude < 0x38800000:
        return sign | np.int64(np.rint(np.abs(value) * f32(16777216)))
    return sign | ((magnitude + 0xFFF + ((magnitude >> 13) & 1)) >> 13) - 0x1C000


def from_half(half: Any) -> Any:
    exponent, fraction = (half >> 10) & 31, half & 1023
    if exponent == 0:
        size = f32(fraction) * f32(2.0**-24)
    elif exponent == 31:
        size = f32(np.inf)
    else:
        size = np.uint32(((exponent + 112) << 23) | (fraction << 13)).view(np.float32)
    return -size if half & 0x8000 else size


def store_half(value: Any, out: Any, at: Any) -> Any:
    """Write a float16 and give back the float32 it stands for."""
    half = _to_half(value)
    out[at], out[at + 1] = half & 255, half >> 8
    return from_half(half)


def _power(values: Any, start: Any, count: Any) -> Any:
    total = f32(0)
    for position in range(start, start + count):
        total += values[position] * values[position]
    return total


def load(values: Any, start: Any, lanes: Any, size: Any, tile: Any) -> None:
    """Transpose `lanes` blocks of `size` values into the tile, zeros behind them."""
    for position in range(size):
        row = position * LANES
        for lane in range(lanes):
            tile[row + lane] = values[start + lane * size + position]
        for lane in range(lanes, LANES):
            tile[row + lane] = f32(0)


def load_importance(importance: Any, start: Any, lanes: Any, size: Any, columns: Any, tile: Any) -> None:
    for lane in range(LANES):
        column = (start + lane * size) % columns
        for position in range(size):
            tile[(W + position) * LANES + lane] = importance[column + position] if lane < lanes else f32(0)


def load_power(values: Any, start: Any, lanes: Any, blocks: Any, size: Any, state: Any) -> None:
    """Twice the mean square of each super-block, to each of its lanes."""
    for lane in range(0, lanes, blocks):
        power = f32(2) * _power(values, start + lane * size, 256) / f32(256)
        for index in range(lane, lane + blocks):
            state[POWER * LANES + index] = power


def load_row_power(values: Any, start: Any, lanes: Any, columns: Any, power: Any, row: Any, state: Any) -> Any:
    """The mean square of each lane's row into the state; and that of the last row, for the next tile."""
    for lane in range(lanes):
        current = (start + 32 * lane) // columns
        if current != row:
            row, power = current, _power(values, current * columns, columns) / f32(columns)
        state[POWER * LANES + lane] = power
    return power, row


def weigh_near(size: Any, tile: Any, state: Any) -> None:
    """Weights root mean square + |x|."""
    for lane in range(LANES):
        state[POWER * LANES + lane] = f32(0)
    for position in range(size):
        row = position * LANES
        for lane in range(LANES):
            value = tile[row + lane]
            state[POWER * LANES + lane] += value * value
    for lane in range(LANES):
        state[POWER * LANES + lane] = np.sqrt(state[POWER * LANES + lane] / f32(size))
    for position in range(size):
        row = position * LANES
        for lane in range(LANES):
            tile[row + W * LANES + lane] = state[POWER * LANES + lane] + np.abs(tile[row + lane])


def weigh_damped(size: Any, tile: Any, state: Any) -> None:
    """Weights importance * sqrt(power + x^2), the power of each lane's surroundings standing in the state; and their sum."""
    for lane in range(LANES):
        state[SUM_W * LANES + lane] = f32(0)
    for position in range(size):
        row = position * LANES
        for lane in range(LANES):
            value = tile[row + lane]
            weight = tile[row + W * LANES + lane] * np.sqrt(state[POWER * LANES + lane] + value * value)
            tile[row + W * LANES + lane] = weight
            state[SUM_W * LANES + lane] += weight


def weigh_square(size: Any, tile: Any) -> None:
    for position in range(size):
        row = position * LANES
        for lane in range(LANES):
            tile[row + W * LANES + lane] = tile[row + lane] * tile[row + lane]


def weigh_size(size: Any, tile: Any) -> None:
    for position in range(size):
        row = position * LANES
        for lane in range(LANES):
            tile[row + W * LANES + lane] = np.abs(tile[row + lane])
