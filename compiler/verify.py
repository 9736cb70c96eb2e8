"""Whether a bundle computes what its original does, and by how much it does not.

The bundle is run as a device would run it: by `ossicle.runtimes.probe`, in a process that has no torch. The original's
readings are made first and kept on disk, so that the two never share the machine's memory.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..targets import manifest as manifests
from ..targets.contract import EngineError, Float32, Progress, Thresholds, VerificationError
from ..targets.manifest import Manifest
from ..targets.probe import Answer, Report, Request, command, read_report, write_requests
from . import reference, stored
from . import runtime_adapters as beside
from . import speech as recordings
from . import verify_adapters as adapters
from .checkpoint import Checkpoint
from .figures import (
    Comparison,
    Said,
    TargetVerification,
    Verification,
    agreement,
    difference,
    divergence,
    judge,
    relative,
)
from .provenance import check_source
from .readings import Reading, Reply, reading_at
from .speech import Clip
from .stored import StoredReading
from .torch_model import check_memory

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
    recipe, asked = stored.recipe_of(manifest.recipe), _runners(manifest, engine)
    with _folder(cache) as folder:
        kept = list(reference.keep(checkpoint, spoken, Path(folder), progress))
        rounded = stored.keep(checkpoint, recipe, kept, progress) if stored.rounds(recipe) else [None] * len(kept)
        entries = [Kept(clip, path, one) for (clip, path), one in zip(kept, rounded, strict=True)]
        runners = {name: one for name, one in asked.items() if target in (None, name)}
        targets = tuple(
            _judged(bundle, name, runner, entries, recipe.thresholds, progress) for name, runner in runners.items()
        )
        readings = [reading_at(entry.path, entry.clip) for entry in entries[: adapters.CLIPS]]
        added = adapters.verify(
            bundle, manifest, checkpoint, recipe, runtime_adapters, readings, runners, ask, progress
        )
    return Verification(manifest.name, recipe.name, spoken.name, spoken.sha256, recipe.thresholds, targets, added)


def check_possible(checkpoint: Checkpoint, speech: Path | None = None) -> None:
    """Refuse, before anything is built, what `verify` would refuse afterwards.

    Raises:
        VerificationError: the original does not fit in memory.
        CheckpointError: the original has no processors that fit it.
        AudioError: the speech list, or a recording of it, cannot be used.
    """
    check_memory(checkpoint)
    reference.check(checkpoint, recordings.load(speech or recordings.shipped()))


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
            reason = done.stderr.strip().rpartition("\n")[2].rstrip(".") or f"exit status {done.returncode}"
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
        reading = reading_at(entry.path, entry.clip)
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


def _array(answer: Answer) -> Float32:
    return np.empty(0, np.float32) if answer.array is None else answer.array
