"""Integers made as the model hears speech: each layer's, from what it is given by the layers that are quantized already.

The original runs block by block (streamed.py). Of each matrix's inputs the mean x x^T is kept, for one block at a time; the
block's integers go to the file, and it runs on with what they stand for. Source of the scaled channels: Lin et al., AWQ, 2023
(https://arxiv.org/abs/2306.00978).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..kernels import gptq, gptq_blocks
from ..targets.contract import CheckpointError, Float32, Progress, Recipe, RecipeError, WeightFormat
from . import quantized, quantizers
from . import speech as recordings
from .calibrate import utterances
from .checkpoint import Checkpoint
from .families import family
from .folds import Fold
from .quantize import Weights, weights_of
from .quantizers import QUANTIZERS, Choice, Found
from .safetensors_write import Writer
from .streamed import Streamed

_ROWS = 1024  # of a matrix, at a time
_TRIED = 256  # rows of each matrix by which scales of channels are chosen
_SHARES = tuple(step / 20 for step in range(20))  # exponents of the inputs' sizes


def quantize(
    checkpoint: Checkpoint,
    recipe: Recipe,
    quantizer: str,
    out: Path,
    speech: Path | None = None,
    progress: Progress | None = None,
) -> int:
    """Make the integers of every linear matrix of the recipe's groupwise formats, and GGUF's blocks; how many matrices it has.

    `quantizer` is one for all or part by part (`quantizers.Choice`); the error that `mse` searches for is weighed by what the
    matrices are given. `speech` lists the recordings, by default those shipped.

    Raises:
        RecipeError: the quantizer needs no inputs, or the recipe has no groupwise integers.
        AudioError: the list, or a recording of it, cannot be used.
        CheckpointError: the checkpoint lacks a tensor, or has numbers that cannot be stored.
    """
    choice = quantizers.checked(recipe, quantizer)
    check_needed(choice)
    spoken = recordings.load(speech or recordings.shipped())
    weights = weights_of(checkpoint, replace(recipe, quantizer=str(choice)))
    plan = Plan.of(checkpoint, weights)
    document = quantized.document(
        checkpoint.identity, weights.recipe, (spoken.name, spoken.sha256), plan.formats, plan.on_rows, plan.on_columns
    )
    with Writer.open(out, plan.layouts(weights), document) as writer:
        observer = _Quantizing(weights, plan, writer)
        Streamed(checkpoint, observer, progress).run(utterances(checkpoint, spoken))
        observer.write_factors()
    return len(plan.formats)


def check_needed(choice: Choice) -> None:
    """Refuse quantizers that a build needs no file for.

    Raises:
        RecipeError: none of them sees inputs.
    """
    if not choice.on_inputs:
        raise RecipeError(
            f"quantizer '{choice}' needs no file (those that do: {', '.join(quantizers.ON_INPUTS)}). "
            f"Build with --quantizer {choice}"
        )


@dataclass(frozen=True)
class Plan:
    """The matrices to quantize with their formats, the folds between them, and how many factors each tensor gets."""

    formats: Mapping[str, WeightFormat]
    folds: tuple[Fold, ...]
    on_rows: Mapping[str, int]
    on_columns: Mapping[str, int]

    @classmethod
    def of(cls, checkpoint: Checkpoint, weights: Weights) -> "Plan":
        model = family(checkpoint.family)
        formats = {
            name: weights.format(name)
            for name in checkpoint.tensors
            if model.linear(name) and quantizers.finds(weights.quantizer(name), weights.format(name))
        }
        scaled = {name for name in formats if QUANTIZERS[weights.quantizer(name)].scaled}
        folds = [fold for fold in model.folds(checkpoint.config) if scaled.issuperset(fold.after)]
        shapes = {name: source.shape for name, source in checkpoint.tensors.items()}
        on_rows = {name: shapes[name][0] for fold in folds for name in fold.before}
        on_columns = {name: shapes[name][1] for fold in folds for name in fold.after}
        return cls(formats, tuple(folds), on_rows, on_columns)

    def layouts(self, weights: Weights) -> Any:
        shapes = {name: weights.source(name).shape for name in self.formats}
        return quantized.layouts(shapes, self.formats, self.on_rows, self.on_columns)


@dataclass
class _Quantizing:
    """An observer that quantizes a block when it has been seen, and leaves the rounded numbers in it."""

    weights: Weights
    plan: Plan
    writer: Writer
    products: dict[str, Any] = field(default_factory=dict)  # sums of x x^T, shared where inputs are
    counts: dict[str, float] = field(default_factory=dict)  # how much those inputs count
    on_rows: dict[str, Float32] = field(default_factory=dict)
    on_columns: dict[str, Float32] = field(default_factory=dict)
    _last: tuple[Any, str] = (None, "")

    def __post_init__(self) -> None:
        self.on_rows = {name: np.ones(size, np.float32) for name, size in self.plan.on_rows.items()}
        self.on_columns = {name: np.ones(size, np.float32) for name, size in self.plan.on_columns.items()}

    def see(self, name: str, inputs: Any, counted: Any) -> None:
        if name not in self.plan.formats:
            return
        if inputs is self._last[0]:  # as q, k and v are given one tensor
            self.products[name] = self.products[self._last[1]]
            self.counts[name] = self.counts[self._last[1]]
            return
        rows = inputs * counted.sqrt()[:, None]
        if name in self.products:
            self.products[name].addmm_(rows.T, rows)
        else:
            self.products[name] = rows.T @ rows
        self.counts[name] = self.counts.get(name, 0.0) + float(counted.sum())
        self._last = inputs, name

    def leave(self, weights: Mapping[str, Any]) -> bool:
        names = [name for name in weights if name in self.plan.formats]
        hessians = self._hessians(names)
        for fold in self.plan.folds:
            if set(fold.after) <= set(names):
                self._fold(fold, hessians)
        for name in names:
            for start, values in self._quantized(name, hessians[name]):
                if weights[name] is not None:
                    weights[name][start : start + len(values)] = _tensor(values)
        self.products, self.counts, self._last = {}, {}, (None, "")
        return bool(names)

    def write_factors(self) -> None:
        """What the checkpoint's own tensors are multiplied with."""
        for key, factors in (("rows", self.on_rows), ("columns", self.on_columns)):
            for name, values in factors.items():
                self.writer.rows(f"{name}.{key}", 0, values)

    def _hessians(self, names: list[str]) -> dict[str, Float32]:
        """The mean x x^T of each matrix's inputs, one array for those that share them."""
        made: dict[int, Float32] = {}
        for name in names:
            product = self.products[name]
            if id(product) not in made:
                made[id(product)] = product.div_(self.counts[name]).numpy()
        return {name: made[id(self.products[name])] for name in names}

    def _fold(self, fold: Fold, hessians: Mapping[str, Float32]) -> None:
        """Choose how much of the inputs' sizes moves, and note it for what comes before and behind."""
        inputs = hessians[fold.after[0]]
        size = np.sqrt(np.maximum(fold.gather(np.ascontiguousarray(np.diagonal(inputs))), 1e-12))
        tried = [_some_rows(self.weights.source(name)) for name in fold.after]
        formats = [self.plan.formats[name] for name in fold.after]
        scales = [_level(size**share) for share in _SHARES]
        costs = [_cost(tried, formats, inputs, fold.spread(one)) for one in scales]
        best = scales[int(np.argmin(costs))]
        for name in fold.before:
            self.on_rows[name] = (self.on_rows[name] / best).astype(np.float32)
        for name in fold.after:
            self.on_columns[name] = fold.spread(best).astype(np.float32)

    def _quantized(self, name: str, hessian: Float32) -> Iterator[tuple[int, Float32]]:
        """Write a matrix's integers; the rows that they stand for, less the factors, a few at a time."""
        source, form = self.weights.source(name), self.plan.formats[name]
        columns = self.on_columns.get(name, np.ones(source.shape[1], np.float32))
        rows = self.on_rows.get(name, np.ones(source.shape[0], np.float32))[:, None]
        inputs = hessian / np.outer(columns, columns) if name in self.on_columns else hessian
        maker = _maker(self.weights.quantizer(name), inputs, form)
        for start in range(0, source.shape[0], _ROWS):
            stop = min(start + _ROWS, source.shape[0])
            values = np.ascontiguousarray(source.rows(start, stop) * rows[start:stop] * columns)
            try:
                found = maker(values)
            except ValueError as reason:
                raise CheckpointError(
                    f"tensor '{name}' cannot be quantized: {reason}. Repair the checkpoint, or build with --quant fp32"
                ) from reason
            for key, array in quantized.entries(found, form).items():
                self.writer.rows(f"{name}.{key}", start, array)
            yield start, quantizers.numbers(found, form) / rows[start:stop] / columns


def _maker(name: str, inputs: Float32, form: WeightFormat) -> Callable[[Float32], Found]:
    """What finds the numbers of rows whose mean x x^T this is, by the quantizer of this name."""
    solved = QUANTIZERS[name].solved
    if solved and form.is_block:
        return gptq_blocks.BlockSolver(inputs, form.kind).quantize
    if solved:
        return gptq.Solver(inputs, form.bits, form.group, form.symmetric).quantize
    importance, at_once = np.ascontiguousarray(np.diagonal(inputs)), quantizers.without_inputs(name)
    return lambda values: quantizers.found(values, form, at_once, importance)


def _some_rows(source: Any) -> Float32:
    """Rows of a matrix at even distances."""
    count = source.shape[0]
    places = np.unique(np.linspace(0, count - 1, min(_TRIED, count)).astype(int))
    return np.concatenate([source.rows(int(place), int(place) + 1) for place in places])


def _level(scales: Float32) -> Float32:
    """Scales about one: the greatest and the least of them equally far."""
    level: Float32 = (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)
    return level


def _cost(tried: list[Float32], formats: list[WeightFormat], inputs: Float32, columns: Float32) -> float:
    """What rounding to nearest loses of what matrices give, with their columns scaled."""
    total = 0.0
    for values, form in zip(tried, formats, strict=True):
        scaled = np.ascontiguousarray(values * columns)
        found = quantizers.found(scaled, form, "nearest", _importance(inputs, columns))
        distance = quantizers.numbers(found, form) / columns - values
        total += float(np.einsum("nk,nk->", distance @ inputs, distance, dtype=np.float64))
    return total


def _importance(inputs: Float32, columns: Float32) -> Float32:
    """The mean squares of inputs whose columns are scaled by the inverse."""
    return (np.diagonal(inputs) / columns**2).astype(np.float32)


def _tensor(values: Float32) -> Any:
    import torch

    return torch.from_numpy(values)
