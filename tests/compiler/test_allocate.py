"""Allocation against all there is to choose from, and within its limits."""

from itertools import product

import numpy as np
import pytest
from ossicle.compiler.allocate import Option, allocate


def matrices(random: np.random.Generator, count: int, limits: int) -> list[list[Option]]:
    """Matrices of unlike size and weight in formats of 4 to 16 bits."""
    made = []
    for _ in range(count):
        numbers, weight = 2 ** random.uniform(10, 14), 10 ** random.uniform(-5, -2)
        overhead = random.uniform(1, 1.2, limits)
        formats = ((1.0, 4.25), (0.7, 4.5), (0.55, 4.63), (0.003, 8.5), (0.0, 16.0))
        made.append(
            [
                Option(weight * share, tuple(int(numbers * bits / 8 * more) for more in overhead))
                for share, bits in formats
            ]
        )
    return made


def sums(choices: list[list[Option]], taken: tuple[int, ...] | list[int]) -> tuple[float, list[int]]:
    options = [one[number] for one, number in zip(choices, taken, strict=True)]
    return sum(one.loss for one in options), np.sum([one.takes for one in options], axis=0).tolist()


@pytest.mark.parametrize("limits", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_no_other_choice_within_the_limits_loses_less(seed: int, limits: int) -> None:
    random = np.random.default_rng(seed)
    choices = matrices(random, 6, limits)
    smallest = sums(choices, [0] * 6)[1]
    given = [int(size * random.uniform(1.05, 2)) for size in smallest]
    taken = allocate(choices, given)
    assert taken is not None
    loss, sizes = sums(choices, taken)
    assert all(size <= limit for size, limit in zip(sizes, given, strict=True))
    every = (sums(choices, one) for one in product(range(5), repeat=6))
    best = min(loss for loss, sizes in every if all(size <= limit for size, limit in zip(sizes, given, strict=True)))
    assert loss <= best * (1.001 if limits == 1 else 1.25)


def test_hundreds_of_choices_reach_the_bound_of_their_hulls() -> None:
    choices = matrices(np.random.default_rng(1), 300, 1)
    limit = int(1.4 * sums(choices, [0] * 300)[1][0])
    taken = allocate(choices, [limit])
    assert taken is not None
    loss, (size,) = sums(choices, taken)
    assert 0.999 * limit < size <= limit
    bounds = [  # what Lagrange's dual says that no choice can go below
        sum(min(one.loss + price * one.takes[0] for one in options) for options in choices) - price * limit
        for price in np.geomspace(1e-12, 1e-3, 60)
    ]
    assert max(bounds) <= loss <= 1.02 * max(bounds)


def test_limits_below_the_least_have_no_answer() -> None:
    choices = matrices(np.random.default_rng(2), 5, 1)
    least = sums(choices, [0] * 5)[1][0]
    assert allocate(choices, [least - 1]) is None
    assert allocate(choices, [least]) == [0] * 5


def test_an_option_that_is_larger_and_worse_is_never_taken() -> None:
    choices = [[Option(1.0, (10,)), Option(2.0, (20,)), Option(0.5, (30,))]]
    assert allocate(choices, [25]) == [0]
    assert allocate(choices, [30]) == [2]
