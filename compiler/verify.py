"""Whether a bundle computes what its original does, and by how much it does not.

The bundle is run as a device would run it: by `ossicle.runtimes.probe`, in a process that has no torch. The original's
readings are made first and kept on disk, so that the two never share the machine's memory.
"""

import math
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..targets import manifest as manifests
from ..targets.contract import BundleFile, EngineError, Float32, Progress, Thresholds, VerificationError
from ..targets.manifest import AdapterSource, Manifest
from ..targets.probe import Answer, Report, Request, command, read_report, write_requests
from . import reference, stored
from . import runtime_adapters as beside
from . import speech as recordings
from . import verify_adapters as adapters
from .checkpoint import Checkpoint
from .figures import (
    AdapterVerification,
    Comparison,
    Figures,
    Said,
    TargetVerification,
    Verification,
    agreement,
    difference,
    divergence,
    judge,
    relative,
)
from .imatrix import Imatrix
from .quantized import Quantized
from .reference import Reading, Reply
from .speech import Clip
from .stored import StoredReading

_CHUNK = 16  # clips asked in one process
_CHUNK_BYTES = 1 << 28


@dataclass(frozen=True)
class Kept:
    """A clip, and the files that hold the original's reading of it and, where the recipe rounds, the rounded one's."""

    clip: Clip
    path: Path
    rounded: Path | None


def verify(
    bundle: Path,
    checkpoint: Checkpoint,
    *,
    speech: Path | None = None,
    cache: Path | None = None,
    engine: str | None = None,
    target: str | None = None,
    runtime_adapters: Sequence[beside.Kept] = (),
    progress: Progress | None = None,
) -> Verification:
    """How the bundle at a path compares with the checkpoint (adapters merged) that it was built from.

    Of `runtime_adapters` each is compared too, as the bundle adds it, with the original that it is merged into.

    `speech` lists the recordings, by default those that ossicle ships. `cache` keeps the original's readings. `engine` runs the
    artifacts in place of the one that they were built for. `target` is the only one that is compared.

    Raises:
        VerificationError: the checkpoint or its adapters are not the bundle's, or the original does not fit in memory.
        AudioError: the speech list, or a recording of it, cannot be used.
        EngineError: an engine is missing, or refused the bundle.
    """
    manifest = manifests.read(bundle)
    check_source(manifest, checkpoint)
    spoken = recordings.load(speech or recordings.shipped())
    recipe = stored.recipe_of(manifest.recipe)
    with _folder(cache) as folder:
        kept = list(reference.keep(checkpoint, spoken, Path(folder), progress))
        rounded = stored.keep(checkpoint, recipe, kept, progress) if stored.rounds(recipe) else [None] * len(kept)
        entries = [Kept(clip, path, one) for (clip, path), one in zip(kept, rounded, strict=True)]
        runners = {name: one for name, one in _runners(manifest, engine).items() if target in (None, name)}
        targets = tuple(
            _judged(bundle, name, runner, entries, recipe.thresholds, progress) for name, runner in runners.items()
        )
        readings = [reference.read(entry.path, entry.clip) for entry in entries[: adapters.CLIPS]]
        added = adapters.verify(
            bundle, manifest, checkpoint, recipe, runtime_adapters, readings, runners, ask, progress
        )
    return Verification(manifest.name, recipe.name, spoken.name, spoken.sha256, recipe.thresholds, targets, added)


def check_possible(checkpoint: Checkpoint, speech: Path | None = None) -> None:
    """Refuse, before anything is built, what `verify` would refuse afterwards.

    Raises:
        VerificationError: the original does not fit in memory.
        AudioError: the speech list, or a recording of it, cannot be used.
    """
    reference.check_memory(checkpoint)
    recordings.load(speech or recordings.shipped())


def check_source(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint, or adapters, that the bundle was not built from.

    Raises:
        VerificationError: naming every file that differs.
    """
    faults = _differences(manifest.source.files, checkpoint.source.files)
    faults += _adapter_differences(manifest.adapters, checkpoint.adapters)
    faults += _beside_differences("imatrix", manifest.imatrix, checkpoint.imatrix)
    faults += _beside_differences("quantized", manifest.quantized, checkpoint.quantized)
    if faults:
        raise VerificationError(
            f"bundle '{manifest.name}' was not built from this checkpoint: {'; '.join(faults)}. "
            "Give the checkpoint and the adapters it was built from: "
            "ossicle verify BUNDLE --checkpoint CHECKPOINT [--adapter PATH:WEIGHT] [--imatrix FILE] [--quantized FILE]"
        )


def mark(bundle: Path, verification: Verification) -> Manifest:
    """The bundle's manifest with its `verification` section brought up to date, written in place."""
    manifest = manifests.read(bundle)
    manifest = replace(manifest, verification=section(verification, manifest.verification))
    with tempfile.TemporaryDirectory(dir=bundle, prefix=".verification-") as folder:
        manifests.write(Path(folder), manifest)
        os.replace(Path(folder) / manifests.NAME, bundle / manifests.NAME)
    return manifest


def section(verification: Verification, before: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The manifest's `verification` section: by target, the figures to two digits, without times or machines.

    What was said `before` of adapters holds for those that were not compared now.
    """
    entries = {}
    for target in verification.targets:
        added = dict(before.get(target.target, {}).get("adapters", {}))
        added |= {one.adapter: _adapter_entry(one) for one in verification.adapters if one.target == target.target}
        entries[target.target] = _entry(verification, target, added)
    return entries


def compare(reading: Reading, answers: Sequence[Answer], rounded: StoredReading | None = None) -> Comparison:
    """One clip's reading, and that of the rounded original, against the answers to `requests(reading)`."""
    by_kind = {kind: [a for a in answers if a.kind == kind] for kind in ("logmel", "audio", "score")}
    texts = [answer.text or "" for answer in answers if answer.kind in ("transcribe", "ask")]
    scored = [reply for reply in reading.replies if reply.logits is not None]
    original = np.concatenate([reply.logits for reply in scored if reply.logits is not None])
    artifact = np.concatenate([_array(answer) for answer in by_kind["score"]])
    audio = _array(by_kind["audio"][0])
    kl = divergence(original, artifact)
    return Comparison(
        clip=reading.clip.name,
        windows=len(reading.logmel),
        logmel=difference(reading.logmel, _array(by_kind["logmel"][0])),
        embeddings=difference(reading.audio, audio),
        embeddings_relative=relative(reading.audio, audio),
        logits=difference(original, artifact),
        kl=float(kl.mean()),
        kl_max=float(kl.max()),
        top1=agreement(original, artifact),
        positions=len(original),
        said=tuple(_said(reading.clip, reply, text) for reply, text in zip(reading.replies, texts, strict=True)),
        embeddings_stored=relative(rounded.audio, audio) if rounded else None,
        kl_stored=float(divergence(rounded.logits, artifact).mean()) if rounded else None,
    )


def requests(reading: Reading) -> list[Request]:
    """What an artifact is asked about a clip, in order: its log-mel, its audio embeddings, then reply by reply."""
    path = str(reading.clip.file.resolve())
    asked = [Request("logmel", path), Request("audio", path)]
    for reply in reading.replies:
        asked += _reply_requests(path, reply)
    return asked


def ask(bundle: Path, questions: Sequence[Request], *, engine: str = "auto") -> Report:
    """A bundle's answers, from a process of its own.

    Raises:
        EngineError: no engine could be had, or it refused the bundle; with the reason the process gave.
    """
    with tempfile.TemporaryDirectory(prefix="ossicle-verify-") as folder:
        asked, answers = Path(folder) / "requests.json", Path(folder) / "answers.npz"
        write_requests(asked, questions)
        done = subprocess.run(
            command(bundle, asked, answers, engine=engine),
            env=os.environ | {"PYTHONSAFEPATH": "1"},  # nothing that lies in the working folder is imported
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
            raise EngineError(
                f"bundle '{bundle}' could not be run: {reason}. See what this machine has: ossicle doctor"
            )
        return read_report(answers)


def _judged(
    bundle: Path, target: str, runner: str, kept: Sequence[Kept], thresholds: Thresholds, progress: Progress | None
) -> TargetVerification:
    if progress:
        progress.start(f"verify {target}", len(kept), "clips")
    comparisons: list[Comparison] = []
    for chunk in _chunks(kept):
        questions = [request for reading, _ in chunk for request in requests(reading)]
        report = ask(bundle, questions, engine=runner)
        answers = iter(report.answers)
        comparisons += [
            compare(reading, [next(answers) for _ in requests(reading)], rounded) for reading, rounded in chunk
        ]
        if progress:
            progress.advance(len(chunk))
    return judge(target, report.engine, report.proof, comparisons, thresholds)


def _chunks(kept: Sequence[Kept]) -> Iterator[list[tuple[Reading, StoredReading | None]]]:
    """Readings a few at a time: enough to spread the cost of a process, few enough for memory."""
    chunk: list[tuple[Reading, StoredReading | None]] = []
    for entry in kept:
        reading = reference.read(entry.path, entry.clip)
        chunk.append((reading, stored.read(entry.rounded, reading) if entry.rounded else None))
        if len(chunk) == _CHUNK or sum(_size(reading) for reading, _ in chunk) > _CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _size(reading: Reading) -> int:
    logits = sum(reply.logits.nbytes for reply in reading.replies if reply.logits is not None)
    return reading.logmel.nbytes + reading.audio.nbytes + logits


def _runners(manifest: Manifest, engine: str | None) -> dict[str, str]:
    """Each target with a decoder and the engine that it asks for; of a named engine, and its variants, the one alone.

    Raises:
        VerificationError: no artifact is for the engine named.
    """
    decoders = [artifact for artifact in manifest.artifacts if artifact.stage == "decoder"]
    asked = {artifact.target: artifact.requirements["engine"] for artifact in decoders}
    if engine is None:
        return asked
    named = {target: engine for target, runner in asked.items() if engine.partition("-")[0] == runner}
    if not named:
        raise VerificationError(
            f"bundle '{manifest.name}' has nothing that engine '{engine}' runs (it has artifacts for: "
            f"{', '.join(asked.values())}). See what it holds: ossicle inspect BUNDLE"
        )
    return named


def _folder(cache: Path | None) -> AbstractContextManager[str]:
    if cache is None:
        return tempfile.TemporaryDirectory(prefix="ossicle-reference-")
    return nullcontext(str(cache))


def _reply_requests(path: str, reply: Reply) -> list[Request]:
    if reply.question is not None:
        return [Request("ask", path, question=reply.question, max_tokens=reference.MAX_TOKENS)]
    return [
        Request("score", path, language=reply.language, tokens=reply.tokens),
        Request("transcribe", path, language=reply.language, max_tokens=reference.MAX_TOKENS),
    ]


def _said(clip: Clip, reply: Reply, text: str) -> Said:
    expected = clip.text if reply.question is None else dict(clip.questions).get(reply.question)
    return Said(reply.language, reply.question, reply.text, text, expected)


def _adapter_entry(found: AdapterVerification) -> dict[str, Any]:
    figures = {name: _rounded(getattr(found, name)) for name in ("logits", "kl", "kl_clip", "top1")}
    return {"failed": [check.figure for check in found.checks if not check.passed], "figures": figures}


def _entry(verification: Verification, target: TargetVerification, added: Mapping[str, Any]) -> dict[str, Any]:
    failed = [check.figure for check in target.checks if not check.passed]
    failed += [f"{figure} with adapter '{name}'" for name, entry in added.items() for figure in entry["failed"]]
    return {
        **({"adapters": dict(added)} if added else {}),
        "passed": not failed,
        "failed": failed,
        "proof": target.proof,
        "engine": target.engine,
        "speech": {"name": verification.speech, "sha256": verification.speech_sha256, "clips": len(target.clips)},
        "figures": {entry.name: _rounded(getattr(target.figures, entry.name)) for entry in fields(Figures)},
        "thresholds": asdict(verification.thresholds),
    }


def _rounded(value: float | None) -> float | str | None:
    """Two significant digits; a word for what JSON has no number for."""
    if value is None or math.isfinite(value):
        return None if value is None else float(f"{value:.1e}")
    return str(value)


def _differences(built: Iterable[BundleFile], given: Iterable[BundleFile], of: str = "") -> list[str]:
    before, after = ({file.path: file.sha256 for file in files} for files in (built, given))
    missing = [f"{of}{path} is missing" for path in sorted(before.keys() - after.keys())]
    extra = [f"{of}{path} was not there" for path in sorted(after.keys() - before.keys())]
    both = sorted(before.keys() & after.keys())
    return missing + extra + [f"{of}{path} has another sha256" for path in both if before[path] != after[path]]


def _adapter_differences(built: Sequence[AdapterSource], given: Sequence[AdapterSource]) -> list[str]:
    if len(built) != len(given):
        names = ", ".join(f"{adapter.name}:{adapter.weight:g}" for adapter in built) or "none"
        return [f"it has {len(built)} adapters merged ({names}), {len(given)} are given"]
    faults: list[str] = []
    for before, after in zip(built, given, strict=True):
        faults += _differences(before.files, after.files, f"adapter '{before.name}': ")
        if before.weight != after.weight:
            faults.append(f"adapter '{before.name}' was merged with weight {before.weight:g}, not {after.weight:g}")
    return faults


def _beside_differences(what: str, built: BundleFile | None, given: Imatrix | Quantized | None) -> list[str]:
    if built is None:
        return [f"{what} {given.file.path} was not there"] if given else []
    if given is None:
        return [f"{what} {built.path} is missing"]
    return [] if built.sha256 == given.file.sha256 else [f"{what} {built.path} has another sha256"]


def _array(answer: Answer) -> Float32:
    return np.empty(0, np.float32) if answer.array is None else answer.array
