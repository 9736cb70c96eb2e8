"""Bundles of every version of the format still load, and compute what they did when they were made."""

from pathlib import Path

import numpy as np
import pytest
from ossicle.runtimes.opening import load
from ossicle.targets import manifest as manifests

EXPECTED = "expected.npz"
TOKENS = (40, 41, 100, 2)
BUNDLES = sorted(path.parent for path in Path(__file__).parent.glob(f"*/{EXPECTED}"))


def sound() -> np.ndarray:
    """A second of two tones, 16 kHz."""
    time = np.arange(16000) / 16000
    return (0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.sin(2 * np.pi * 1234 * time)).astype(np.float32)


def test_there_is_one_for_this_version() -> None:
    assert manifests.VERSION in {manifests.read(bundle).version for bundle in BUNDLES}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_an_old_bundle_computes_what_it_did(bundle: Path) -> None:
    with load(bundle) as session, np.load(bundle / EXPECTED, allow_pickle=False) as expected:
        assert np.abs(session.embed_audio(sound()) - expected["audio"]).max() <= 1e-3
        assert np.abs(session.score(sound(), TOKENS) - expected["logits"]).max() <= 1e-3
