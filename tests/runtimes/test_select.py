"""The choice of a runtime, and every refusal with its reason."""

from dataclasses import replace
from pathlib import Path

import pytest
from ossicle.runtimes.registry import runtimes
from ossicle.runtimes.select import choices, select
from ossicle.targets.contract import EngineError
from ossicle.targets.manifest import Manifest
from ossicle.tests.fakes import FakeRuntime, write_bundle


class Other(FakeRuntime):
    name = "other"
    target = "other"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_bundle(tmp_path)


def test_the_first_usable_one_is_chosen(manifest: Manifest) -> None:
    candidates = [Other(), FakeRuntime("is missing: pip install fake"), usable := FakeRuntime(), FakeRuntime()]
    assert select(manifest, known=candidates) is usable
    assert [choice.reason is None for choice in choices(manifest, candidates)] == [False, False, True, True]


def test_a_named_one_is_chosen_or_refused(manifest: Manifest) -> None:
    candidates = [FakeRuntime(), Other()]
    assert select(manifest, "fake", candidates) is candidates[0]
    with pytest.raises(EngineError, match=r"other: .* no artifacts for target other \(it has: fake\)"):
        select(manifest, "other", candidates)
    with pytest.raises(EngineError, match=r"'best' is unknown \(it can be: auto, fake, other\)"):
        select(manifest, "best", candidates)


def test_every_refusal_is_told(manifest: Manifest) -> None:
    with pytest.raises(EngineError, match=r"fake: pip install fake; other: .* no artifacts"):
        select(manifest, known=[FakeRuntime("pip install fake"), Other()])


def test_an_encoder_that_stands_alone_chooses_no_engine(manifest: Manifest) -> None:
    encoder = tuple(artifact for artifact in manifest.artifacts if artifact.stage == "audio_encoder")
    with pytest.raises(EngineError, match="target fake are an audio encoder alone, which serves another engine"):
        select(replace(manifest, artifacts=encoder), known=[FakeRuntime()])


@pytest.mark.parametrize(("wanted", "possible"), [(">=1.9", True), (">=999", False), (">=1.20.3", True), ("", True)])
def test_an_engine_that_is_too_old_is_refused(manifest: Manifest, wanted: str, possible: bool) -> None:
    needs = {"engine": "numpy", "version": wanted}
    manifest = replace(manifest, artifacts=tuple(replace(a, requirements=needs) for a in manifest.artifacts))
    if possible:
        assert select(manifest, known=[FakeRuntime()]).name == "fake"
    else:
        with pytest.raises(EngineError, match=r'needs >=999.*pip install --upgrade "numpy>=999"'):
            select(manifest, known=[FakeRuntime()])


def test_runtimes_have_different_names() -> None:
    names = [runtime.name for runtime in runtimes()]
    assert "onnxruntime" in names
    assert len(set(names)) == len(names)
