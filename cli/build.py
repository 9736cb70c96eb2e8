"""Commands that make bundles and prove them: `ossicle build`, `engine` and `verify`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..targets.tensorrt_profiles import Engines
from .common import Bundle, Json, app, complain, file_size, guarded, needs_build_extra, print_json
from .engines import Batch, Capabilities, Context, Kind, Prompt, documents, engines
from .options import (
    Adapters,
    CheckpointName,
    Fit,
    Imatrix,
    MaxSize,
    Quantized,
    RuntimeAdapters,
    Speech,
    kept_apart,
    listed,
    merged,
)

Quantizer = Annotated[
    str | None,
    typer.Option(
        "--quantizer",
        metavar="NAME|PART=NAME,...",
        help="How integers are found: nearest, mse, hqq; or part by part, as in lm_head=mse,encoder=hqq. By default nearest.",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", metavar="LIST", help="Recordings that losses are measured on, as --speech has them."),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="A recipe.json: its formats; with --max-size or --fit, its losses."),
]


@app.command(epilog="Example: ossicle build ./voxtral --out voxtral-int4 --quant int4 --adapter ./lora:0.8")
@guarded
def build(
    checkpoint: CheckpointName,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the bundle goes.")],
    adapter: Adapters = None,
    runtime_adapter: RuntimeAdapters = None,
    target: Annotated[str, typer.Option("--target", help="What to build for, separated by commas.")] = "onnx",
    quant: Annotated[
        str | None, typer.Option("--quant", help="The recipe: fp32, fp16, int8, int4, ...; by default int4.")
    ] = None,
    max_size: MaxSize = None,
    fit: Fit = None,
    calibration: Calibration = None,
    recipe: RecipeFile = None,
    quantizer: Quantizer = None,
    quantized: Quantized = None,
    imatrix: Imatrix = None,
    split_size: Annotated[
        str | None,
        typer.Option(
            "--split-size", metavar="SIZE", help="The most that one GGUF file may hold, such as 2GB or 500MB."
        ),
    ] = None,
    engine: Kind = None,
    compute_capability: Capabilities = None,
    context: Context = None,
    coreml_context: Annotated[
        int | None,
        typer.Option("--coreml-context", help="Core ML: tokens that the decoder's state holds. By default 4096."),
    ] = None,
    speech: Speech = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare with the original.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Compile a checkpoint, with any adapters merged, into a bundle; then verify it."""
    needs_build_extra("building")
    from .budget import builder
    from .progress import Bars

    made = builder(quant, max_size, fit, recipe, calibration)
    with Bars() as bars:
        report = made(
            checkpoint,
            out,
            targets=listed(target),
            adapters=merged(adapter),
            runtime_adapters=kept_apart(runtime_adapter),
            quantizer=quantizer,
            quantized=quantized,
            imatrix=imatrix,
            split_bytes=file_size(split_size, "--split-size") if split_size else None,
            engines=engines(engine, compute_capability, context=context),
            coreml_context=coreml_context,
            speech=speech,
            verify=not no_verify,
            force=force,
            progress=bars,
        )
    _show(report, as_json)


def _show(report: Any, as_json: bool) -> None:
    """Say what was built; exit where it failed verification."""
    from . import show

    if as_json:
        print_json(show.build_document(report))
    else:
        show.build(report)
    if report.verification is not None:
        _conclude(report.verification)


@app.command(name="engine", epilog="Example: ossicle engine voxtral-int4 --compute-capability 89")
@guarded
def build_engines(
    bundle: Bundle,
    engine: Kind = "rtx",
    compute_capability: Capabilities = None,
    prompt: Prompt = None,
    batch: Batch = None,
    as_json: Json = False,
) -> None:
    """Build TensorRT's engines of a bundle's graphs, for this machine or another."""
    from ..targets import manifest as manifests
    from ..targets import tensorrt_engine
    from . import show
    from .progress import Bars

    context = tensorrt_engine.context(manifests.read(bundle))
    asked = engines(engine, compute_capability, context=context, prompt=prompt, batch=batch) or Engines()
    with Bars() as bars:
        manifest = tensorrt_engine.add(bundle, asked, bars)
    if as_json:
        print_json(documents(bundle, manifest))
    else:
        show.engines(bundle, manifest)


@app.command(epilog="Example: ossicle verify voxtral-int4 --checkpoint ./voxtral --speech data.jsonl --report ./report")
@guarded
def verify(
    bundle: Bundle,
    checkpoint: Annotated[str, typer.Option("--checkpoint", metavar="CHECKPOINT", help="What it was built from.")],
    adapter: Adapters = None,
    runtime_adapter: RuntimeAdapters = None,
    imatrix: Imatrix = None,
    quantized: Quantized = None,
    speech: Speech = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Where the reports go. By default into the bundle.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Keep the original's answers for the next time.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="Compare what this engine makes of it; the bundle keeps the verdict it has."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare a bundle with its original: log-mel, embeddings, logits, texts, word error rate."""
    needs_build_extra("verifying")
    from ..compiler import speech as recordings
    from ..compiler.checkpoint import open_checkpoint
    from ..compiler.marking import mark
    from ..compiler.report import document, write
    from ..compiler.runtime_adapters import open_all
    from ..compiler.verify import verify as compare
    from ..targets import registry
    from . import show
    from .progress import Bars

    with Bars() as bars:
        original = open_checkpoint(checkpoint, adapters=merged(adapter), imatrix=imatrix, quantized=quantized)
        kept = open_all(kept_apart(runtime_adapter), original, registry.names())
        verification = compare(
            bundle, original, speech=speech, cache=cache, engine=engine, runtime_adapters=kept, progress=bars
        )
    if engine is None:
        mark(bundle, verification)
    if engine is None or report:
        write(report or bundle, verification, recordings.load(speech or recordings.shipped()))
    if as_json:
        print_json(document(verification))
    else:
        show.verification(verification)
    _conclude(verification)


def _conclude(verification: Any) -> None:
    from ..compiler import report

    faults = report.faults(verification)
    for fault in faults:
        complain(f"verification failed: {fault}")
    if faults:
        raise typer.Exit(1)
