"""The command `ossicle calibrate`: a model measured on speech."""

from pathlib import Path
from typing import Annotated

import typer

from ..targets.contract import BuildError
from .common import Json, app, guarded, needs_build_extra, print_json
from .options import Adapters, CheckpointName, Fit, Heard, MaxSize, merged


@app.command(epilog="Example: ossicle calibrate ./voxtral --speech data.jsonl --out voxtral-calibration.safetensors")
@guarded
def calibrate(
    checkpoint: CheckpointName,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the calibration goes.")],
    speech: Heard = None,
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", metavar="FILE", help="Write it as llama.cpp's GGUF, too.")
    ] = None,
    gradients: Annotated[
        bool,
        typer.Option(
            "--gradients", help="Weigh positions by the gradients there, too: for K-quants (docs/quality.md)."
        ),
    ] = False,
    adapter: Adapters = None,
    as_json: Json = False,
) -> None:
    """Measure what every matrix is multiplied with as the model transcribes speech, for --imatrix of a build."""
    needs_build_extra("calibrating")
    from ..compiler import calibration
    from ..compiler import imatrix as llamacpp
    from ..compiler.calibrate import calibrate as measured
    from ..compiler.checkpoint import open_checkpoint
    from ..compiler.families import family
    from ..compiler.written import check_place
    from .progress import Bars

    check_place(out, "--out")
    if imatrix:
        check_place(imatrix, "--imatrix")
        if imatrix.resolve() == out.resolve():
            raise BuildError(f"'{out}' cannot hold both forms. Give --imatrix another file")
    opened = open_checkpoint(checkpoint, adapters=merged(adapter))
    with Bars() as bars:
        found = measured(opened, speech, bars, gradients=gradients)
    calibration.write(out, found)
    if imatrix:
        llamacpp.write(imatrix, found, family(opened.family))
    said = {"calibration": str(out), "matrices": len(found.measured), "speech": found.speech, "weighed": found.weighed}
    print_json(said) if as_json else typer.echo(f"{out}: {len(found.measured)} matrices, measured on {found.speech}")


@app.command(epilog="Example: ossicle quantize ./voxtral --quantizer gptq --quant int4 --out voxtral-gptq.safetensors")
@guarded
def quantize(
    checkpoint: CheckpointName,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the integers go.")],
    quantizer: Annotated[
        str,
        typer.Option(
            "--quantizer",
            metavar="NAME|PART=NAME,...",
            help="How they are found: gptq, awq, awq-gptq; or part by part, as in mse,decoder=gptq.",
        ),
    ] = "gptq",
    quant: Annotated[
        str | None, typer.Option("--quant", help="The recipe: int4, int4-g128, int8, q4_k_m, ...; by default int4.")
    ] = None,
    max_size: MaxSize = None,
    fit: Fit = None,
    target: Annotated[
        str | None, typer.Option("--target", help="With --max-size or --fit: what will be built for. By default onnx.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="A recipe.json, in place of --quant.")
    ] = None,
    speech: Heard = None,
    adapter: Adapters = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint's integers as it hears speech, once for every target: for --quantized of a build."""
    needs_build_extra("quantizing")
    from ..compiler.checkpoint import open_checkpoint
    from ..compiler.written import check_place
    from .budget import quantizing
    from .progress import Bars

    check_place(out, "--out")
    made = quantizing(quant, max_size, fit, target, recipe)
    opened = open_checkpoint(checkpoint, adapters=merged(adapter))
    with Bars() as bars:
        count, named = made(opened, quantizer, out, speech, bars)
    said = {"quantized": str(out), "matrices": count, "quantizer": quantizer, "recipe": named}
    print_json(said) if as_json else typer.echo(f"{out}: {count} matrices, {named} by {quantizer}")
