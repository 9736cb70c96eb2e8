"""Waveform -> log-mel windows: the one front end that every runtime shares.

The arithmetic of Whisper's front end as Voxtral uses it: one logarithmic mel spectrogram over the whole clip, padded
with zeros to whole windows, normalized by its one global maximum and only then cut into windows.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

FLOOR = 1e-10  # power below which the logarithm is cut off
RANGE = 8.0  # decades kept below the loudest point


def log_mel(
    waveform: Float32,
    *,
    rate: int = 16000,
    fft: int = 400,
    hop: int = 160,
    bins: int = 128,
    window_frames: int = 3000,
) -> Float32:
    """Log-mel windows [windows, bins, window_frames], float32, of a mono waveform [samples] in -1 .. 1.

    A clip of any length but zero; its last window is padded with zeros. Works on one window at a time, so beside the
    result it holds some 20 MB whatever the length.

    Raises:
        ValueError: the waveform is empty or not one-dimensional.
    """
    if waveform.ndim != 1 or not waveform.size:
        raise ValueError(f"a waveform has one dimension and at least one sample, not shape {waveform.shape}")
    windows = count_windows(waveform.size, hop=hop, window_frames=window_frames)
    filters = mel_filters(rate=rate, fft=fft, bins=bins)
    spectrogram = np.full((windows, bins, window_frames), np.log10(FLOOR), np.float32)
    for index in range(windows):
        samples = _window_samples(waveform, index, windows, fft // 2, hop * window_frames)
        frames = _sounding_frames(samples, fft, hop, window_frames)
        spectrogram[index, :, : len(frames)] = _log_power(frames, filters).T
    np.maximum(spectrogram, spectrogram.max() - RANGE, out=spectrogram)
    spectrogram += 4.0
    spectrogram /= 4.0
    return spectrogram


def count_windows(samples: int, *, hop: int = 160, window_frames: int = 3000) -> int:
    """How many windows a clip of so many samples takes."""
    return -(-samples // (hop * window_frames))


@lru_cache(maxsize=4)
def mel_filters(*, rate: int, fft: int, bins: int) -> Float32:
    """Triangular filters [fft // 2 + 1, bins] of equal area, evenly spaced on Slaney's mel scale from 0 Hz to rate / 2.

    Source: M. Slaney, Auditory Toolbox, Interval Research technical report 1998-010.
    """
    edges = _hertz(np.linspace(0.0, _mel(rate / 2), bins + 2))
    frequencies = np.linspace(0.0, rate / 2, fft // 2 + 1)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies - low) / (centre - low)
    falling = (high - frequencies) / (high - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(triangles * (2.0 / (high - low)), np.float32)


# Slaney's scale: linear below 1 kHz (200/3 Hz per mel), logarithmic above (27 mels per factor 6.4).
_KNEE_HERTZ = 1000.0
_KNEE_MEL = 15.0
_STEP = np.log(6.4) / 27.0


def _mel(hertz: float) -> float:
    if hertz < _KNEE_HERTZ:
        return hertz * 3.0 / 200.0
    return float(_KNEE_MEL + np.log(hertz / _KNEE_HERTZ) / _STEP)


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mel * 200.0 / 3.0
    return np.where(mel < _KNEE_MEL, linear, _KNEE_HERTZ * np.exp(_STEP * (mel - _KNEE_MEL)))


def _window_samples(waveform: Float32, index: int, windows: int, margin: int, length: int) -> Float32:
    """The samples of one window and `margin` more on either side; beyond the padded clip's ends it is mirrored."""
    start = index * length - margin
    samples = np.zeros(length + 2 * margin, np.float32)
    known = waveform[max(start, 0) : start + samples.size]
    offset = max(-start, 0)
    samples[offset : offset + known.size] = known
    if index == 0:
        samples[:margin] = samples[margin + 1 : 2 * margin + 1][::-1]
    if index == windows - 1:
        samples[-margin:] = samples[-2 * margin - 1 : -margin - 1][::-1]
    return samples


def _sounding_frames(samples: Float32, fft: int, hop: int, limit: int) -> Float32:
    """Overlapping frames [frames, fft] up to the last one that is not silent: beyond it all is at the floor."""
    sounding = np.flatnonzero(samples)
    count = min(limit, int(sounding[-1]) // hop + 1) if sounding.size else 0
    return np.lib.stride_tricks.sliding_window_view(samples, fft)[::hop][:count]


def _log_power(frames: Float32, filters: Float32) -> Float32:
    fft = frames.shape[1]
    hann = (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(fft) / fft)).astype(np.float32)  # periodic
    spectrum = np.fft.rfft(frames * hann, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    return np.asarray(np.log10(np.maximum(power @ filters, np.float32(FLOOR))), np.float32)
