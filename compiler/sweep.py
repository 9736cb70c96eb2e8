"""The grid of builds and measurements: every recipe by every quantizer in every target on every engine, and what it is worth.

    plan -> the original's readings -> a build and its proofs per recipe, side by side -> speeds, one at a time -> the report

What is found stays in the sweep's folder cell by cell, so that the same call goes on after a kill.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..targets.contract import Progress, SweepError
from ..targets.locks import taken
from . import cells, report_html, speed
from .cells import Cell, Found, Proof
from .speech import Speech
from .sweep_jobs import ORIGINAL, Crew, finished
from .sweep_plan import NAME, Keys, Plan
from .torch_model import check_memory
from .written import write_text

TELL = logging.getLogger("ossicle")


@dataclass(frozen=True)
class Swept:
    """All cells of a sweep in the order of the grid, those that no target can hold, and where the report is."""

    found: tuple[Found, ...]
    refused: Mapping[Cell, str]
    page: Path
    kept: int  # cells of which nothing had to be done

    @property
    def failed(self) -> tuple[Found, ...]:
        """Those of which something is missing."""
        return tuple(one for one in self.found if one.reason)


def sweep(
    plan: Plan,
    out: Path,
    *,
    crew: Crew,
    machine: Mapping[str, Any],
    timed: bool = True,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> Swept:
    """Build, prove and measure every cell of a plan under `out`, and write `report.html` and `results.json` there.

    `machine` is what speeds are measured on, as `ossicle doctor` describes it: they are measured again on another.
    What was found before is taken over where checkpoint, recordings, recipe and packages are the same. Without `timed` no
    speeds are measured; a later call measures what is missing.

    Raises:
        SweepError: another sweep is at work in `out`, or no cell of the grid is possible.
        OssicleError: the checkpoint or the recordings cannot be used, or a recipe, target or engine is unknown.
    """
    possible, refused = plan.grid
    if not possible:
        raise SweepError(f"no cell of the sweep is possible: {'; '.join(refused.values())}")
    checkpoint, speech = plan.open(imatrix=plan.weighing), plan.recordings()
    check_memory(checkpoint)
    keys = Keys.of(plan, checkpoint, speech)
    with _alone(out):
        write_text(out / NAME, json.dumps(asdict(plan), indent=1) + "\n")
        before = set(_proved(out, possible, keys, retry_failed))
        _prove(out, [cell for cell in possible if cell not in before], keys, crew, progress)
        proofs = {cell: cells.read_proof(out, cell, keys.proof(cell)) or Proof("was not proved") for cell in possible}
        found, measured = _speeds(out, proofs, keys, speech, machine, timed, retry_failed, progress)
        page = report_html.write_sweep(out, checkpoint.name, found, refused, speech, machine)
        write_text(out / "results.json", json.dumps(document(found, refused, machine), indent=1) + "\n")
    return Swept(found, refused, page, len(before - measured))


def document(found: Sequence[Found], refused: Mapping[Cell, str], machine: Mapping[str, Any]) -> dict[str, Any]:
    """All figures as JSON, without the clips."""
    from .report import finite

    result: dict[str, Any] = finite(
        {
            "version": cells.VERSION,
            "machine": machine,
            "cells": [_entry(one) for one in found],
            "impossible": [asdict(cell) | {"reason": reason} for cell, reason in refused.items()],
        }
    )
    return result


def _proved(out: Path, possible: Sequence[Cell], keys: Keys, retry_failed: bool) -> Iterator[Cell]:
    """The cells that need no proof any more."""
    for cell in possible:
        proof = cells.read_proof(out, cell, keys.proof(cell))
        if proof is not None and not (proof.reason and retry_failed):
            yield cell


def _prove(out: Path, missing: Sequence[Cell], keys: Keys, crew: Crew, progress: Progress | None) -> None:
    """Have workers build and prove what is missing; a build whose worker died fails with the reason."""
    if not missing:
        return
    if progress:
        progress.start("prove", len(missing), "cells")
    for _, reason in finished(out, [ORIGINAL], crew):
        if reason:
            raise SweepError(f"the original could not be read: {reason}")
    for cell in missing:  # what is kept of it is old
        (out / "proofs" / f"{cell.name}.json").unlink(missing_ok=True)
    for build, reason in finished(out, list(dict.fromkeys(cell.build for cell in missing)), crew):
        for cell in (one for one in missing if one.build == build):
            if cells.read_proof(out, cell, keys.proof(cell)) is None:
                cells.write_proof(out, cell, keys.proof(cell), Proof(reason or "its worker left no proof"))
            _tell(cell, cells.read_proof(out, cell, keys.proof(cell)))
            if progress:
                progress.advance(1)


def _tell(cell: Cell, proof: Proof | None) -> None:
    if proof and proof.verified:
        told = proof.verified.figures
        TELL.info("%s: %.1f MB, KL %.2g, same top token %.2f %%", cell, proof.size / 1e6, told.kl, 100 * told.top1)
    elif proof:
        TELL.info("%s: failed: %s", cell, proof.reason)


def _speeds(
    out: Path,
    proofs: Mapping[Cell, Proof],
    keys: Keys,
    speech: Speech,
    machine: Mapping[str, Any],
    timed: bool,
    retry_failed: bool,
    progress: Progress | None,
) -> tuple[tuple[Found, ...], set[Cell]]:
    """Every cell with its speed, measured one after the other where it is not known; and those that were measured."""
    found: list[Found] = []
    measured: set[Cell] = set()
    if progress:
        progress.start("speed", len(proofs), "cells")
    for cell, proof in proofs.items():
        known = cells.read_speed(out, cell, keys.speed(cell, machine))
        if timed and proof.verified and (known is None or (known.reason and retry_failed)):
            known = speed.measure(out / proof.bundle, cell.engine, speech.clips)
            cells.write_speed(out, cell, keys.speed(cell, machine), known)
            measured.add(cell)
        found.append(Found(cell, proof, known if proof.verified else None))
        if progress:
            progress.advance(1)
    return tuple(found), measured


def _entry(one: Found) -> dict[str, Any]:
    verified = one.proof.verified
    return asdict(one.cell) | {
        "reason": one.reason,
        "bundle": one.proof.bundle,
        "bytes": one.proof.size,
        "proof": verified.proof if verified else None,
        "passed": verified.passed if verified else None,
        "figures": asdict(verified.figures) if verified else None,
        "speed": asdict(one.speed) if one.speed else None,
    }


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """The sweep's folder, for one sweep at a time.

    Raises:
        SweepError: another is at work there, or it is no folder of a sweep.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / NAME).exists())):
        raise SweepError(f"'{out}' exists and is no folder of a sweep (it has no {NAME}). Give another --out")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / NAME).exists():
        write_text(out / NAME, "{}\n")
    with (out / ".lock").open("w") as stream:
        if not taken(stream):
            raise SweepError(f"another sweep is at work in '{out}'. Wait for it, or give another --out")
        yield
