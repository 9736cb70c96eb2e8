"""What each quantizer makes of the same bytes: the shipped model, on recordings that it was not calibrated on.

    python benchmarks/quality.py [--out DIR] [--recipes int4,int4-g128] [--blocks q3_k_m,q4_k_m]
    python benchmarks/quality.py --calibration LIST --heard LIST [--out DIR]
    python benchmarks/quality.py --targets onnx,openvino,gguf,tensorrt,coreml --recipes int4 [--out DIR]

The shipped recordings are cut in two halves. What is measured on one half quantizes a model for the other, so that every
recording is heard by a model that was made without it. With lists, models are made on one and heard on the other. The numbers
are those that every target stores, computed with in torch float32: the divergence is of teacher-forced logits, the word error
rate of greedy transcripts. With `--targets` bundles are built, and verified by the engines on the first part, instead.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ossicle.benchmarks import parts, quality_targets
from ossicle.benchmarks.parts import Part
from ossicle.cli.demo import shipped
from ossicle.compiler import calibration, imatrix, speech, stored
from ossicle.compiler.calibrate import calibrate, statistics, utterances
from ossicle.compiler.checkpoint import Checkpoint, open_checkpoint
from ossicle.compiler.families import family
from ossicle.compiler.figures import agreement, divergence
from ossicle.compiler.quantize import weights_of
from ossicle.compiler.quantize_on_speech import quantize
from ossicle.compiler.quantizers import ON_INPUTS, QUANTIZERS
from ossicle.compiler.readings import Utterance
from ossicle.compiler.reference import Original
from ossicle.compiler.speech import Speech, word_errors
from ossicle.targets.contract import Float32, Recipe, WeightFormat
from ossicle.targets.recipes import recipe
from ossicle.targets.sizes import stage_bytes

_FINER = {
    "int4": (16, 8),
    "int4-g128": (32, 16),
    "int4-asymmetric": (16, 8),
    "int3": (16, 8),
}  # groups that give nearest more bytes
_ENCODED: dict[tuple[Path, str, WeightFormat], list[Float32]] = {}


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
    parser.add_argument("--imatrices", default="none,text,sound,gradients", help="what weighs ggml's search of blocks")
    parts.add_options(parser)
    parser.add_argument("--targets", default="", help="build and verify the recipes for these targets instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        heard = parts.parts(options, folder)
        if options.targets:
            engines(options, heard, folder)
            return
        print(
            "| recipe | numbers by | decoder | KL (nats) | median KL | same top token | WER |\n|---|---|---|---|---|---|---|",
            flush=True,
        )
        for row in rows(options, heard, folder):
            print(_line(row), flush=True)


def rows(options: argparse.Namespace, heard: Sequence[Part], folder: Path) -> Iterator[Row]:
    """Every line of the table, as it is measured."""
    for name in filter(None, options.recipes.split(",")):
        for quantizer in options.quantizers.split(","):
            yield integers(recipe(name), quantizer, heard, folder)
        for group in _FINER.get(name, ()):
            form = replace(recipe(name).decoder, group=group)
            finer = replace(recipe(name), name=f"{name}, groups of {group}", decoder=form, lm_head=form)
            yield integers(finer, "nearest", heard, folder)
    for name in filter(None, options.blocks.split(",")):
        for importance in filter(None, options.imatrices.split(",")):
            yield blocks(recipe(name), importance, heard, folder)
        for quantizer in (one for one in options.quantizers.split(",") if one in ON_INPUTS):
            yield integers(recipe(name), quantizer, heard, folder)


def engines(options: argparse.Namespace, heard: Sequence[Part], folder: Path) -> None:
    """Print a table of targets for each recipe, made and verified on the first part's recordings."""
    part, quantizers, targets = heard[0], options.quantizers.split(","), options.targets.split(",")
    for name in filter(None, options.recipes.split(",")):
        for line in quality_targets.table(recipe(name), quantizers, targets, part.calibration, part.heard, folder):
            print(line, flush=True)


def integers(chosen: Recipe, quantizer: str, heard: Sequence[Part], folder: Path) -> Row:
    """Groupwise integers, or GGUF's blocks, by one quantizer."""
    asked = replace(chosen, quantizer=quantizer)
    opened = []
    for part in heard:
        made = None
        if quantizer in ON_INPUTS:
            made = folder / f"{chosen.name}-{quantizer}-{part.calibration.stem}.safetensors"
            if not made.is_file():
                quantize(open_checkpoint(shipped("model")), chosen, quantizer, made, part.calibration)
        opened.append(open_checkpoint(shipped("model"), quantized=made))
    return measured(asked, quantizer, opened, heard)


def blocks(chosen: Recipe, importance: str, heard: Sequence[Part], folder: Path) -> Row:
    """GGUF's blocks, their rounding weighed by what was measured of the other recordings' audio or text."""
    opened = []
    for part in heard:
        path = None if importance == "none" else folder / f"{importance}-{part.calibration.stem}.gguf"
        if path is not None and not path.is_file():
            checkpoint = open_checkpoint(shipped("model"))
            imatrix.write(path, MEASURED[importance](checkpoint, part), family(checkpoint.family))
        opened.append(open_checkpoint(shipped("model"), imatrix=path))
    return measured(chosen, f"imatrix: {importance}", opened, heard)


def on_text(checkpoint: Checkpoint, part: Part) -> calibration.Calibration:
    """A calibration as llama-imatrix makes it: the transcripts as plain text, with no audio."""
    spoken = speech.load(part.calibration)
    original = Original(checkpoint)
    heard = [original.utterance(clip) for clip in spoken.clips if clip.text]
    texts = [
        Utterance(one.logmel[:0], (1, *one.tokens[1 - one.scored :]), one.scored) for one in heard if one.scored > 1
    ]
    return statistics(checkpoint, texts, Speech("text", spoken.clips, spoken.sha256))


def by_sound(checkpoint: Checkpoint, part: Part) -> calibration.Calibration:
    """A calibration on the recordings in which positions count by their sound alone."""
    spoken = speech.load(part.calibration)
    return statistics(checkpoint, utterances(checkpoint, spoken), spoken)


def by_gradients(checkpoint: Checkpoint, part: Part) -> calibration.Calibration:
    """A calibration on the recordings with the gradients that arrive at positions."""
    return calibrate(checkpoint, part.calibration, gradients=True)


MEASURED = {"text": on_text, "sound": by_sound, "gradients": by_gradients}


def measured(chosen: Recipe, label: str, opened: Sequence[Checkpoint], heard: Sequence[Part]) -> Row:
    """All recordings, each heard by the model that was made without it."""
    kl, top, pairs = [], [], []
    for checkpoint, part in zip(opened, heard, strict=True):
        rounded = Original(stored.rounded(checkpoint, chosen))
        for reading, audio in zip(part.readings, _embeddings(rounded, chosen, part), strict=True):
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


def _embeddings(rounded: Original, chosen: Recipe, part: Part) -> list[Float32]:
    """Those of every recording heard: recipes share encoders."""
    key = part.heard, chosen.quantizer, chosen.encoder
    if key not in _ENCODED:
        _ENCODED[key] = [rounded.encode(one) for one in part.readings]
    return _ENCODED[key]


def _decoder_bytes(checkpoint: Checkpoint, chosen: Recipe) -> int:
    weights, model = weights_of(checkpoint, chosen), family(checkpoint.family)
    names = [name for name in checkpoint.tensors if model.part(name) in ("decoder", "lm_head")]
    target = "gguf" if chosen.decoder.is_block else "openvino"
    return stage_bytes(target, "decoder", names, chosen, weights)


def _line(row: Row) -> str:
    figures = f"{row.kl:.2e} | {row.median:.2e} | {row.top1:.2%} | {row.wer:.2%}"
    return f"| {row.recipe} | {row.quantizer} | {row.size / 1e6:.2f} MB | {figures} |"


if __name__ == "__main__":
    main()
