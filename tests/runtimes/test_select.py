"""The choice of a runtime, and every refusal with its reason."""

from pathlib import Path

import pytest
from ossicle.runtimes.select import choices, runtimes, select
from ossicle.targets.contract import EngineError
from ossicle.targets.manifest import Manifest

from tests.fakes import FakeRuntime, write_bundle


class Other(FakeRuntime):
    name = "other"
    target = "other"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_bundle(tmp_path)


def test_the_first_usable_one_is_chosen(manifest: Manifest) -> None:
    candidates = [Other(), FakeRuntime("is missing: pip install fake"), usable := FakeRuntime(), FakeRuntime()]
    assert select(manifest, candidates=candidates) is usable
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
        select(manifest, candidates=[FakeRuntime("pip install fake"), Other()])


def test_runtimes_have_different_names() -> None:
    names = [runtime.name for runtime in runtimes()]
    assert "onnxruntime" in names
    assert len(set(names)) == len(names)
