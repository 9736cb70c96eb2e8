"""What each precision costs in words: the shipped model built in every recipe, verified on the shipped speech.

    python benchmarks/precision.py [--out DIR] [--recipes fp32,int4]

Prints the table of the README: size, word error rate, divergence, and how many transcripts and answers stay the same.
"""

import argparse
import tempfile
from pathlib import Path

from ossicle.compiler import pipeline
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.demonstration import shipped
from ossicle.compiler.report import figure
from ossicle.compiler.verify import verify
from ossicle.targets.manifest import bundle_files
from ossicle.targets.recipes import RECIPES

_HEAD = ("recipe", "bundle", "WER", "KL (nats)", "same top token", "same transcript", "same answer", "answers right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the bundles here")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        print("| " + " | ".join(_HEAD) + " |\n" + "|---" * len(_HEAD) + "|")
        for number, name in enumerate(options.recipes.split(",")):
            for row in rows(name, folder / name, Path(scratch) / "original", with_original=number == 0):
                print("| " + " | ".join(row) + " |", flush=True)


def rows(recipe: str, out: Path, cache: Path, *, with_original: bool) -> list[tuple[str, ...]]:
    """The table's line of a recipe, behind that of the original where asked."""
    report = pipeline.build(shipped("model"), out, recipe=recipe, verify=False, force=True)
    (target,) = verify(out, open_checkpoint(shipped("model")), cache=cache).targets
    found = target.figures
    size = sum(file.size for file in bundle_files(report.manifest))
    line = (
        recipe,
        f"{size / 1e6:.1f} MB",
        figure("wer", found.wer),
        figure("kl", found.kl),
        figure("top1", found.top1),
        figure("same_text", found.same_text),
        figure("same_answers", found.same_answers),
        figure("answers", found.answers),
    )
    weights = sum(file.size for file in open_checkpoint(shipped("model")).source.files)
    original = (
        "original (torch float32)",
        f"{weights / 1e6:.1f} MB bf16",
        figure("wer", found.wer_original),
        *("",) * 4,
        figure("answers", found.answers_original),
    )
    return [original, line] if with_original else [line]


if __name__ == "__main__":
    main()
