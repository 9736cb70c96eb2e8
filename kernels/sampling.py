"""Logits -> token: greedy or drawn, filtered as transformers' `generate` filters and in its order."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.random import default_rng  # loaded by numpy at its first use it would swallow a Ctrl-C
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy: always the most likely one.

    Raises:
        ValueError: a setting is outside its range.
    """

    temperature: float = 0.0  # 0: greedy; 1: as the model has it
    top_k: int = 0  # only the k most likely; 0: all
    top_p: float = 1.0  # only the most likely that together reach this probability
    min_p: float = 0.0  # only those at least this likely relative to the most likely
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt and of the answer so far become less likely
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        faults = [
            f"{name} {getattr(self, name)!r} is not possible (it can be {possible})"
            for name, (holds, possible) in ranges.items()
            if not holds
        ]
        if faults:
            raise ValueError("; ".join(faults))


class Chooser:
    """Chooses the tokens of one sequence, remembering what it has seen.

    `row` is the sequence's place in its batch: rows draw from independent streams of one seed, so a result does not
    depend on what else is in the batch.
    """

    def __init__(self, sampling: Sampling, vocabulary: int, prompt: Iterable[int] = (), row: int = 0) -> None:
        self._sampling = sampling
        self._seen = np.zeros(vocabulary, bool)
        self._seen[list(prompt)] = True
        self._random = default_rng([sampling.seed, row])

    def choose(self, logits: Float32, allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token, given logits [vocabulary]: one of those `allowed`, bool [vocabulary]; None: of all."""
        if allowed is not None:
            logits = _only(logits, allowed)
        token = self._draw(penalize(logits, self._seen, self._sampling.repetition_penalty))
        self._seen[token] = True
        return token

    def _draw(self, logits: Float32) -> int:
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        chances = probabilities(filtered(logits, self._sampling))
        return int(self._random.choice(chances.size, p=chances))


def filtered(logits: Float32, sampling: Sampling) -> Float32:
    """Logits [vocabulary] at the temperature, -inf where top-k, top-p or min-p rule a token out."""
    logits = np.asarray(logits, np.float32) / np.float32(sampling.temperature)
    logits = keep_top_k(logits, sampling.top_k)
    logits = keep_top_p(logits, sampling.top_p)
    return keep_min_p(logits, sampling.min_p)


def penalize(logits: Float32, seen: NDArray[np.bool_], penalty: float) -> Float32:
    """Logits with those of `seen` tokens divided by the penalty where positive, multiplied where negative.

    Source: Keskar et al., CTRL, arXiv:1909.05858, with the sign rule of transformers.
    """
    if penalty == 1.0:
        return logits
    scaled = np.where(logits < 0, logits * np.float32(penalty), logits / np.float32(penalty))
    return np.where(seen, scaled, logits)


def keep_top_k(logits: Float32, k: int) -> Float32:
    """Logits with all but the k largest (and what equals the smallest of them) at -inf; k 0 keeps all."""
    if not 0 < k < logits.size:
        return logits
    return _only(logits, logits >= np.partition(logits, -k)[-k])


def keep_top_p(logits: Float32, p: float) -> Float32:
    """Logits with the least likely tokens that together stay within 1 - p at -inf; the most likely one is kept.

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv:1904.09751.
    """
    if p == 1.0:
        return logits
    ascending = np.argsort(logits, kind="stable")
    kept = np.cumsum(probabilities(logits)[ascending]) > 1.0 - p
    kept[-1] = True
    keep = np.zeros(logits.size, bool)
    keep[ascending] = kept
    return _only(logits, keep)


def keep_min_p(logits: Float32, p: float) -> Float32:
    """Logits with every token less than p times as likely as the most likely one at -inf.

    Source: Nguyen et al., Min-p Sampling, arXiv:2407.01082.
    """
    if p == 0.0:
        return logits
    chances = probabilities(logits)
    return _only(logits, chances >= p * chances.max())


def probabilities(logits: Float32) -> NDArray[np.float64]:
    """Softmax of logits [vocabulary], float64, sum 1."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(exponentials / exponentials.sum())


def _only(logits: Float32, keep: NDArray[np.bool_]) -> Float32:
    return np.where(keep, logits, np.float32(-np.inf))
