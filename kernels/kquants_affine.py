"""The search for a scale and a least value whose levels come nearest to a block's values, in every lane of a tile side by side.

Every sum runs in ggml's order, in float32, one value of a block after the other. Compiled by kernels/kquants.py.
"""

from typing import Any

import numpy as np

from .kquants_tile import (
    CHOSEN,
    CHOSEN_LOW,
    ERROR,
    INVERSE,
    LANES,
    LARGEST,
    LEAST,
    LOW,
    SCALE,
    SHIFT,
    SPAN,
    STRIP,
    SUM_L,
    SUM_LL,
    SUM_W,
    SUM_X,
    SUM_XL,
    TRY,
    TRY_MIN,
    W,
    f32,
)  # fmt: skip


def fit_affine(size: Any, top: Any, first: Any, step: Any, steps: Any, absolute: Any, tile: Any, state: Any) -> None:
    """Scale and least value of every lane such that level * scale + least is near x, by weighted least squares.

    Of all tries that of the least weighted error wins: a sum of absolute differences or of their squares. The least value
    ends up in LOW; every improvement of it is where the next try starts from. The levels 0 .. top of the winner are those of
    x - CHOSEN_LOW times CHOSEN.
    """
    _start_affine(size, tile, state)
    for index in range(-1, steps + 1):
        _try_affine(index < 0, top if index < 0 else first + step * f32(index) + top, state)
        _levels_affine(size, top, tile, state)
        if index >= 0:
            _solve_affine(state)
        if absolute:
            _absolute_error_affine(size, top, tile, state)
        else:
            _error_affine(size, top, tile, state)
        _keep_better_affine(index < 0, state)


def _try_affine(first: Any, shift: Any, state: Any) -> None:
    for lane in range(LANES):
        low, high = state[LOW * LANES + lane], state[SPAN * LANES + lane]
        inverse = shift / (high - low)
        # of the first levels ggml makes 0 where the inverse is infinite
        state[INVERSE * LANES + lane] = inverse if not first or inverse <= LARGEST else f32(0)
        state[TRY * LANES + lane] = f32(1) / inverse
        state[TRY_MIN * LANES + lane] = low


def _keep_better_affine(first: Any, state: Any) -> None:
    for lane in range(LANES):
        error, least = state[ERROR * LANES + lane], state[LEAST * LANES + lane]
        scale, inverse, low = (
            state[SCALE * LANES + lane],
            state[CHOSEN * LANES + lane],
            state[CHOSEN_LOW * LANES + lane],
        )
        better, at = first | (error < least), state[LOW * LANES + lane]
        tried, moved, used = state[TRY * LANES + lane], state[TRY_MIN * LANES + lane], state[INVERSE * LANES + lane]
        state[LEAST * LANES + lane] = error if better else least
        state[SCALE * LANES + lane] = tried if better else scale
        state[CHOSEN * LANES + lane] = used if better else inverse
        state[CHOSEN_LOW * LANES + lane] = at if better else low
        state[LOW * LANES + lane] = moved if better else at


def _start_affine(size: Any, tile: Any, state: Any) -> None:
    for lane in range(LANES):
        value, weight = tile[lane], tile[W * LANES + lane]
        state[LOW * LANES + lane] = value
        state[SPAN * LANES + lane] = value
        state[SUM_W * LANES + lane] = weight
        state[SUM_X * LANES + lane] = weight * value
    for position in range(1, size):
        row = position * LANES
        for lane in range(LANES):
            value, weight = tile[row + lane], tile[row + W * LANES + lane]
            low, high = state[LOW * LANES + lane], state[SPAN * LANES + lane]
            state[LOW * LANES + lane] = value if value < low else low
            state[SPAN * LANES + lane] = value if value > high else high
            state[SUM_W * LANES + lane] += weight
            state[SUM_X * LANES + lane] += weight * value
    for lane in range(LANES):
        low = state[LOW * LANES + lane]
        low = f32(0) if low > f32(0) else low
        state[LOW * LANES + lane] = low


def _levels_affine(size: Any, top: Any, tile: Any, state: Any) -> None:
    for first in range(0, size, STRIP):
        for lane in range(LANES):
            low, inverse = state[LOW * LANES + lane], state[INVERSE * LANES + lane]
            levels, squares = state[SUM_L * LANES + lane], state[SUM_LL * LANES + lane]
            products = state[SUM_XL * LANES + lane]
            if first == 0:
                levels, squares, products = f32(0), f32(0), f32(0)
            for position in range(first, first + STRIP):
                value, weight = tile[position * LANES + lane], tile[(W + position) * LANES + lane]
                level = inverse * (value - low) + SHIFT - SHIFT
                level = level if level > f32(0) else f32(0)
                level = level if level < top else top
                levels += weight * level
                squares += weight * level * level
                products += weight * level * value
            state[SUM_L * LANES + lane] = levels
            state[SUM_LL * LANES + lane] = squares
            state[SUM_XL * LANES + lane] = products


def _solve_affine(state: Any) -> None:
    """The scale and least value of least squares; not a number, and so never better, where there is no solution."""
    for lane in range(LANES):
        weights, values = state[SUM_W * LANES + lane], state[SUM_X * LANES + lane]
        levels, squares = state[SUM_L * LANES + lane], state[SUM_LL * LANES + lane]
        products = state[SUM_XL * LANES + lane]
        determinant = weights * squares - levels * levels
        scale = (weights * products - values * levels) / determinant
        least = (squares * values - levels * products) / determinant
        above = products / squares
        scale = above if least > f32(0) else scale
        least = f32(0) if least > f32(0) else least
        state[TRY * LANES + lane] = scale if determinant > f32(0) else f32(np.nan)
        state[TRY_MIN * LANES + lane] = least


def _error_affine(size: Any, top: Any, tile: Any, state: Any) -> None:
    for first in range(0, size, STRIP):
        for lane in range(LANES):
            low, inverse = state[LOW * LANES + lane], state[INVERSE * LANES + lane]
            scale, least = state[TRY * LANES + lane], state[TRY_MIN * LANES + lane]
            error = state[ERROR * LANES + lane]
            if first == 0:
                error = f32(0)
            for position in range(first, first + STRIP):
                value = tile[position * LANES + lane]
                level = inverse * (value - low) + SHIFT - SHIFT
                level = level if level > f32(0) else f32(0)
                level = level if level < top else top
                off = scale * level + least - value
                error += tile[(W + position) * LANES + lane] * (off * off)
            state[ERROR * LANES + lane] = error


def _absolute_error_affine(size: Any, top: Any, tile: Any, state: Any) -> None:
    for first in range(0, size, STRIP):
        for lane in range(LANES):
            low, inverse = state[LOW * LANES + lane], state[INVERSE * LANES + lane]
            scale, least = state[TRY * LANES + lane], state[TRY_MIN * LANES + lane]
            error = state[ERROR * LANES + lane]
            if first == 0:
                error = f32(0)
            for position in range(first, first + STRIP):
                value = tile[position * LANES + lane]
                level = inverse * (value - low) + SHIFT - SHIFT
                level = level if level > f32(0) else f32(0)
                level = level if level < top else top
                off = scale * level + least - value
                off = off if off > f32(0) else -off  # np.abs would keep the loop from becoming vectors
                error += tile[(W + position) * LANES + lane] * off
            state[ERROR * LANES + lane] = error
