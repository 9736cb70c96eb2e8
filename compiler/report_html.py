"""A report in one HTML file that needs nothing else: plots, tables, and the recordings on which artifacts disagree.

The same for a sweep's cells and for one bundle's targets. It holds no script.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from .breakdown import by_language, by_length
from .cells import Cell, Found, Proof
from .figures import AdapterVerification, Verification
from .report_clips import disagreements, section
from .report_plots import Axis, Point, plot, swatch
from .report_tables import added, breakdown, cells, machine, missing, proofs
from .speech import Speech
from .written import write_text

_MEGABYTES = Axis("size, MB", lambda value: f"{value:g}")
_WER = Axis("word error rate, %", lambda value: f"{value:g}")
_KL = Axis("KL divergence, nats", lambda value: f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e"), log=True)
_TOKENS = Axis("tokens per second", lambda value: f"{value:g}", higher_is_better=True)


def write_sweep(
    folder: Path,
    name: str,
    found: Sequence[Found],
    refused: Mapping[Cell, str],
    speech: Speech,
    facts: Mapping[str, Any],
) -> Path:
    """Write a sweep's report under `folder`, and give its place back."""
    compared = sum(one.proof.verified is not None for one in found)
    told = f"{compared} of {len(found)} cells compared with the original in torch float32, on {speech.name}."
    path = folder / "report.html"
    write_text(path, page(f"Sweep of {name}", told, found, speech, refused=refused, facts=facts))
    return path


def write_verification(folder: Path, verification: Verification, speech: Speech) -> Path:
    """Write the report of one bundle, `verification.html`, under `folder`, and give its place back.

    Sizes are there where `folder` is the bundle itself. As the bundle, it says nothing of the machine that made it.
    """
    held = _sizes(folder)
    found = [
        Found(Cell(verification.recipe, one.target, one.engine), Proof(None, "", held.get(one.target, 0), one))
        for one in verification.targets
    ]
    verdict = "passed" if verification.passed else "FAILED"
    told = f"Against the original in torch float32, on {verification.speech}."
    title = f"Verification of {verification.bundle}, {verification.recipe}: {verdict}"
    path = folder / "verification.html"
    write_text(path, page(title, told, found, speech, adapters=verification.adapters))
    return path


def page(
    title: str,
    told: str,
    found: Sequence[Found],
    speech: Speech,
    *,
    refused: Mapping[Cell, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    adapters: Sequence[AdapterVerification] = (),
) -> str:
    """The whole page."""
    names, compared = _names(found), any(one.proof.verified for one in found)
    sections = [
        ("Quality, size and speed", _plots(found)),
        ("Cells", cells(found, names)),
        ("By language", breakdown(found, names, partial(by_language, speech=speech))),
        ("By length", breakdown(found, names, partial(by_length, speech=speech))),
        (
            "Where artifacts disagree with the original",
            section(disagreements(found, names), speech) if compared else "",
        ),
        ("How each was proved", proofs(found, names)),
        ("Adapters, added as it runs", added(adapters)),
        ("Failed or not possible", missing(found, names, refused or {})),
        ("Measured on", machine(facts) if facts else ""),
    ]
    body = "".join(f"<section><h2>{escape(head)}</h2>{content}</section>" for head, content in sections if content)
    style = resources.files("ossicle.compiler").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><header><h1>{escape(title)}</h1>"
        f"<p>{escape(told)}</p></header><main>{body}</main></body></html>\n"
    )


def _plots(found: Sequence[Found]) -> str:
    """Size against word errors and divergence, speed against divergence; a plot of which there are no values is left out."""
    targets = list(dict.fromkeys(one.cell.target for one in found))
    drawn = [
        _figure("Size and word errors", found, targets, _size, _wer, _MEGABYTES, _WER),
        _figure("Size and divergence", found, targets, _size, _kl, _MEGABYTES, _KL),
        _figure("Speed and divergence", found, targets, _tokens, _kl, _TOKENS, _KL),
    ]
    legend = "".join(f"<li>{swatch(place)}{escape(target)}</li>" for place, target in enumerate(targets))
    told = "The line is the Pareto front: no other cell is at least as good in both and better in one."
    figures = "".join(drawn)
    return (
        f'<ul class="legend">{legend}</ul><div class="plots">{figures}</div><p class="note">{told}</p>'
        if figures
        else ""
    )


def _figure(
    caption: str,
    found: Sequence[Found],
    targets: Sequence[str],
    x_of: Callable[[Found], float | None],
    y_of: Callable[[Found], float | None],
    x: Axis,
    y: Axis,
) -> str:
    points = [
        Point(across, up, one.cell.build, targets.index(one.cell.target), _title(one, across, up, x, y))
        for one in found
        if (across := x_of(one)) is not None and (up := y_of(one)) is not None
    ]
    if not points:
        return ""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{plot(points, x, y)}</figure>"


def _title(one: Found, across: float, up: float, x: Axis, y: Axis) -> str:
    return f"{one.cell}\n{x.label}: {across:.4g}\n{y.label}: {up:.3g}"


def _size(one: Found) -> float | None:
    return one.proof.size / 1e6 if one.proof.size else None


def _wer(one: Found) -> float | None:
    rate = one.proof.verified.figures.wer if one.proof.verified else None
    return None if rate is None else 100 * rate


def _kl(one: Found) -> float | None:
    return one.proof.verified.figures.kl if one.proof.verified else None


def _tokens(one: Found) -> float | None:
    return one.timed.tokens_per_second if one.timed else None


def _names(found: Sequence[Found]) -> dict[int, str]:
    """What each cell is called: its engine only where a target has several."""
    engines: dict[str, set[str]] = {}
    for one in found:
        engines.setdefault(one.cell.target, set()).add(one.cell.engine)
    return {place: _name(one.cell, len(engines[one.cell.target]) > 1) for place, one in enumerate(found)}


def _name(cell: Cell, several: bool) -> str:
    return f"{cell.build} {cell.target}" + (f" {cell.engine}" if several else "")


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each target's files, where the folder is a bundle."""
    from ..targets import manifest as manifests

    if not (folder / manifests.NAME).is_file():
        return {}
    artifacts = manifests.read(folder).artifacts
    return {name: size_of(artifacts, name) for name in {one.target for one in artifacts}}


def size_of(artifacts: Iterable[Any], target: str) -> int:
    """Bytes of all files of a target's artifacts."""
    files = {file.path: file.size for one in artifacts if one.target == target for file in one.files}
    return sum(files.values())
