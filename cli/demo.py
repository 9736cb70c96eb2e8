"""`ossicle demo`: the small Voxtral that ossicle ships, built, verified and run, with and without its adapter."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from ..compiler import pipeline, speech
from ..compiler.checkpoint import open_checkpoint
from ..compiler.figures import Verification
from ..compiler.lora import AdapterSpec
from ..compiler.marking import mark
from ..compiler.report import faults, figure, label, write
from ..compiler.speech import Clip
from ..compiler.verify import ask, verify
from ..targets.contract import BuildError, Progress
from ..targets.manifest import Manifest, bundle_files
from ..targets.probe import Report, Request
from .show import console

_CLIPS = 8  # recordings whose texts are shown


@dataclass(frozen=True)
class Variant:
    """One bundle of the demo."""

    name: str
    recipe: str
    adapter: bool


@dataclass(frozen=True)
class Made:
    """What a variant came to: its bundle, how that compares with its original, and how long both took, in seconds."""

    variant: Variant
    manifest: Manifest
    verification: Verification
    building: float
    verifying: float


@dataclass(frozen=True)
class Heard:
    """What a bundle made of the recordings shown, in a process of its own."""

    variant: Variant
    report: Report


VARIANTS = (Variant("fp32", "fp32", False), Variant("int4", "int4", False), Variant("int4-adapter", "int4", True))


def show(out: Path | None, progress: Progress) -> bool:
    """Build, verify and run every variant, telling what happens; whether all of them passed.

    The bundles stay under `out`, where one is given.

    Raises:
        BuildError: this installation lacks the demo's files.
        OssicleError: whatever a build or a run refuses.
    """
    begun, terminal = time.perf_counter(), console()
    clips = _shown(speech.load(speech.shipped()).clips)
    with tempfile.TemporaryDirectory(prefix="ossicle-demo-") as scratch:
        folder = out or Path(scratch)
        made = [_make(variant, folder, Path(scratch), progress, terminal) for variant in VARIANTS]
        heard = [_run(variant, folder, clips) for variant in VARIANTS]
    terminal.print(_figures(made), _texts(clips, heard), *map(_process, heard), sep="\n")
    terminal.print(f"All of it took {time.perf_counter() - begun:.0f} s.")
    return all(entry.verification.passed for entry in made)


def shipped(name: str) -> Path:
    """A folder that the demo ships: "model" or "adapter".

    Raises:
        BuildError: this installation lacks it.
    """
    folder = Path(str(resources.files("ossicle.demo"))) / name
    if not folder.is_dir():
        raise BuildError(
            f"the demo's {name} is not installed ('{folder}'). Install again: pip install ossicle[build,onnx]"
        )
    return folder


def _make(variant: Variant, folder: Path, scratch: Path, progress: Progress, terminal: Console) -> Made:
    adapters = [AdapterSpec(shipped("adapter"))] if variant.adapter else []
    merged = " with its adapter merged" if adapters else ""
    terminal.print(f"[bold]{variant.name}[/]: the demo model in {variant.recipe}{merged}")
    bundle = folder / variant.name
    report = pipeline.build(
        shipped("model"), bundle, recipe=variant.recipe, adapters=adapters, verify=False, force=True, progress=progress
    )
    begun = time.perf_counter()
    checkpoint = open_checkpoint(shipped("model"), adapters=adapters)
    verification = verify(bundle, checkpoint, cache=scratch / "original", progress=progress)
    seconds = time.perf_counter() - begun
    verdict = "passed" if verification.passed else "[bold red]FAILED[/]"
    terminal.print(f"  built in {report.seconds:.1f} s, verified against torch in {seconds:.1f} s: {verdict}")
    for fault in faults(verification):
        terminal.print(f"  {escape(fault)}")
    write(bundle, verification)
    return Made(variant, mark(bundle, verification), verification, report.seconds, seconds)


def _run(variant: Variant, folder: Path, clips: Sequence[Clip]) -> Heard:
    asked = [Request("transcribe", str(clip.file), language=clip.language) for clip in clips]
    return Heard(variant, ask(folder / variant.name, asked))


def _figures(made: Sequence[Made]) -> Table:
    names = ("logits", "kl", "top1", "wer", "wer_original")
    table = Table("bundle", "size", *map(label, names))
    for entry in made:
        figures = entry.verification.targets[0].figures
        size = decimal(sum(file.size for file in bundle_files(entry.manifest)))
        table.add_row(entry.variant.name, size, *(figure(name, getattr(figures, name)) for name in names))
    return table


def _texts(clips: Sequence[Clip], heard: Sequence[Heard]) -> Table:
    table = Table("recording", "said", *(entry.variant.name for entry in heard))
    for number, clip in enumerate(clips):
        texts = [entry.report.answers[number].text or "" for entry in heard]
        table.add_row(*map(escape, (clip.name, clip.text or "", *texts)))
    return table


def _process(entry: Heard) -> str:
    report = entry.report
    seconds = sum(answer.seconds for answer in report.answers)
    heavy = sorted({"torch", "transformers"} & set(report.modules))
    return (
        f"{entry.variant.name}: {len(report.answers)} recordings in {seconds:.1f} s on {report.engine}, "
        f"{decimal(report.peak_memory)} at most, "
        + (f"with {' and '.join(heavy)} loaded." if heavy else "neither torch nor transformers loaded.")
    )


def _shown(clips: Sequence[Clip]) -> list[Clip]:
    """Short recordings in which something is said, from all of the list."""
    spoken = [clip for clip in clips if clip.text]
    short = sorted(spoken, key=lambda clip: clip.file.stat().st_size)[: 2 * len(spoken) // 3]
    kept = [clip for clip in spoken if clip in short]
    return kept[:: -(-len(kept) // _CLIPS)]
