"""The process that does a job of a sweep: `python -m ossicle.compiler.sweep_worker OUT JOB`, JOB a build or ":original".

It writes cells and readings, each whole or not at all. Exit status 0, or 1 with the reason on standard error.
"""

import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..targets import manifest as manifests
from ..targets import registry
from ..targets.contract import OssicleError, Recipe
from . import cells, pipeline, quantize_on_speech, reference, report, report_html, stored, verify
from .cells import Cell, Proof
from .checkpoint import Checkpoint
from .figures import Verification
from .making import tools
from .marking import mark
from .speech import Speech
from .sweep_jobs import ORIGINAL
from .sweep_plan import NAME, Keys, Plan, on_inputs, recipe_of


def read_original(plan: Plan, out: Path) -> None:
    """Keep the original's readings, which every recipe is compared with."""
    for _ in reference.keep(plan.open(), plan.recordings(), out / "original"):
        pass


def prove(plan: Plan, out: Path, build: str) -> None:
    """Build a bundle and prove its cells that have no proof yet, one by one. A build is a recipe by a quantizer."""
    mine = [cell for cell in plan.grid[0] if cell.build == build]
    made = Made.of(plan, out, mine[0])
    missing = [cell for cell in mine if cells.read_proof(out, cell, made.keys.proof(cell)) is None]
    targets = list(dict.fromkeys(cell.target for cell in mine))
    for target, built in bundles(made, out, build, targets):
        for cell in (one for one in missing if one.target == target):
            found = Proof(built) if isinstance(built, str) else _proof(made, out, cell, built)
            cells.write_proof(out, cell, made.keys.proof(cell), found)
    _mark(out, plan.recordings(), {cell: cells.read_proof(out, cell, made.keys.proof(cell)) for cell in mine})


@dataclass(frozen=True)
class Made:
    """What a build is made of: its plan, its recipe, files beside the checkpoint, and the checkpoint opened with them."""

    plan: Plan
    keys: Keys
    recipe: Recipe
    checkpoint: Checkpoint
    imatrix: Path | None
    quantized: Path | None

    @classmethod
    def of(cls, plan: Plan, out: Path, cell: Cell) -> "Made":
        """That of a cell's build; integers that are made on recordings are made first, unless they stand there."""
        recipe, checkpoint = recipe_of(cell), plan.open(imatrix=plan.weighing)
        keys = Keys.of(plan, checkpoint, plan.recordings())
        imatrix, quantized = plan.imatrix_of(recipe), _integers(plan, keys, out, cell) if on_inputs(cell) else None
        if (imatrix, quantized) != (plan.weighing, None):
            checkpoint = plan.open(imatrix=imatrix, quantized=quantized)
        return cls(plan, keys, recipe, checkpoint, imatrix, quantized)


def bundles(made: Made, out: Path, build: str, targets: Sequence[str]) -> Iterator[tuple[str, Path | str]]:
    """Each target with the bundle that holds it, or with the reason why there is none.

    All targets are built together; where that fails, each by itself.
    """
    try:
        together = _bundle(made, out / "bundles" / build, targets)
    except OssicleError as reason:
        if len(targets) == 1:
            yield targets[0], _said(reason)
            return
    else:
        yield from ((target, together) for target in targets)
        return
    for target in targets:
        try:
            yield target, _bundle(made, out / "bundles" / f"{build}.{target}", [target])
        except OssicleError as reason:
            yield target, _said(reason)


def _integers(plan: Plan, keys: Keys, out: Path, cell: Cell) -> Path:
    """The file of a build's integers; older ones of the same build are removed."""
    file = out / "quantized" / f"{cell.build}.{keys.integers(cell)[:16]}.safetensors"
    if not file.is_file():
        for old in file.parent.glob(f"{cell.build}.*.safetensors"):
            old.unlink()
        heard = Path(plan.heard) if plan.heard else None
        quantize_on_speech.quantize(plan.open(), recipe_of(cell), cell.quantizer, file, heard)
    return file


def _bundle(made: Made, folder: Path, targets: Sequence[str]) -> Path:
    if not _stands(made, folder, targets):
        pipeline.build(
            made.plan.checkpoint,
            folder,
            targets=targets,
            recipe=made.recipe,
            adapters=made.plan.merged(),
            quantized=made.quantized,
            imatrix=made.imatrix,
            verify=False,
            force=True,
        )
    return folder


def _stands(made: Made, folder: Path, targets: Sequence[str]) -> bool:
    """Whether a whole bundle of exactly this stands there."""
    try:
        held, checkpoint = manifests.read(folder), made.checkpoint
        manifests.check_files(folder, held, hashes=False)
    except OssicleError:
        return False
    files = [one.file if one else None for one in (checkpoint.imatrix, checkpoint.quantized)]
    same = (held.source, held.adapters, held.imatrix, held.quantized) == (
        checkpoint.source,
        checkpoint.adapters,
        *files,
    )
    built = {one.target for one in held.artifacts if one.stage == "decoder"}
    same = same and held.tools == tools({one.target for one in held.artifacts})
    return same and held.recipe == json.loads(json.dumps(asdict(made.recipe))) and built >= set(targets)


def _proof(made: Made, out: Path, cell: Cell, bundle: Path) -> Proof:
    speech = Path(made.plan.speech) if made.plan.speech else None
    try:
        found = verify.verify(
            bundle, made.checkpoint, speech=speech, cache=out / "original", engine=cell.engine, target=cell.target
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
        mark(out / bundle, whole)
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
    except OSError as reason:
        print(f"'{reason.filename or out}' cannot be used: {reason.strerror or reason}", file=sys.stderr)
        return 1
    return 0


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
