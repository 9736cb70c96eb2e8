"""GGUF's blocks with little error in what a matrix gives: ggml's own search finds their scales, GPTQ their levels.

In a block that has its scales, numbers are scale * (level - middle) - minimum. With the minima added to the weights this is
what gptq.py finds codes for, so that minima need no place there. Levels go back into the blocks, whose other bytes stay.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import gptq, kquants
from .kquants_read import FORMS, Form
from .rounding import Codes, dequantize

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class BlockSolver:
    """Makes blocks of the format `name` of matrices with the same inputs, of the mean x x^T [K, K]; factors it once.

    `sweeps` is how often levels are moved after the columns are solved.
    """

    hessian: Float32
    name: str
    sweeps: int = 2

    def quantize(self, weights: Float32) -> UInt8:
        """The bytes [N, row bytes] of float32 weights [N, K]. Rows do not depend on each other.

        No row has a greater error than ggml's search gives it under the same inputs' mean squares.

        Raises:
            ValueError: K is no multiple of a block, a number is not finite, or too large for a float16 scale.
        """
        found = kquants.quantize(weights, self.name, np.ascontiguousarray(np.diagonal(self.hessian)))
        layout, form = kquants.LAYOUTS[self.name], FORMS[self.name]
        blocks = found.reshape(-1, layout.size)
        fixed, shifted, group = as_codes(blocks, form, weights)
        order, upper = self._factored
        solved = gptq.solve(shifted, order, upper, fixed, layout.bits, group, form.signed)
        for _ in range(self.sweeps):
            solved = gptq.codes_moved(shifted, self.hessian, solved, layout.bits, group, form.signed)
        better = self._errors(shifted, solved, group) < self._errors(shifted, fixed, group)
        levels = np.where(better[:, None], solved.codes, fixed.codes)
        return form.with_levels(blocks, levels.reshape(len(blocks), -1)).reshape(found.shape)

    @cached_property
    def _factored(self) -> tuple[NDArray[np.intp], NDArray[Any]]:
        return gptq.factor(self.hessian)

    def _errors(self, weights: Float32, stored: Codes, group: int) -> NDArray[np.float64]:
        """What each row loses [N]."""
        distance = weights - dequantize(stored, group)
        lost: NDArray[np.float64] = np.einsum("nk,nk->n", distance @ self.hessian, distance, dtype=np.float64)
        return lost


def as_codes(blocks: UInt8, form: Form, weights: Float32) -> tuple[Codes, Float32, int]:
    """Blocks of weights [N, K] as codes; the weights with the minima added; and how many columns share a scale."""
    scales = form.scales(blocks).reshape(len(weights), -1)
    group = weights.shape[1] // scales.shape[1]
    codes = Codes(form.levels(blocks).reshape(weights.shape), scales, np.full(scales.shape, form.middle, np.uint8))
    if form.minima is None:
        return codes, weights, group
    return codes, weights + np.repeat(form.minima(blocks).reshape(scales.shape), group, axis=1), group
