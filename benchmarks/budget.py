"""Bits spent by what matrices lose, beside uniform recipes and llama.cpp's mixes in the same bytes: the shipped model.

    python benchmarks/budget.py [--rank] [--cache DIR]

The recordings are cut in two halves. What matrices lose is measured on one half, and the model that is made by it hears the
other, so that every recording is heard by a model that was made without it. The numbers are those that every target stores,
computed with in torch float32; the divergence is of teacher-forced logits. A budget is what a uniform recipe takes, all files
of the target counted; the last column leaves the encoder in int8, as all these recipes have it, so that only the decoder's
bytes are spent anew. `--rank` also measures the divergence that each matrix makes alone, against what was expected of it.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ossicle.cli.demo import shipped
from ossicle.compiler import bits, budget, plan, reference, sensitivity, speech, stored, torch_model
from ossicle.compiler.checkpoint import Checkpoint, open_checkpoint
from ossicle.compiler.choices import Choices, uniform
from ossicle.compiler.families import family
from ossicle.compiler.figures import divergence
from ossicle.compiler.quantize import Weights, weights_of
from ossicle.compiler.readings import Reading, reading_at
from ossicle.compiler.reference import Original
from ossicle.compiler.speech import Clip
from ossicle.targets.contract import Recipe, WeightFormat
from ossicle.targets.recipes import FLOAT32, INT4, INT8, recipe

UNIFORM = ("int4-g128", "int4", "int4-asymmetric", "int8")
MIXES = ("q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k")
ENCODER = ("encoder", "projector")


@dataclass
class Ear:
    """The model with its numbers rounded one way after another, and what it makes of recordings that the original read."""

    checkpoint: Checkpoint
    readings: Sequence[Reading]
    _prompts: dict[tuple[str, str | None], list[int]] = field(default_factory=dict)
    _held: dict[str, WeightFormat] = field(default_factory=dict)  # what a matrix's numbers are in, where not in float32
    _audio: dict[Any, list[Any]] = field(default_factory=dict)

    @cached_property
    def original(self) -> Original:
        return Original(self.checkpoint)

    def kl(self, weights: Weights, half: int, only: str | None = None) -> NDArray[np.float64]:
        """The divergence of every position of a half's recordings; `only`: of that matrix's rounding alone."""
        self._round(weights, only)
        found = []
        for reading, audio in zip(self.readings[half::2], self._encoded(half), strict=True):
            replies = [reply for reply in reading.replies if reply.logits is not None]
            logits = [
                self.original._forced(self._prompt(reading.clip, one.language), audio, one.tokens) for one in replies
            ]
            expected = [one.logits for one in replies if one.logits is not None]
            found.append(divergence(np.concatenate(expected), np.concatenate(logits)))
        return np.concatenate(found)

    def _round(self, weights: Weights, only: str | None) -> None:
        for name, source in self.checkpoint.tensors.items():
            form = weights.format(name) if only in (None, name) else FLOAT32
            if self._held.get(name, FLOAT32) != form:
                torch_model.fill(
                    self.original.model, name, source if form == FLOAT32 else stored.Rounded(name, weights)
                )
                self._held[name] = form

    def _encoded(self, half: int) -> list[Any]:
        """The recordings as the encoder, as it is now, hears them."""
        part = family(self.checkpoint.family).part
        key = (
            half,
            tuple(
                (name, form)
                for name, form in sorted(self._held.items(), key=lambda one: one[0])
                if part(name) in ENCODER
            ),
        )
        if key not in self._audio:
            self._audio[key] = [self.original._encode(reading.logmel) for reading in self.readings[half::2]]
        return self._audio[key]

    def _prompt(self, clip: Clip, language: str | None) -> list[int]:
        key = clip.name, language
        if key not in self._prompts:
            self._prompts[key] = self.original._transcription(reference._recording(clip), language)[0]
        return self._prompts[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", action="store_true", help="measure every matrix by itself, too")
    parser.add_argument("--target", default="openvino,gguf", help="openvino, gguf or both")
    parser.add_argument("--cache", type=Path, help="keep the original's readings and the losses here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.cache or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = open_checkpoint(shipped("model"))
        ear = Ear(checkpoint, read(checkpoint, folder))
        choices = {target: Choices.of(checkpoint, (target,)) for target in ("openvino", "gguf")}
        losses = [measured(checkpoint, ear.readings[1 - half :: 2], choices, folder, half) for half in range(2)]
        if options.rank:
            print(*ranked(ear, losses[0]), sep="\n", flush=True)
        for target in options.target.split(","):
            print(
                "| budget | bytes | uniform KL | budgeted KL | expected | decoder alone |\n|---|---|---|---|---|---|",
                flush=True,
            )
            for line in compared(ear, choices[target], {"openvino": UNIFORM, "gguf": MIXES}[target], losses):
                print(line, flush=True)


def read(checkpoint: Checkpoint, folder: Path) -> list[Reading]:
    spoken = speech.load(speech.shipped())
    return [reading_at(path, clip) for clip, path in reference.keep(checkpoint, spoken, folder)]


def measured(
    checkpoint: Checkpoint, heard: Sequence[Reading], choices: Mapping[str, Choices], folder: Path, half: int
) -> budget.Losses:
    """What every matrix loses in every format of either target, on some recordings; kept in a file of the folder."""
    named = {form.name: form for one in choices.values() for forms in one.formats.values() for form in forms}
    formats = {
        name: tuple(dict.fromkeys(form for one in choices.values() for form in one.formats[name]))
        for name in choices["gguf"].formats
    }
    path, listed = folder / f"losses-{half}.json", folder / f"calibration-{half}.jsonl"
    if not path.is_file():
        listed.write_text("\n".join(_entry(reading.clip) for reading in heard))
        found, _ = sensitivity.measure(checkpoint, formats, "nearest", listed)
        path.write_text(
            json.dumps({key: {form.name: loss for form, loss in one.items()} for key, one in found.items()})
        )
    return {key: {named[form]: loss for form, loss in one.items()} for key, one in json.loads(path.read_text()).items()}


def compared(ear: Ear, choices: Choices, names: Sequence[str], losses: Sequence[budget.Losses]) -> Iterator[str]:
    """A line for each budget: what a recipe takes, and what is half way from the second largest to the largest."""
    uniform = [recipe(name) for name in names]
    if choices.targets != ("gguf",):
        uniform.append(Recipe("int4 throughout", encoder=INT4, embedding=INT4, decoder=INT4, lm_head=INT4))
    sizes = [(plan.size(choices.model, choices.targets[0], one, one.context).total, one) for one in uniform]
    sizes.sort(key=lambda one: one[0])
    half_way = (sizes[-2][0] + sizes[-1][0]) // 2, replace(sizes[-2][1], name=f"half way from {sizes[-2][1].name}")
    for size, one in [*sizes[:-1], half_way, sizes[-1]]:
        spent = [allocated(choices, size, each) for each in losses]
        expected = np.mean([each.loss for each in spent if each.loss is not None])
        figures = [mean(ear, [one, one]), measured_of(ear, choices, spent), expected]
        if one.encoder == INT8:
            kept = [allocated(choices, size, encoder_kept(choices, each)) for each in losses]
            figures.append(measured_of(ear, choices, kept))
        yield f"| {one.name} | {size:,} | {' | '.join(f'{value:.2e}' for value in figures)} |"


def measured_of(ear: Ear, choices: Choices, spent: Sequence[bits.Allocation]) -> float:
    return mean(ear, [bits.recipe(each, choices.model.family) for each in spent])


def encoder_kept(choices: Choices, losses: budget.Losses) -> budget.Losses:
    """The same losses, but for an encoder that nothing but int8 is good enough for."""
    kept = {form: 0.0 if form == INT8 else 1e9 for forms in choices.formats.values() for form in forms}
    return {name: kept if choices.model.family.part(name) in ENCODER else one for name, one in losses.items()}


def allocated(choices: Choices, size: int, losses: budget.Losses) -> bits.Allocation:
    """What a size is spent on, nothing set apart for graphs: uniform recipes' sizes have none either."""
    limits = [
        bits.Limit(one.said, one.target, one.size, one.fixed - one.beside)
        for one in budget.limits(choices, [budget.of_size(size)], 0, {})
    ]
    return budget.spend(choices, limits, losses, "spent", bits.Measured("", "nearest", "", ""))


def mean(ear: Ear, recipes: Sequence[Recipe]) -> float:
    """The mean divergence over all recordings, each half heard by its own recipe's model."""
    kl = [ear.kl(weights_of(ear.checkpoint, one), half) for half, one in enumerate(recipes)]
    return float(np.concatenate(kl).mean())


def ranked(ear: Ear, losses: budget.Losses) -> Iterator[str]:
    """How well expected losses order the matrices by the divergence that each makes alone, on the other half."""
    for form in (INT4, INT8):
        weights = weights_of(ear.checkpoint, uniform(form))
        found = [float(ear.kl(weights, 0, name).mean()) for name in losses]
        expected = [one[form] for one in losses.values()]
        yield f"{form.name}: rank correlation of expected and measured divergence {spearman(expected, found):.2f}"


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    ranks = np.array([np.argsort(np.argsort(values)) for values in (one, other)])
    return float(np.corrcoef(ranks)[0, 1])


def _entry(clip: Clip) -> str:
    return json.dumps({"file": str(clip.file.resolve()), "text": clip.text, "language": clip.language})


if __name__ == "__main__":
    main()
