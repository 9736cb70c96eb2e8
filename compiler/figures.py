"""How far an artifact is from its original: the figures, and their judgement. Arithmetic only.

A `Comparison` is one clip, `Figures` sum up all clips, a `Check` holds one figure against its
threshold, a `Verification` is a bundle's, target by target.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import Float32, Thresholds
from ..targets.probe import Proof
from .speech import word_errors


@dataclass(frozen=True)
class Said:
    """What both said to one prompt about a clip, and what was expected, where that is known."""

    language: str | None
    question: str | None
    original: str
    artifact: str
    expected: str | None

    @property
    def same(self) -> bool:
        return self.original == self.artifact


@dataclass(frozen=True)
class Comparison:
    """One clip: how far the artifact is from the original. Differences are the largest absolute ones."""

    clip: str
    windows: int
    logmel: float
    embeddings: float
    embeddings_relative: float  # Frobenius norm of the difference over that of the original
    logits: float
    kl: float  # mean over positions of KL(original || artifact), nats
    kl_max: float
    top1: float  # share of positions with the same most likely token
    positions: int
    said: tuple[Said, ...]
    embeddings_stored: float | None = None  # as embeddings_relative and kl, from the original with the recipe's numbers
    kl_stored: float | None = None


@dataclass(frozen=True)
class Figures:
    """All clips together: the worst clip's difference, or the mean over positions, clips or questions."""

    logmel: float
    embeddings: float
    embeddings_relative: float
    logits: float
    kl: float
    kl_clip: float  # the worst clip's mean
    kl_max: float
    embeddings_stored: float | None  # the worst clip's, where the recipe rounds
    kl_stored: float | None
    top1: float
    same_text: float  # share of transcripts
    same_answers: float  # share of answers to questions
    wer_original: float | None
    wer: float | None
    answers_original: float | None  # share of answers that are the expected ones
    answers: float | None


@dataclass(frozen=True)
class Check:
    """One figure against its threshold. `worst` is the clip that is furthest off, where one is."""

    figure: str
    value: float
    limit: float
    passed: bool
    worst: str | None = None


@dataclass(frozen=True)
class TargetVerification:
    """One target's artifacts, and what the engine that is named says of them."""

    target: str
    engine: str
    proof: Proof
    checks: tuple[Check, ...]
    figures: Figures
    clips: tuple[Comparison, ...] = field(repr=False)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class AdapterVerification:
    """One target with an adapter added as it runs, against the original with the adapter merged, over what was said."""

    adapter: str
    target: str
    engine: str
    logits: float  # largest absolute difference
    kl: float
    kl_clip: float
    top1: float
    positions: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class Verification:
    """A bundle against its original, target by target."""

    bundle: str
    recipe: str
    speech: str
    speech_sha256: str
    thresholds: Thresholds
    targets: tuple[TargetVerification, ...]
    adapters: tuple[AdapterVerification, ...] = ()

    @property
    def passed(self) -> bool:
        return all(one.passed for one in self.targets) and all(one.passed for one in self.adapters)


def judge(
    target: str, engine: str, proof: Proof, clips: Sequence[Comparison], thresholds: Thresholds
) -> TargetVerification:
    """A target's comparisons summed up and held against the thresholds."""
    figures = summarize(clips)
    limits = _tightened(thresholds) if proof == "interpreted" else thresholds
    return TargetVerification(target, engine, proof, _checks(figures, clips, limits), figures, tuple(clips))


def judge_adapter(
    adapter: str, target: str, engine: str, thresholds: Thresholds, *, rounds: bool, positions: int, **figures: float
) -> AdapterVerification:
    """An adapter's figures held against the thresholds, of what a recipe that `rounds` stores, or of the original itself."""
    limits = {"kl_clip": thresholds.kl_stored} if rounds else {"logits": thresholds.logits, "kl": thresholds.kl}
    checks = [
        Check(name, figures[name], limit, figures[name] <= limit) for name, limit in limits.items() if limit is not None
    ]
    return AdapterVerification(adapter, target, engine, **figures, positions=positions, checks=tuple(checks))


def _tightened(thresholds: Thresholds) -> Thresholds:
    """The thresholds for an interpreter, which rounds as a program says and never on its own account.

    Of the shipped model, sound packages stay three times and more below these limits, and planted faults above them.
    """
    most = {"embeddings": 2e-3, "embeddings_stored": 1e-3, "kl_stored": 2e-5}
    given = {name: getattr(thresholds, name) for name in most}
    return replace(thresholds, **{name: min(most[name], limit) for name, limit in given.items() if limit is not None})


def summarize(clips: Sequence[Comparison]) -> Figures:
    """The figures over all clips."""
    positions = sum(clip.positions for clip in clips)
    transcripts = [said for clip in clips for said in clip.said if said.question is None]
    answers = [said for clip in clips for said in clip.said if said.question is not None]
    return Figures(
        logmel=_worst(clip.logmel for clip in clips),
        embeddings=_worst(clip.embeddings for clip in clips),
        embeddings_relative=_worst(clip.embeddings_relative for clip in clips),
        logits=_worst(clip.logits for clip in clips),
        kl=sum(clip.kl * clip.positions for clip in clips) / positions,
        kl_clip=_worst(clip.kl for clip in clips),
        kl_max=_worst(clip.kl_max for clip in clips),
        embeddings_stored=_worst_known([clip.embeddings_stored for clip in clips]),
        kl_stored=_worst_known([clip.kl_stored for clip in clips]),
        top1=sum(clip.top1 * clip.positions for clip in clips) / positions,
        same_text=_share([said.same for said in transcripts]),
        same_answers=_share([said.same for said in answers]),
        wer_original=_word_error_rate([(said.expected, said.original) for said in transcripts]),
        wer=_word_error_rate([(said.expected, said.artifact) for said in transcripts]),
        answers_original=_right([(said.expected, said.original) for said in answers]),
        answers=_right([(said.expected, said.artifact) for said in answers]),
    )


def difference(original: Float32, artifact: Float32) -> float:
    """The largest absolute difference; infinite where the shapes differ."""
    if original.shape != artifact.shape:
        return math.inf
    return float(np.abs(original - artifact).max(initial=0.0))


def relative(original: Float32, artifact: Float32) -> float:
    """Frobenius norm of the difference over that of the original; infinite where the shapes differ."""
    if original.shape != artifact.shape:
        return math.inf
    return float(np.linalg.norm(original - artifact) / max(float(np.linalg.norm(original)), 1e-30))


def divergence(original: Float32, artifact: Float32) -> NDArray[np.float64]:
    """KL(original || artifact) in nats at each position, of logits [positions, vocabulary]."""
    if original.shape != artifact.shape:
        return np.full(len(original), math.inf)
    p, q = _log_softmax(original), _log_softmax(artifact)
    kl: NDArray[np.float64] = np.sum(np.exp(p) * (p - q), axis=-1)
    return np.maximum(kl, 0.0)


def agreement(original: Float32, artifact: Float32) -> float:
    """The share of positions at which both find the same token most likely."""
    if original.shape != artifact.shape:
        return 0.0
    return float(np.mean(original.argmax(-1) == artifact.argmax(-1)))


def _checks(figures: Figures, clips: Sequence[Comparison], thresholds: Thresholds) -> tuple[Check, ...]:
    most = {
        "logmel": thresholds.logmel,
        "embeddings_relative": thresholds.embeddings,
        "logits": thresholds.logits,
        "kl": thresholds.kl,
        "kl_clip": thresholds.kl_clip,
        "embeddings_stored": thresholds.embeddings_stored,
        "kl_stored": thresholds.kl_stored,
    }
    measured = {name: limit for name, limit in most.items() if getattr(figures, name) is not None}
    checks = [_at_most(figures, name, limit, clips) for name, limit in measured.items() if limit is not None]
    checks.append(_at_least(figures, "top1", thresholds.top1, clips))
    if thresholds.same_text:
        checks += [_at_least(figures, name, 1.0, clips) for name in ("same_text", "same_answers")]
    if figures.wer is not None and figures.wer_original is not None:
        limit = figures.wer_original + thresholds.wer
        checks.append(Check("wer", figures.wer, limit, figures.wer <= limit + 1e-12))
    return tuple(checks)


def _at_most(figures: Figures, name: str, limit: float, clips: Sequence[Comparison]) -> Check:
    value = getattr(figures, name)
    return Check(name, value, limit, value <= limit, _furthest(name, clips, -1.0))


def _at_least(figures: Figures, name: str, limit: float, clips: Sequence[Comparison]) -> Check:
    value = getattr(figures, name)
    return Check(name, value, limit, value >= limit, _furthest(name, clips, 1.0))


def _furthest(name: str, clips: Sequence[Comparison], sign: float) -> str | None:
    key = {"kl_clip": "kl"}.get(name, name)
    if name in ("same_text", "same_answers"):
        return next((clip.clip for clip in clips if not all(said.same for said in clip.said)), None)
    worst = min(clips, key=lambda clip: _goodness(getattr(clip, key), sign))
    return worst.clip


def _goodness(value: float | None, sign: float) -> float:
    """Larger is better: least where it is not a number, most where it was not measured."""
    if value is None:
        return math.inf
    return -math.inf if math.isnan(value) else sign * value


def _log_softmax(logits: Float32) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _worst(values: Iterable[float]) -> float:
    """The largest value; not a number where any is none, since a plain `max` would hide it."""
    listed = list(values)
    return math.nan if any(math.isnan(value) for value in listed) else max(listed)


def _worst_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _worst(known) if known else None


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 1.0


def _word_error_rate(pairs: Sequence[tuple[str | None, str]]) -> float | None:
    known = [(expected, said) for expected, said in pairs if expected is not None]
    return word_errors(known).rate if known else None


def _right(pairs: Sequence[tuple[str | None, str]]) -> float | None:
    known = [expected.strip() == said.strip() for expected, said in pairs if expected is not None]
    return _share(known) if known else None
