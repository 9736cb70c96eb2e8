"""Keys and values in the form in which engines hand them to each other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError


@dataclass(frozen=True)
class KeyValues:
    """What a decoder remembers of one row, in the form in which engines hand it to each other.

    Both are [layers, key heads, tokens, head_dim], float32 or float16, the first token first. Keys are rotated, by the
    rotation of halves and from position 0: the numbers that ONNX and OpenVINO artifacts keep.
    """

    keys: NDArray[Any]
    values: NDArray[Any]

    @classmethod
    def of(cls, arrays: Sequence[NDArray[Any]]) -> Self:
        """From arrays [key heads, tokens, head_dim]: each layer's keys and values in turns."""
        return cls(np.stack(arrays[::2]), np.stack(arrays[1::2]))

    @property
    def tokens(self) -> int:
        return int(self.keys.shape[2])

    @property
    def nbytes(self) -> int:
        return int(self.keys.nbytes + self.values.nbytes)

    def first(self, tokens: int) -> Self:
        """What it remembers of its first tokens, in the same memory."""
        return replace(self, keys=self.keys[:, :, :tokens], values=self.values[:, :, :tokens])

    def arrays(self) -> list[NDArray[Any]]:
        """Arrays [key heads, tokens, head_dim]: each layer's keys and values in turns."""
        return [array for layer in zip(self.keys, self.values, strict=True) for array in layer]


def check_handed(engine: str, rows: Sequence[KeyValues], layers: int, heads: int, head_dim: int) -> None:
    """Refuse rows that another model's decoder has made.

    Raises:
        EngineError: their sizes are not those of this engine's decoder.
    """
    for row in rows:
        if {row.keys.shape, row.values.shape} != {(layers, heads, row.tokens, head_dim)}:
            raise EngineError(
                f"engine '{engine}' takes keys and values [{layers}, {heads}, tokens, {head_dim}] of a row, and was given "
                f"{list(row.keys.shape)} and {list(row.values.shape)}. Hand over between engines of one bundle alone"
            )
    if not rows:
        raise EngineError(f"engine '{engine}' was given no rows to go on with (it needs: 1 or more).")
