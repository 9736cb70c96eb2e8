"""ONNX Runtime against a numpy reference: prefill, steps of unequal batches, continuation, both forms of the decoder."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ossicle.runtimes import onnxruntime
from ossicle.runtimes.base import Engine
from ossicle.runtimes.onnxruntime_decoder import ROOM
from ossicle.runtimes.options import Options
from ossicle.targets import manifest
from ossicle.targets.contract import EngineError, Float32
from ossicle.tests.runtimes.tiny_onnx import VOCABULARY, Form, Weights, reference, weights, write_onnx_bundle

FORMS: tuple[Form, ...] = ("fused", "standard")


@pytest.fixture(scope="module")
def model() -> Weights:
    return weights()


@pytest.fixture(scope="module", params=FORMS)
def engine(
    request: pytest.FixtureRequest, model: Weights, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp(request.param)
    opened = onnxruntime.RUNTIME.open(folder, write_onnx_bundle(folder, model, request.param), Options(threads=1))
    yield opened
    opened.close()


def _prompt(model: Weights, length: int) -> Float32:
    ids = np.random.default_rng(length).integers(0, VOCABULARY, length)
    return np.asarray(model.embedding[ids], np.float32)


def _close(logits: Float32, expected: Float32, tolerance: float = 1e-4) -> None:
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=tolerance, rtol=0)


def test_embeddings_are_those_of_the_ids(engine: Engine, model: Weights) -> None:
    ids = np.array([5, 0, 511])
    np.testing.assert_array_equal(engine.embed(ids), model.embedding[ids])


def test_windows_are_encoded_one_by_one(engine: Engine, model: Weights) -> None:
    mel = np.random.default_rng(1).normal(0, 1, (3, 128, 3000)).astype(np.float32)
    _close(engine.encode(mel), mel.reshape(3, 128, 375, 8).mean(3).swapaxes(1, 2) @ model.encoder)


def test_scores_of_every_position(engine: Engine, model: Weights) -> None:
    prompt = _prompt(model, 21)
    _close(engine.score(prompt), reference(model, prompt))
    _close(engine.score(prompt, 4), reference(model, prompt)[-4:])


@pytest.mark.parametrize("lengths", [[1], [30], [7, 30, 1], [300, 2]])
def test_prefill_and_steps_of_unequal_rows(engine: Engine, model: Weights, lengths: list[int]) -> None:
    sequences = [_prompt(model, length) for length in lengths]
    logits, state = engine.prefill(sequences)
    _close(logits, np.stack([reference(model, sequence)[-1] for sequence in sequences]))
    random = np.random.default_rng(0)
    for _ in range(5):
        tokens = random.integers(0, VOCABULARY, len(lengths))
        sequences = [np.vstack([sequence, model.embedding[[t]]]) for sequence, t in zip(sequences, tokens, strict=True)]
        logits, state = engine.step(state, tokens)
        _close(logits, np.stack([reference(model, sequence)[-1] for sequence in sequences]))
    assert state.lengths == [length + 5 for length in lengths]


@pytest.mark.parametrize("kept", [[0], [1], [2], [0, 2], [1, 2], [2, 0]])
def test_kept_rows_go_on_as_before(engine: Engine, model: Weights, kept: list[int]) -> None:
    sequences = [_prompt(model, length) for length in (12, 40, 3)]
    _, state = engine.prefill(sequences)
    _, state = engine.step(state, np.array([1, 2, 3]))
    state = engine.keep(state, kept)
    assert state.lengths == [len(sequences[row]) + 1 for row in kept]
    for _ in range(2):
        logits, state = engine.step(state, np.full(len(kept), 9))
    expected = [np.vstack([sequences[row], model.embedding[[row + 1, 9, 9]]]) for row in kept]
    _close(logits, np.stack([reference(model, sequence)[-1] for sequence in expected]))


def test_a_state_grows_beyond_the_room_it_began_with(engine: Engine, model: Weights) -> None:
    _, state = engine.prefill([_prompt(model, 4)])
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, ROOM + 20)
    for token in tokens:
        logits, state = engine.step(state, np.array([token]))
    _close(logits[0], reference(model, np.vstack([_prompt(model, 4), model.embedding[tokens]]))[-1])


@pytest.mark.parametrize("length", [1, 17, 400])
def test_a_row_is_continued(engine: Engine, model: Weights, length: int) -> None:
    first, second = _prompt(model, 50), _prompt(model, length)
    _, state = engine.prefill([first])
    logits, state = engine.extend(state, second)
    _close(logits[0], reference(model, np.vstack([first, second]))[-1])
    logits, state = engine.step(state, np.array([7]))
    _close(logits[0], reference(model, np.vstack([first, second, model.embedding[[7]]]))[-1])
    assert state.lengths == [50 + length + 1]


def test_several_rows_are_not_continued_at_once(engine: Engine, model: Weights) -> None:
    _, state = engine.prefill([_prompt(model, 5), _prompt(model, 6)])
    with pytest.raises(EngineError, match="2 rows at once"):
        engine.extend(state, _prompt(model, 3))


def test_a_float16_cache(model: Weights, tmp_path: Path) -> None:
    written = write_onnx_bundle(tmp_path, model, "fused", dtype=np.float16)
    engine = onnxruntime.RUNTIME.open(tmp_path, written, Options(threads=1))
    prompts = [_prompt(model, 9), _prompt(model, 4)]
    _, state = engine.prefill(prompts)
    assert {array.dtype for array in state.cache.arrays} == {np.dtype(np.float16)}
    logits, _ = engine.step(state, np.array([7, 7]))
    expected = np.stack([reference(model, np.vstack([prompt, model.embedding[[7]]]))[-1] for prompt in prompts])
    _close(logits, expected, tolerance=0.03)


def test_a_stage_that_is_missing_is_named(model: Weights, tmp_path: Path) -> None:
    written = write_onnx_bundle(tmp_path, model, "fused")
    lacking = replace(written, artifacts=written.artifacts[:2])
    with pytest.raises(EngineError, match=r"needs 'decoder' .* has: audio_encoder for onnx, embed_tokens for onnx"):
        onnxruntime.RUNTIME.open(tmp_path, lacking, Options())


def test_a_graph_that_does_not_load_is_named(model: Weights, tmp_path: Path) -> None:
    written = write_onnx_bundle(tmp_path, model, "fused")
    (tmp_path / "onnx" / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"refuses '.*decoder\.onnx'.*ossicle inspect"):
        onnxruntime.RUNTIME.open(tmp_path, written, Options())


def test_a_graph_of_the_wrong_stage_fails_with_a_reason(model: Weights, tmp_path: Path) -> None:
    written = write_onnx_bundle(tmp_path, model, "fused")
    shutil.copy(tmp_path / "onnx" / "embed_tokens.onnx", tmp_path / "onnx" / "audio_encoder.onnx")
    engine = onnxruntime.RUNTIME.open(tmp_path, written, Options())
    with pytest.raises(EngineError, match=r"'onnxruntime' failed: .*audio_values"):
        engine.encode(np.zeros((1, 128, 3000), np.float32))


def test_another_provider_is_refused(model: Weights, tmp_path: Path) -> None:
    written: manifest.Manifest = write_onnx_bundle(tmp_path, model, "fused")
    with pytest.raises(EngineError, match=r"no provider 'npu' here \(it has: cpu\)"):
        onnxruntime.RUNTIME.open(tmp_path, written, Options(provider="npu"))


def test_a_broken_package_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise RuntimeError('built for another numpy.\\nSee there')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    told = str(onnxruntime.RUNTIME.usable())
    assert told.startswith(
        "package onnxruntime cannot be imported: built for another numpy. See there. Install it again with"
    )
    assert told.endswith("pip install --force-reinstall onnxruntime")


def test_a_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert 'pip install "ossicle[onnx]"' in (onnxruntime.RUNTIME.usable() or "")
    with pytest.raises(EngineError, match="pip install"):
        onnxruntime.RUNTIME.open(tmp_path, None, Options())  # type: ignore[arg-type]
