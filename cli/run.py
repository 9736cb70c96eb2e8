"""Commands that run bundles: `ossicle run` and `chat`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..targets.contract import EngineError, PromptError
from .common import Bundle, Json, app, guarded, print_json
from .progress import Bars
from .transcripts import Form, Transcribing

Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="What runs it, such as openvino, openvino:gpu or encoder=openvino,decoder=onnxruntime. By default the best.",
    ),
]
Threads = Annotated[int, typer.Option("--threads", min=0, help="0: as many as there are cores.")]
Provider = Annotated[str, typer.Option("--provider", help="What the engine computes on.")]
Cache = Annotated[
    str, typer.Option("--kv-cache", metavar="TYPE", help="Keys and values in float32, float16, int8 or int4.")
]
Flash = Annotated[bool | None, typer.Option("--flash-attention/--no-flash-attention", help="By default what is exact.")]
Compute = Annotated[
    str, typer.Option("--compute", metavar="TYPE", help="float32: llama.cpp widens all weights and rounds nothing.")
]
Scales = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME[:SCALE]", help="An adapter that the bundle keeps; may be repeated."),
]


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
    compute: Compute = "",
    adapter: Scales = None,
    form: Annotated[
        Form, typer.Option("--format", help="Text, subtitles of one recording, or JSON of all of them.")
    ] = Form.TXT,
    timestamps: Annotated[
        bool,
        typer.Option("--timestamps", help="Segment by segment, each with its time: lines in text, a list in JSON."),
    ] = False,
    progress: Annotated[
        bool,
        typer.Option("--progress/--no-progress", help="Bars on standard error while standard output is no terminal."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Transcribe recordings of any length, in order; the text comes as it is found.

    A file that fails does not stop the others; the exit code is then 1.
    """
    form = Form.JSON if as_json else form
    if form.is_subtitles and len(files) > 1:
        raise PromptError(
            f"--format {form.value} is of one recording, and {len(files)} were given. Run it for each of them."
        )
    with (
        opened(bundle, engine, threads, provider, kv_cache, flash_attention, adapter, compute) as session,
        Bars() as bars,
    ):
        shown = bars if progress and not sys.stdout.isatty() else None
        work = Transcribing(session, language, timestamps or form.is_subtitles, shown)
        failed = work.document(files) if form is Form.JSON else work.print(files, form)
    if failed:
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
    json_schema: Annotated[
        Path | None, typer.Option("--json-schema", metavar="FILE", help="The answer is JSON that holds to this schema.")
    ] = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            "--tools", metavar="FILE", help="Tools that may be called, a list in JSON; prints the calls as JSON."
        ),
    ] = None,
    tool_choice: Annotated[
        str,
        typer.Option("--tool-choice", metavar="auto|required|none|NAME", help="Whether tools are called, or which."),
    ] = "auto",
    engine: Engine = "auto",
    threads: Threads = 0,
    provider: Provider = "cpu",
    kv_cache: Cache = "",
    flash_attention: Flash = None,
    compute: Compute = "",
    adapter: Scales = None,
) -> None:
    """Ask about recordings, or anything else; the answer comes as it is made."""
    content = [{"type": "audio", "audio": str(file)} for file in audio or ()]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
    asked = _answer_settings(json_schema, tools, tool_choice)
    with opened(bundle, engine, threads, provider, kv_cache, flash_attention, adapter, compute) as session:
        stream = session.stream(messages, max_tokens=max_tokens, temperature=temperature, seed=seed, **asked)
        said = [_show(piece) for piece in stream]
        calls = stream.reply.tool_calls if tools else ()
    if said or not calls:
        typer.echo()
    if calls:
        print_json([{"id": one.id, "name": one.name, "arguments": json.loads(one.arguments)} for one in calls])


def _show(piece: str) -> str:
    typer.echo(piece, nl=False)
    sys.stdout.flush()
    return piece


def _answer_settings(schema: Path | None, tools: Path | None, choice: str) -> dict[str, Any]:
    """What the files say of an answer, as settings of a session."""
    from ..runtimes.tools import CHOICES

    settings: dict[str, Any] = {}
    if schema is not None:
        form = {"name": schema.stem, "schema": _read_json(schema)}
        settings["response_format"] = {"type": "json_schema", "json_schema": form}
    if tools is not None:
        named = {"type": "function", "function": {"name": choice}}
        settings |= {"tools": _read_json(tools), "tool_choice": choice if choice in CHOICES else named}
    elif choice != "auto":
        raise PromptError(f"--tool-choice {choice} needs tools to choose from. Give them with --tools FILE")
    return settings


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as reason:
        raise PromptError(f"'{file}' is no JSON: {reason}. Give a file of JSON.") from reason


def opened(
    bundle: Path,
    engine: str,
    threads: int,
    provider: str,
    kv_cache: str,
    flash_attention: bool | None,
    adapter: Sequence[str] | None,
    compute: str = "",
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
        compute=compute,
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
