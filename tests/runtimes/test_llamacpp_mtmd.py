"""llama.cpp's own audio path: chosen by name alone, said to be inexact, and held to an emulation of it in torch."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ossicle.benchmarks.widened import widened
from ossicle.cli.demo import shipped
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.pipeline import build
from ossicle.compiler.verify import verify
from ossicle.runtimes import llamacpp_mtmd
from ossicle.runtimes.device import doctor
from ossicle.runtimes.opening import load
from ossicle.runtimes.select import select
from ossicle.runtimes.session import Session
from ossicle.targets import manifest
from ossicle.targets.contract import EngineError, VerificationError
from ossicle.tests import checkpoints
from transformers import VoxtralForConditionalGeneration

SPEECH = shipped("speech")
CLIP = SPEECH / "01-digits-espeak.wav"
HALF_MINUTE = SPEECH / "long-30s.wav"


@pytest.fixture(scope="module")
def model() -> Any:
    """The shipped model with an encoder so wide that llama.cpp pads its frames as it means to."""
    loaded = VoxtralForConditionalGeneration.from_pretrained(shipped("model"), dtype=torch.float32)
    return widened(loaded.eval())


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_hub(tmp_path_factory.mktemp("wide") / "checkpoint", model)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "bundle"
    return build(checkpoint, folder, targets=("gguf",), recipe="fp16", verify=False).folder


@pytest.fixture(scope="module")
def session(bundle: Path) -> Iterator[Session]:
    with load(bundle, engine="llamacpp-mtmd", threads=1) as opened:
        yield opened


@torch.no_grad()
def pooled(model: Any, mel: np.ndarray) -> np.ndarray:
    """What llama.cpp computes: pairs of frames averaged before the last layer norm, then stacked by four as ever."""
    tower, projector = model.model.audio_tower, model.model.multi_modal_projector
    norm, tower.layer_norm = tower.layer_norm, torch.nn.Identity()
    frames = tower(torch.from_numpy(mel)).last_hidden_state
    tower.layer_norm = norm
    pairs = norm(frames.reshape(len(frames), -1, 2, frames.shape[2]).mean(2))
    whole = pairs.shape[1] // 4
    return projector(pairs[:, : 4 * whole].reshape(len(pairs), whole, -1)).numpy()


def test_a_wider_encoder_computes_the_same(model: Any) -> None:
    narrow = VoxtralForConditionalGeneration.from_pretrained(shipped("model"), dtype=torch.float32).eval()
    mel = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (1, 128, 3000)).astype(np.float32))
    with torch.no_grad():
        ours, expected = (one.model.get_audio_features(mel).pooler_output for one in (model, narrow))
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_it_hears_what_llama_cpp_averages(session: Session, model: Any) -> None:
    ours, expected = session.embed_audio(CLIP), pooled(model, session.log_mel(CLIP))
    assert ours.shape == expected.shape == (1, 187, 256)
    assert np.linalg.norm(ours - expected) <= 0.02 * np.linalg.norm(expected)


def test_a_full_window_gets_a_silent_one_more(session: Session) -> None:
    assert len(session.embed_audio(HALF_MINUTE)) == 1 + len(session.log_mel(HALF_MINUTE))


def test_answers_say_that_they_are_inexact(session: Session) -> None:
    found = session.transcribe(CLIP, language="en")
    assert found.engine == "llamacpp-mtmd-cpu (inexact)"
    assert found.text
    (told,) = [runtime for runtime in doctor().runtimes if runtime.name == "llamacpp-mtmd"]
    assert told.inexact
    assert told.reason is None


def test_two_recordings_stand_in_one_prompt(session: Session) -> None:
    content = [{"type": "audio", "audio": str(CLIP)}] * 2 + [{"type": "text", "text": "which room?"}]
    assert session.chat([{"role": "user", "content": content}], max_tokens=4).tokens


def test_nobody_gets_it_who_has_not_named_it(bundle: Path) -> None:
    held = manifest.read(bundle)
    assert select(held).name == "llamacpp"
    assert select(held, "llamacpp-mtmd") is llamacpp_mtmd.RUNTIME


@pytest.mark.slow
def test_verification_measures_it_and_fails_it(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    listed = tmp_path / "speech.jsonl"
    listed.write_text(json.dumps({"file": str(CLIP), "text": "nine six nine six nine zero"}) + "\n")
    (found,) = verify(bundle, open_checkpoint(checkpoint), speech=listed, engine="llamacpp-mtmd").targets
    assert (found.target, found.engine, found.passed) == ("gguf", "llamacpp-mtmd-cpu (inexact)", False)
    assert found.figures.embeddings == float("inf")
    assert found.figures.kl > 1e-3
    with pytest.raises(
        VerificationError, match=r"nothing that engine 'onnxruntime' runs \(it has artifacts for: llamacpp"
    ):
        verify(bundle, open_checkpoint(checkpoint), speech=listed, engine="onnxruntime")


def test_an_abort_within_the_library_is_an_error_with_what_it_said_last(demo: Callable[..., Path]) -> None:
    """The shipped encoder is 192 wide, whose padding llama.cpp gets wrong: it ends its process."""
    folder = demo("fp16", "onnx", "openvino", "gguf")
    with pytest.raises(EngineError, match=r"(?s)signal SIGABRT\).*expected output 187 tokens, got 188"):
        load(folder, engine="llamacpp-mtmd")
    with load(folder, engine="llamacpp") as opened:
        assert "llamacpp-cpu" in opened.engine
