"""The command `ossicle`: one function a command, and nothing heavy imported before a command needs it."""

import functools
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from .. import __version__
from ..targets.contract import AudioError, BuildError, EngineError, OssicleError, PromptError
from ..targets.tensorrt_engine import Engines
from .cli_engines import Batch, Capabilities, Context, Kind, Prompt, documents, engines

P = ParamSpec("P")
app = typer.Typer(
    name="ossicle",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Compile a trained audio-language model once, prove every artifact, run it on the best engine present.",
)
_BUILD = ("torch", "transformers", "safetensors", "onnx", "onnx_ir", "onnxscript", "mistral_common")
_options = {"debug": False}

Bundle = Annotated[Path, typer.Argument(help="A folder that `ossicle build` made.", metavar="BUNDLE")]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="PATH[:WEIGHT]", help="A LoRA adapter in PEFT format to merge; may be repeated."),
]
Engine = Annotated[str, typer.Option("--engine", help="What runs it; the best that can where none is named.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="0: as many as there are cores.")]
Provider = Annotated[str, typer.Option("--provider", help="What the engine computes on.")]
Cache = Annotated[
    str, typer.Option("--kv-cache", metavar="TYPE", help="Keys and values in float32, float16, int8 or int4.")
]
Flash = Annotated[bool | None, typer.Option("--flash-attention/--no-flash-attention", help="By default what is exact.")]
Scales = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME[:SCALE]", help="An adapter that the bundle keeps; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
Measured = Annotated[
    Path | None,
    typer.Option("--imatrix", metavar="FILE", help="llama.cpp's importance matrix, for the recipes of GGUF's blocks."),
]
Speech = Annotated[
    Path | None,
    typer.Option(
        "--speech",
        metavar="LIST",
        help='Recordings to verify on, a line each: {"file": "a.wav", "text": "..."}. By default those shipped.',
    ),
]


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """The command with its errors said in one line: exit code 1, or 130 where the user interrupted it."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except OssicleError as reason:
            if _options["debug"]:
                raise
            complain(str(reason))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            complain("interrupted; no half-written bundle is left behind")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise
        except OSError as reason:
            if _options["debug"]:
                raise
            complain(f"'{reason.filename}' cannot be used: {reason.strerror or reason}")
            raise typer.Exit(1) from None

    return run


def complain(message: str) -> None:
    """One line on standard error."""
    typer.echo(f"ossicle: {' '.join(message.split())}", err=True)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ossicle {__version__}")
        raise typer.Exit


def _hush() -> None:
    """Keep what libraries tell their programmers from the user's terminal."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@app.callback()
def common(
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Options before any command."""
    _options["debug"] = debug
    if not debug:
        _hush()


@app.command(epilog="Example: ossicle build ./voxtral --out voxtral-int4 --quant int4 --adapter ./lora:0.8")
@guarded
def build(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A folder, or a model's name on the hub.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the bundle goes.")],
    adapter: Adapters = None,
    runtime_adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime-adapter",
            metavar="[NAME=]PATH",
            help="A LoRA adapter to keep beside the decoder, for the engine to add as it runs; may be repeated.",
        ),
    ] = None,
    target: Annotated[str, typer.Option("--target", help="What to build for, separated by commas.")] = "onnx",
    quant: Annotated[str, typer.Option("--quant", help="The recipe: fp32, fp16, int8, int4, ...")] = "int4",
    imatrix: Measured = None,
    split_size: Annotated[
        str | None,
        typer.Option(
            "--split-size", metavar="SIZE", help="The most that one GGUF file may hold, such as 2GB or 500MB."
        ),
    ] = None,
    engine: Kind = None,
    compute_capability: Capabilities = None,
    context: Context = None,
    speech: Speech = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare with the original.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Compile a checkpoint, with any adapters merged, into a bundle; then verify it."""
    needs_build_extra("building")
    from . import cli_show, pipeline
    from .cli_progress import Bars
    from .lora import parse_adapter
    from .runtime_adapters import parse_runtime_adapter

    with Bars() as bars:
        report = pipeline.build(
            checkpoint,
            out,
            targets=tuple(name.strip() for name in target.split(",") if name.strip()),
            recipe=quant,
            adapters=[parse_adapter(text) for text in adapter or ()],
            runtime_adapters=[parse_runtime_adapter(text) for text in runtime_adapter or ()],
            imatrix=imatrix,
            split_bytes=_bytes(split_size) if split_size else None,
            engines=engines(engine, compute_capability, context=context),
            speech=speech,
            verify=not no_verify,
            force=force,
            progress=bars,
        )
    if as_json:
        print_json(cli_show.build_document(report))
    else:
        cli_show.build(report)
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
    from . import cli_show
    from .cli_progress import Bars

    context = tensorrt_engine.context(manifests.read(bundle))
    asked = engines(engine, compute_capability, context=context, prompt=prompt, batch=batch) or Engines()
    with Bars() as bars:
        manifest = tensorrt_engine.add(bundle, asked, bars)
    if as_json:
        print_json(documents(bundle, manifest))
    else:
        cli_show.engines(bundle, manifest)


@app.command(epilog="Example: ossicle verify voxtral-int4 --checkpoint ./voxtral --speech data.jsonl --report ./report")
@guarded
def verify(
    bundle: Bundle,
    checkpoint: Annotated[str, typer.Option("--checkpoint", metavar="CHECKPOINT", help="What it was built from.")],
    adapter: Adapters = None,
    imatrix: Measured = None,
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
    from . import cli_show
    from .checkpoint import open_checkpoint
    from .cli_progress import Bars
    from .lora import parse_adapter
    from .report import document, write
    from .verify import mark
    from .verify import verify as compare

    with Bars() as bars:
        merged = [parse_adapter(text) for text in adapter or ()]
        original = open_checkpoint(checkpoint, adapters=merged, imatrix=imatrix)
        verification = compare(bundle, original, speech=speech, cache=cache, engine=engine, progress=bars)
    if engine is None:
        mark(bundle, verification)
    if engine is None or report:
        write(report or bundle, verification)
    if as_json:
        print_json(document(verification))
    else:
        cli_show.verification(verification)
    _conclude(verification)


@app.command(epilog="Example: ossicle run voxtral-int4 meeting.wav call.flac --language en --json")
@guarded
def run(
    bundle: Bundle,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings: WAV, FLAC, OGG, MP3.")],
    language: Annotated[str | None, typer.Option("--language", metavar="XX", help="Spoken, for example en.")] = None,
    engine: Engine = "auto",
    threads: Threads = 0,
    provider: Provider = "cpu",
    kv_cache: Cache = "",
    flash_attention: Flash = None,
    adapter: Scales = None,
    as_json: Json = False,
) -> None:
    """Transcribe recordings, in order. A file that fails does not stop the others; the exit code is then 1."""
    entries = []
    with opened(bundle, engine, threads, provider, kv_cache, flash_attention, adapter) as session:
        for file in files:
            entries.append(_transcribe(session, file, language))
            if not as_json:
                _print_transcript(entries[-1], alone=len(files) == 1)
    if as_json:
        print_json(entries)
    if any("error" in entry for entry in entries):
        raise typer.Exit(1)


@app.command(epilog='Example: ossicle chat voxtral-int4 --audio call.wav "What was agreed?"')
@guarded
def chat(
    bundle: Bundle,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask.")],
    audio: Annotated[
        list[Path] | None, typer.Option("--audio", metavar="FILE", help="A recording to ask about; may be repeated.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The longest answer.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0: always the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw, where the temperature is not 0.")] = 0,
    engine: Engine = "auto",
    threads: Threads = 0,
    provider: Provider = "cpu",
    kv_cache: Cache = "",
    flash_attention: Flash = None,
    adapter: Scales = None,
) -> None:
    """Ask about recordings, or anything else; the answer comes as it is made."""
    content = [{"type": "audio", "audio": str(file)} for file in audio or ()]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
    with opened(bundle, engine, threads, provider, kv_cache, flash_attention, adapter) as session:
        for piece in session.stream(messages, max_tokens=max_tokens, temperature=temperature, seed=seed):
            typer.echo(piece, nl=False)
            sys.stdout.flush()
    typer.echo()


@app.command(epilog="Example: ossicle inspect voxtral-int4")
@guarded
def inspect(
    location: Annotated[str, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="What to look into.")],
    as_json: Json = False,
) -> None:
    """What a bundle or a checkpoint holds: stages, files, sizes, precision, memory, verification."""
    from ..targets import manifest as manifests
    from . import cli_show

    if (Path(location) / manifests.NAME).is_file():
        found = manifests.read(Path(location))
        print_json(cli_show.bundle_document(found)) if as_json else cli_show.bundle(found)
        return
    from .checkpoint import open_checkpoint

    held = cli_show.checkpoint_document(open_checkpoint(location))
    print_json(held) if as_json else cli_show.checkpoint(held)


@app.command()
@guarded
def doctor(as_json: Json = False) -> None:
    """What this machine has, which engines work here, and why the others do not."""
    import ossicle

    from . import cli_show

    facts = ossicle.doctor()
    print_json(cli_show.plain(facts)) if as_json else cli_show.facts(facts)


@app.command()
@guarded
def targets(as_json: Json = False) -> None:
    """What can be built for, the formats that each target holds, and whether it is installed."""
    from . import cli_show

    print_json(cli_show.target_rows()) if as_json else cli_show.targets()


@app.command()
@guarded
def demo(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Keep the bundles here. By default they go away.")
    ] = None,
) -> None:
    """Build, verify and run the small Voxtral that ossicle ships, with and without its adapter."""
    needs_build_extra("the demo")
    from . import demonstration
    from .cli_progress import Bars

    with Bars() as bars:
        passed = demonstration.show(out, bars)
    if not passed:
        raise typer.Exit(1)


def opened(
    bundle: Path,
    engine: str,
    threads: int,
    provider: str,
    kv_cache: str,
    flash_attention: bool | None,
    adapter: Sequence[str] | None,
) -> Any:
    """A session on a bundle, as the options of a command say."""
    import ossicle

    return ossicle.load(
        bundle,
        engine=engine,
        threads=threads,
        provider=provider,
        kv_cache=kv_cache,
        flash_attention=flash_attention,
        adapters=scales(adapter or ()),
    )


def scales(texts: Sequence[str]) -> dict[str, float]:
    """How much of each adapter is added, by name, of texts `name[:scale]`; all of it where no scale is given.

    Raises:
        EngineError: a scale is no number, or an adapter is named twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, colon, scale = text.partition(":")
        try:
            number = float(scale) if colon else 1.0
        except ValueError:
            raise EngineError(f"'{text}' is no adapter with a scale (possible: NAME or NAME:0.5).") from None
        if name in found:
            raise EngineError(f"adapter '{name}' is named twice. Give it once, with one scale: NAME:0.5")
        found[name] = number
    return found


def needs_build_extra(what: str) -> None:
    """Refuse where the packages of the build extra are not installed.

    Raises:
        BuildError: naming those that are missing, with the pip command.
    """
    from importlib.util import find_spec

    missing = [name for name in _BUILD if find_spec(name) is None]
    if missing:
        raise BuildError(f"{what} needs {', '.join(missing)}. Install them with: pip install 'ossicle[build,onnx]'")


def _bytes(text: str) -> int:
    """The size that a text such as "2GB" or "500MB" names, in powers of ten."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|MB)", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise BuildError(
            f"'{text}' is no size of a file (it can be, for example: 2GB, 500MB). Give another --split-size"
        )
    return int(float(found[1]) * {"GB": 1e9, "MB": 1e6}[found[2].upper()])


def print_json(document: Any) -> None:
    """A document as JSON on standard output."""
    typer.echo(json.dumps(document, indent=1, ensure_ascii=False))


def _transcribe(session: Any, file: Path, language: str | None) -> dict[str, Any]:
    try:
        found = session.transcribe(file, language=language)
    except (AudioError, PromptError) as reason:
        return {"file": str(file), "error": " ".join(str(reason).split())}
    timings = {name: round(value, 4) for name, value in vars(found.timings).items()}
    return {"file": str(file), "text": found.text, "engine": found.engine, "timings": timings}


def _print_transcript(entry: dict[str, Any], *, alone: bool) -> None:
    if "error" in entry:
        complain(entry["error"])
        return
    typer.echo(entry["text"] if alone else f"{entry['file']}: {entry['text']}")


def _conclude(verification: Any) -> None:
    from . import report

    faults = report.faults(verification)
    for fault in faults:
        complain(f"verification failed: {fault}")
    if faults:
        raise typer.Exit(1)


def main() -> None:
    """The command line's entry."""
    app()


if __name__ == "__main__":
    main()
