"""LoRA adapters in PEFT's format, merged into the tensors as their rows are read.

Merged row block: W[rows] + sum over adapters of weight * scale * (B @ A)[rows], with scale = alpha / r, or alpha / sqrt(r) for
rank-stabilized LoRA. The products are made in float64, so that the result does not depend on how the rows are cut.

An adapter on the head or the embedding of a tied model unties them: an adapter that is not merged changes the one alone, too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import AdapterError, Float32, TensorSource
from .safetensors import StoredTensor


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter to merge: a folder or a hub id, and how much of it."""

    location: str | Path
    weight: float = 1.0


def parse_adapter(text: str) -> AdapterSpec:
    """The adapter that `path[:weight]` names.

    Raises:
        AdapterError: the weight is not a finite number.
    """
    location, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return AdapterSpec(text)
    try:
        number = float(weight)
    except ValueError:
        return AdapterSpec(text)  # C:\adapter
    if not math.isfinite(number) or not location:
        raise AdapterError(f"'{text}' is no adapter with a weight (possible: PATH or PATH:0.5)")
    return AdapterSpec(location, number)


@dataclass(frozen=True)
class LowRank:
    """scale * B @ A for one tensor: what one adapter adds to it.

    A linear layer has A [r, K] and B [N, r]; a convolution A [r, K, width] and B [N, r, 1]; an embedding A [r, N] and
    B [K, r], transposed (`embedding`).
    """

    a: StoredTensor
    b: StoredTensor
    scale: float
    embedding: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the product has this shape."""
        if self.embedding:
            return (*self.a.shape[1:], self.b.shape[0]) == shape and self.b.shape[1:] == (self.rank,)
        return (self.b.shape[0], *self.a.shape[1:]) == shape and self.b.shape[1:] == (self.rank,) + (1,) * (
            len(shape) - 2
        )

    def rows(self, start: int, stop: int) -> NDArray[np.float64]:
        """Rows [start:stop] of the product, float64."""
        if self.embedding:
            length = self.a.shape[1]
            left = np.stack([self.a.span(i * length + start, i * length + stop) for i in range(self.rank)], axis=1)
            right = self.b.rows(0, self.b.shape[0]).T
        else:
            left = self.b.rows(start, stop).reshape(-1, self.rank)
            right = self.a.rows(0, self.rank).reshape(self.rank, -1)
        product: NDArray[np.float64] = self.scale * (left.astype(np.float64) @ right.astype(np.float64))
        return product if self.embedding else product.reshape(stop - start, *self.a.shape[1:])


@dataclass(frozen=True)
class Adapter:
    """An opened adapter, its tensors by the canonical name of what they change.

    `replacements` are whole tensors: trained along (modules_to_save), or the base that PEFT saves beside an update of an
    embedding or a head.
    """

    name: str
    location: Path
    weight: float
    files: tuple[Path, ...] = field(repr=False)
    updates: Mapping[str, LowRank] = field(repr=False)
    replacements: Mapping[str, StoredTensor] = field(repr=False)

    @property
    def targets(self) -> set[str]:
        """Canonical names of all that it changes."""
        return {*self.updates, *self.replacements}


@dataclass(frozen=True)
class Merged:
    """A tensor with low-rank updates added, each times its adapter's weight."""

    base: TensorSource
    updates: tuple[tuple[float, LowRank], ...]
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def rows(self, start: int, stop: int) -> Float32:
        total = self.base.rows(start, stop).astype(np.float64)
        for weight, update in self.updates:
            total += weight * update.rows(start, stop)
        return total.astype(np.float32)


def merge(tensors: Mapping[str, TensorSource], adapters: Sequence[Adapter]) -> dict[str, TensorSource]:
    """The tensors with all adapters merged.

    Raises:
        AdapterError: listing every tensor that two adapters replace.
    """
    whole = _replacements(adapters)
    merged: dict[str, TensorSource] = {}
    for name, tensor in tensors.items():
        updates = tuple((one.weight, one.updates[name]) for one in adapters if name in one.updates)
        base = whole.get(name, tensor)
        merged[name] = Merged(base, updates) if updates else base
    return merged


def _replacements(adapters: Sequence[Adapter]) -> dict[str, StoredTensor]:
    found: dict[str, tuple[Adapter, StoredTensor]] = {}
    faults = []
    for one in adapters:
        for name, tensor in one.replacements.items():
            first, other = found.setdefault(name, (one, tensor))
            if not equal(other, tensor):
                faults.append(f"'{name}' ('{first.name}' and '{one.name}')")
    if faults:
        raise AdapterError(
            f"two adapters replace the same tensors, each by its own: {'; '.join(faults)}. Merge one of the two"
        )
    return {name: tensor for name, (_, tensor) in found.items()}


def equal(one: TensorSource, other: TensorSource) -> bool:
    """Whether two tensors of one shape hold the same numbers, read in row blocks."""
    blocks = range(0, one.shape[0], 1024)
    ends = [min(start + 1024, one.shape[0]) for start in blocks]
    return all(
        np.array_equal(one.rows(start, end), other.rows(start, end)) for start, end in zip(blocks, ends, strict=True)
    )
