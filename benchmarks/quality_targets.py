"""What every target's engine makes of the integers by each quantizer: `python benchmarks/quality.py --targets LIST`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ossicle.cli.demo import shipped
from ossicle.compiler import pipeline
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.quantize_on_speech import quantize
from ossicle.compiler.quantizers import ON_INPUTS
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import Recipe


def table(
    chosen: Recipe, quantizers: Sequence[str], targets: Sequence[str], made_on: Path, heard: Path, folder: Path
) -> Iterator[str]:
    """A line for each target, a column for each quantizer: KL from the original, in brackets from the rounded one, and WER.

    Integers that need speech are made on one list of recordings, every bundle is verified on another. Bundles stay in
    `folder`, and one that is there already is not built again.
    """
    found = {name: verified(chosen, name, targets, made_on, heard, folder) for name in quantizers}
    yield f"| target | engine | {' | '.join(quantizers)} | WER |"
    yield "|---" * (len(quantizers) + 3) + "|"
    for target in targets:
        entries = [found[name][target] for name in quantizers]
        rates = ", ".join(f"{entry['figures']['wer']:.2%}" for entry in entries)
        yield f"| {target} | {entries[0]['engine']} | {' | '.join(map(_cell, entries))} | {rates} |"


def verified(
    chosen: Recipe, quantizer: str, targets: Sequence[str], made_on: Path, heard: Path, folder: Path
) -> Mapping[str, Any]:
    """The figures of a bundle of these targets, by target, as its manifest has them: to two digits."""
    out = folder / f"{chosen.name}-{quantizer}-bundle"
    if not out.is_dir():
        made = folder / f"{chosen.name}-{quantizer}-{made_on.stem}.safetensors" if quantizer in ON_INPUTS else None
        if made and not made.is_file():
            quantize(open_checkpoint(shipped("model")), chosen, quantizer, made, made_on)
        recipe = replace(chosen, quantizer=quantizer)
        pipeline.build(shipped("model"), out, targets=targets, recipe=recipe, quantized=made, speech=heard)
    return manifests.read(out).verification


def _cell(entry: Mapping[str, Any]) -> str:
    figures = entry["figures"]
    failed = "" if entry["passed"] else f" FAILED: {', '.join(entry['failed'])}"
    return f"{figures['kl']:.1e} ({figures['kl_stored']:.1e}){failed}"
