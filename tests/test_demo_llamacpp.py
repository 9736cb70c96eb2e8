"""The shipped model on llama.cpp, from a recording to its text, against torch with the weights that the files store."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from mistral_common.protocol.instruct.chunk import AudioChunk, TextChunk
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from ossicle.cli.demo import shipped
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.pipeline import build
from ossicle.compiler.reference import Original, _recording
from ossicle.compiler.speech import Clip
from ossicle.runtimes.generate import decoding
from ossicle.runtimes.opening import load
from ossicle.runtimes.session import Session
from ossicle.targets.contract import Float32

SPEECH = shipped("speech")
RATE = 16000
SHORT = ("01-digits-espeak.wav", "12-pair-espeak.wav")
# Largest difference in logits (of up to 21). ggml rounds to float16 whatever it multiplies with a float16 matrix.
LIMITS = {"fp32": 1e-3, "fp16": 1e-2}
QUESTION = "which room?"


@dataclass(frozen=True)
class Pair:
    """A bundle opened on llama.cpp, and torch with the same weights."""

    session: Session
    original: Original
    limit: float


@pytest.fixture(scope="module", params=list(LIMITS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("llamacpp") / request.param
    build(shipped("model"), folder, targets=("onnx", "gguf"), recipe=request.param, verify=False)
    original = Original(open_checkpoint(shipped("model")))
    if request.param == "fp16":
        rounded = {name: value.half().float() for name, value in original.model.state_dict().items()}
        original.model.load_state_dict(rounded)
    with load(folder, engine="llamacpp") as session:
        yield Pair(session, original, LIMITS[request.param])


def samples(name: str) -> Float32:
    found: Float32 = soundfile.read(SPEECH / name, dtype="float32")[0]
    return found


def recorded(path: Path, seconds: float) -> Clip:
    """A recording of exactly so many seconds: of two sentences, or cut from a longer one."""
    long = samples("long-45s.wav") if seconds > 30 else samples("long-30s.wav")
    heard = long if seconds >= 30 else np.concatenate([samples(name) for name in SHORT])
    heard = np.pad(heard, (0, max(0, int(seconds * RATE) - len(heard))))
    soundfile.write(path, heard[: int(seconds * RATE)], RATE, subtype="FLOAT")
    return Clip(path.stem, path, language="en")


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "windows"), [(12, 1), (30.0, 1), (45, 2)])
def test_a_recording(pair: Pair, tmp_path: Path, seconds: float, windows: int) -> None:
    clip = recorded(tmp_path / "clip.wav", seconds)
    reading = pair.original.read(clip)
    assert len(pair.session.log_mel(clip.file)) == len(reading.logmel) == windows
    for reply in reading.replies:
        ours = pair.session.score(clip.file, reply.tokens, language=reply.language)
        assert np.abs(ours - reply.logits).max() <= pair.limit
        assert pair.session.transcribe(clip.file, language=reply.language, max_tokens=256).text == reply.text


@pytest.mark.slow
def test_two_recordings_in_one_prompt(pair: Pair) -> None:
    clips = [Clip(name, SPEECH / name) for name in SHORT]
    content = [*({"type": "audio", "audio": clip.file} for clip in clips), {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    ids, audio = asked(pair.original, clips)
    expected = pair.original._reply(ids, audio)
    prepared = pair.session._prompt.converse(messages, decoding())
    assert list(prepared.ids) == ids
    assert expected.logits is not None
    ours = pair.session._engine.score(prepared.embeddings, 1)
    assert np.abs(ours[0] - expected.logits[0]).max() <= pair.limit
    assert pair.session.chat(messages, max_tokens=256).text == expected.text


def asked(original: Original, clips: list[Clip]) -> tuple[list[int], Any]:
    """The prompt that mistral-common makes of recordings and a question, and the audio embeddings that torch makes."""
    chunks = [AudioChunk(input_audio=_recording(clip)) for clip in clips]
    request = ChatCompletionRequest(messages=[UserMessage(content=[*chunks, TextChunk(text=QUESTION)])])
    encoded = original._tokenizer.tokenizer.encode_chat_completion(request)
    logmel = [original._logmel(audio.audio_array) for audio in encoded.audios]
    return encoded.tokens, torch.cat([original._encode(windows) for windows in logmel])
