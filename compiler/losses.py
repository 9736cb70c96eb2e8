"""Where a budget has its losses from: a recipe's file, an attempt that came to no end, or else a measurement.

Of a large model a measurement takes an hour, and what follows it another. So what was measured stays in a hidden file beside
what is being made until that stands, and the same command goes on from there.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from ..targets.contract import Progress, RecipeError, WeightFormat
from . import recipe_file, sensitivity
from . import speech as recordings
from .bits import Allocation, Measured
from .budget import Losses
from .checkpoint import Checkpoint
from .choices import Choices

_LOGGER = logging.getLogger("ossicle")


@dataclass(frozen=True)
class Attempt:
    """To make something at `out` within a budget."""

    out: Path

    @property
    def path(self) -> Path:
        """The hidden file, a recipe's."""
        return self.out.with_name(f".{self.out.name}.ossicle-losses.json")

    def keep(self, found: Allocation) -> None:
        """What was measured stays until `end`, whatever happens."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        recipe_file.write(self.path, found)

    def end(self) -> None:
        """What was to be made stands."""
        self.path.unlink(missing_ok=True)

    def losses(self, choices: Choices, subject: Measured) -> Losses | None:
        """What an earlier attempt measured of the same, if it did."""
        if not self.path.is_file():
            return None
        try:
            held = recipe_file.read(self.path)
        except RecipeError as reason:
            _LOGGER.debug("losses are measured again: %s", reason)
            return None
        found = _of(held)
        return found if held.measured == subject and _missing(choices, found) is None else None


def measured(
    choices: Choices,
    checkpoint: Checkpoint,
    quantizer: str,
    speech: Path | None,
    attempt: Attempt | None = None,
    progress: Progress | None = None,
) -> tuple[Losses, Measured]:
    """Those of every choice on speech, or what an earlier attempt measured of the same.

    Raises:
        AudioError: the recordings cannot be used.
        CheckpointError: the checkpoint lacks a tensor, or has numbers that a format cannot store.
    """
    if attempt:
        subject = sensitivity.subject(checkpoint, quantizer, recordings.load(speech or recordings.shipped()))
        if earlier := attempt.losses(choices, subject):
            _LOGGER.info("what each matrix loses was measured by an earlier attempt, and is taken from there")
            return earlier, subject
    return sensitivity.measure(checkpoint, choices.formats, quantizer, speech, progress)


def in_file(choices: Choices, held: Allocation, checkpoint: Checkpoint, path: Path | None) -> tuple[Losses, Measured]:
    """Those that the recipe in a file has.

    Raises:
        RecipeError: it has none of a choice, or they are of another checkpoint.
    """
    if held.measured is None or held.measured.checkpoint != checkpoint.identity:
        raise RecipeError(
            f"the losses in '{path}' are not of this checkpoint with these adapters. Leave --recipe out, to measure them"
        )
    found = _of(held)
    if missing := _missing(choices, found):
        name, forms = missing
        raise RecipeError(
            f"'{path}' has no loss of '{name}' in {', '.join(form.name for form in forms)}, which target "
            f"{', '.join(choices.targets)} can hold. Leave --recipe out, to measure them"
        )
    return found, held.measured


def _of(held: Allocation) -> Losses:
    return {name: one.losses for name, one in held.tensors.items()}


def _missing(choices: Choices, losses: Losses) -> tuple[str, list[WeightFormat]] | None:
    """The first matrix that has no loss in some of its formats, and these."""
    for name, forms in choices.formats.items():
        if missing := [form for form in forms if form not in losses.get(name, {})]:
            return name, missing
    return None
