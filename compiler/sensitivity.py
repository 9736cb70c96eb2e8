"""What each matrix loses in each format that it may be stored in: nats of divergence at a scored position, from its gradients.

The rounding of a matrix, dW, moves what the model says by about sum(F dW^2) / 2, F being the Fisher information of its numbers
(backward.py). What several matrices lose adds up: their roundings know nothing of each other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..targets.contract import CheckpointError, Float32, Progress, TensorSource, WeightFormat
from . import quantizers
from . import speech as recordings
from .backward import Backward
from .bits import Measured
from .budget import Losses
from .calibrate import utterances
from .checkpoint import Checkpoint
from .families import family
from .quantizers import Choice
from .recipe_file import rounded
from .speech import Speech
from .stored import narrowed
from .streamed import Silence

SAMPLES = 16  # of gradients at the least: utterances are taken again with other signs where they are few
_BLOCK = 1 << 22  # numbers rounded at a time


@dataclass
class _Weighing:
    """A watcher that rounds what it is told of to every format that may be chosen for it."""

    tensors: Mapping[str, TensorSource]
    formats: Mapping[str, Sequence[WeightFormat]]
    importances: Mapping[str, Float32]
    quantizers: Mapping[str, str]  # of each matrix
    losses: dict[str, dict[WeightFormat, float]] = field(default_factory=dict)

    def weigh(self, name: str, rows: Sequence[int], squares: Float32) -> None:
        losses = self.losses.setdefault(name, dict.fromkeys(self.formats[name], 0.0))
        step = max(1, _BLOCK // squares.shape[1])
        for start in range(0, len(rows), step):
            values = _rows(self.tensors[name], rows[start : start + step])
            weights = squares[start : start + step]
            for form in losses:
                distance = self._rounded(name, values, form) - values
                losses[form] += float(np.einsum("nk,nk,nk->", weights, distance, distance, dtype=np.float64)) / 2

    def _rounded(self, name: str, values: Float32, form: WeightFormat) -> Float32:
        importance = self.importances.get(name)
        if form.is_float:
            return narrowed(values, form)
        try:
            found = quantizers.found(values, form, quantizers.without_inputs(self.quantizers[name]), importance)
        except ValueError as reason:
            raise CheckpointError(
                f"tensor '{name}' cannot be stored as {form.name}: {reason}. Repair the checkpoint, or build with --quant fp32"
            ) from reason
        return quantizers.numbers(found, form)


def measure(
    checkpoint: Checkpoint,
    formats: Mapping[str, Sequence[WeightFormat]],
    quantizer: str = "nearest",
    speech: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Losses, Measured]:
    """What each of these tensors loses in each of its formats; `speech` lists recordings, by default those shipped.

    Raises:
        AudioError: the list, or a recording of it, cannot be used.
        CheckpointError: the checkpoint lacks a tensor, or has numbers that a format cannot store.
    """
    spoken = recordings.load(speech or recordings.shipped())
    return measured(checkpoint, formats, quantizer, spoken, progress)


def measured(
    checkpoint: Checkpoint,
    formats: Mapping[str, Sequence[WeightFormat]],
    quantizer: str,
    spoken: Speech,
    progress: Progress | None = None,
) -> tuple[Losses, Measured]:
    """As `measure`, of recordings that are known already."""
    choice, model = Choice.of(quantizer), family(checkpoint.family)
    named = {name: choice.part(model.part(name)) for name in formats}
    weighing = _Weighing(checkpoint.tensors, formats, checkpoint.importances, named)
    draws = -(-SAMPLES // len(spoken.clips))
    backward = Backward(checkpoint, Silence(), progress, watcher=weighing, draws=draws)
    backward.run(utterances(checkpoint, spoken))
    _check_numbers(weighing.losses, spoken.name)
    losses = {
        name: {
            form: rounded(loss * quantizers.left(named[name], form, linear=model.linear(name)))
            for form, loss in weighing.losses[name].items()
        }
        for name in formats
    }
    return losses, subject(checkpoint, quantizer, spoken)


def subject(checkpoint: Checkpoint, quantizer: str, spoken: Speech) -> Measured:
    """What is measured of a checkpoint, weighed by the imatrix that it has."""
    weighing = checkpoint.imatrix.file.sha256 if checkpoint.imatrix else ""
    return Measured(checkpoint.identity, quantizer, spoken.name, spoken.sha256, weighing)


def _check_numbers(losses: Losses, speech: str) -> None:
    strange = [name for name, held in losses.items() if not all(map(math.isfinite, held.values()))]
    if strange:
        raise CheckpointError(
            f"what '{strange[0]}' loses is no number: the model itself gives none on '{speech}'. Repair the checkpoint"
        )


def _rows(source: TensorSource, rows: Sequence[int]) -> Float32:
    if isinstance(rows, range):
        return np.ascontiguousarray(source.rows(rows.start, rows.stop))
    return np.concatenate([source.rows(row, row + 1) for row in rows])
