"""Which of its options each choice takes, so that the losses' sum is least and every limit is kept: a multiple-choice knapsack.

Begun in two ways. Along the lower convex hull of each choice's options, the greatest fall of loss per byte before the next:
the Lagrangian's solution, within one step of the best (Sinha and Zoltners, The multiple-choice knapsack problem, 1979), which
is next to nothing where there are hundreds of choices. And exactly, by dynamic programming over one limit in 2^14 steps, which
sizes are rounded up to. Of both, what is left of the limits is filled by changes of one choice, and of two at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_STEPS = 1 << 14  # of a limit, in dynamic programming
_CHANGES = 200  # of two choices at a time; each lowers the loss


@dataclass(frozen=True)
class Option:
    """What one way to store something loses, and what it takes of each limit."""

    loss: float
    takes: tuple[int, ...]


def allocate(choices: Sequence[Sequence[Option]], limits: Sequence[int]) -> list[int] | None:
    """The option of each choice by its number; None where not even the smallest keep the limits."""
    starts = [_hull_steps(choices, weights, limits) for weights in _weights(limits)]
    starts += [start for place in range(len(limits)) if (start := _on_grid(choices, place, limits[place]))]
    found = [_improved(choices, start, limits) for start in starts if _keeps(choices, start, limits)]
    return min(found, key=lambda taken: _loss(choices, taken), default=None)


def _weights(limits: Sequence[int]) -> Iterator[NDArray[np.float64]]:
    """How much a byte of each limit counts: one limit alone in turn, and all by their size."""
    yield from np.eye(len(limits))
    if len(limits) > 1:
        yield 1 / np.maximum(np.array(limits, np.float64), 1)


def _hull_steps(choices: Sequence[Sequence[Option]], weights: NDArray[np.float64], limits: Sequence[int]) -> list[int]:
    """The smallest options, and from them up along the hulls as far as the limits go."""
    hulls = [_hull(options, weights) for options in choices]
    taken = [hull[0] for hull in hulls]
    left = np.array(limits) - _taken(choices, taken)
    steps = sorted(
        (_slope(choices[number], one, other, weights), number, place)
        for number, hull in enumerate(hulls)
        for place, (one, other) in enumerate(pairwise(hull), start=1)
    )
    for _, number, place in steps:
        old, new = choices[number][taken[number]], hulls[number][place]
        more = np.subtract(choices[number][new].takes, old.takes)
        if hulls[number].index(taken[number]) == place - 1 and (more <= left).all():
            taken[number] = new
            left = left - more
    return taken


def _on_grid(choices: Sequence[Sequence[Option]], place: int, limit: int) -> list[int] | None:
    """The best options within one limit, sizes rounded up to its steps; None where not even the smallest fit."""
    least = np.zeros(_STEPS + 1)
    picks = []
    steps = [[-(-option.takes[place] * _STEPS // max(1, limit)) for option in options] for options in choices]
    for options, sizes in zip(choices, steps, strict=True):
        sums = np.full((len(options), _STEPS + 1), np.inf)
        for number, (option, size) in enumerate(zip(options, sizes, strict=True)):
            if size <= _STEPS:
                sums[number, size:] = least[: _STEPS + 1 - size] + option.loss
        picks.append(sums.argmin(axis=0))
        least = sums.min(axis=0)
    if not np.isfinite(least[-1]):
        return None
    taken, at = [], _STEPS
    for pick, sizes in zip(reversed(picks), reversed(steps), strict=True):
        taken.append(int(pick[at]))
        at -= sizes[taken[-1]]
    return taken[::-1]


def _hull(options: Sequence[Option], weights: NDArray[np.float64]) -> list[int]:
    """The options on the lower convex hull of loss over size, the smallest first."""
    sizes = [float(weights @ np.array(option.takes)) for option in options]
    hull: list[int] = []
    for new in sorted(range(len(options)), key=lambda one: (sizes[one], options[one].loss)):
        if hull and (options[new].loss >= options[hull[-1]].loss or sizes[new] == sizes[hull[-1]]):
            continue
        while len(hull) > 1 and _slope(options, hull[-2], hull[-1], weights) >= _slope(options, hull[-1], new, weights):
            hull.pop()
        hull.append(new)
    return hull


def _slope(options: Sequence[Option], one: int, other: int, weights: NDArray[np.float64]) -> float:
    """How the loss changes with each byte from one option to a larger other; the steepest fall is the least."""
    more = float(weights @ np.subtract(options[other].takes, options[one].takes))
    return (options[other].loss - options[one].loss) / more


def _improved(choices: Sequence[Sequence[Option]], taken: list[int], limits: Sequence[int]) -> list[int]:
    """The same with changes of one and of two choices, as long as they lower the loss within the limits."""
    owners = np.concatenate([np.full(len(options), number) for number, options in enumerate(choices)])
    numbers = np.concatenate([np.arange(len(options)) for options in choices])
    losses = np.array([option.loss for options in choices for option in options])
    takes = np.array([option.takes for options in choices for option in options])
    first = np.searchsorted(owners, np.arange(len(choices)))
    for _ in range(_CHANGES):
        now = first + np.array(taken)
        change = _best_change(
            losses - losses[now][owners], takes - takes[now][owners], np.array(limits) - takes[now].sum(0), owners
        )
        if change is None:
            break
        for one in change:
            taken[owners[one]] = int(numbers[one])
    return taken


def _best_change(
    more_loss: NDArray[np.float64], more: NDArray[np.int64], left: NDArray[np.int64], owners: NDArray[np.int64]
) -> tuple[int, int] | None:
    """Two options to change to, of which the first may be one that is taken already, for the least loss within the limits."""
    best, found = -1e-12 * float(np.abs(more_loss).max()), None
    still = (more_loss == 0) & (more == 0).all(axis=1)
    for one in np.flatnonzero(more_loss < 0):
        fits = (more[one] + more <= left).all(axis=1) & ((owners != owners[one]) | still)
        sums = np.where(fits, more_loss[one] + more_loss, np.inf)
        other = int(np.argmin(sums))
        if sums[other] < best:
            best, found = float(sums[other]), (other, int(one))
    return found


def _keeps(choices: Sequence[Sequence[Option]], taken: Sequence[int], limits: Sequence[int]) -> bool:
    return bool((_taken(choices, taken) <= np.array(limits)).all())


def _taken(choices: Sequence[Sequence[Option]], taken: Sequence[int]) -> NDArray[np.int64]:
    takes: NDArray[np.int64] = np.array(
        [options[one].takes for options, one in zip(choices, taken, strict=True)], np.int64
    )
    return np.asarray(takes.sum(axis=0))


def _loss(choices: Sequence[Sequence[Option]], taken: Sequence[int]) -> float:
    return sum(options[one].loss for options, one in zip(choices, taken, strict=True))
