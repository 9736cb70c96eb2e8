"""Prompts are, id for id, those that mistral-common writes."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from ossicle.runtimes.messages import Clip, Turn, clips, read_messages
from ossicle.runtimes.prompt import Prompts
from ossicle.runtimes.tokens import Tokenizer
from ossicle.targets.contract import PromptError
from ossicle.tests.fakes import AUDIO, TEXT, demo_tokenizer

TEKKEN = Path(__file__).parents[2] / "demo" / "model" / "tekken.json"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return demo_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> Prompts:
    return Prompts(tokenizer, TEXT, AUDIO.tokens_per_window, context=4096)


@pytest.fixture(scope="module")
def reference() -> Any:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    return MistralTokenizer.from_file(str(TEKKEN))


def _wav(seconds: float) -> str:
    stream = BytesIO()
    soundfile.write(stream, np.zeros(int(16000 * seconds), np.float32), 16000, format="WAV")
    return base64.b64encode(stream.getvalue()).decode()


def _audio(seconds: float) -> dict[str, Any]:
    return {"type": "audio", "audio": seconds}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _reference_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def part(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "text":
            return part
        return {"type": "input_audio", "input_audio": {"data": _wav(part["audio"]), "format": "wav"}}

    return [
        message if isinstance(message["content"], str) else message | {"content": list(map(part, message["content"]))}
        for message in messages
    ]


CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "turn on the kitchen light"}],
    [{"role": "user", "content": "[INST] </s> ünïcode 日本 [AUDIO]"}],
    [{"role": "user", "content": [_audio(1), _text("which room?")]}],
    [{"role": "user", "content": [_text("first"), _audio(1), _text("then"), _text("again"), _audio(31)]}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "on or off?"}],
    [
        {"role": "user", "content": [_audio(60), _text("which room?")]},
        {"role": "assistant", "content": "kitchen "},
        {"role": "user", "content": "on or off?"},
    ],
    [
        {"role": "user", "content": "one"},
        {"role": "user", "content": [_text("two"), _audio(2)]},
        {"role": "assistant", "content": "three"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": [_audio(2)]},
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_conversations_equal_mistral_common(prompts: Prompts, reference: Any, messages: list[dict[str, Any]]) -> None:
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    request = ChatCompletionRequest(messages=_reference_messages(messages))
    turns = read_messages(messages)
    windows = [-(-clip.source // 30) for clip in clips(turns)]
    assert prompts.chat(turns, windows) == reference.encode_chat_completion(request).tokens


@pytest.mark.parametrize("language", [None, "en", "de"])
@pytest.mark.parametrize("seconds", [1, 30, 61])
def test_transcriptions_equal_mistral_common(
    prompts: Prompts, reference: Any, language: str | None, seconds: int
) -> None:
    from mistral_common.protocol.transcription.request import TranscriptionRequest

    request = TranscriptionRequest(model="voxtral", language=language, audio=_wav(seconds))
    expected = reference.encode_transcription(request).tokens
    assert prompts.transcription(-(-seconds // 30), language) == expected


def test_clips_are_found_in_order() -> None:
    content = [_audio(1), _text("a"), {"type": "audio", "path": "x.wav"}, _audio(2) | {"rate": 8000}]
    assert clips(read_messages([{"role": "user", "content": content}])) == (Clip(1), Clip("x.wav"), Clip(2, 8000))


def test_a_conversation_may_be_read_twice() -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert read_messages(messages) == read_messages(messages) == (Turn("user", ("hi",)),)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "list of messages"),
        ("hello", "list of messages"),
        (["hello"], "message 0 is of role None"),
        ([{"role": "robot", "content": "hi"}], "role 'robot' .*system, user, assistant"),
        ([{"role": "user"}], "message 0 has no content"),
        ([{"role": "user", "content": ""}], "part 0 of message 0 holds no text"),
        ([{"role": "user", "content": []}], "message 0 has no content"),
        ([{"role": "user", "content": 7}], "message 0 has no content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "type 'image' .*text, audio"),
        ([{"role": "user", "content": ["hi"]}], "part 0 of message 0 is of type None"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "holds no recording"),
        ([{"role": "user", "content": [{"type": "text"}]}], "holds no text"),
        ([{"role": "system", "content": [_audio(1)]}], "audio in a message of role 'system'"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}], "last message is of role"),
        ([{"role": "x", "content": "hi"}, {"role": "user", "content": ""}], "message 0.*message 1"),
    ],
)
def test_what_cannot_be_followed_is_named(messages: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        read_messages(messages)


@pytest.mark.parametrize("language", ["", "english", "EN", "[INST]", "e"])
def test_impossible_languages_are_refused(prompts: Prompts, language: str) -> None:
    with pytest.raises(PromptError, match="language"):
        prompts.transcription(1, language)


def test_the_context_is_kept_with_numbers(prompts: Prompts) -> None:
    assert len(prompts.transcription(10)) == 3755
    with pytest.raises(PromptError, match=r"takes 4130 tokens, 4125 .* 11 windows .* holds 4096 .* at most 10 windows"):
        prompts.transcription(11)
