"""The process that does a job of a sweep: `python -m ossicle.compiler.sweep_worker OUT JOB`, JOB a recipe or ":original".

It writes cells and readings, each whole or not at all. Exit status 0, or 1 with the reason on standard error.
"""

import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..targets import manifest as manifests
from ..targets import registry
from ..targets.contract import OssicleError
from ..targets.recipes import recipe as named_recipe
from . import cells, pipeline, reference, report, report_html, stored, verify
from .cells import Cell, Proof
from .checkpoint import Checkpoint
from .figures import Verification
from .speech import Speech
from .sweep import NAME, Keys, Plan
from .sweep_jobs import ORIGINAL


def read_original(plan: Plan, out: Path) -> None:
    """Keep the original's readings, which every recipe is compared with."""
    for _ in reference.keep(plan.open(), plan.recordings(), out / "original"):
        pass


def prove(plan: Plan, out: Path, recipe: str) -> None:
    """Build a recipe's bundle and prove its cells that have no proof yet, one by one."""
    checkpoint, speech = plan.open(), plan.recordings()
    keys = Keys.of(checkpoint, speech)
    mine = [cell for cell in plan.grid[0] if cell.recipe == recipe]
    missing = [cell for cell in mine if cells.read_proof(out, cell, keys.proof(cell)) is None]
    targets = list(dict.fromkeys(cell.target for cell in mine))
    for target, built in bundles(plan, checkpoint, out, recipe, targets):
        for cell in (one for one in missing if one.target == target):
            found = Proof(built) if isinstance(built, str) else _proof(plan, out, checkpoint, cell, built)
            cells.write_proof(out, cell, keys.proof(cell), found)
    _mark(out, speech, {cell: cells.read_proof(out, cell, keys.proof(cell)) for cell in mine})


def bundles(
    plan: Plan, checkpoint: Checkpoint, out: Path, recipe: str, targets: Sequence[str]
) -> Iterator[tuple[str, Path | str]]:
    """Each target with the bundle that holds it, or with the reason why there is none.

    All of a recipe's targets are built together; where that fails, each by itself.
    """
    try:
        together = _bundle(plan, checkpoint, out / "bundles" / recipe, recipe, targets)
    except OssicleError as reason:
        if len(targets) == 1:
            yield targets[0], _said(reason)
            return
    else:
        yield from ((target, together) for target in targets)
        return
    for target in targets:
        try:
            yield target, _bundle(plan, checkpoint, out / "bundles" / f"{recipe}.{target}", recipe, [target])
        except OssicleError as reason:
            yield target, _said(reason)


def _bundle(plan: Plan, checkpoint: Checkpoint, folder: Path, recipe: str, targets: Sequence[str]) -> Path:
    if not _stands(checkpoint, folder, recipe, targets):
        merged = plan.merged()
        pipeline.build(
            plan.checkpoint, folder, targets=targets, recipe=recipe, adapters=merged, verify=False, force=True
        )
    return folder


def _stands(checkpoint: Checkpoint, folder: Path, recipe: str, targets: Sequence[str]) -> bool:
    """Whether a bundle of exactly this stands there."""
    if not (folder / manifests.NAME).is_file():
        return False
    held = manifests.read(folder)
    chosen = json.loads(json.dumps(asdict(named_recipe(recipe))))
    same = (held.source, held.adapters, held.recipe) == (checkpoint.source, checkpoint.adapters, chosen)
    built = {one.target for one in held.artifacts if one.stage == "decoder"}
    return same and built >= set(targets) and held.tools == pipeline.tools({one.target for one in held.artifacts})


def _proof(plan: Plan, out: Path, checkpoint: Checkpoint, cell: Cell, bundle: Path) -> Proof:
    speech = Path(plan.speech) if plan.speech else None
    try:
        found = verify.verify(
            bundle, checkpoint, speech=speech, cache=out / "original", engine=cell.engine, target=cell.target
        )
    except OssicleError as reason:
        return Proof(_said(reason))
    size = report_html.size_of(manifests.read(bundle).artifacts, cell.target)
    return Proof(None, bundle.relative_to(out).as_posix(), size, found.targets[0])


def _mark(out: Path, speech: Speech, proofs: Mapping[Cell, Proof | None]) -> None:
    """Mark each bundle with what its targets' own engines make of it, and write its reports."""
    own = {cell: proof for cell, proof in proofs.items() if cell.engine == registry.ENGINES[cell.target]}
    for bundle in {proof.bundle for proof in own.values() if proof and proof.verified}:
        verified = [p.verified for p in own.values() if p and p.verified and p.bundle == bundle]
        manifest = manifests.read(out / bundle)
        thresholds = stored.recipe_of(manifest.recipe).thresholds
        whole = Verification(
            manifest.name, manifest.recipe["name"], speech.name, speech.sha256, thresholds, tuple(verified)
        )
        verify.mark(out / bundle, whole)
        report.write(out / bundle, whole, speech)


def _said(reason: OssicleError) -> str:
    return " ".join(str(reason).split())


def _end_with_the_sweep() -> None:
    """End this process as soon as its standard input ends: whoever started it is gone."""
    os.read(0, 1)  # the file itself: a buffer's lock would be held when this process ends by itself
    os._exit(2)


def main() -> int:
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.disable(logging.WARNING)
    out, job = Path(sys.argv[1]), sys.argv[2]
    plan = Plan(**{k: _tuples(v) for k, v in json.loads((out / NAME).read_text(encoding="utf-8")).items()})
    try:
        if job == ORIGINAL:
            read_original(plan, out)
        else:
            prove(plan, out, job)
    except OssicleError as reason:
        print(_said(reason), file=sys.stderr)
        return 1
    return 0


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
