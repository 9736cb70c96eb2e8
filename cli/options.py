"""Options that several commands take, and what their texts stand for."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..compiler.lora import AdapterSpec
    from ..compiler.runtime_adapters import RuntimeAdapterSpec

CheckpointName = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A folder, or a model's name on the hub.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="PATH[:WEIGHT]", help="A LoRA adapter in PEFT format to merge; may be repeated."),
]
RuntimeAdapters = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime-adapter",
        metavar="[NAME=]PATH",
        help="A LoRA adapter that is kept beside the decoder, for the engine to add as it runs; may be repeated.",
    ),
]
Imatrix = Annotated[
    Path | None,
    typer.Option("--imatrix", metavar="FILE", help="A calibration, or llama.cpp's importance matrix: weighs rounding."),
]
Quantized = Annotated[
    Path | None,
    typer.Option("--quantized", metavar="FILE", help="Integers that `ossicle quantize` made, for every target."),
]
Speech = Annotated[
    Path | None,
    typer.Option(
        "--speech",
        metavar="LIST",
        help='Recordings to compare on, a line each: {"file": "a.wav", "text": "..."}. By default those shipped.',
    ),
]
Heard = Annotated[
    Path | None,
    typer.Option(
        "--speech",
        metavar="LIST",
        help='Recordings to hear, a line each: {"file": "a.wav", "text": "..."}. By default those shipped.',
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option("--max-size", metavar="SIZE", help="The most that a target's artifacts may take, such as 2.2GB."),
]
Fit = Annotated[
    str | None,
    typer.Option("--fit", metavar="DEVICE[:TOKENS]", help="Fill this device's memory, with so many tokens of context."),
]
Executor = Annotated[str, typer.Option("--executor", help="Who does the work: processes of this machine, or ray.")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="ADDRESS", help="Ray: a cluster's. By default one of its own here."),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")]


def listed(text: str) -> tuple[str, ...]:
    """The words of a list with commas between, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def merged(adapters: Sequence[str] | None) -> "list[AdapterSpec]":
    """The adapters that `--adapter` names.

    Raises:
        AdapterError: a weight is no finite number.
    """
    from ..compiler.lora import parse_adapter

    return [parse_adapter(text) for text in adapters or ()]


def kept_apart(adapters: Sequence[str] | None) -> "list[RuntimeAdapterSpec]":
    """The adapters that `--runtime-adapter` names."""
    from ..compiler.runtime_adapters import parse_runtime_adapter

    return [parse_runtime_adapter(text) for text in adapters or ()]
