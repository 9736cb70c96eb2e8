"""From utterances to log-mel segments: other speakers, other rooms, other microphones."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import torch
from model import GROUP_SAMPLES, HOP
from speech import SAMPLE_RATE, Utterance
from torch import Tensor
from transformers import WhisperFeatureExtractor

Wave = npt.NDArray[np.float32]

BINS = 128
FLOOR = 1e-10
_FILTERS = torch.from_numpy(WhisperFeatureExtractor(feature_size=BINS).mel_filters).float().T.contiguous()
_WINDOW = torch.hann_window(400)
_BIN_HERTZ = torch.from_numpy(
    (_FILTERS.numpy() * np.linspace(0, SAMPLE_RATE / 2, _FILTERS.shape[1])).sum(1) / _FILTERS.numpy().sum(1)
)


def log_energies(waves: Tensor) -> Tensor:
    """log10 mel energies, [rows, 128, samples / 160]: WhisperFeatureExtractor's before it normalizes."""
    spectrum = torch.stft(waves, 400, HOP, window=_WINDOW, return_complex=True)[..., :-1]
    return (_FILTERS @ (spectrum.real**2 + spectrum.imag**2)).clamp_(min=FLOOR).log10()


def disguise(utterance: Utterance, rng: random.Random, noise: np.random.Generator) -> Wave:
    """The utterance by a shorter or taller speaker, after a silence, perhaps in noise; float32 within +-1."""
    wave = utterance.samples.astype(np.float32) / 32768
    few_speakers = utterance.family != "espeak"
    if rng.random() < (0.8 if few_speakers else 0.5):
        reach = 0.2 if few_speakers else 0.12
        factor = float(np.exp(rng.uniform(-reach, reach)))
        wave = np.interp(np.arange(0, len(wave) - 1, factor), np.arange(len(wave)), wave).astype(np.float32)
    lead = rng.uniform(0, 0.35) if rng.random() < 0.85 else rng.uniform(0, 1.2)
    wave = np.pad(wave, (int(SAMPLE_RATE * lead), int(SAMPLE_RATE * rng.uniform(0, 0.3))))
    if rng.random() < 0.25:
        wave = wave + _hiss(len(wave), rng, noise) * np.sqrt((wave**2).mean()) * 10 ** (-rng.uniform(14, 40) / 20)
    return (wave * rng.uniform(0.2, 1.0)).astype(np.float32)


def _hiss(length: int, rng: random.Random, noise: np.random.Generator) -> Wave:
    hiss = noise.standard_normal(length, dtype=np.float32)
    return np.convolve(hiss, np.full(8, 0.36, np.float32), "same") if rng.random() < 0.5 else hiss


def emptiness(rng: random.Random, noise: np.random.Generator) -> Wave:
    """A clip in which nobody speaks: digital silence or hiss."""
    length = int(SAMPLE_RATE * rng.uniform(0.3, 2.5))
    if rng.random() < 0.4:
        return np.zeros(length, np.float32)
    return (_hiss(length, rng, noise) * 10 ** rng.uniform(-4, -1)).astype(np.float32)


def colour(energies: Tensor, rng: random.Random) -> Tensor:
    """One segment's log energies [128, frames] through another microphone, in place."""
    if rng.random() < 0.6:
        at = torch.linspace(0, 1, BINS)
        curve = rng.uniform(-0.7, 0.7) * (at - 0.5)
        for _ in range(2):
            curve += rng.uniform(0, 0.35) * torch.cos(6.283 * (rng.uniform(0.5, 3) * at + rng.random()))
        energies += curve[:, None]
    if rng.random() < 0.08:
        cutoff = rng.uniform(3400, 7000)
        energies[cutoff < _BIN_HERTZ] = -10.0
    if rng.random() < 0.3:
        first, frames = rng.randrange(BINS - 16), energies.shape[1]
        energies[first : first + rng.randrange(1, 16)] = -10.0
        at_frame = rng.randrange(max(1, frames - 12))
        energies[:, at_frame : at_frame + rng.randrange(1, 12)] = -10.0
    return energies.clamp_(min=-10.0)


def segment_energies(waves: list[Wave], groups: int, rng: random.Random) -> Tensor:
    """Coloured log energies of the waves, each padded with silence to `groups` audio tokens."""
    padded = np.zeros((len(waves), groups * GROUP_SAMPLES), np.float32)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = wave
    energies = log_energies(torch.from_numpy(padded))
    for row in energies:
        colour(row, rng)
    return energies
