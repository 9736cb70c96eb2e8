"""The front end against transformers' own, over lengths that matter: tails, exact windows, one sample."""

import numpy as np
import pytest
from ossicle.kernels.logmel import Float32, count_windows, log_mel, mel_filters

WINDOW = 480000


def _reference(waveform: Float32, *, exact: bool = False) -> Float32:
    """What transformers computes, in float32 as it runs or (`exact`) by its float64 path."""
    from transformers import WhisperFeatureExtractor

    extract = WhisperFeatureExtractor(feature_size=128)
    padded = np.pad(waveform, (0, -len(waveform) % WINDOW))
    if exact:
        features = extract._np_extract_fbank_features(padded[None], "cpu")
    else:
        features = extract(padded, sampling_rate=16000, truncation=False, return_tensors="np")["input_features"]
    return np.asarray(features, np.float32).reshape(128, -1, 3000).transpose(1, 0, 2)


def _noise(samples: int, seed: int, quietest: float = 0.05) -> Float32:
    random = np.random.default_rng(seed)
    loudness = np.repeat(random.uniform(quietest, 1, samples // 4000 + 1), 4000)[:samples]
    return np.asarray(random.normal(0, 0.2, samples) * loudness, np.float32)


LENGTHS = [1, 2, 159, 160, 200, 201, 401, 16000, 33333, WINDOW - 201, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 200]


@pytest.mark.parametrize("samples", [*LENGTHS, 2 * WINDOW, 2 * WINDOW + 12345])
def test_equals_the_reference(samples: int) -> None:
    waveform = _noise(samples, samples)
    mel = log_mel(waveform)
    assert mel.dtype == np.float32
    assert mel.shape == (-(-samples // WINDOW), 128, 3000)
    difference = np.abs(mel - _reference(waveform))
    assert np.quantile(difference, 0.9999) <= 1e-5
    # A handful of points in a million where noise cancels out holds little but the reference's own rounding.
    assert difference.max() <= 1e-4


@pytest.mark.parametrize("hertz", [60.0, 997.0, 7800.0])
def test_equals_the_exact_reference_where_tones_leave_empty_bands(hertz: float) -> None:
    # Bands far below the tone hold little but float32 rounding, the reference's own as well.
    tone = np.sin(2 * np.pi * hertz * np.arange(50000) / 16000) * 1e-2
    waveform = np.asarray(tone + _noise(50000, 3, quietest=0.0) * 1e-2, np.float32)
    assert np.abs(log_mel(waveform) - _reference(waveform, exact=True)).max() <= 1e-4


def test_silence_is_flat() -> None:
    np.testing.assert_array_equal(log_mel(np.zeros(1000, np.float32)), np.float32(-1.5))


def test_one_maximum_rules_all_windows() -> None:
    waveform = np.concatenate([_noise(WINDOW, 1) * np.float32(1e-4), _noise(WINDOW, 2)])
    assert np.abs(log_mel(waveform)[0] - log_mel(waveform[:WINDOW])[0]).max() > 0.1


def test_filters_equal_the_reference_at_other_rates() -> None:
    from transformers.audio_utils import mel_filter_bank

    reference = mel_filter_bank(257, 80, 0.0, 4000.0, 8000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(rate=8000, fft=512, bins=80), reference, atol=1e-7)


def test_windows_are_counted() -> None:
    assert [count_windows(n) for n in (1, WINDOW, WINDOW + 1)] == [1, 1, 2]


@pytest.mark.parametrize("shape", [(0,), (2, 100)])
def test_what_is_no_waveform_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one dimension"):
        log_mel(np.zeros(shape, np.float32))
