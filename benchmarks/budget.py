"""Bits spent by what matrices lose, beside uniform recipes and llama.cpp's mixes in the same bytes: the shipped model.

    python benchmarks/budget.py [--tables openvino,gguf,solved,rank] [--calibration LIST --heard LIST] [--cache DIR]

The shipped recordings are cut in two halves. What matrices lose is measured on one half, and the model that is made by it hears
the other, so that every recording is heard by a model that was made without it. With lists, losses are measured on one, and
models heard on the other. The numbers are those that every target stores,
computed with in torch float32; the divergence is of teacher-forced logits. A budget is what a uniform recipe takes, all files
of the target counted; the last column leaves the encoder in int8, as all these recipes have it, so that only the decoder's
bytes are spent anew. `solved` is both budgets with integers or blocks that gptq makes, beside the recipe's; `rank` the
divergence that each matrix makes alone, against what was expected of it. With a cache a run goes on where it ended.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ossicle.benchmarks import parts
from ossicle.benchmarks.parts import Part
from ossicle.cli.demo import shipped
from ossicle.compiler import bits, budget, clips, plan, quantizers, sensitivity, stored, torch_model
from ossicle.compiler.checkpoint import Checkpoint, open_checkpoint
from ossicle.compiler.choices import Choices, uniform
from ossicle.compiler.families import family
from ossicle.compiler.figures import divergence
from ossicle.compiler.quantize import Weights, weights_of
from ossicle.compiler.quantize_on_speech import quantize
from ossicle.compiler.reference import Original
from ossicle.compiler.speech import Clip
from ossicle.targets.contract import Recipe, WeightFormat
from ossicle.targets.recipes import FLOAT32, INT4, INT8, recipe

UNIFORM = ("int4-g128", "int4", "int4-asymmetric", "int8")
HALF_WAY = "int4-asymmetric", "int8"
SOLVED = {"openvino": ("int4",), "gguf": ("q2_k", "q3_k_m", "q4_k_m")}
MIXES = ("q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k")
ENCODER = ("encoder", "projector")


@dataclass
class Ear:
    """The model with its numbers rounded one way after another, and what it makes of recordings that the original read."""

    checkpoint: Checkpoint
    parts: Sequence[Part]
    folder: Path  # where figures are kept, and integers that gptq made
    _prompts: dict[tuple[str, str | None], list[int]] = field(default_factory=dict)
    _held: dict[str, tuple[WeightFormat, str]] = field(
        default_factory=dict
    )  # a matrix's numbers, where not the original's
    _audio: dict[Any, list[Any]] = field(default_factory=dict)

    @cached_property
    def original(self) -> Original:
        return Original(self.checkpoint)

    def kl(self, chosen: Recipe, part: int, only: str | None = None) -> tuple[float, int]:
        """The mean divergence over a part's positions, and how many there are; `only`: of that matrix's rounding alone."""
        told = json.dumps([asdict(chosen), part, only], sort_keys=True)
        path = self.folder / f"kl-{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
        if not path.is_file():
            found = self._heard(chosen, part, only)
            path.write_text(json.dumps([float(found.mean()), len(found)]))
        mean, count = json.loads(path.read_text())
        return mean, count

    def _heard(self, chosen: Recipe, part: int, only: str | None) -> NDArray[np.float64]:
        self._round(self._weights(chosen, part), chosen, part, only)
        found = []
        for reading, audio in zip(self.parts[part].readings, self._encoded(part), strict=True):
            replies = [reply for reply in reading.replies if reply.logits is not None]
            logits = [
                self.original._forced(self._prompt(reading.clip, one.language), audio, one.tokens) for one in replies
            ]
            expected = [one.logits for one in replies if one.logits is not None]
            found.append(divergence(np.concatenate(expected), np.concatenate(logits)))
        return np.concatenate(found)

    def _weights(self, chosen: Recipe, part: int) -> Weights:
        """The recipe's numbers; those that gptq makes are made on the part's other recordings."""
        if chosen.quantizer == "nearest":
            return weights_of(self.checkpoint, chosen)
        told = hashlib.sha256(json.dumps(asdict(chosen), sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / f"made-{told}-{part}.safetensors"
        if not path.is_file():
            quantize(self.checkpoint, chosen, chosen.quantizer, path, self.parts[part].calibration)
        return weights_of(open_checkpoint(shipped("model"), quantized=path), chosen)

    def _round(self, weights: Weights, chosen: Recipe, part: int, only: str | None) -> None:
        made = "" if chosen.quantizer == "nearest" else f"{part} {chosen}"
        for name, source in self.checkpoint.tensors.items():
            form = weights.format(name) if only in (None, name) else FLOAT32
            key = form, "" if form.is_float else made
            if self._held.get(name, (FLOAT32, "")) != key:
                numbers = source if form == FLOAT32 else stored.Rounded(name, weights)
                torch_model.fill(self.original.model, name, numbers)
                self._held[name] = key

    def _encoded(self, part: int) -> list[Any]:
        """The recordings as the encoder, as it is now, hears them."""
        part_of = family(self.checkpoint.family).part
        held = sorted(self._held.items(), key=lambda one: one[0])
        key = part, tuple((name, one) for name, one in held if part_of(name) in ENCODER)
        if key not in self._audio:
            self._audio[key] = [self.original._encode(reading.logmel) for reading in self.parts[part].readings]
        return self._audio[key]

    def _prompt(self, clip: Clip, language: str | None) -> list[int]:
        key = clip.name, language
        if key not in self._prompts:
            self._prompts[key] = self.original._transcription(clips.wav(clip), language)[0]
        return self._prompts[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="openvino,gguf,solved,rank", help="what is measured (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="keep the original's readings, the losses and all figures here")
    parts.add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.cache or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = open_checkpoint(shipped("model"))
        heard = parts.parts(options, folder)
        ear = Ear(checkpoint, heard, folder)
        choices = {target: Choices.of(checkpoint, (target,)) for target in ("openvino", "gguf")}
        losses = [
            measured(checkpoint, part, choices, folder / f"losses-{number}.json") for number, part in enumerate(heard)
        ]
        tables = {
            "openvino": lambda: compared(ear, choices["openvino"], UNIFORM, losses),
            "gguf": lambda: compared(ear, choices["gguf"], MIXES, losses),
            "solved": lambda: solved(ear, choices, losses),
            "rank": lambda: ranked(ear, losses[0]),
        }
        for name in options.tables.split(","):
            for line in tables[name]():
                print(line, flush=True)


def measured(checkpoint: Checkpoint, part: Part, choices: Mapping[str, Choices], path: Path) -> budget.Losses:
    """What every matrix loses in every format of either target, on what a part is made on; kept in a file."""
    named = {form.name: form for one in choices.values() for forms in one.formats.values() for form in forms}
    formats = {
        name: tuple(dict.fromkeys(form for one in choices.values() for form in one.formats[name]))
        for name in choices["gguf"].formats
    }
    if not path.is_file():
        found, _ = sensitivity.measure(checkpoint, formats, "nearest", part.calibration)
        path.write_text(
            json.dumps({key: {form.name: loss for form, loss in one.items()} for key, one in found.items()})
        )
    return {key: {named[form]: loss for form, loss in one.items()} for key, one in json.loads(path.read_text()).items()}


def compared(ear: Ear, choices: Choices, names: Sequence[str], losses: Sequence[budget.Losses]) -> Iterator[str]:
    """A line for each budget: what a recipe takes, and for the shared formats one between two of them."""
    beside = [(size_of(choices, one), one) for one in map(recipe, names)]
    if choices.targets != ("gguf",):
        low, high = (size_of(choices, recipe(name)) for name in HALF_WAY)
        beside.append(((low + high) // 2, replace(recipe(HALF_WAY[0]), name=f"half way from {' to '.join(HALF_WAY)}")))
        least = Recipe("int4 for everything", encoder=INT4, embedding=INT4, decoder=INT4, lm_head=INT4)
        beside.append((size_of(choices, least), least))
    yield "| in the bytes of | bytes | its KL | budget's KL | expected | decoder alone |\n|---|---|---|---|---|---|"
    for size, one in sorted(beside, key=lambda entry: entry[0]):
        spent = [allocated(choices, size, each) for each in losses]
        expected = np.mean([each.loss for each in spent if each.loss is not None])
        figures = [mean(ear, [one] * len(ear.parts)), measured_of(ear, choices, spent), expected]
        if one.encoder == INT8:
            kept = [allocated(choices, size, encoder_kept(choices, each)) for each in losses]
            figures.append(measured_of(ear, choices, kept))
        yield f"| {one.name} | {size:,} | {' | '.join(f'{value:.2e}' for value in figures)} |"


def solved(ear: Ear, choices: Mapping[str, Choices], losses: Sequence[budget.Losses]) -> Iterator[str]:
    """A line for each recipe: its own integers, those of a budget in its bytes and of its decoder's, by nearest and by gptq."""
    ways = "nearest", "gptq", "budget", "budget, gptq", "decoder alone", "decoder alone, gptq"
    yield f"| in the bytes of | {' | '.join(ways)} |\n|{'---|' * (len(ways) + 1)}"
    for target, name in ((target, name) for target, names in SOLVED.items() for name in names):
        one, chosen = recipe(name), choices[target]
        left = [left_by_gptq(chosen, each) for each in losses]
        alike, figures = [one] * len(ear.parts), []
        for unseen, seen in zip(
            (alike, *budgets(chosen, one, losses)), (alike, *budgets(chosen, one, left)), strict=True
        ):
            figures += [mean(ear, unseen), mean(ear, [replace(each, quantizer="gptq") for each in seen])]
        yield f"| {one.name} | {' | '.join(f'{value:.2e}' for value in figures)} |"


def left_by_gptq(choices: Choices, losses: budget.Losses) -> budget.Losses:
    """What is left of losses where GPTQ finds the integers: of the embedding, which is looked up, all."""
    linear = choices.model.family.linear
    return {
        name: {form: loss * quantizers.left("gptq", form, linear=linear(name)) for form, loss in one.items()}
        for name, one in losses.items()
    }


def budgets(choices: Choices, one: Recipe, losses: Sequence[budget.Losses]) -> Iterator[list[Recipe]]:
    """What is spent in a recipe's bytes by each part's losses, with the encoder and without it."""
    for kept in (losses, [encoder_kept(choices, each) for each in losses]):
        spent = [allocated(choices, size_of(choices, one), each) for each in kept]
        yield [bits.recipe(each, choices.model.family) for each in spent]


def size_of(choices: Choices, one: Recipe) -> int:
    """All files of the target, in bytes."""
    return plan.size(choices.model, choices.targets[0], one, one.context).total


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
    """The mean divergence over all recordings, each part heard by its own recipe's model."""
    heard = [ear.kl(one, part) for part, one in enumerate(recipes)]
    return sum(kl * count for kl, count in heard) / sum(count for _, count in heard)


def ranked(ear: Ear, losses: budget.Losses) -> Iterator[str]:
    """How well expected losses order the matrices by the divergence that each makes alone, on the first part."""
    for form in (INT4, INT8):
        found = [ear.kl(uniform(form), 0, name)[0] for name in losses]
        expected = [one[form] for one in losses.values()]
        yield f"{form.name}: rank correlation of expected and measured divergence {spearman(expected, found):.2f}"


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    ranks = np.array([np.argsort(np.argsort(values)) for values in (one, other)])
    return float(np.corrcoef(ranks)[0, 1])


if __name__ == "__main__":
    main()
