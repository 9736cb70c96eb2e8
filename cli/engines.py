"""What the command line takes for TensorRT's engines, and what it shows of those that were built."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from ..targets import tensorrt_engine
from ..targets.contract import BuildError
from ..targets.manifest import Manifest
from ..targets.tensorrt_profiles import Engines

Kind = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="KIND",
        help="TensorRT: rtx (no GPU is needed), trt (for this GPU), none, or auto: what can be.",
    ),
]
Capabilities = Annotated[
    str | None,
    typer.Option(
        "--compute-capability",
        metavar="LIST",
        help="GPUs that TensorRT for RTX builds for, such as 86,89,120. By default all.",
    ),
]
Context = Annotated[
    int | None, typer.Option("--context", help="TensorRT: tokens that the cache of a sequence holds. By default 8192.")
]
Prompt = Annotated[int | None, typer.Option("--prompt", help="TensorRT: tokens that are read at a time.")]
Batch = Annotated[int | None, typer.Option("--batch", help="TensorRT: sequences that step together.")]


def engines(kind: str | None, capabilities: str | None, **sizes: int | None) -> Engines | None:
    """The engines asked for; None where nothing was said of them.

    Raises:
        BuildError: a compute capability is no number.
    """
    numbers = None if capabilities is None else _numbers(capabilities)
    said = {"kind": kind, "compute_capabilities": numbers, **sizes}
    given: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    if numbers and kind is None:
        given["kind"] = "rtx"
    return Engines(**given) if given else None


def rows(folder: Path, manifest: Manifest) -> list[tuple[str, ...]]:
    """Of each of TensorRT's graphs its engine, or the reason why there is none."""
    return [_row(folder, artifact) for artifact in manifest.artifacts if artifact.target == "tensorrt"]


def documents(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What is known of each engine, by stage."""
    found = ((one.stage, tensorrt_engine.facts(folder, one)) for one in manifest.artifacts if one.target == "tensorrt")
    return {
        stage: {field.name: getattr(facts, field.name) for field in fields(facts)} for stage, facts in found if facts
    }


def _row(folder: Path, artifact: Any) -> tuple[str, ...]:
    facts = tensorrt_engine.facts(folder, artifact)
    if facts is None:
        return (artifact.stage, "none", "", "", "", artifact.requirements.get("no_engine", ""))
    where = facts.device or ", ".join(map(str, facts.compute_capabilities)) or "Ampere and newer"
    return (
        artifact.stage,
        f"{tensorrt_engine.PACKAGES[facts.kind].name} {facts.version}, {where}",
        decimal(facts.size),
        f"{facts.seconds:.1f} s",
        decimal(facts.peak_memory),
        "\n".join(facts.warnings),
    )


def _numbers(text: str) -> tuple[int, ...]:
    """Compute capabilities of a text such as "86,8.9,120"."""
    parts = [part.strip().replace(".", "") for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        raise BuildError(f"'{text}' names no compute capabilities (it can be, for example: 86,89,120)")
    return tuple(map(int, parts))
