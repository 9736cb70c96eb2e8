"""`ossicle sweep`: the grid of builds and measurements of a checkpoint, and its report."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..targets.contract import SweepError
from .common import Json, app, complain, guarded, needs_build_extra, print_json
from .options import Adapters, Address, CheckpointName, Executor, Imatrix, RetryFailed, Speech, listed, merged

if TYPE_CHECKING:
    from ..compiler.sweep import Swept

Quantizers = Annotated[
    str | None,
    typer.Option(
        "--quantizer",
        metavar="LIST",
        help="How integers are found: nearest,mse,hqq,gptq,awq,awq-gptq; or part by part: 'mse;mse,decoder=gptq'.",
    ),
]
Heard = Annotated[
    Path | None,
    typer.Option(
        "--calibration-speech",
        metavar="LIST",
        help="Recordings that gptq and awq make integers on: others than those of --speech. By default those shipped.",
    ),
]


@app.command(epilog="Example: ossicle sweep ./voxtral --quant int8,int4,q4_k_m --target onnx,openvino,gguf --out sweep")
@guarded
def sweep(
    checkpoint: CheckpointName,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where bundles, figures and the report go.")],
    quant: Annotated[str, typer.Option("--quant", metavar="LIST", help="Recipes, separated by commas.")],
    target: Annotated[str, typer.Option("--target", metavar="LIST", help="Targets, separated by commas.")] = "onnx",
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="LIST", help="Engines; of a target that none is named of, its own."),
    ] = None,
    quantizer: Quantizers = None,
    imatrix: Imatrix = None,
    adapter: Adapters = None,
    speech: Speech = None,
    heard: Heard = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Builds and proofs side by side.")] = 1,
    executor: Executor = "processes",
    address: Address = None,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Build and prove only; speeds by a later call.")] = False,
    retry_failed: RetryFailed = False,
    as_json: Json = False,
) -> None:
    """Build, prove and measure every recipe in every target; go on after a kill; report."""
    needs_build_extra("a sweep")
    from ..compiler.sweep import document
    from ..compiler.sweep import sweep as swept_of
    from ..compiler.sweep_jobs import Crew
    from ..compiler.sweep_plan import Plan, check_words
    from ..runtimes.registry import runtime
    from .progress import Bars

    crew = Crew(executor, workers, address)
    crew.check()
    for name in listed(engine or ""):
        runtime(name)
    plan = Plan(
        _absolute(checkpoint),
        listed(quant),
        listed(target),
        listed(engine or ""),
        _quantizers(quantizer or ""),
        tuple((_absolute(str(one.location)), one.weight) for one in merged(adapter)),
        _file(speech),
        _file(heard),
        _file(imatrix),
    )
    check_words(plan)
    machine = facts()
    with Bars() as bars:
        swept = swept_of(
            plan, out, crew=crew, machine=machine, timed=not no_speed, retry_failed=retry_failed, progress=bars
        )
    print_json(document(swept.found, swept.refused, machine)) if as_json else _print(swept)
    for one in swept.failed:
        complain(f"{one.cell} failed: {one.reason}")
    if swept.failed:
        raise typer.Exit(1)


def facts() -> dict[str, Any]:
    """What this machine is, as `ossicle doctor` tells it: system, processor, memory and the versions of engines."""
    command = [sys.executable, "-m", "ossicle.cli", "doctor", "--json", "--no-measure"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SweepError(f"this machine cannot be described: {done.stderr.strip()}. See: ossicle doctor")
    told = json.loads(done.stdout)
    engines = {one["name"]: one["version"] for one in told["runtimes"] if one["version"]}
    return {name: told[name] for name in ("system", "python", "processor", "memory")} | {"engines": engines}


def _quantizers(text: str) -> tuple[str, ...]:
    """Each quantizer once. Those that are part by part have commas of their own: semicolons stand between them."""
    from ..compiler.quantizers import Choice

    mark = ";" if {";", "="} & set(text) else ","
    return tuple(dict.fromkeys(str(Choice.of(word)) for word in text.split(mark) if word.strip()))


def _file(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _absolute(location: str) -> str:
    """A path as it is from everywhere; a name on the hub as it is."""
    path = Path(location).expanduser()
    return str(path.absolute()) if path.exists() else location


def _print(swept: "Swept") -> None:
    verdicts = [one.proof.verified.passed for one in swept.found if one.proof.verified]
    beyond = f", {verdicts.count(False)} beyond their limits" if False in verdicts else ""
    told = f"{len(swept.found)} cells, {verdicts.count(True)} passed{beyond}, {len(swept.failed)} failed"
    typer.echo(f"{told}, {swept.kept} known before")
    for cell, reason in swept.refused.items():
        typer.echo(f"not possible: {cell}: {reason}")
    typer.echo(f"report: {swept.page}")
