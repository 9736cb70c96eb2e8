"""`ossicle demo`: the small Voxtral that ossicle ships, built, verified and run, with and without its adapter."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from ..targets.contract import BuildError, Progress
from ..targets.manifest import bundle_files
from ..targets.probe import Report, Request
from . import pipeline, speech
from .cli_show import console
from .lora import AdapterSpec
from .report import faults, figure
from .speech import Clip
from .verify import ask

_CLIPS = 8  # recordings whose texts are shown


@dataclass(frozen=True)
class Variant:
    """One bundle of the demo."""

    name: str
    recipe: str
    adapter: bool


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
    with _folder(out) as name:
        folder = Path(name)
        built = [_build(variant, folder, progress, terminal) for variant in VARIANTS]
        heard = [_run(variant, folder, clips) for variant in VARIANTS]
    _table(built, terminal)
    _texts(clips, heard, terminal)
    terminal.print(f"All of it took {time.perf_counter() - begun:.0f} s.")
    return all(report.verification is None or report.verification.passed for report in built)


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


def _build(variant: Variant, folder: Path, progress: Progress, terminal: Console) -> pipeline.BuildReport:
    adapters = [AdapterSpec(str(shipped("adapter")), 1.0)] if variant.adapter else []
    report = pipeline.build(
        shipped("model"),
        folder / variant.name,
        recipe=variant.recipe,
        adapters=adapters,
        force=True,
        progress=progress,
    )
    merged = " with its adapter merged" if adapters else ""
    terminal.print(
        f"Built and verified {variant.name}: the demo model in {variant.recipe}{merged}, {report.seconds:.0f} s."
    )
    if report.verification is not None:
        for fault in faults(report.verification):
            terminal.print(f"  [bold red]failed[/]: {escape(fault)}")
    return report


def _run(variant: Variant, folder: Path, clips: Sequence[Clip]) -> Heard:
    asked = [Request("transcribe", str(clip.file), language=clip.language) for clip in clips]
    return Heard(variant, ask(folder / variant.name, asked))


def _table(built: Sequence[pipeline.BuildReport], terminal: Console) -> None:
    table = Table(
        "bundle", "size", "logits differ by", "top-1 agrees", "word error rate", "of the original", "built in"
    )
    for variant, report in zip(VARIANTS, built, strict=True):
        figures = report.verification.targets[0].figures if report.verification else None
        names = ("logits", "top1", "wer", "wer_original")
        table.add_row(
            variant.name,
            decimal(sum(file.size for file in bundle_files(report.manifest))),
            *(figure(name, getattr(figures, name)) for name in names),
            f"{report.seconds:.1f} s",
        )
    terminal.print(table)


def _texts(clips: Sequence[Clip], heard: Sequence[Heard], terminal: Console) -> None:
    table = Table("recording", "said", *(entry.variant.name for entry in heard))
    for number, clip in enumerate(clips):
        texts = [entry.report.answers[number].text or "" for entry in heard]
        table.add_row(*map(escape, (clip.name, clip.text or "", *texts)))
    terminal.print(table)
    for entry in heard:
        terminal.print(_process(entry))


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
    """The shortest recordings in which something is said."""
    spoken = [clip for clip in clips if clip.text]
    return sorted(spoken, key=lambda clip: clip.file.stat().st_size)[:_CLIPS]


def _folder(out: Path | None) -> AbstractContextManager[str]:
    if out is None:
        return tempfile.TemporaryDirectory(prefix="ossicle-demo-")
    return nullcontext(str(out))
