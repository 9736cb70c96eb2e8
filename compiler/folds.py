"""Where one channel's size may move from a matrix into what comes before it, and no graph changes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..targets.contract import Float32, TensorSource


@dataclass(frozen=True)
class Fold:
    """What gives channels [C], and what alone takes them.

    A model whose rows of `before` are divided by s [C] and whose columns of `after` are multiplied by s is the same model.
    `before` are gains, biases and matrices; `after` are matrices [N, C * repeats], for which the channels of each `head` of
    so many stand there `repeats` times, one behind the other.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    head: int = 1
    repeats: int = 1

    def spread(self, scales: Float32) -> Float32:
        """Scales [C] as the columns of `after` have them."""
        heads: Float32 = scales.reshape(-1, self.head).repeat(self.repeats, axis=0).reshape(-1)
        return heads

    def gather(self, columns: Float32) -> Float32:
        """The means over their repeats [C] of what was measured of columns."""
        means: Float32 = columns.reshape(-1, self.repeats, self.head).mean(axis=1).reshape(-1)
        return means


@dataclass(frozen=True)
class Folded:
    """A tensor with factors on its rows and its columns, where it has such."""

    stored: TensorSource
    on_rows: Float32 | None
    on_columns: Float32 | None

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def dtype(self) -> str:
        return "float32"

    def rows(self, start: int, stop: int) -> Float32:
        values = self.stored.rows(start, stop)
        if self.on_rows is not None:
            values = values * self.on_rows[start:stop].reshape(-1, *[1] * (values.ndim - 1))
        return values if self.on_columns is None else np.ascontiguousarray(values * self.on_columns)


def folded(source: TensorSource, on_rows: Mapping[str, Float32], on_columns: Mapping[str, Float32]) -> TensorSource:
    """A tensor with its factors; itself where it has none."""
    if source.name not in on_rows and source.name not in on_columns:
        return source
    return Folded(source, on_rows.get(source.name), on_columns.get(source.name))
