"""GGUF's blocks: a matrix [N, K] as the bytes of Q3_K, Q4_K, Q5_K, Q6_K, and of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

The bytes are those of `ggml_quantize_chunk`, with and without an importance matrix, because every sum runs in ggml's order,
in float32, one value of a block after the other. What runs side by side is blocks: 32 of them stand transposed in one tile,
so that the lanes of a vector hold the same position of neighbouring blocks. Compiled with numba on first use; the GIL is
released, so rows can be shared out among threads.

Formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

f32 = np.float32


@dataclass(frozen=True)
class Layout:
    """A block of `columns` neighbours in a row as `size` bytes, of which the float16 numbers stand at `halves`."""

    columns: int
    size: int
    bits: int
    halves: tuple[int, ...]


LAYOUTS = {
    "Q4_0": Layout(32, 18, 4, (0,)),
    "Q4_1": Layout(32, 20, 4, (0, 2)),
    "Q5_0": Layout(32, 22, 5, (0,)),
    "Q5_1": Layout(32, 24, 5, (0, 2)),
    "Q8_0": Layout(32, 34, 8, (0,)),
    "Q3_K": Layout(256, 110, 3, (108,)),
    "Q4_K": Layout(256, 144, 4, (0, 2)),
    "Q5_K": Layout(256, 176, 5, (0, 2)),
    "Q6_K": Layout(256, 210, 6, (208,)),
}

_LANES = 32
# Rows of a tile, each of _LANES values: the blocks transposed, their weights, and two rows of products for each position.
_W, _A, _B = 32, 64, 96
# Rows of the state: one value for each lane.
_LOW, _SPAN, _SUM_W, _SUM_X, _LEAST, _SCALE, _CHOSEN_LOW, _CHOSEN = 0, 1, 2, 3, 4, 5, 6, 7
_INVERSE, _SUM_L, _SUM_LL, _SUM_XL, _TRY, _TRY_MIN, _ERROR, _POWER = 8, 9, 10, 11, 12, 13, 14, 15
_ROWS = 16
_SHIFT = np.float32(12582912.0)  # 1.5 * 2^23: added and taken off again, it rounds half to even
_NOTHING = np.float32(1e-15)  # a block of smaller values is a block of zeros
_LARGEST = np.float32(3.4028234663852886e38)
_TOO_LARGE = np.float32(2.0**28)  # more than a float16 times the largest scale and level of any format
_SQUARE, _GIVEN, _DAMPED = 0, 1, 2  # where the weights of a fit come from


def quantize(weights: Float32, name: str, importance: Float32 | None = None) -> UInt8:
    """The bytes [N, K / columns * size] of float32 weights [N, K] in the format `name` of `LAYOUTS`.

    `importance` is the mean squared activation of each column [K], or none; Q8_0 has no use for it.

    Raises:
        ValueError: no such format, K is no multiple of its block, a number is not finite, or too large for float16 scales.
    """
    layout = _checked(weights, name, importance)
    rows, columns = weights.shape
    out = np.zeros((rows, columns // layout.columns * layout.size), np.uint8)
    if out.size == 0:
        return out
    values = np.ascontiguousarray(weights, np.float32).reshape(-1)
    given = np.zeros(0, np.float32) if importance is None else np.ascontiguousarray(importance, np.float32)
    kind = _kind(name, importance is not None)
    _compiled(_KERNELS[kind])(
        values, layout.bits, out.reshape(-1), *(() if kind.startswith("plain") else (given, columns))
    )
    _refuse_infinite_scales(out, layout, name)
    return out


def _checked(weights: Float32, name: str, importance: Float32 | None) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"no block format {name!r} (there are: {', '.join(LAYOUTS)})")
    layout = LAYOUTS[name]
    if weights.ndim != 2 or weights.shape[1] % layout.columns:
        raise ValueError(f"{name} needs rows of a multiple of {layout.columns} columns, not the shape {weights.shape}")
    if not np.isfinite(weights).all():
        raise ValueError("a weight is infinite or not a number")
    if np.abs(weights).max(initial=0) > _TOO_LARGE:
        raise ValueError(f"a weight or an importance is too large for the float16 scales of {name}")
    if importance is not None:
        if importance.shape != weights.shape[1:]:
            raise ValueError(f"an importance for each of {weights.shape[1]} columns, not the shape {importance.shape}")
        if not (np.isfinite(importance) & (importance >= 0)).all():
            raise ValueError("an importance is negative, infinite or not a number")
    return layout


def _refuse_infinite_scales(out: UInt8, layout: Layout, name: str) -> None:
    blocks = out.reshape(-1, layout.size)
    for start in layout.halves:
        halves = np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)
        if not np.isfinite(halves).all():
            raise ValueError(f"a weight or an importance is too large for the float16 scales of {name}")


def _kind(name: str, important: bool) -> str:
    """The kernel for a format."""
    if name.endswith("_K"):
        return "affine" if name in ("Q4_K", "Q5_K") else "symmetric"
    if name == "Q8_0" or not important:
        return "plain_affine" if name.endswith("_1") else "plain"
    return "weighted_affine" if name.endswith("_1") else "weighted"


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import numba

    compile_ = numba.njit(nogil=True, cache=True, error_model="numpy")
    if function not in _HELPERS:
        for helper in _HELPERS:  # a kernel finds its helpers by their global names
            globals()[helper.__name__] = _compiled(helper)
    compiled: Callable[..., Any] = compile_(function)
    return compiled


def _nearest(value: Any) -> Any:
    """ggml's rounding, its answers to what is out of range or not a number included."""
    return (np.int64(np.float32(value + _SHIFT).view(np.int32)) & 0x7FFFFF) - 0x400000


def _truncated(value: Any) -> Any:
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


def _from_half(half: Any) -> Any:
    exponent, fraction = (half >> 10) & 31, half & 1023
    if exponent == 0:
        size = f32(fraction) * f32(2.0**-24)
    elif exponent == 31:
        size = f32(np.inf)
    else:
        size = np.uint32(((exponent + 112) << 23) | (fraction << 13)).view(np.float32)
    return -size if half & 0x8000 else size


def _store_half(value: Any, out: Any, at: Any) -> Any:
    """Write a float16 and give back the float32 it stands for."""
    half = _to_half(value)
    out[at], out[at + 1] = half & 255, half >> 8
    return _from_half(half)


def _power(values: Any, start: Any, count: Any) -> Any:
    total = f32(0)
    for position in range(start, start + count):
        total += values[position] * values[position]
    return total


def _load(values: Any, start: Any, lanes: Any, size: Any, tile: Any) -> None:
    """Transpose `lanes` blocks of `size` values into the tile, zeros behind them."""
    for position in range(size):
        row = position * _LANES
        for lane in range(lanes):
            tile[row + lane] = values[start + lane * size + position]
        for lane in range(lanes, _LANES):
            tile[row + lane] = f32(0)


def _load_importance(importance: Any, start: Any, lanes: Any, size: Any, columns: Any, tile: Any) -> None:
    for lane in range(_LANES):
        column = (start + lane * size) % columns
        for position in range(size):
            tile[(_W + position) * _LANES + lane] = importance[column + position] if lane < lanes else f32(0)


def _weigh_near(size: Any, tile: Any, state: Any) -> None:
    """Weights root mean square + |x|."""
    for lane in range(_LANES):
        state[_POWER * _LANES + lane] = f32(0)
    for position in range(size):
        row = position * _LANES
        for lane in range(_LANES):
            value = tile[row + lane]
            state[_POWER * _LANES + lane] += value * value
    for lane in range(_LANES):
        state[_POWER * _LANES + lane] = np.sqrt(state[_POWER * _LANES + lane] / f32(size))
    for position in range(size):
        row = position * _LANES
        for lane in range(_LANES):
            tile[row + _W * _LANES + lane] = state[_POWER * _LANES + lane] + np.abs(tile[row + lane])


def _weigh_damped(size: Any, tile: Any, state: Any) -> None:
    """Weights importance * sqrt(power + x^2), the power of each lane's surroundings standing in the state; and their sum."""
    for lane in range(_LANES):
        state[_SUM_W * _LANES + lane] = f32(0)
    for position in range(size):
        row = position * _LANES
        for lane in range(_LANES):
            value = tile[row + lane]
            weight = tile[row + _W * _LANES + lane] * np.sqrt(state[_POWER * _LANES + lane] + value * value)
            tile[row + _W * _LANES + lane] = weight
            state[_SUM_W * _LANES + lane] += weight


def _weigh_square(size: Any, tile: Any) -> None:
    for position in range(size):
        row = position * _LANES
        for lane in range(_LANES):
            tile[row + _W * _LANES + lane] = tile[row + lane] * tile[row + lane]


def _fit_affine(size: Any, top: Any, first: Any, step: Any, steps: Any, tile: Any, state: Any) -> None:
    """Scale and least value of every lane such that level * scale + least is near x, by weighted least squares.

    The least value ends up in _LOW; every improvement of it is where the next try starts from. The levels 0 .. top of the
    winner are those of x - _CHOSEN_LOW times _CHOSEN.
    """
    _start_affine(size, tile, state)
    for index in range(-1, steps + 1):
        shift = top if index < 0 else first + step * f32(index) + top
        for lane in range(_LANES):
            inverse = shift / (state[_SPAN * _LANES + lane] - state[_LOW * _LANES + lane])
            # ggml rounds infinity times anything to level 0
            state[_INVERSE * _LANES + lane] = inverse if inverse <= _LARGEST else f32(0)
            state[_TRY * _LANES + lane] = f32(1) / inverse
            state[_TRY_MIN * _LANES + lane] = state[_LOW * _LANES + lane]
            state[_SUM_L * _LANES + lane] = f32(0)
            state[_SUM_LL * _LANES + lane] = f32(0)
            state[_SUM_XL * _LANES + lane] = f32(0)
            state[_ERROR * _LANES + lane] = f32(0)
        _levels_affine(size, top, tile, state)
        if index >= 0:
            _solve_affine(state)
        _error_affine(size, tile, state)
        for lane in range(_LANES):
            error = state[_ERROR * _LANES + lane]
            better = index < 0 or error < state[_LEAST * _LANES + lane]
            state[_LEAST * _LANES + lane] = error if better else state[_LEAST * _LANES + lane]
            state[_SCALE * _LANES + lane] = state[_TRY * _LANES + lane] if better else state[_SCALE * _LANES + lane]
            state[_CHOSEN * _LANES + lane] = (
                state[_INVERSE * _LANES + lane] if better else state[_CHOSEN * _LANES + lane]
            )
            low = state[_LOW * _LANES + lane]
            state[_CHOSEN_LOW * _LANES + lane] = low if better else state[_CHOSEN_LOW * _LANES + lane]
            state[_LOW * _LANES + lane] = state[_TRY_MIN * _LANES + lane] if better else low


def _start_affine(size: Any, tile: Any, state: Any) -> None:
    for lane in range(_LANES):
        value, weight = tile[lane], tile[_W * _LANES + lane]
        state[_LOW * _LANES + lane] = value
        state[_SPAN * _LANES + lane] = value
        state[_SUM_W * _LANES + lane] = weight
        state[_SUM_X * _LANES + lane] = weight * value
    for position in range(1, size):
        row = position * _LANES
        for lane in range(_LANES):
            value, weight = tile[row + lane], tile[row + _W * _LANES + lane]
            low, high = state[_LOW * _LANES + lane], state[_SPAN * _LANES + lane]
            state[_LOW * _LANES + lane] = value if value < low else low
            state[_SPAN * _LANES + lane] = value if value > high else high
            state[_SUM_W * _LANES + lane] += weight
            state[_SUM_X * _LANES + lane] += weight * value
    for lane in range(_LANES):
        low = state[_LOW * _LANES + lane]
        low = f32(0) if low > f32(0) else low
        state[_LOW * _LANES + lane] = low


def _levels_affine(size: Any, top: Any, tile: Any, state: Any) -> None:
    for position in range(size):
        row = position * _LANES
        for lane in range(_LANES):
            above = tile[row + lane] - state[_LOW * _LANES + lane]
            level = state[_INVERSE * _LANES + lane] * above + _SHIFT - _SHIFT
            level = level if level < top else top
            level = level if level > f32(0) else f32(0)
            tile[row + _B * _LANES + lane] = level
            weighted = tile[row + _W * _LANES + lane] * level
            state[_SUM_L * _LANES + lane] += weighted
            state[_SUM_LL * _LANES + lane] += weighted * level
            state[_SUM_XL * _LANES + lane] += weighted * tile[row + lane]


def _solve_affine(state: Any) -> None:
    """The scale and least value of least squares; not a number, and so never better, where there is no solution."""
    for lane in range(_LANES):
        weights, values = state[_SUM_W * _LANES + lane], state[_SUM_X * _LANES + lane]
        levels, squares = state[_SUM_L * _LANES + lane], state[_SUM_LL * _LANES + lane]
        products = state[_SUM_XL * _LANES + lane]
        determinant = weights * squares - levels * levels
        scale = (weights * products - values * levels) / determinant
        least = (squares * values - levels * products) / determinant
        above = products / squares
        scale = above if least > f32(0) else scale
        least = f32(0) if least > f32(0) else least
        state[_TRY * _LANES + lane] = scale if determinant > f32(0) else f32(np.nan)
        state[_TRY_MIN * _LANES + lane] = least


def _error_affine(size: Any, tile: Any, state: Any) -> None:
    for position in range(size):
        row = position * _LANES
        for lane in range(_LANES):
            level = tile[row + _B * _LANES + lane]
            off = state[_TRY * _LANES + lane] * level + state[_TRY_MIN * _LANES + lane] - tile[row + lane]
            state[_ERROR * _LANES + lane] += tile[row + _W * _LANES + lane] * (off * off)


def _fit_symmetric(size: Any, half: Any, tile: Any, state: Any) -> None:
    """The scale of every lane such that level * scale is near x, levels -half .. half - 1, those of x times _CHOSEN.

    Both are 0 for a lane of zeros.
    """
    _extreme(size, tile, state)
    for position in range(size):
        row = position * _LANES
        for lane in range(_LANES):
            tile[row + _A * _LANES + lane] = tile[row + _W * _LANES + lane] * tile[row + lane]
    for index in range(-10, 10):
        if index == 0:
            continue
        shift = -half if index == -10 else -(half + f32(0.1) * f32(index))
        for lane in range(_LANES):
            state[_INVERSE * _LANES + lane] = shift / state[_LOW * _LANES + lane]
            state[_SUM_LL * _LANES + lane] = f32(0)
            state[_SUM_XL * _LANES + lane] = f32(0)
        _levels_symmetric(size, half, tile, state)
        for lane in range(_LANES):
            products, squares = state[_SUM_XL * _LANES + lane], state[_SUM_LL * _LANES + lane]
            least = state[_LEAST * _LANES + lane]
            better = index == -10 or (squares > f32(0) and products * products > least * squares)
            scale = products / squares if squares != f32(0) else f32(0)
            state[_SCALE * _LANES + lane] = scale if better else state[_SCALE * _LANES + lane]
            state[_LEAST * _LANES + lane] = scale * products if better else least
            state[_CHOSEN * _LANES + lane] = (
                state[_INVERSE * _LANES + lane] if better else state[_CHOSEN * _LANES + lane]
            )
    for lane in range(_LANES):
        empty = state[_SPAN * _LANES + lane] < _NOTHING
        state[_SCALE * _LANES + lane] = f32(0) if empty else state[_SCALE * _LANES + lane]
        state[_CHOSEN * _LANES + lane] = f32(0) if empty else state[_CHOSEN * _LANES + lane]


def _extreme(size: Any, tile: Any, state: Any) -> None:
    """The first value of largest magnitude of every lane in _LOW, its magnitude in _SPAN."""
    for lane in range(_LANES):
        state[_LOW * _LANES + lane] = f32(0)
        state[_SPAN * _LANES + lane] = f32(0)
    for position in range(size):
        row = position * _LANES
        for lane in range(_LANES):
            value, span = tile[row + lane], state[_SPAN * _LANES + lane]
            state[_LOW * _LANES + lane] = value if np.abs(value) > span else state[_LOW * _LANES + lane]
            state[_SPAN * _LANES + lane] = np.abs(value) if np.abs(value) > span else span


def _levels_symmetric(size: Any, half: Any, tile: Any, state: Any) -> None:
    for position in range(size):
        row = position * _LANES
        for lane in range(_LANES):
            level = state[_INVERSE * _LANES + lane] * tile[row + lane] + _SHIFT - _SHIFT
            level = level if level < half - f32(1) else half - f32(1)
            level = level if level > -half else -half
            state[_SUM_XL * _LANES + lane] += tile[row + _A * _LANES + lane] * level
            state[_SUM_LL * _LANES + lane] += tile[row + _W * _LANES + lane] * level * level


def _fit_by_turns(size: Any, half: Any, tile: Any, state: Any) -> None:
    """As `_fit_symmetric` under weights x^2, but one level after the other moves while that helps; they stand in _B."""
    _extreme(size, tile, state)
    for lane in range(_LANES):
        state[_INVERSE * _LANES + lane] = -half / state[_LOW * _LANES + lane]
        state[_SUM_LL * _LANES + lane] = f32(0)
        state[_SUM_XL * _LANES + lane] = f32(0)
    for position in range(size):
        row = position * _LANES
        for lane in range(_LANES):
            value = tile[row + lane]
            level = state[_INVERSE * _LANES + lane] * value + _SHIFT - _SHIFT
            level = level if level < half - f32(1) else half - f32(1)
            level = level if level > -half else -half
            tile[row + _B * _LANES + lane] = level
            state[_SUM_XL * _LANES + lane] += value * value * value * level
            state[_SUM_LL * _LANES + lane] += value * value * level * level
    for _ in range(5):
        for position in range(size):
            _turn(position * _LANES, half, tile, state)
    for lane in range(_LANES):
        squares = state[_SUM_LL * _LANES + lane]
        fitted = squares > f32(0) and state[_SPAN * _LANES + lane] >= _NOTHING
        state[_SCALE * _LANES + lane] = state[_SUM_XL * _LANES + lane] / squares if fitted else f32(0)


def _turn(row: Any, half: Any, tile: Any, state: Any) -> None:
    """Move the level of one position in every lane to where the others would have it, if that is nearer."""
    for lane in range(_LANES):
        value, level = tile[row + lane], tile[row + _B * _LANES + lane]
        products, squares = state[_SUM_XL * _LANES + lane], state[_SUM_LL * _LANES + lane]
        weight = value * value
        others, other_squares = products - weight * value * level, squares - weight * level * level
        wanted = value * other_squares / others + _SHIFT - _SHIFT
        wanted = wanted if wanted < half - f32(1) else half - f32(1)
        wanted = wanted if wanted > -half else -half
        moved, moved_squares = others + weight * value * wanted, other_squares + weight * wanted * wanted
        nearer = moved * moved * squares > products * products * moved_squares
        better = (others > f32(0)) & (wanted != level) & (moved_squares > f32(0)) & nearer
        tile[row + _B * _LANES + lane] = wanted if better else level
        state[_SUM_XL * _LANES + lane] = moved if better else products
        state[_SUM_LL * _LANES + lane] = moved_squares if better else squares


def _fit_positive(values: Any, weights: Any, top: Any, levels: Any) -> Any:
    """The scale of levels 0 .. top such that level * scale is near the values, none of them negative."""
    largest = f32(0)
    for index in range(values.size):
        largest = values[index] if values[index] > largest else largest
        levels[index] = 0
    if largest < _NOTHING:
        return f32(0)
    inverse = _inverse_of_positive(values, weights, top, largest)
    products, squares = f32(0), f32(0)
    for index in range(values.size):
        level = min(_nearest(inverse * values[index]), np.int64(top))
        levels[index] = level
        products += weights[index] * values[index] * f32(level)
        squares += weights[index] * f32(level) * f32(level)
    for _ in range(5):
        for index in range(values.size):
            weight, value, level = weights[index], values[index], f32(levels[index])
            others, other_squares = products - weight * value * level, squares - weight * level * level
            if others > f32(0) and other_squares > f32(0):
                wanted = min(_nearest(value * other_squares / others), np.int64(top))
                others += weight * value * f32(wanted)
                other_squares += weight * f32(wanted) * f32(wanted)
                if wanted != levels[index] and others * others * squares > products * products * other_squares:
                    levels[index], products, squares = wanted, others, other_squares
    return products / squares if squares > f32(0) else f32(0)


def _inverse_of_positive(values: Any, weights: Any, top: Any, largest: Any) -> Any:
    """Of nine inverse scales around top / largest the one with the least squared error, the middle one first."""
    chosen, least = f32(0), f32(0)
    for index in range(-5, 5):
        if index == 0:
            continue
        inverse = top / largest if index == -5 else (f32(0.1) * f32(index) + top) / largest
        scale, error = f32(1) / inverse, f32(0)
        for position in range(values.size):
            level = _nearest(inverse * values[position])
            level = level if index == -5 else min(level, np.int64(top))
            off = values[position] - scale * f32(level)
            error += weights[position] * off * off
        if index == -5 or error < least:
            chosen, least = inverse, error
    return chosen


def _quantize_affine(values: Any, bits: Any, out: Any, importance: Any, columns: Any) -> None:
    """Q4_K and Q5_K: eight sub-blocks of 32, levels times a 6-bit scale less a 6-bit minimum."""
    tile, state = np.empty(128 * _LANES, np.float32), np.zeros(_ROWS * _LANES, np.float32)
    levels, six = np.empty(256, np.uint8), np.empty(16, np.int64)
    important, top, size = importance.size > 0, f32((1 << bits) - 1), 16 + 32 * bits
    for start in range(0, values.size, _LANES * 32):
        lanes = min(_LANES, (values.size - start) // 32)
        _load(values, start, lanes, 32, tile)
        if important:
            _load_importance(importance, start, lanes, 32, columns, tile)
            _load_power(values, start, lanes, 8, 32, state)
            _weigh_damped(32, tile, state)
            sums = state[_SUM_W * _LANES : _SUM_W * _LANES + _LANES].copy()
            _fit_affine(32, top, f32(-0.9), f32(0.05), 36, tile, state)
        else:
            _weigh_near(32, tile, state)
            sums = state[:0]
            first = f32(-1) if bits == 4 else f32(-0.5)
            _fit_affine(32, top, first, f32(0.1), 20 if bits == 4 else 15, tile, state)
        for lane in range(0, lanes, 8):
            at = (start // 32 + lane) // 8 * size
            block = out[at : at + size]
            _sixes(lane, sums, state, six, block)
            _level_affine(values, start + lane * 32, lane, top, six, block, state, levels)
            _pack_affine(levels, six, bits, block)


def _load_power(values: Any, start: Any, lanes: Any, blocks: Any, size: Any, state: Any) -> None:
    """Twice the mean square of each super-block, to each of its lanes."""
    for lane in range(0, lanes, blocks):
        power = f32(2) * _power(values, start + lane * size, 256) / f32(256)
        for index in range(lane, lane + blocks):
            state[_POWER * _LANES + index] = power


def _sixes(lane: Any, sums: Any, state: Any, six: Any, block: Any) -> None:
    """The 6-bit scales and minima of a super-block, and their float16 units into its bytes."""
    scales = state[_SCALE * _LANES + lane : _SCALE * _LANES + lane + 8]
    minima = -state[_LOW * _LANES + lane : _LOW * _LANES + lane + 8]
    if sums.size > 0:
        weights = sums[lane : lane + 8]
        _store_half(_fit_positive(scales, weights, f32(63), six[:8]), block, 0)
        _store_half(_fit_positive(minima, weights, f32(63), six[8:]), block, 2)
        return
    for group in range(2):
        numbers, largest = (minima if group else scales), f32(0)
        for index in range(8):
            largest = numbers[index] if numbers[index] > largest else largest
        inverse = f32(63) / largest if largest > f32(0) else f32(0)
        for index in range(8):
            six[8 * group + index] = min(63, _nearest(inverse * numbers[index]) & 255)
        _store_half(largest / f32(63), block, 2 * group)


def _level_affine(values: Any, start: Any, lane: Any, top: Any, six: Any, block: Any, state: Any, levels: Any) -> None:
    unit = _from_half(np.int64(block[0]) | np.int64(block[1]) << 8)
    minimum = _from_half(np.int64(block[2]) | np.int64(block[3]) << 8)
    for index in range(8):
        scale, least = unit * f32(six[index]), minimum * f32(six[8 + index])
        low, inverse = state[_CHOSEN_LOW * _LANES + lane + index], state[_CHOSEN * _LANES + lane + index]
        for position in range(32 * index, 32 * index + 32):
            value = values[start + position]
            level = (value + least) / scale if scale != f32(0) else inverse * (value - low)
            levels[position] = min(np.int64(top), max(0, _nearest(level)))


def _pack_affine(levels: Any, six: Any, bits: Any, block: Any) -> None:
    for index in range(4):
        block[4 + index] = six[index] | six[4 + index] >> 4 << 6
        block[8 + index] = six[8 + index] | six[12 + index] >> 4 << 6
        block[12 + index] = six[4 + index] & 15 | (six[12 + index] & 15) << 4
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


def _quantize_symmetric(values: Any, bits: Any, out: Any, importance: Any, columns: Any) -> None:
    """Q3_K and Q6_K: sixteen sub-blocks of 16, levels times a 6-bit or 8-bit scale."""
    tile, state = np.empty(128 * _LANES, np.float32), np.zeros(_ROWS * _LANES, np.float32)
    levels, scales, unit = np.empty(256, np.uint8), np.empty(16, np.int64), f32(0)
    important, half, size = importance.size > 0, f32(1 << (bits - 1)), 110 if bits == 3 else 210
    again, second = np.zeros(128 * _LANES, np.float32), np.zeros(_ROWS * _LANES, np.float32)
    for start in range(0, values.size, _LANES * 16):
        lanes = min(_LANES, (values.size - start) // 16)
        _load(values, start, lanes, 16, tile)
        if important:
            _load_importance(importance, start, lanes, 16, columns, tile)
        if bits == 3 and not important:
            _fit_by_turns(16, half, tile, state)
        elif bits == 3:
            _load_power(values, start, lanes, 16, 16, state)
            _weigh_damped(16, tile, state)
            _fit_symmetric(16, half, tile, state)
            _fit_scales(lanes, again, second, state)
        else:
            if not important:
                _weigh_square(16, tile)
            _fit_symmetric(16, half, tile, state)
        for lane in range(0, lanes, 16):
            at = (start // 16 + lane) // 16 * size
            block = out[at : at + size]
            if bits == 3 and important:
                unit = _fitted_scales(lane // 16, again, second, scales)
            else:
                unit = _scaled(lane, 32 if bits == 3 else 128, state, scales)
            unit = _store_half(unit, block, size - 2)
            if bits == 6 and _is_nothing(lane, state):
                continue
            _level_symmetric(values, start, lane, half, unit, scales, bits == 3 and not important, tile, state, levels)
            if bits == 3:
                _pack_three(levels, scales, block)
            else:
                _pack_six(levels, scales, block)


def _is_nothing(lane: Any, state: Any) -> Any:
    largest = f32(0)
    for index in range(lane, lane + 16):
        largest = max(largest, np.abs(state[_SCALE * _LANES + index]))
    return largest < _NOTHING


def _scaled(lane: Any, half: Any, state: Any, scales: Any) -> Any:
    """The scales of a super-block as integers from -half, and their unit: the largest one becomes -half."""
    largest, extreme = f32(0), f32(0)
    for index in range(16):
        scale = state[_SCALE * _LANES + lane + index]
        if np.abs(scale) > largest:
            largest, extreme = np.abs(scale), scale
    if extreme == f32(0) or (half == 128 and largest < _NOTHING):
        scales[:] = -half if half == 32 else 0
        return f32(0)
    inverse = f32(-half) / extreme
    for index in range(16):
        rounded = _nearest(inverse * state[_SCALE * _LANES + lane + index])
        scales[index] = min(half - 1, max(-half, rounded) if half == 32 else rounded)
    return f32(1) / inverse


def _fit_scales(lanes: Any, again: Any, second: Any, state: Any) -> None:
    """Fit the scales of each super-block as if they were a block, under the summed weights of the sub-blocks."""
    for lane in range(lanes):
        at = lane % 16 * _LANES + lane // 16
        again[at] = state[_SCALE * _LANES + lane]
        again[_W * _LANES + at] = state[_SUM_W * _LANES + lane]
    _fit_symmetric(16, f32(32), again, second)


def _fitted_scales(block: Any, again: Any, second: Any, scales: Any) -> Any:
    inverse = second[_CHOSEN * _LANES + block]
    for index in range(16):
        level = _nearest(inverse * again[index * _LANES + block])
        scales[index] = min(31, max(-32, level)) if inverse != f32(0) else -32
    return second[_SCALE * _LANES + block]


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
    floor, ceiling = -np.int64(half), np.int64(half) - 1
    for index in range(16):
        scale, inverse = unit * f32(scales[index]), state[_CHOSEN * _LANES + lane + index]
        empty = state[_SPAN * _LANES + lane + index] < _NOTHING
        for position in range(16):
            value = values[start + (lane + index) * 16 + position]
            if scale != f32(0):
                level = min(ceiling, max(floor, _nearest(value / scale)))
            elif empty:
                level = floor
            elif by_turns:
                level = np.int64(tile[(_B + position) * _LANES + lane + index])
            else:
                level = min(ceiling, max(floor, _nearest(inverse * value)))
            levels[16 * index + position] = level - floor


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
        for position in range(32):
            at, high = 128 * group + position, 0
            for part in range(4):
                high |= (levels[at + 32 * part] >> 4) << 2 * part
            block[128 + 32 * group + position] = high
            block[64 * group + position] = levels[at] & 15 | (levels[at + 64] & 15) << 4
            block[64 * group + 32 + position] = levels[at + 32] & 15 | (levels[at + 96] & 15) << 4


def _quantize_plain(values: Any, bits: Any, out: Any) -> None:
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
        _store_half(scale, block, 0)
        for position in range(32):
            level = values[start + position] * inverse
            if bits == 8:
                away = np.copysign(np.floor(np.abs(level) + f32(0.5)), level)
                block[2 + position] = _truncated(away) & 255
            else:
                levels[position] = min(2 * np.int64(half) - 1, _truncated(level + (half + f32(0.5))))
        if bits != 8:
            _pack_plain(levels, bits, block, 2)


def _quantize_plain_affine(values: Any, bits: Any, out: Any) -> None:
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
        _store_half(scale, block, 0)
        _store_half(low, block, 2)
        for position in range(32):
            level = _truncated((values[start + position] - low) * inverse + f32(0.5))
            levels[position] = min(np.int64(top), level)
        _pack_plain(levels, bits, block, 4)


def _quantize_weighted(values: Any, bits: Any, out: Any, importance: Any, columns: Any) -> None:
    """Q4_0 and Q5_0 under an importance."""
    tile, state = np.empty(128 * _LANES, np.float32), np.zeros(_ROWS * _LANES, np.float32)
    size, half, levels = 2 + 4 * bits, f32(1 << (bits - 1)), np.empty(32, np.uint8)
    power, row = f32(0), -1
    for start in range(0, values.size, _LANES * 32):
        lanes = min(_LANES, (values.size - start) // 32)
        power, row = _load_row_power(values, start, lanes, columns, power, row, state)
        _load(values, start, lanes, 32, tile)
        _load_importance(importance, start, lanes, 32, columns, tile)
        _weigh_damped(32, tile, state)
        _fit_symmetric(32, half, tile, state)
        for lane in range(lanes):
            at, inverse = (start // 32 + lane) * size, state[_CHOSEN * _LANES + lane]
            block = out[at : at + size]
            _store_half(state[_SCALE * _LANES + lane], block, 0)
            for position in range(32):
                level = _nearest(inverse * tile[position * _LANES + lane])
                level = min(np.int64(half) - 1, max(-np.int64(half), level)) + np.int64(half)
                levels[position] = level if inverse != f32(0) else 0
            _pack_plain(levels, bits, block, 2)


def _quantize_weighted_affine(values: Any, bits: Any, out: Any, importance: Any, columns: Any) -> None:
    """Q4_1 and Q5_1 under an importance."""
    tile, state = np.empty(128 * _LANES, np.float32), np.zeros(_ROWS * _LANES, np.float32)
    size, top, levels = 4 + 4 * bits, f32((1 << bits) - 1), np.empty(32, np.uint8)
    power, row = f32(0), -1
    for start in range(0, values.size, _LANES * 32):
        lanes = min(_LANES, (values.size - start) // 32)
        power, row = _load_row_power(values, start, lanes, columns, power, row, state)
        _load(values, start, lanes, 32, tile)
        _load_importance(importance, start, lanes, 32, columns, tile)
        _weigh_damped(32, tile, state)
        _fit_affine(32, top, f32(-0.9), f32(0.05), 36, tile, state)
        for lane in range(lanes):
            at, inverse = (start // 32 + lane) * size, state[_CHOSEN * _LANES + lane]
            block, low = out[at : at + size], state[_CHOSEN_LOW * _LANES + lane]
            _store_half(state[_SCALE * _LANES + lane], block, 0)
            _store_half(state[_LOW * _LANES + lane], block, 2)
            for position in range(32):
                level = _nearest(inverse * (tile[position * _LANES + lane] - low))
                levels[position] = min(np.int64(top), max(0, level))
            _pack_plain(levels, bits, block, 4)


def _load_row_power(values: Any, start: Any, lanes: Any, columns: Any, power: Any, row: Any, state: Any) -> Any:
    """The mean square of each lane's row into the state; and that of the last row, for the next tile."""
    for lane in range(lanes):
        current = (start + 32 * lane) // columns
        if current != row:
            row, power = current, _power(values, current * columns, columns) / f32(columns)
        state[_POWER * _LANES + lane] = power
    return power, row


def _pack_plain(levels: Any, bits: Any, block: Any, at: Any) -> None:
    if bits == 5:
        for position in range(32):
            block[at + position // 8] |= (levels[position] >> 4) << position % 8
        at += 4
    for position in range(16):
        block[at + position] = levels[position] & 15 | (levels[position + 16] & 15) << 4


_HELPERS = (
    _nearest,
    _truncated,
    _to_half,
    _from_half,
    _store_half,
    _power,
    _load,
    _load_importance,
    _weigh_near,
    _weigh_damped,
    _weigh_square,
    _start_affine,
    _levels_affine,
    _solve_affine,
    _error_affine,
    _fit_affine,
    _extreme,
    _levels_symmetric,
    _fit_symmetric,
    _turn,
    _fit_by_turns,
    _inverse_of_positive,
    _fit_positive,
    _load_power,
    _sixes,
    _level_affine,
    _pack_affine,
    _is_nothing,
    _scaled,
    _fit_scales,
    _fitted_scales,
    _level_symmetric,
    _pack_three,
    _pack_six,
    _load_row_power,
    _pack_plain,
)
_KERNELS: dict[str, Callable[..., Any]] = {
    "affine": _quantize_affine,
    "symmetric": _quantize_symmetric,
    "plain": _quantize_plain,
    "plain_affine": _quantize_plain_affine,
    "weighted": _quantize_weighted,
    "weighted_affine": _quantize_weighted_affine,
}
