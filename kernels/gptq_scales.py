"""Scales and minima of GGUF's blocks moved to where the error in what a matrix gives is least, levels staying as they are.

With all else standing still that error is a parabola in each count and in each unit: the lowest whole number is known at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .kquants_read import Counts, Form

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

_LARGEST = float(np.finfo(np.float16).max)


def moved(weights: Float32, hessian: Float32, blocks: UInt8, form: Form) -> UInt8:
    """Blocks [N * B, size] of weights [N, K] with other scales and minima, under the inputs' mean x x^T [K, K]."""
    rest = weights - form.numbers(blocks).reshape(weights.shape)
    parts = list(_parts(blocks, form, len(weights)))
    width = weights.shape[1] // parts[0].units.shape[1]
    for block in range(parts[0].units.shape[1]):
        _move_block(rest, hessian, parts, block, slice(block * width, (block + 1) * width))
    changed = blocks.copy()
    for part in parts:
        counts = part.counts.reshape(len(blocks), -1)
        part.form.write(counts, part.units.reshape(-1, 1), changed)
    return changed


@dataclass(frozen=True)
class _Part:
    """Scales, or minima, of a matrix: counts [N, sub-blocks], units [N, B], and what a unit of either is worth [N, K]."""

    form: Counts
    counts: Float32
    units: Float32
    worth: Float32

    @property
    def group(self) -> int:
        """Columns of a sub-block."""
        return int(self.worth.shape[1] // self.counts.shape[1])

    def move_count(self, rest: Float32, slopes: Float32, hessian: Float32, span: slice, block: int) -> None:
        """Move a sub-block's counts; `rest`, its `slopes` and `hessian` are those of its columns alone."""
        unit, worth, place = self.units[:, block], self.worth[:, span], span.start // self.group
        bent = worth @ hessian
        wanted = self.counts[:, place] + _lowest(_dot(slopes, worth), _dot(bent, worth) * unit)
        found = np.clip(np.rint(wanted), self.form.lowest, self.form.highest).astype(np.float32)
        step = ((found - self.counts[:, place]) * unit)[:, None]
        rest -= step * worth
        slopes -= step * bent
        self.counts[:, place] = found

    def move_unit(self, rest: Float32, slopes: Float32, hessian: Float32, span: slice, block: int) -> None:
        """Move a block's units as far as float16 goes, where that lowers the error; arguments as above."""
        counts = self.counts[:, span.start // self.group : span.stop // self.group]
        worth = self.worth[:, span] * np.repeat(counts, self.group, axis=1)
        bent, unit = worth @ hessian, self.units[:, block]
        slope, curvature = _dot(slopes, worth), _dot(bent, worth)
        wanted = np.clip(unit + _lowest(slope, curvature), -_LARGEST, _LARGEST).astype(np.float16)
        step = wanted.astype(np.float32) - unit
        step[step * (step * curvature - 2 * slope) >= 0] = 0
        rest -= step[:, None] * worth
        slopes -= step[:, None] * bent
        unit += step


def _dot(one: Float32, other: Float32) -> NDArray[np.float64]:
    """Row by row [N]."""
    found: NDArray[np.float64] = np.einsum("nk,nk->n", one, other, dtype=np.float64)
    return found


def _lowest(slope: NDArray[np.float64], curvature: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far it is to the lowest point of parabolas; nowhere to go where they are flat."""
    return np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature != 0)


def _parts(blocks: UInt8, form: Form, rows: int) -> Iterator[_Part]:
    levels = form.levels(blocks).reshape(rows, -1).astype(np.float32) - np.float32(form.middle)
    for part, worth in ((form.scales, levels), (form.minima, np.full_like(levels, -1))):
        if part is not None:
            counts, units = part.read(blocks).reshape(rows, -1), part.units(blocks).reshape(rows, -1)
            yield _Part(part, counts, units, worth)


def _move_block(rest: Float32, hessian: Float32, parts: list[_Part], block: int, span: slice) -> None:
    """Move the counts of a block of every row, sub-block by sub-block, and then its units."""
    if any(part.form.put for part in parts):
        for start in range(span.start, span.stop, parts[0].group):
            one = slice(start, start + parts[0].group)
            slopes = rest @ hessian[:, one]
            for part in parts:
                part.move_count(rest[:, one], slopes, hessian[one, one], one, block)
    slopes = rest @ hessian[:, span]
    for part in parts:
        part.move_unit(rest[:, span], slopes, hessian[span, span], span, block)
