"""llama.cpp in its child process: what it answers against torch, and what becomes of a child that dies."""

import gc
import io
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ossicle.runtimes import llamacpp, llamacpp_api, llamacpp_context, llamacpp_wire
from ossicle.runtimes.llamacpp_worker import ROOM
from ossicle.runtimes.options import Options
from ossicle.targets import manifest
from ossicle.targets.contract import BundleError, EngineError
from ossicle.tests import checkpoints
from ossicle.tests.runtimes.tiny_gguf import CONFIG, HIDDEN, logits, prompt, write_bundle


@pytest.fixture(scope="module")
def model() -> Any:
    return checkpoints.model(CONFIG)


@pytest.fixture(scope="module")
def bundle(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of nothing but GGUF."""
    return write_bundle(tmp_path_factory.mktemp("llamacpp"), model)


@pytest.fixture
def engine(bundle: Path) -> Iterator[llamacpp.LlamaCppEngine]:
    opened = llamacpp.RUNTIME.open(bundle, manifest.read(bundle), Options(threads=1))
    assert isinstance(opened, llamacpp.LlamaCppEngine)
    yield opened
    opened.close()


def child(engine: llamacpp.LlamaCppEngine) -> int:
    pid = engine._process.pid
    assert pid is not None
    return pid


def test_sequences_outlive_a_cache_that_grows(engine: llamacpp.LlamaCppEngine, model: Any) -> None:
    first, long = prompt(50), prompt(ROOM + 300)
    _, state = engine.prefill([first, prompt(9)])
    ours, other = engine.prefill([long])
    np.testing.assert_allclose(ours[0], logits(model, long)[-1], atol=3e-4, rtol=0)  # sums over a thousand tokens
    ours, state = engine.step(state, np.array([7, 8]))
    longer = np.concatenate([first, engine.embed(np.array([7]))])
    np.testing.assert_allclose(ours[0], logits(model, longer)[-1], atol=1e-4, rtol=0)
    assert (other.lengths, state.lengths) == ([ROOM + 300], [51, 10])


def test_a_kept_row_and_its_origin_go_different_ways(engine: llamacpp.LlamaCppEngine, model: Any) -> None:
    values = prompt(20)
    _, state = engine.prefill([values])
    kept = engine.keep(state, [0])
    for begun, token in ((state, 3), (kept, 4)):
        ours, _ = engine.step(begun, np.array([token]))
        longer = np.concatenate([values, engine.embed(np.array([token]))])
        np.testing.assert_allclose(ours[0], logits(model, longer)[-1], atol=1e-4, rtol=0)


def test_what_is_no_number_spoils_no_other_sequence(engine: llamacpp.LlamaCppEngine, model: Any) -> None:
    first, second = prompt(20), prompt(12)
    _, state = engine.prefill([first])
    with pytest.raises(EngineError, match="no numbers"):
        engine.prefill([np.full((30, HIDDEN), np.nan, np.float32)])
    ours, _ = engine.prefill([second])
    np.testing.assert_allclose(ours[0], logits(model, second)[-1], atol=1e-4, rtol=0)
    ours, _ = engine.step(state, np.array([3]))
    longer = np.concatenate([first, engine.embed(np.array([3]))])
    np.testing.assert_allclose(ours[0], logits(model, longer)[-1], atol=1e-4, rtol=0)


def test_numbers_of_sequences_that_nobody_holds_are_used_again(engine: llamacpp.LlamaCppEngine, model: Any) -> None:
    for _ in range(2 * llamacpp_context.MAX_SEQUENCES):
        ours, _ = engine.prefill([prompt(3)])
    np.testing.assert_allclose(ours[0], logits(model, prompt(3))[-1], atol=1e-4, rtol=0)


def test_more_sequences_than_there_are_numbers_are_refused(engine: llamacpp.LlamaCppEngine) -> None:
    _, held = engine.prefill([prompt(1)] * 60)
    with pytest.raises(EngineError, match=r"cannot begin 5 more sequences \(it can: 4 of 64\)"):
        engine.prefill([prompt(1)] * 5)
    del held
    gc.collect()
    engine.prefill([prompt(1)] * 64)


def test_several_rows_are_not_extended_at_once(engine: llamacpp.LlamaCppEngine) -> None:
    _, state = engine.prefill([prompt(2), prompt(3)])
    with pytest.raises(EngineError, match="2 rows at once"):
        engine.extend(state, prompt(1))


def test_a_child_killed_in_a_generation_is_an_error_and_the_next_call_works(
    engine: llamacpp.LlamaCppEngine, model: Any
) -> None:
    _, state = engine.prefill([prompt(30)])
    os.kill(child(engine), signal.SIGKILL)
    with pytest.raises(EngineError, match=r"ended in the middle of its work \(signal SIGKILL, as systems"):
        engine.step(state, np.array([1]))
    with pytest.raises(EngineError, match="they are lost"):
        engine.step(state, np.array([1]))
    ours, fresh = engine.prefill([prompt(30)])
    np.testing.assert_allclose(ours[0], logits(model, prompt(30))[-1], atol=1e-4, rtol=0)
    with pytest.raises(EngineError, match="they are lost"):
        engine.keep(state, [0])
    engine.step(fresh, np.array([1]))


def test_what_the_engine_refuses_is_told_with_its_reason(engine: llamacpp.LlamaCppEngine) -> None:
    with pytest.raises(EngineError, match=r"answers -1 to 1 tokens: init: invalid seq_id\[0\]\[0\] = 999"):
        engine._process.call("decode", {"parts": [[999, 0, 1, 1]], "free": [], "scales": []}, [prompt(1)])
    for values in (prompt(2)[:, :5], prompt(2)[:0]):
        with pytest.raises(EngineError, match="no embeddings or tokens"):
            engine.prefill([values])
    ours, _ = engine.prefill([prompt(2)])
    assert ours.shape == (1, 512)


def test_closing_leaves_no_process(bundle: Path) -> None:
    opened = llamacpp.RUNTIME.open(bundle, manifest.read(bundle), Options(threads=1))
    assert isinstance(opened, llamacpp.LlamaCppEngine)
    pid = child(opened)
    opened.close()
    assert not psutil.pid_exists(pid)
    with pytest.raises(EngineError, match="is closed"):
        opened.prefill([prompt(1)])


def test_an_engine_that_nobody_holds_leaves_no_process(bundle: Path) -> None:
    opened = llamacpp.RUNTIME.open(bundle, manifest.read(bundle), Options(threads=1))
    assert isinstance(opened, llamacpp.LlamaCppEngine)
    pid = child(opened)
    del opened
    gc.collect()
    assert not psutil.pid_exists(pid)


def test_without_an_exact_encoder_audio_is_refused_and_text_is_not(bundle: Path) -> None:
    held = manifest.read(bundle)
    alone = replace(held, artifacts=tuple(one for one in held.artifacts if one.target == "gguf"))
    opened = llamacpp.RUNTIME.open(bundle, alone, Options(threads=1))
    assert opened.name == "llamacpp-cpu"
    with pytest.raises(EngineError, match=r"exact encoder.*--target onnx,gguf"):
        opened.encode(np.zeros((1, 16, 80), np.float32))
    assert opened.score(opened.embed(np.array([1, 3, 300]))).shape == (3, 512)
    opened.close()


def test_a_file_cut_short_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    whole = (bundle / "gguf" / "voxtral-F32.gguf").read_bytes()
    (tmp_path / "gguf" / "voxtral-F32.gguf").write_bytes(whole[:-5000])
    with pytest.raises(BundleError, match=r"voxtral-F32\.gguf.*cut short"):
        llamacpp.RUNTIME.open(tmp_path, manifest.read(bundle), Options())


def test_a_model_that_llama_cpp_refuses_is_an_error_with_its_reason(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    whole = (bundle / "gguf" / "voxtral-F32.gguf").read_bytes()
    (tmp_path / "gguf" / "voxtral-F32.gguf").write_bytes(whole.replace(b"blk.1.attn_norm", b"blk.1.attn_nora"))
    before = set(psutil.Process().children())
    with pytest.raises(EngineError, match=r"cannot be loaded.*blk\.1\.attn_norm"):
        llamacpp.RUNTIME.open(tmp_path, manifest.read(bundle), Options())
    assert set(psutil.Process().children()) <= before


def test_a_bundle_without_gguf_is_refused(bundle: Path) -> None:
    without = replace(manifest.read(bundle), artifacts=())
    with pytest.raises(EngineError, match=r"needs 'decoder'.*it has: nothing"):
        llamacpp.RUNTIME.open(bundle, without, Options())
    with pytest.raises(EngineError, match="no provider 'cuda'"):
        llamacpp.RUNTIME.open(bundle, manifest.read(bundle), Options(provider="cuda"))


@pytest.mark.parametrize(
    ("version", "reason"),
    [(None, r'pip install "ossicle\[gguf\]"'), ("2027.1.1", r"known at 2026\.10\.11549 alone.*pip install")],
)
def test_another_version_of_the_package_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str | None, reason: str, bundle: Path
) -> None:
    monkeypatch.setattr(llamacpp, "installed", lambda _: version)
    with pytest.raises(EngineError, match=reason):
        llamacpp.RUNTIME.open(bundle, manifest.read(bundle), Options())


def test_structures_that_are_laid_out_otherwise_are_refused() -> None:
    params = llamacpp_api.ContextParams(n_ctx=512, n_batch=7)
    with pytest.raises(EngineError, match=r"lays out llama_context_params otherwise: n_batch is 7, n_ubatch is 0"):
        llamacpp_api.check_defaults("llama_context_params", params, llamacpp_api.CONTEXT_DEFAULTS)


messages = st.dictionaries(
    st.text(max_size=5), st.integers() | st.text(max_size=9) | st.lists(st.integers(), max_size=3)
)
arrays = hnp.arrays(
    st.sampled_from([np.float32, np.int32]), hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
)


@given(messages, st.lists(arrays, max_size=3), st.data())
@settings(max_examples=80)
def test_messages_come_as_they_were_sent(message: dict[str, Any], sent: list[Any], data: st.DataObject) -> None:
    message.pop("arrays", None)
    stream = io.BytesIO()
    llamacpp_wire.send(stream, message, sent)
    stream.seek(0)
    received, found = llamacpp_wire.receive(stream)
    assert received == message
    assert len(found) == len(sent)
    for one, other in zip(found, sent, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    cut = stream.getvalue()[: data.draw(st.integers(0, len(stream.getvalue()) - 1))]
    with pytest.raises(EOFError):
        llamacpp_wire.receive(io.BytesIO(cut))
