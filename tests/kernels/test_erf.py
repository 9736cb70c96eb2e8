"""The error function against the standard library's."""

from math import erf as exact

import numpy as np
from ossicle.kernels.erf import erf


def test_it_is_the_error_function() -> None:
    values = np.concatenate([np.linspace(-7, 7, 20_001), np.random.default_rng(0).normal(0, 2, 20_000)])
    assert np.abs(erf(values) - np.vectorize(exact)(values)).max() < 5e-11


def test_it_is_odd_bounded_and_keeps_shapes() -> None:
    values = np.array([[0.0, 1e30], [-1e30, 1e-9]], np.float32)
    assert erf(values).shape == (2, 2)
    assert erf(values).tolist()[0] == [0.0, 1.0]
    assert erf(-values).tolist() == (-erf(values)).tolist()
    assert np.isinf(erf(np.array([np.inf, -np.inf]))).sum() == 0
