"""Numbers: a checkpoint's tensors, the formats that they are stored in, and what is added to them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
UInt8 = NDArray[np.uint8]
Int64 = NDArray[np.int64]


class TensorSource(Protocol):
    """One tensor of a checkpoint, read row by row and never whole unless asked for."""

    @property
    def name(self) -> str:
        """Canonical name, the one transformers gives the parameter in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """How it is stored: "float32", "float16" or "bfloat16"."""

    def rows(self, start: int, stop: int) -> Float32:
        """Elements [start:stop] along the first axis, float32, shape (stop - start, *shape[1:])."""


@dataclass(frozen=True)
class WeightFormat:
    """How the numbers of a weight are stored.

    Without a `kind`, `bits` 32 and 16 are IEEE floats, and 8, 4 and 3 are groupwise integers along the last axis: `group`
    neighbours share one float16 scale (and one zero point unless `symmetric`). A `kind` names a format of its own:
    "bfloat16", "float8_e4m3fn" with a float16 scale for every row, "palette4" and "palette3" with a table of levels for every
    few rows, or one of GGUF's blocks of `group` neighbours, whose levels have so many bits ("Q4_K", "Q6_K", ...).
    """

    bits: Literal[32, 16, 8, 6, 5, 4, 3, 2]
    group: int = 0
    symmetric: bool = True
    kind: str = ""

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def is_block(self) -> bool:
        """Whether it is one of GGUF's own block formats."""
        return bool(self.kind) and self.group > 0

    @property
    def name(self) -> str:
        if self.kind:
            return self.kind
        if self.is_float:
            return f"float{self.bits}"
        return f"int{self.bits}-g{self.group}" + ("" if self.symmetric else "-asymmetric")


@dataclass(frozen=True)
class QuantizedRows:
    """Consecutive rows of a quantized matrix [N, K] in groups of g along K; the last group may be short.

    Row start + i, column j holds (codes[i, j] - zero) * scales[i, j // g], where zero is zero_points[i, j // g], or
    2 ** (bits - 1) where the format is symmetric.
    """

    start: int
    codes: UInt8  # [rows, K], 0 .. 2 ** bits - 1
    scales: Float16  # [rows, ceil(K / g)], positive
    zero_points: UInt8 | None  # [rows, ceil(K / g)]; None where the format is symmetric


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix [N, K] of groupwise integers, independent of any runtime, handed over in row blocks.

    `blocks()` starts anew at each call and gives the same numbers each time, so every target stores the same bits.
    """

    name: str
    shape: tuple[int, int]
    format: WeightFormat
    blocks: Callable[[], Iterator[QuantizedRows]] = field(repr=False)


class WeightStore(Protocol):
    """Weights by canonical name, as floats or as the recipe's integers, for a target to store."""

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding's own numbers."""

    def source(self, name: str) -> TensorSource: ...

    def format(self, name: str) -> WeightFormat:
        """The format that the recipe gives this tensor."""

    def quantized(self, name: str) -> QuantizedTensor:
        """The tensor in its integer format; the same numbers for every target."""

    def packed(self, name: str, start: int, stop: int) -> UInt8:
        """Rows [start:stop] of the tensor as bytes of its format, one of GGUF's blocks: [rows, row bytes].

        Raises:
            ValueError: a number is not finite, or too large for the format.
        """


class LowRankUpdate(Protocol):
    """scale * b @ a: what an adapter adds to a matrix [N, K]."""

    @property
    def a(self) -> TensorSource:
        """[r, K]"""

    @property
    def b(self) -> TensorSource:
        """[N, r]"""

    @property
    def scale(self) -> float: ...
