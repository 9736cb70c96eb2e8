"""Palettes: the best there are, against brute force; the same bits on every run."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from ossicle.kernels import palettes

FINITE = st.floats(-8, 8, width=16)


def least_error(values: np.ndarray, levels: int) -> float:
    """The least squared error of any partition of the sorted numbers into runs, each coded as its mean."""
    ordered = np.sort(values.ravel()).astype(np.float64)
    runs = min(levels, ordered.size)
    return min(
        sum(
            ((ordered[start:stop] - ordered[start:stop].mean()) ** 2).sum()
            for start, stop in zip((0, *cuts), (*cuts, ordered.size), strict=True)
        )
        for cuts in combinations(range(1, ordered.size), runs - 1)
    )


@settings(max_examples=150)
@given(
    values=arrays.arrays(np.float32, st.tuples(st.just(1), st.integers(1, 11)), elements=FINITE),
    levels=st.integers(1, 5),
)
def test_no_partition_is_better(values: np.ndarray, levels: int) -> None:
    tables, codes = palettes.fit(values, 1, levels)
    error = ((palettes.look_up(tables, codes, 1) - values) ** 2).sum()
    rounding = values.size * (2.0**-11 * 8) ** 2  # of the levels to float16
    assert (
        error
        <= least_error(values, levels) * (1 + 1e-3) + rounding + 2 * (rounding * least_error(values, levels)) ** 0.5
    )


@pytest.mark.parametrize("spread", ["normal", "laplace", "outlier"])
def test_cells_that_share_numbers_cost_next_to_nothing(spread: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same with a cell for every number."""
    generator = np.random.default_rng(3)
    values = (generator.laplace if spread == "laplace" else generator.normal)(size=(16, 512)).astype(np.float32)
    if spread == "outlier":
        values[0, 0] = 40
    tables, codes = palettes.fit(values, 16, 16)
    error = ((palettes.look_up(tables, codes, 16) - values) ** 2).sum()
    monkeypatch.setattr(palettes, "CELLS", values.size)
    tables, codes = palettes.fit(values, 16, 16)
    best = ((palettes.look_up(tables, codes, 16) - values) ** 2).sum()
    assert best <= error <= 1.01 * best


def test_every_code_names_the_nearest_level_of_its_own_table() -> None:
    values = np.random.default_rng(4).normal(size=(48, 40)).astype(np.float32)
    values[16:32] *= 10
    tables, codes = palettes.fit(values, 16, 16)
    assert tables.shape == (3, 16)
    for row, numbers in enumerate(values):
        distances = np.abs(numbers[:, None] - tables[row // 16].astype(np.float32))
        chosen = distances[np.arange(40), codes[row]]
        assert np.array_equal(chosen, distances.min(axis=1))


def test_the_same_numbers_give_the_same_bits() -> None:
    values = np.random.default_rng(5).normal(size=(32, 300)).astype(np.float32)
    first, second = palettes.fit(values, 16, 16), palettes.fit(values.copy(), 16, 16)
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def test_few_different_numbers_are_kept_as_they_are() -> None:
    values = np.array([[1, -2, 0, 1, 1, -2]], np.float32)
    tables, codes = palettes.fit(values, 1, 16)
    assert np.array_equal(palettes.look_up(tables, codes, 1), values)
    assert np.all(np.diff(tables.astype(np.float32)) >= 0)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e5])
def test_what_no_float16_holds_is_refused(bad: float) -> None:
    values = np.zeros((1, 8), np.float32)
    values[0, 3] = bad
    with pytest.raises(ValueError, match="not a number, infinite or too large"):
        palettes.fit(values, 1, 4)
