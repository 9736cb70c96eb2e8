"""The error function, which numpy lacks."""

from functools import cache
from math import erf as exact
from math import pi, sqrt

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_END = 6.0  # from here on it is 1 in float64
_STEPS = 128  # nodes per unit


def erf(values: NDArray[np.floating]) -> Float64:
    """The error function of each value, float64, within 5e-11.

    Cubic Hermite interpolation between nodes 1/128 apart: its error is at most h ** 4 / 384 times the fourth derivative,
    which stays below 5.
    """
    x = np.asarray(values, np.float64)
    place = np.minimum(np.abs(x), _END) * _STEPS
    node = place.astype(np.int32)
    t = place - node
    c0, c1, c2, c3 = (np.take(column, node) for column in _coefficients())
    result: Float64 = np.copysign(((c3 * t + c2) * t + c1) * t + c0, x)
    return result


@cache
def _coefficients() -> tuple[Float64, ...]:
    """Of the cubic behind each node, constant first; the last node stands for all that lies behind it."""
    nodes = np.arange(int(_END * _STEPS) + 2) / _STEPS
    value = np.array([exact(node) for node in nodes])
    slope = 2 / sqrt(pi) * np.exp(-(nodes**2)) / _STEPS
    rise = value[1:] - value[:-1]
    before, after = slope[:-1], slope[1:]
    return value[:-1], before, 3 * rise - 2 * before - after, before + after - 2 * rise
