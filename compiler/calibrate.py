"""A model measured on speech: what every matrix is multiplied with, as the model transcribes.

The prompts are those of transcription, the audio in its place, and behind them what was said. The original runs block by block
(streamed.py): memory is bounded by one layer and the longest recording. With gradients it runs forward and back before that, so
that a position counts by what depends on it (positions.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..targets.contract import CheckpointError, Progress
from . import calibration
from . import speech as recordings
from .calibration import Calibration, Measured, Running
from .checkpoint import Checkpoint
from .positions import Positions, positions
from .readings import Utterance
from .reference import Original, check
from .speech import Speech
from .streamed import Streamed


@dataclass
class _Statistics:
    """An observer that sums up and changes nothing."""

    running: dict[str, Running] = field(default_factory=dict)

    def see(self, name: str, inputs: Any, counted: Any) -> None:
        self.running.setdefault(name, Running.of(inputs.shape[1])).add(inputs.numpy(), counted.numpy())

    def leave(self, weights: Mapping[str, Any]) -> bool:  # noqa: ARG002 - the weights are of no interest
        return False

    def measured(self) -> dict[str, Measured]:
        return {name: one.measured() for name, one in self.running.items()}


def calibrate(
    checkpoint: Checkpoint, speech: Path | None = None, progress: Progress | None = None, *, gradients: bool = False
) -> Calibration:
    """What every linear matrix of a checkpoint is multiplied with; `speech` lists recordings, by default those shipped.

    With `gradients` a position counts by what depends on it, too.

    The head's inputs are those that a transcript's tokens are predicted from.

    Raises:
        AudioError: the list, or a recording of it, cannot be used.
        CheckpointError: the checkpoint lacks a tensor, or Mistral's tokenizer.
    """
    spoken = recordings.load(speech or recordings.shipped())
    heard = utterances(checkpoint, spoken)
    if not gradients:
        return statistics(checkpoint, heard, spoken, progress)
    with positions(checkpoint, heard, progress) as weighing:
        return statistics(checkpoint, heard, spoken, progress, weighing)


def statistics(
    checkpoint: Checkpoint,
    heard: Sequence[Utterance],
    spoken: Speech,
    progress: Progress | None = None,
    weighing: Positions | None = None,
) -> Calibration:
    """What every linear matrix is multiplied with over utterances, under the name of `spoken`; weighed by position or not."""
    observer = _Statistics()
    Streamed(checkpoint, observer, progress, weighing=weighing).run(heard)
    measured = observer.measured()
    if strange := [name for name, one in measured.items() if not np.isfinite(one.mean_square).all()]:
        raise CheckpointError(
            f"what '{strange[0]}' is multiplied with on '{spoken.name}' is not finite. Repair the checkpoint"
        )
    weighed = calibration.BY_GRADIENTS if weighing else calibration.BY_SOUND
    return Calibration(checkpoint.identity, spoken.name, spoken.sha256, measured, weighed)


def utterances(checkpoint: Checkpoint, spoken: Speech) -> Sequence[Utterance]:
    """Every recording as the model is asked to transcribe it."""
    check(checkpoint, spoken)
    original = Original(checkpoint)
    return [original.utterance(clip) for clip in spoken.clips]
