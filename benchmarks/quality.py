"""What each quantizer makes of the same bytes: the shipped model, on recordings that it was not calibrated on.

    python benchmarks/quality.py [--out DIR] [--recipes int4,int4-g128] [--blocks q3_k_m,q4_k_m]
    python benchmarks/quality.py --targets onnx,openvino,gguf,tensorrt,coreml --recipes int4 [--out DIR]

The recordings are cut in two halves. What is measured on one half quantizes a model for the other, so that every recording is
heard by a model that was made without it. The numbers are those that every target stores, computed with in torch float32: the
divergence is of teacher-forced logits, the word error rate of greedy transcripts. With `--targets` bundles are built, and
verified by the engines on one half, instead.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from ossicle.benchmarks import quality_targets
from ossicle.cli.demo import shipped
from ossicle.compiler import calibration, imatrix, reference, speech, stored
from ossicle.compiler.calibrate import calibrate, statistics, utterances
from ossicle.compiler.checkpoint import Checkpoint, open_checkpoint
from ossicle.compiler.families import family
from ossicle.compiler.figures import agreement, divergence
from ossicle.compiler.quantize import weights_of
from ossicle.compiler.quantize_on_speech import quantize
from ossicle.compiler.quantizers import ON_INPUTS, QUANTIZERS
from ossicle.compiler.readings import Reading, Utterance, reading_at
from ossicle.compiler.reference import Original
from ossicle.compiler.speech import Clip, Speech, word_errors
from ossicle.targets.contract import Float32, Recipe, WeightFormat
from ossicle.targets.recipes import recipe
from ossicle.targets.sizes import stage_bytes

_FINER = {
    "int4": (16, 8),
    "int4-g128": (32, 16),
    "int4-asymmetric": (16, 8),
    "int3": (16, 8),
}  # groups that give nearest more bytes


@dataclass(frozen=True)
class Half:
    """Recordings to calibrate on, and those to be heard afterwards with what the original makes of them.

    `embeddings` are those of every recording heard, by how the encoder was quantized: recipes share encoders.
    """

    calibration: Path
    readings: tuple[Reading, ...]
    embeddings: dict[tuple[str, WeightFormat], list[Float32]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Row:
    """One way to make the numbers, over all recordings; `size` in bytes of the decoder and head, `median` of the divergence."""

    recipe: str
    quantizer: str
    size: int
    kl: float
    median: float
    top1: float
    wer: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the files of integers and importances here")
    parser.add_argument("--recipes", default="int4,int4-g128,int4-asymmetric")
    parser.add_argument("--quantizers", default=",".join(QUANTIZERS))
    parser.add_argument("--blocks", default="q3_k_m,q4_k_m")
    parser.add_argument("--targets", default="", help="build and verify the recipes for these targets instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        halves = cut(folder)
        if options.targets:
            engines(options, halves, folder)
            return
        print(
            "| recipe | numbers by | decoder | KL (nats) | median KL | same top token | WER |\n|---|---|---|---|---|---|---|",
            flush=True,
        )
        for row in rows(options, halves, folder):
            print(_line(row), flush=True)


def rows(options: argparse.Namespace, halves: Sequence[Half], folder: Path) -> Iterator[Row]:
    """Every line of the table, as it is measured."""
    for name in filter(None, options.recipes.split(",")):
        for quantizer in options.quantizers.split(","):
            yield integers(recipe(name), quantizer, halves, folder)
        for group in _FINER.get(name, ()):
            form = replace(recipe(name).decoder, group=group)
            finer = replace(recipe(name), name=f"{name}, groups of {group}", decoder=form, lm_head=form)
            yield integers(finer, "nearest", halves, folder)
    for name in filter(None, options.blocks.split(",")):
        for importance in ("none", "text", "sound", "gradients"):
            yield blocks(recipe(name), importance, halves, folder)
        for quantizer in (one for one in options.quantizers.split(",") if one in ON_INPUTS):
            yield integers(recipe(name), quantizer, halves, folder)


def engines(options: argparse.Namespace, halves: Sequence[Half], folder: Path) -> None:
    """Print a table of targets for each recipe, all made without the half that they are verified on."""
    made_on, heard = (half.calibration for half in halves)
    for name in filter(None, options.recipes.split(",")):
        quantizers, targets = options.quantizers.split(","), options.targets.split(",")
        for line in quality_targets.table(recipe(name), quantizers, targets, made_on, heard, folder):
            print(line, flush=True)


def cut(folder: Path) -> list[Half]:
    """The shipped recordings in two halves, each to be heard after the other."""
    shown = speech.load(speech.shipped())
    clips = tuple(replace(clip, questions=()) for clip in shown.clips)
    spoken = Speech(shown.name, clips, f"{shown.sha256}, without questions")
    kept = reference.keep(open_checkpoint(shipped("model")), spoken, folder)
    readings = [reading_at(path, clip) for clip, path in kept]
    halves = []
    for number in range(2):
        listed = folder / f"half-{number}.jsonl"
        listed.write_text("\n".join(_entry(reading.clip) for reading in readings[1 - number :: 2]))
        halves.append(Half(listed, tuple(readings[number::2])))
    return halves


def integers(chosen: Recipe, quantizer: str, halves: Sequence[Half], folder: Path) -> Row:
    """Groupwise integers, or GGUF's blocks, by one quantizer."""
    asked = replace(chosen, quantizer=quantizer)
    opened = []
    for half in halves:
        made = None
        if quantizer in ON_INPUTS:
            made = folder / f"{chosen.name}-{quantizer}-{half.calibration.stem}.safetensors"
            if not made.is_file():
                quantize(open_checkpoint(shipped("model")), chosen, quantizer, made, half.calibration)
        opened.append(open_checkpoint(shipped("model"), quantized=made))
    return measured(asked, quantizer, opened, halves)


def blocks(chosen: Recipe, importance: str, halves: Sequence[Half], folder: Path) -> Row:
    """GGUF's blocks, their rounding weighed by what was measured of the other half's audio or text."""
    opened = []
    for half in halves:
        path = None if importance == "none" else folder / f"{importance}-{half.calibration.stem}.gguf"
        if path is not None and not path.is_file():
            checkpoint = open_checkpoint(shipped("model"))
            imatrix.write(path, MEASURED[importance](checkpoint, half), family(checkpoint.family))
        opened.append(open_checkpoint(shipped("model"), imatrix=path))
    return measured(chosen, f"imatrix: {importance}", opened, halves)


def on_text(checkpoint: Checkpoint, half: Half) -> calibration.Calibration:
    """A calibration as llama-imatrix makes it: the transcripts as plain text, with no audio."""
    spoken = speech.load(half.calibration)
    original = Original(checkpoint)
    heard = [original.utterance(clip) for clip in spoken.clips if clip.text]
    texts = [
        Utterance(one.logmel[:0], (1, *one.tokens[1 - one.scored :]), one.scored) for one in heard if one.scored > 1
    ]
    return statistics(checkpoint, texts, Speech("text", spoken.clips, spoken.sha256))


def by_sound(checkpoint: Checkpoint, half: Half) -> calibration.Calibration:
    """A calibration on the recordings in which positions count by their sound alone."""
    spoken = speech.load(half.calibration)
    return statistics(checkpoint, utterances(checkpoint, spoken), spoken)


def by_gradients(checkpoint: Checkpoint, half: Half) -> calibration.Calibration:
    """A calibration on the recordings with the gradients that arrive at positions."""
    return calibrate(checkpoint, half.calibration, gradients=True)


MEASURED = {"text": on_text, "sound": by_sound, "gradients": by_gradients}


def measured(chosen: Recipe, label: str, opened: Sequence[Checkpoint], halves: Sequence[Half]) -> Row:
    """All recordings, each heard by the model that was made without it."""
    kl, top, pairs = [], [], []
    for checkpoint, half in zip(opened, halves, strict=True):
        rounded = Original(stored.rounded(checkpoint, chosen))
        for reading, audio in zip(half.readings, _embeddings(rounded, chosen, half), strict=True):
            expected = np.concatenate([one.logits for one in reading.replies if one.logits is not None])
            logits = rounded.score(reading, audio)
            kl.append(divergence(expected, logits))
            top.append((agreement(expected, logits), len(expected)))
            if reading.clip.text is not None:
                pairs += [(reading.clip.text, text) for text in rounded.transcripts(reading, audio, logits)]
    positions = sum(count for _, count in top)
    size = _decoder_bytes(opened[0], chosen)
    same = sum(share * count for share, count in top) / positions
    found = np.concatenate(kl)
    return Row(chosen.name, label, size, float(found.mean()), float(np.median(found)), same, word_errors(pairs).rate)


def _embeddings(rounded: Original, chosen: Recipe, half: Half) -> list[Float32]:
    made = half.embeddings.get((chosen.quantizer, chosen.encoder))
    if made is None:
        made = half.embeddings[chosen.quantizer, chosen.encoder] = [rounded.encode(one) for one in half.readings]
    return made


def _decoder_bytes(checkpoint: Checkpoint, chosen: Recipe) -> int:
    weights, model = weights_of(checkpoint, chosen), family(checkpoint.family)
    names = [name for name in checkpoint.tensors if model.part(name) in ("decoder", "lm_head")]
    target = "gguf" if chosen.decoder.is_block else "openvino"
    return stage_bytes(target, "decoder", names, chosen, weights)


def _entry(clip: Clip) -> str:
    return json.dumps({"file": str(clip.file.resolve()), "text": clip.text, "language": clip.language})


def _line(row: Row) -> str:
    figures = f"{row.kl:.2e} | {row.median:.2e} | {row.top1:.2%} | {row.wer:.2%}"
    return f"| {row.recipe} | {row.quantizer} | {row.size / 1e6:.2f} MB | {figures} |"


if __name__ == "__main__":
    main()
