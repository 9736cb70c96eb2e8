"""The bundle's manifest: `manifest.json` at the root of a bundle, the only door between building and running.

The format is described in docs/bundle-format.md. Same inputs give the same bytes: no times, no paths of the building
machine, keys in a fixed order.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .contract import Artifact, BundleError, BundleFile, Memory, Port

VERSION = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class Source:
    """Where a bundle's numbers come from: the files read, each with its sha256."""

    name: str
    files: tuple[BundleFile, ...]


@dataclass(frozen=True)
class AdapterSource:
    """A LoRA adapter that was merged, and the weight it was merged with."""

    name: str
    weight: float
    files: tuple[BundleFile, ...]


@dataclass(frozen=True)
class RuntimeAdapter:
    """A LoRA adapter kept beside the artifacts of a target, for its engine to add as it runs."""

    name: str
    target: str
    file: BundleFile
    source: tuple[BundleFile, ...]  # the files that it was made from


@dataclass(frozen=True)
class AudioFormat:
    """What the audio encoder takes: the front end of kernels/logmel.py, in windows."""

    sample_rate: int  # Hz
    mel_bins: int
    fft: int  # samples
    hop: int  # samples
    window_frames: int  # log-mel frames in one encoder window
    tokens_per_window: int


@dataclass(frozen=True)
class ToolFormat:
    """How a model is told of functions, calls them and is given their results: templates, as those of TextFormat.

    `calls` ends an assistant's turn, and an answer that calls functions is `calls` alone or behind a text. What stands
    before the first call in it is a special token.
    """

    available: str  # {tools} stands for their definitions in JSON
    before: str  # which of the user's turns they stand before: "first" or "last"
    calls: str  # round all calls of a turn, {calls}
    call: str  # one call: {name}, {id} and {arguments}, these in JSON
    call_without_id: str
    between: str  # calls
    result: str  # {content} is what the function that was called as {id} gave
    results_in_order: bool  # of their calls; otherwise as the conversation has them


@dataclass(frozen=True)
class TextFormat:
    """The decoder's side: sizes, ids and the prompts that the model was trained on.

    Prompts are templates: `{audio}`, `{content}` and `{language}` are filled in; all else is text in which special
    tokens such as `[INST]` are recognized (never in what is filled in).
    """

    hidden: int
    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int  # tokens
    audio_token: int
    stop_tokens: tuple[int, ...]
    pad_token: int
    begin: str  # before the first turn
    audio: str  # round each clip; {audio} stands for its audio tokens
    transcribe: str
    transcribe_language: str
    system: str
    user: str
    assistant: str
    tools: ToolFormat | None = None  # None: a bundle of before there were any, or a model that knows none


@dataclass(frozen=True)
class Manifest:
    """Everything a device has to know of a bundle. Paths are relative to the bundle's folder."""

    family: str
    name: str
    recipe: Mapping[str, Any]
    source: Source
    adapters: tuple[AdapterSource, ...]
    audio: AudioFormat
    text: TextFormat
    artifacts: tuple[Artifact, ...]
    files: tuple[BundleFile, ...]  # shared by all artifacts: tokenizer, configs
    tools: Mapping[str, str]
    runtime_adapters: tuple[RuntimeAdapter, ...] = ()
    imatrix: BundleFile | None = None  # what the rounding of blocks was weighed by; not in the bundle
    quantized: BundleFile | None = None  # the quantized weights that it was made with; not in the bundle
    verification: Mapping[str, Any] = field(default_factory=dict)  # by target; see compiler/marking.py
    version: int = VERSION


def file_entry(folder: Path, path: Path) -> BundleFile:
    """The manifest's line for a file under `folder`."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return BundleFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest)


def write(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` under `folder`."""
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        BundleError: there is none, it cannot be understood, or a newer ossicle wrote it.
    """
    path = folder / NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(
            f"'{folder}' is not a bundle: it has no {NAME}. Build one with: ossicle build CHECKPOINT --out {folder}"
        ) from None
    except NotADirectoryError:
        raise BundleError(f"'{folder}' is a file. Give the folder of a bundle, as ossicle build makes it.") from None
    except (OSError, ValueError) as reason:
        raise BundleError(f"'{path}' cannot be read: {reason}. Build the bundle again: ossicle build") from reason
    return _manifest(path, document)


def check_files(folder: Path, manifest: Manifest, *, hashes: bool = True) -> None:
    """Compare every file of a bundle with its manifest.

    Raises:
        BundleError: listing every file that is missing, of another size or (with `hashes`) of other content.
    """
    faults = [fault for entry in bundle_files(manifest) if (fault := _fault(folder, entry, hashes))]
    if faults:
        raise BundleError(
            f"bundle '{folder}' is damaged: " + "; ".join(faults) + ". Copy or build it again: ossicle build"
        )


def bundle_files(manifest: Manifest) -> tuple[BundleFile, ...]:
    """Every file a bundle consists of, the manifest itself apart, each once."""
    entries = {entry.path: entry for artifact in manifest.artifacts for entry in artifact.files}
    entries |= {adapter.file.path: adapter.file for adapter in manifest.runtime_adapters}
    entries |= {entry.path: entry for entry in manifest.files}
    return tuple(entries[path] for path in sorted(entries))


def _fault(folder: Path, entry: BundleFile, hashes: bool) -> str | None:
    path = folder / entry.path
    if not path.is_file():
        return f"{entry.path} is missing"
    size = path.stat().st_size
    if size != entry.size:
        return f"{entry.path} has {size} bytes instead of {entry.size}"
    if hashes and file_entry(folder, path).sha256 != entry.sha256:
        return f"{entry.path} does not match its sha256"
    return None


def _manifest(path: Path, document: Any) -> Manifest:
    version = document.get("version") if isinstance(document, dict) else None
    if not isinstance(version, int) or version < 1:
        raise BundleError(f"'{path}' is not an ossicle manifest: it has no version. Build one with: ossicle build")
    if version > VERSION:
        raise BundleError(
            f"'{path}' is of version {version}; this ossicle reads up to {VERSION}. "
            "Upgrade with: pip install --upgrade ossicle"
        )
    try:
        return _decode(document)
    except (KeyError, TypeError, ValueError, AttributeError) as reason:
        raise BundleError(
            f"'{path}' is incomplete: {type(reason).__name__} {reason}. Build it again: ossicle build"
        ) from reason


def _decode(document: Mapping[str, Any]) -> Manifest:
    return Manifest(
        family=document["family"],
        name=document["name"],
        recipe=document["recipe"],
        source=Source(document["source"]["name"], _files(document["source"]["files"])),
        adapters=tuple(
            AdapterSource(entry["name"], float(entry["weight"]), _files(entry["files"]))
            for entry in document["adapters"]
        ),
        audio=AudioFormat(**document["audio"]),
        text=_text(document["text"]),
        artifacts=tuple(artifact_of(entry) for entry in document["artifacts"]),
        files=_files(document["files"]),
        tools=document["tools"],
        imatrix=BundleFile(**document["imatrix"]) if document.get("imatrix") else None,
        quantized=BundleFile(**document["quantized"]) if document.get("quantized") else None,
        runtime_adapters=tuple(map(_runtime_adapter, document.get("runtime_adapters", ()))),
        verification=document["verification"],
        version=document["version"],
    )


def _text(entry: Mapping[str, Any]) -> TextFormat:
    tools = ToolFormat(**entry["tools"]) if entry.get("tools") else None
    return TextFormat(**{**entry, "stop_tokens": tuple(entry["stop_tokens"]), "tools": tools})


def artifact_of(entry: Mapping[str, Any]) -> Artifact:
    """The artifact that an entry of a manifest describes."""
    return Artifact(
        target=entry["target"],
        stage=entry["stage"],
        recipe=entry["recipe"],
        precision=entry["precision"],
        files=_files(entry["files"]),
        inputs=_ports(entry["inputs"]),
        outputs=_ports(entry["outputs"]),
        requirements=entry["requirements"],
        memory=Memory(**entry["memory"]),
    )


def _runtime_adapter(entry: Mapping[str, Any]) -> RuntimeAdapter:
    (file,) = _files([entry["file"]])
    return RuntimeAdapter(entry["name"], entry["target"], file, _files(entry["source"]))


def _files(entries: list[Mapping[str, Any]]) -> tuple[BundleFile, ...]:
    files = tuple(BundleFile(**entry) for entry in entries)
    for file in files:
        if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
            raise ValueError(f"path '{file.path}' leaves the bundle")
    return files


def _ports(entries: list[Mapping[str, Any]]) -> tuple[Port, ...]:
    return tuple(Port(entry["name"], entry["dtype"], tuple(entry["shape"])) for entry in entries)
