"""What each precision costs in words, in every format: the shipped model built, verified, and heard by stock llama.cpp.

    python benchmarks/precision.py [--out DIR] [--recipes fp32,int4] [--formats onnx,openvino,gguf]

Prints two tables, of each recipe as it is measured and of all at the end. The first is the word error rate of every recipe in
every format that holds it, and beside GGUF's that of the same numbers, the encoder made wider, where llama.cpp's own `mtmd`
computes the audio embeddings. The second has the other figures.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ossicle.benchmarks.widened import write_widened
from ossicle.cli.demo import shipped
from ossicle.compiler import pipeline, speech
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.figures import TargetVerification
from ossicle.compiler.report import figure
from ossicle.compiler.verify import ask, verify
from ossicle.targets import registry
from ossicle.targets.contract import RecipeError
from ossicle.targets.manifest import Manifest
from ossicle.targets.probe import Request
from ossicle.targets.recipes import RECIPES, recipe

_STOCK = "llamacpp-mtmd"
_DETAILS = ("kl", "kl_stored", "top1", "same_text", "same_answers", "answers")
_HEAD = ("recipe", "format", "engine", "size", "KL (nats)", "KL to rounded", "same top token", "same transcript",
         "same answer", "answers right", "verified")  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One recipe in every format that holds it; `stock` is the word error rate through stock `mtmd`, where there is GGUF."""

    recipe: str
    manifest: Manifest
    targets: dict[str, TargetVerification]
    stock: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the bundles here")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--formats", default=",".join(registry.names()))
    parser.add_argument("--stock", default="fp16,int8,q4_k_m", help="the recipes that stock llama.cpp hears, too")
    options = parser.parse_args()
    formats, heard = options.formats.split(","), options.stock.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        found = []
        for name in options.recipes.split(","):
            if held := [target for target in formats if _holds(target, name)]:
                folder = (options.out or Path(scratch)) / name
                stock = _stock(name, Path(scratch)) if name in heard and "gguf" in held else None
                found.append(measure(name, held, folder, Path(scratch) / "original", stock))
                print("\n".join([*rates(found[-1:], formats), "", *details(found[-1:])]), "\n", flush=True)
    print("\n".join([*rates(found, formats), "", *details(found)]))


def measure(name: str, formats: Sequence[str], out: Path, cache: Path, stock: float | None) -> Measured:
    """A recipe built in these formats and verified."""
    report = pipeline.build(shipped("model"), out, targets=formats, recipe=name, verify=False, force=True)
    verified = verify(out, open_checkpoint(shipped("model")), cache=cache)
    targets = {target.target: target for target in verified.targets if target.target in formats}
    return Measured(name, report.manifest, targets, stock)


def rates(found: Sequence[Measured], formats: Sequence[str]) -> list[str]:
    """The table of word error rates, the original's first."""
    original = next(iter(found[0].targets.values())).figures.wer_original
    lines = [_line(("recipe", *formats, "the same GGUF through stock mtmd")), _rule(len(formats) + 2)]
    lines.append(_line(("original (torch float32)", *[figure("wer", original)] * len(formats), "")))
    for one in found:
        cells = [figure("wer", one.targets[name].figures.wer) if name in one.targets else "" for name in formats]
        lines.append(_line((one.recipe, *cells, "" if one.stock is None else figure("wer", one.stock))))
    return lines


def details(found: Sequence[Measured]) -> list[str]:
    """The table of all other figures, a line for each recipe and format."""
    lines = [_line(_HEAD), _rule(len(_HEAD))]
    for one in found:
        for name, target in one.targets.items():
            figures = [figure(key, getattr(target.figures, key)) for key in _DETAILS]
            verdict = "passed" if target.passed else "FAILED"
            lines.append(_line((one.recipe, name, target.engine, _size(one.manifest, name), *figures, verdict)))
    return lines


def _holds(target: str, name: str) -> bool:
    try:
        registry.target(target).check(recipe(name))
    except RecipeError:
        return False
    return True


def _stock(name: str, scratch: Path) -> float:
    """Word error rate where llama.cpp computes the audio embeddings too, in its own way, of the same model made wider."""
    wide, bundle = scratch / "wide", scratch / f"wide-{name}"
    if not wide.exists():
        write_widened(wide, shipped("model"))
    pipeline.build(wide, bundle, targets=("gguf",), recipe=name, verify=False)
    spoken = speech.load(speech.shipped())
    known = [clip for clip in spoken.clips if clip.text is not None]
    clips = [(clip, language) for clip in known for language in dict.fromkeys((None, clip.language))]
    questions = [Request("transcribe", str(clip.file.resolve()), language=language) for clip, language in clips]
    said = [answer.text or "" for answer in ask(bundle, questions, engine=_STOCK).answers]
    return speech.word_errors((clip.text or "", text) for (clip, _), text in zip(clips, said, strict=True)).rate


def _size(manifest: Manifest, target: str) -> str:
    """Of the artifacts alone."""
    files = {file.path: file.size for one in manifest.artifacts if one.target == target for file in one.files}
    return f"{sum(files.values()) / 1e6:.1f} MB"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return "|---" * columns + "|"


if __name__ == "__main__":
    main()
