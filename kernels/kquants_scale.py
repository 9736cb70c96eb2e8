"""The search for a scale alone: the one whose levels come nearest to a block's values, in every lane of a tile side by side.

Every sum runs in ggml's order, in float32, one value of a block after the other. Compiled by kernels/kquants.py.
"""

from typing import Any

import numpy as np

from .kquants_tile import (
    CHOSEN,
    INVERSE,
    LANES,
    LEAST,
    LOW,
    NOTHING,
    SCALE,
    SHIFT,
    SPAN,
    STRIP,
    SUM_LL,
    SUM_XL,
    B,
    W,
    f32,
    nearest,
)


def fit_symmetric(size: Any, half: Any, tile: Any, state: Any) -> None:
    """The scale of every lane such that level * scale is near x, levels -half .. half - 1, those of x times CHOSEN.

    Both are 0 for a lane of zeros.
    """
    _extreme(size, tile, state)
    for index in range(-10, 10):
        if index == 0:
            continue
        shift = -half if index == -10 else -(half + f32(0.1) * f32(index))
        _levels_symmetric(size, shift, half, tile, state)
        _keep_better(index == -10, state)
    for lane in range(LANES):
        empty = state[SPAN * LANES + lane] < NOTHING
        state[SCALE * LANES + lane] = f32(0) if empty else state[SCALE * LANES + lane]
        state[CHOSEN * LANES + lane] = f32(0) if empty else state[CHOSEN * LANES + lane]


def _keep_better(first: Any, state: Any) -> None:
    """Take over the scale of this try in every lane where it fits better than the best one so far."""
    for lane in range(LANES):
        products, squares = state[SUM_XL * LANES + lane], state[SUM_LL * LANES + lane]
        least, best = state[LEAST * LANES + lane], state[SCALE * LANES + lane]
        inverse, chosen = state[INVERSE * LANES + lane], state[CHOSEN * LANES + lane]
        better = first | ((squares > f32(0)) & (products * products > least * squares))
        scale = products / squares
        scale = scale if squares != f32(0) else f32(0)
        state[SCALE * LANES + lane] = scale if better else best
        state[LEAST * LANES + lane] = scale * products if better else least
        state[CHOSEN * LANES + lane] = inverse if better else chosen


def _extreme(size: Any, tile: Any, state: Any) -> None:
    """The first value of largest magnitude of every lane in LOW, its magnitude in SPAN."""
    for first in range(0, size, STRIP):
        for lane in range(LANES):
            extreme, span = state[LOW * LANES + lane], state[SPAN * LANES + lane]
            if first == 0:
                extreme, span = f32(0), f32(0)
            for position in range(STRIP):
                value = tile[(first + position) * LANES + lane]
                extreme = value if np.abs(value) > span else extreme
                span = np.abs(value) if np.abs(value) > span else span
            state[LOW * LANES + lane] = extreme
            state[SPAN * LANES + lane] = span


def _levels_symmetric(size: Any, shift: Any, half: Any, tile: Any, state: Any) -> None:
    """The sums of one try."""
    for first in range(0, size, STRIP):
        for lane in range(LANES):
            inverse = shift / state[LOW * LANES + lane]
            products, squares = state[SUM_XL * LANES + lane], state[SUM_LL * LANES + lane]
            if first == 0:
                products, squares = f32(0), f32(0)
            for position in range(first, first + STRIP):
                value, weight = tile[position * LANES + lane], tile[(W + position) * LANES + lane]
                level = inverse * value + SHIFT - SHIFT
                level = level if level < half - f32(1) else half - f32(1)
                level = level if level > -half else -half
                products += weight * value * level
                squares += weight * level * level
            state[INVERSE * LANES + lane] = inverse
            state[SUM_XL * LANES + lane] = products
            state[SUM_LL * LANES + lane] = squares


def fit_by_turns(size: Any, half: Any, tile: Any, state: Any) -> None:
    """As `fit_symmetric` under weights x^2, but one level after the other moves while that helps; they stand in B."""
    _extreme(size, tile, state)
    for lane in range(LANES):
        state[INVERSE * LANES + lane] = -half / state[LOW * LANES + lane]
        state[SUM_LL * LANES + lane] = f32(0)
        state[SUM_XL * LANES + lane] = f32(0)
    for position in range(size):
        row = position * LANES
        for lane in range(LANES):
            value = tile[row + lane]
            level = state[INVERSE * LANES + lane] * value + SHIFT - SHIFT
            level = level if level < half - f32(1) else half - f32(1)
            level = level if level > -half else -half
            tile[row + B * LANES + lane] = level
            state[SUM_XL * LANES + lane] += value * value * value * level
            state[SUM_LL * LANES + lane] += value * value * level * level
    for _ in range(5):
        if _turn(half, tile, state) == 0:
            break
    for lane in range(LANES):
        squares = state[SUM_LL * LANES + lane]
        fitted = squares > f32(0) and state[SPAN * LANES + lane] >= NOTHING
        state[SCALE * LANES + lane] = state[SUM_XL * LANES + lane] / squares if fitted else f32(0)


def _turn(half: Any, tile: Any, state: Any) -> Any:
    """Move the level of each position in every lane to where the others would have it, if that is nearer; how many moved."""
    moves = 0
    for position in range(16):
        row = position * LANES
        for lane in range(LANES):
            value, level = tile[row + lane], tile[row + B * LANES + lane]
            products, squares = state[SUM_XL * LANES + lane], state[SUM_LL * LANES + lane]
            weight = value * value
            others, other_squares = products - weight * value * level, squares - weight * level * level
            wanted = value * other_squares / others + SHIFT - SHIFT
            wanted = wanted if wanted < half - f32(1) else half - f32(1)
            wanted = wanted if wanted > -half else -half
            moved, moved_squares = others + weight * value * wanted, other_squares + weight * wanted * wanted
            nearer = moved * moved * squares > products * products * moved_squares
            better = (others > f32(0)) & (wanted != level) & (moved_squares > f32(0)) & nearer
            moves += better
            tile[row + B * LANES + lane] = wanted if better else level
            state[SUM_XL * LANES + lane] = moved if better else products
            state[SUM_LL * LANES + lane] = moved_squares if better else squares
    return moves


def fit_positive(values: Any, weights: Any, top: Any, levels: Any) -> Any:
    """The scale of levels 0 .. top such that level * scale is near the values, none of them negative."""
    largest = f32(0)
    for index in range(values.size):
        largest = values[index] if values[index] > largest else largest
        levels[index] = 0
    if largest < NOTHING:
        return f32(0)
    inverse = _inverse_of_positive(values, weights, top, largest)
    products, squares = f32(0), f32(0)
    for index in range(values.size):
        level = min(nearest(inverse * values[index]), np.int64(top))
        levels[index] = level & 255
        products += weights[index] * values[index] * f32(level)
        squares += weights[index] * f32(level) * f32(level)
    for _ in range(5):
        for index in range(values.size):
            weight, value, level = weights[index], values[index], f32(levels[index])
            others, other_squares = products - weight * value * level, squares - weight * level * level
            if others > f32(0) and other_squares > f32(0):
                wanted = min(nearest(value * other_squares / others), np.int64(top))
                others += weight * value * f32(wanted)
                other_squares += weight * f32(wanted) * f32(wanted)
                if wanted != levels[index] and others * others * squares > products * products * other_squares:
                    levels[index], products, squares = wanted & 255, others, other_squares
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
            level = nearest(inverse * values[position])
            level = level & 255 if index == -5 else min(level, np.int64(top))
            off = values[position] - scale * f32(level)
            error += weights[position] * off * off
        if index == -5 or error < least:
            chosen, least = inverse, error
    return chosen
