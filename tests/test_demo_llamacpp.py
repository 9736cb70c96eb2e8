"""The shipped model on llama.cpp, from a recording to its text, against torch with the weights that the files store."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
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
from ossicle.compiler.clips import wav
from ossicle.compiler.readings import Reading
from ossicle.compiler.reference import Original
from ossicle.compiler.speech import Clip
from ossicle.runtimes.generate import decoding
from ossicle.runtimes.opening import load
from ossicle.runtimes.session import Session
from ossicle.targets.contract import Float32

SPEECH = shipped("speech")
RATE = 16000
SHORT = ("01-digits-espeak.wav", "12-pair-espeak.wav")
# By case: the recipe, what products are computed in ("": the engine's way), the encoder's engine, the largest difference in
# logits, and its share of the largest logit (21). ggml rounds to float16 whatever it multiplies with a float16 matrix unless
# that is widened; ONNX Runtime computes a float16 encoder in float16, OpenVINO on a CPU in float32.
CASES = {
    "fp32": ("fp32", "", "onnxruntime", 1e-3, 1e-4),
    "fp16": ("fp16", "", "onnxruntime", 1e-2, 1e-3),
    "fp16 in float32": ("fp16", "float32", "openvino", 1e-3, 1e-4),
}
QUESTION = "which room?"


@dataclass(frozen=True)
class Pair:
    """A bundle opened on llama.cpp, and torch with the same weights."""

    session: Session
    original: Original
    limits: tuple[float, float]

    def near(self, ours: Any, theirs: Any) -> bool:
        """Whether logits differ by no more than they may, and by no larger a share of the largest."""
        distance = np.abs(ours - theirs).max()
        absolute, relative = self.limits
        return bool(distance <= absolute and distance <= relative * np.abs(theirs).max())


class Made:
    """What several cases share, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.original, self.reading = cache(self._original), cache(self._reading)

    def _original(self, recipe: str) -> Original:
        original = Original(open_checkpoint(shipped("model")))
        if recipe == "fp16":
            rounded = {name: value.half().float() for name, value in original.model.state_dict().items()}
            original.model.load_state_dict(rounded)
        return original

    def _reading(self, original: Original, seconds: float) -> tuple[Clip, Reading]:
        clip = recorded(self._folder / f"{seconds}.wav", seconds)
        return clip, original.read(clip)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("llamacpp"))


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: pytest.FixtureRequest, made: Made, demo: Callable[..., Path]) -> Iterator[Pair]:
    recipe, compute, encoder, *limits = CASES[request.param]
    bundle = demo(recipe, "onnx", *(["openvino"] if recipe == "fp16" else []), "gguf")
    engines = {"encoder": encoder, "decoder": "llamacpp"}
    with load(bundle, engine=engines, compute=compute, threads=1) as session:
        yield Pair(session, made.original(recipe), (limits[0], limits[1]))


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
def test_a_recording(pair: Pair, made: Made, seconds: float, windows: int) -> None:
    clip, reading = made.reading(pair.original, seconds)
    assert len(pair.session.log_mel(clip.file)) == len(reading.logmel) == windows
    for reply in reading.replies:
        ours = pair.session.score(clip.file, reply.tokens, language=reply.language)
        assert pair.near(ours, reply.logits)
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
    assert pair.near(ours[0], expected.logits[0])
    assert pair.session.chat(messages, max_tokens=256).text == expected.text


def asked(original: Original, clips: list[Clip]) -> tuple[list[int], Any]:
    """The prompt that mistral-common makes of recordings and a question, and the audio embeddings that torch makes."""
    chunks = [AudioChunk(input_audio=wav(clip)) for clip in clips]
    request = ChatCompletionRequest(messages=[UserMessage(content=[*chunks, TextChunk(text=QUESTION)])])
    encoded = original._tokenizer.tokenizer.encode_chat_completion(request)
    logmel = [original._logmel(audio.audio_array) for audio in encoded.audios]
    return encoded.tokens, torch.cat([original._encode(windows) for windows in logmel])
