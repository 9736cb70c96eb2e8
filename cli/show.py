"""What the command line shows: documents for machines, tables for people."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from ..compiler.report import ADAPTER_HEAD, adapter_rows, figure, finite, label
from ..targets import registry
from ..targets.contract import Artifact, Recipe, RecipeError, Target
from ..targets.manifest import Manifest, bundle_files
from ..targets.recipes import RECIPES
from .engines import documents as engine_documents
from .engines import rows as engine_rows

_SHOWN = ("logits", "kl", "top1", "same_text", "wer_original", "wer")


_BUILD = ("torch", "onnx", "onnx_ir", "onnxscript")
_NEEDED = {  # to write a target's files, or to run them
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "gguf": "xllamacpp",
    "coreml": "coremltools",
    "tensorrt": "tensorrt_rtx",
}


def console() -> Console:
    """Standard output; a table that is piped away is not cut."""
    found = Console()
    return found if found.is_terminal else Console(width=200)


def plain(value: Any) -> Any:
    """A value of dataclasses, mappings, sequences and paths as JSON holds it."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    return finite(value) if isinstance(value, int | float | str | None) else str(value)


def build_document(report: Any) -> dict[str, Any]:
    """What was built, where, how large, and how it compares with its original."""
    return {
        "bundle": str(report.folder),
        "name": report.manifest.name,
        "recipe": report.manifest.recipe["name"],
        "targets": _targets(report.manifest),
        "bytes": _size(report.manifest),
        "seconds": report.seconds,
        "engines": engine_documents(report.folder, report.manifest),
        "verification": plain(report.manifest.verification),
    }


def build(report: Any) -> None:
    """The bundle that was built, and what it costs."""
    console().print(f"Built {escape(str(report.folder))} in {report.seconds:.1f} s.")
    bundle(report.manifest)
    engines(report.folder, report.manifest)


def engines(folder: Path, manifest: Manifest) -> None:
    """TensorRT's engines in a bundle, where it has graphs for them."""
    if rows := engine_rows(folder, manifest):
        console().print(table(("stage", "engine", "size", "built in", "memory", "said"), rows))


def bundle_document(manifest: Manifest) -> dict[str, Any]:
    """The manifest, with the size of all files."""
    document: dict[str, Any] = plain(manifest)
    return document | {"bytes": _size(manifest)}


def bundle(manifest: Manifest) -> None:
    """A bundle's stages, files, precision and memory, and how its verification went."""
    out = console()
    adapters = ", ".join(f"{adapter.name}:{adapter.weight:g}" for adapter in manifest.adapters) or "none"
    recipe = manifest.recipe["name"]
    out.print(f"{escape(manifest.name)}: {manifest.family}, recipe {recipe}, {decimal(_size(manifest))}")
    out.print(f"adapters: {escape(adapters)}")
    if kept := [f"{adapter.name} ({adapter.target})" for adapter in manifest.runtime_adapters]:
        out.print(f"adapters at run time: {escape(', '.join(kept))}")
    for target in _encoders_alone(manifest):
        out.print(f"{target}: the audio encoder alone, for an engine that takes audio from it")
    head = ("target", "stage", "precision", "files", "size", "memory", "and each token")
    out.print(table(head, map(_artifact_row, manifest.artifacts)))
    if manifest.verification:
        for target, entry in manifest.verification.items():
            out.print(table((f"{target} verified", _verdict(entry)), _verified_rows(entry["figures"])))
    else:
        out.print("not verified. Verify with: ossicle verify BUNDLE --checkpoint CHECKPOINT")


def verification(result: Any) -> None:
    """Each figure of a verification beside its limit."""
    out = console()
    for target in result.targets:
        out.print(f"{target.target}: {'passed' if target.passed else 'FAILED'} ({target.proof}, {target.engine})")
        limits = {check.figure: check for check in target.checks}
        rows = [_figure_row(name, value, limits.get(name)) for name, value in vars(target.figures).items()]
        out.print(table(("figure", "value", "limit", ""), rows))
    if result.adapters:
        out.print(table(ADAPTER_HEAD, adapter_rows(result.adapters)))


def checkpoint_document(checkpoint: Any) -> dict[str, Any]:
    """What a checkpoint holds: family, tensors, parameters, sizes, files."""
    sizes = [math.prod(tensor.shape) for tensor in checkpoint.tensors.values()]
    return {
        "name": checkpoint.source.name,
        "family": str(checkpoint.config.get("model_type", "unknown")),
        "tensors": len(sizes),
        "parameters": sum(sizes),
        "precision": sorted({tensor.dtype for tensor in checkpoint.tensors.values()}),
        "files": [asdict(file) for file in checkpoint.source.files],
    }


def checkpoint(document: Mapping[str, Any]) -> None:
    """A checkpoint's family, size and files."""
    out = console()
    out.print(f"{escape(document['name'])}: {document['family']}, {', '.join(document['precision'])}")
    out.print(f"{document['parameters']:,} parameters in {document['tensors']} tensors")
    rows = [(file["path"], decimal(file["size"]), file["sha256"][:16]) for file in document["files"]]
    out.print(table(("file", "size", "sha256"), rows))


def target_rows() -> list[dict[str, Any]]:
    """Every target: the recipes it holds, and what is missing to build for it or to run it."""
    return [
        {
            "target": name,
            "recipes": [recipe.name for recipe in RECIPES.values() if _holds(registry.target(name), recipe)],
            "missing": [package for package in (*_BUILD, _NEEDED[name]) if find_spec(package) is None],
            "install": f"pip install 'ossicle[{name},build]'",
        }
        for name in registry.names()
    ]


def targets() -> None:
    """The targets as a table."""
    rows = [
        (row["target"], ", ".join(row["recipes"]), row["install"] if row["missing"] else "installed")
        for row in target_rows()
    ]
    console().print(table(("target", "recipes", "installed"), rows))


def _holds(target: Target, recipe: Recipe) -> bool:
    try:
        target.check(recipe)
    except RecipeError:
        return False
    return True


def _artifact_row(artifact: Artifact) -> tuple[str, ...]:
    return (
        artifact.target,
        artifact.stage,
        artifact.precision,
        "\n".join(Path(file.path).name for file in artifact.files),
        decimal(sum(file.size for file in artifact.files)),
        decimal(artifact.memory.weights + artifact.memory.working),
        decimal(artifact.memory.kv_per_token) if artifact.memory.kv_per_token else "",
    )


def _verdict(entry: Mapping[str, Any]) -> str:
    verdict = "passed" if entry["passed"] else f"FAILED: {', '.join(map(label, entry['failed']))}"
    return f"{verdict} ({entry['proof']}, {entry['engine']})"


def _verified_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = {name: value for name, value in figures.items() if value is not None}
    return [(label(name), figure(name, float(known[name]))) for name in _SHOWN if name in known]


def _figure_row(name: str, value: float | None, check: Any) -> tuple[str, ...]:
    limit = figure(name, check.limit) if check else ""
    verdict = ("ok" if check.passed else "FAILED") if check else ""
    return label(name), figure(name, value), limit, verdict


def _targets(manifest: Manifest) -> list[str]:
    return list(dict.fromkeys(artifact.target for artifact in manifest.artifacts))


def _encoders_alone(manifest: Manifest) -> list[str]:
    whole = {artifact.target for artifact in manifest.artifacts if artifact.stage == "decoder"}
    return [target for target in _targets(manifest) if target not in whole]


def _size(manifest: Manifest) -> int:
    return sum(file.size for file in bundle_files(manifest))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table of plain text."""
    made = Table(*head, title=title)
    for row in rows:
        made.add_row(*map(escape, row))
    return made
