"""What OpenVINO is told and what it refuses, and that its states are its caller's."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ossicle.compiler.pipeline import build
from ossicle.runtimes import openvino as runtime
from ossicle.runtimes.base import Engine, Options
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import EngineError, Float32
from ossicle.tests import checkpoints


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("bundle")
    checkpoint = checkpoints.save_hub(work / "checkpoint", checkpoints.model())
    return build(checkpoint, work / "out", targets=("openvino",), recipe="fp32", verify=False).folder


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[Engine]:
    opened = runtime.RUNTIME.open(bundle, manifests.read(bundle), Options(threads=1))
    yield opened
    opened.close()


def prompt(length: int) -> Float32:
    return (np.random.default_rng(length).standard_normal((length, 48)) * 0.5).astype(np.float32)


def test_a_state_outlives_the_steps_taken_from_another(engine: Engine) -> None:
    """What the engine gives back is not overwritten by its next run."""
    logits, state = engine.prefill([prompt(20)])
    before = [array.copy() for array in state.cache]
    engine.prefill([prompt(33)])
    assert all(np.array_equal(array, kept) for array, kept in zip(state.cache, before, strict=True))
    assert np.abs(logits[0] - engine.score(prompt(20))[-1]).max() < 1e-5


def test_the_last_scores_are_those_of_all(engine: Engine) -> None:
    whole = engine.score(prompt(21))
    assert whole.shape == (21, 512)
    np.testing.assert_allclose(engine.score(prompt(21), 4), whole[-4:], atol=1e-5)


def test_several_rows_are_not_continued_at_once(engine: Engine) -> None:
    _, state = engine.prefill([prompt(5), prompt(6)])
    with pytest.raises(EngineError, match="2 rows at once"):
        engine.extend(state, prompt(3))


def test_an_encoder_alone_is_the_engines(bundle: Path, engine: Engine) -> None:
    encoder = runtime.RUNTIME.open_encoder(bundle, manifests.read(bundle), Options(threads=1))
    mel = np.random.default_rng(1).standard_normal((2, 16, 80)).astype(np.float32)
    assert np.array_equal(encoder.encode(mel), engine.encode(mel))
    encoder.close()


def test_a_stage_that_is_missing_is_named(bundle: Path) -> None:
    manifest = manifests.read(bundle)
    lacking = replace(manifest, artifacts=manifest.artifacts[:2])
    with pytest.raises(EngineError, match=r"needs 'decoder' .* has: audio_encoder for openvino, embed_tokens"):
        runtime.RUNTIME.open(bundle, lacking, Options())


def test_a_model_that_does_not_load_is_named(bundle: Path, tmp_path: Path) -> None:
    for file in (path for artifact in manifests.read(bundle).artifacts for path in artifact.files):
        (tmp_path / file.path).parent.mkdir(exist_ok=True)
        (tmp_path / file.path).write_bytes((bundle / file.path).read_bytes())
    (tmp_path / "openvino" / "openvino_language_model.xml").write_text("no model")
    with pytest.raises(EngineError, match=r"(?s)refuses '.*language_model\.xml'.*ossicle inspect"):
        runtime.RUNTIME.open(tmp_path, manifests.read(bundle), Options())


def test_an_input_of_another_size_fails_with_a_reason(engine: Engine) -> None:
    with pytest.raises(EngineError, match="'openvino' failed"):
        engine.encode(np.zeros((1, 16, 81), np.float32))


def test_a_device_that_is_not_here_is_refused(bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"no provider 'tpu' here \(it has: cpu.*auto\)"):
        runtime.RUNTIME.open(bundle, manifests.read(bundle), Options(provider="tpu"))


def test_a_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert 'pip install "ossicle[openvino]"' in (runtime.RUNTIME.usable() or "")
    with pytest.raises(EngineError, match="pip install"):
        runtime.RUNTIME.open(tmp_path, None, Options())  # type: ignore[arg-type]


@pytest.mark.parametrize(("integers", "group"), [(True, runtime.GROUP), (False, 0)])
def test_activations_are_integers_only_where_the_recipe_allows_them(integers: bool, group: int) -> None:
    told = runtime.settings({"integer_activations": integers}, Options(threads=3))
    assert told["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == group
    assert told["INFERENCE_NUM_THREADS"] == 3
    assert told["INFERENCE_PRECISION_HINT"] == "f32"


def test_compiled_models_are_kept_where_the_environment_says(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(runtime.CACHE, str(tmp_path))
    runtime.RUNTIME.open_encoder(bundle, manifests.read(bundle), Options(threads=1)).close()
    assert list(tmp_path.glob("*.blob"))
