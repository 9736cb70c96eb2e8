"""GGUF's blocks with little error in what a matrix gives: ggml's own search finds their scales, GPTQ their levels.

In a block that has its scales, numbers are scale * (level - middle) - minimum. With the minima added to the weights this is
what gptq.py finds codes for, so that minima need no place there. Then scales (gptq_scales.py) and levels are moved in turn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import gptq, gptq_scales, kquants
from .kquants_read import FORMS, Form
from .rounding import Codes

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class BlockSolver:
    """Makes blocks of the format `name` of matrices with the same inputs, of the mean x x^T [K, K]; factors it once.

    `sweeps` is how often scales and levels are moved after the columns are solved.
    """

    hessian: Float32
    name: str
    sweeps: int = 4

    def quantize(self, weights: Float32) -> UInt8:
        """The bytes [N, row bytes] of float32 weights [N, K]. Rows do not depend on each other.

        No row has a greater error than ggml's search gives it under the same inputs' mean squares.

        Raises:
            ValueError: K is no multiple of a block, a number is not finite, or too large for a float16 scale.
        """
        found = kquants.quantize(weights, self.name, np.ascontiguousarray(np.diagonal(self.hessian)))
        searched = found.reshape(-1, kquants.LAYOUTS[self.name].size)
        order, upper = self._factored
        blocks = self._leveled(
            searched, weights, lambda shifted, codes, *form: gptq.solve(shifted, order, upper, codes, *form)
        )
        for _ in range(self.sweeps):
            blocks = gptq_scales.moved(weights, self.hessian, blocks, self._form)
            blocks = self._leveled(
                blocks, weights, lambda shifted, codes, *form: gptq.codes_moved(shifted, self.hessian, codes, *form)
            )
        better = self._errors(weights, blocks) < self._errors(weights, searched)
        return np.where(better[:, None], blocks.reshape(found.shape), found)

    def _leveled(self, blocks: UInt8, weights: Float32, find: Callable[..., Codes]) -> UInt8:
        """Blocks with the levels that are found for the scales and minima that they have."""
        codes, shifted, group = as_codes(blocks, self._form, weights)
        found = find(shifted, codes, kquants.LAYOUTS[self.name].bits, group, self._form.signed)
        return self._form.with_levels(blocks, found.codes.reshape(len(blocks), -1))

    @cached_property
    def _factored(self) -> tuple[NDArray[np.intp], NDArray[Any]]:
        return gptq.factor(self.hessian)

    @property
    def _form(self) -> Form:
        return FORMS[self.name]

    def _errors(self, weights: Float32, blocks: UInt8) -> NDArray[np.float64]:
        """What each row loses [N]."""
        distance = weights - self._form.numbers(blocks).reshape(weights.shape)
        lost: NDArray[np.float64] = np.einsum("nk,nk->n", distance @ self.hessian, distance, dtype=np.float64)
        return lost


def as_codes(blocks: UInt8, form: Form, weights: Float32) -> tuple[Codes, Float32, int]:
    """Blocks of weights [N, K] as codes; the weights with the minima added; and how many columns share a scale."""
    scales = form.scales.numbers(blocks).reshape(len(weights), -1)
    group = weights.shape[1] // scales.shape[1]
    codes = Codes(form.levels(blocks).reshape(weights.shape), scales, np.full(scales.shape, form.middle, np.uint8))
    if form.minima is None:
        return codes, weights, group
    return codes, weights + np.repeat(form.minima.numbers(blocks).reshape(scales.shape), group, axis=1), group
