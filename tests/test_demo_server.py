"""The official client of OpenAI, unmodified, against `ossicle serve` on the shipped model."""

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from ossicle.benchmarks.load import ending, requests, serving, under_load
from ossicle.compiler import speech
from ossicle.runtimes.opening import load
from ossicle.runtimes.replies import Transcription
from ossicle.runtimes.session import Session
from ossicle.runtimes.subtitles import srt, vtt
from ossicle.tests.servers import process

CLIPS = [clip for clip in speech.load(speech.shipped()).clips if clip.name[:2].isdigit()]
CLIP = CLIPS[0]
SERVE = ["-m", "ossicle.cli", "serve", "--port", "0", "--engine", "onnxruntime", "--alias", "whisper-1"]
SWITCH = {
    "type": "function",
    "function": {
        "name": "switch",
        "description": "Switch a light",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}, "room": {"enum": ["kitchen", "hall"]}},
            "required": ["on", "room"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}, "last": {"enum": ["zero", "one"]}},
    "required": ["count", "last"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def session(demo_int4: Path) -> Iterator[Session]:
    with load(demo_int4, engine="onnxruntime") as opened:
        yield opened


@pytest.fixture(scope="module")
def client(demo_int4: Path) -> Iterator[openai.OpenAI]:
    with process([*SERVE, str(demo_int4)]) as (_, address):
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def heard(session: Session) -> Transcription:
    return session.transcribe(CLIP.file, language="en")


def _transcribe(client: openai.OpenAI, **fields: Any) -> Any:
    return client.audio.transcriptions.create(file=Path(CLIP.file), model="whisper-1", language="en", **fields)


def _question(text: str, file: Path | None = None) -> Any:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if file is not None:
        data = base64.b64encode(Path(file).read_bytes()).decode()
        content.insert(0, {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    return [{"role": "user", "content": content}]


def test_transcriptions_in_every_format(client: openai.OpenAI, session: Session, heard: Transcription) -> None:
    segments = list(session.segments(CLIP.file, language="en"))
    assert _transcribe(client).text == heard.text == CLIP.text
    assert _transcribe(client, response_format="text") == heard.text + "\n"
    verbose = _transcribe(client, response_format="verbose_json", timestamp_granularities=["segment"])
    assert (verbose.text, verbose.language, verbose.duration) == (CLIP.text, "en", heard.timings.audio)
    assert [(one.start, one.end, one.text) for one in verbose.segments] == [
        (one.start, one.end, one.text) for one in segments
    ]
    for form, write in (("srt", srt), ("vtt", vtt)):
        assert _transcribe(client, response_format=form) == "".join(write(segments))


def test_a_streamed_transcription(client: openai.OpenAI, heard: Transcription) -> None:
    *deltas, done = list(_transcribe(client, stream=True))
    assert len(deltas) > 3
    assert "".join(event.delta for event in deltas) == done.text == heard.text
    assert (done.usage.output_tokens, done.usage.input_tokens) == (len(heard.tokens), heard.prompt_tokens)
    assert done.usage.input_token_details.audio_tokens == 375


def test_a_long_recording(client: openai.OpenAI, session: Session) -> None:
    file = Path(speech.shipped()).parent / "long-75s.wav"
    found = client.audio.transcriptions.create(file=file, model="whisper-1", language="en")
    assert found.text == session.transcribe(file, language="en").text


def test_a_translation(client: openai.OpenAI) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):  # of the client's authors: their own service ends it
        assert client.audio.translations.create(file=Path(CLIP.file), model="whisper-1").text


def test_streamed_chat_with_audio(client: openai.OpenAI, session: Session) -> None:
    answers = []
    for clip in CLIPS[:3]:
        for question, _ in clip.questions:
            stream = client.chat.completions.create(
                model="whisper-1",
                messages=_question(question, clip.file),
                stream=True,
                stream_options={"include_usage": True},
            )
            *chunks, counts = list(stream)
            assert counts.usage is not None
            assert counts.usage.prompt_tokens > 375
            if question != clip.questions[0][0]:  # what was heard for the one before is not read again
                assert 375 < counts.usage.prompt_tokens_details.cached_tokens < counts.usage.prompt_tokens
            answers.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
            assert chunks[-1].choices[0].finish_reason == "stop"
    asked = [(clip, question) for clip in CLIPS[:3] for question, _ in clip.questions]
    assert answers == [session.chat(_question(question, clip.file)).text for clip, question in asked]


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {"model": "whisper-1", "messages": _question("kitchen on", CLIP.file), "tools": [SWITCH]}
    found = client.chat.completions.create(**asked, tool_choice="required", parallel_tool_calls=False, stream=stream)
    if stream:
        choice = list(found)[-1].choices[0]
        (call,) = choice.delta.tool_calls
    else:
        choice = found.choices[0]
        (call,) = choice.message.tool_calls
        assert choice.message.content is None
    assert choice.finish_reason == "tool_calls"
    assert (call.type, call.function.name, len(call.id)) == ("function", "switch", 9)
    arguments = json.loads(call.function.arguments)
    assert arguments["on"] in (True, False)
    assert arguments["room"] in ("kitchen", "hall")


def test_the_result_of_a_call_is_answered(client: openai.OpenAI) -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "switch", "arguments": '{"on": true}'}}
    messages: Any = [
        {"role": "developer", "content": "be brief"},
        *_question("kitchen on", CLIP.file),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "done"},
    ]
    found = client.chat.completions.create(model="whisper-1", messages=messages, tools=[SWITCH], max_tokens=5)  # type: ignore[list-item]
    assert found.usage is not None
    assert found.usage.completion_tokens <= 5


def test_an_answer_holds_to_its_schema(client: openai.OpenAI) -> None:
    named = {"name": "found", "schema": SCHEMA, "strict": True}
    found = client.chat.completions.create(
        model="whisper-1",
        messages=_question("count", CLIP.file),
        response_format={"type": "json_schema", "json_schema": named},  # type: ignore[arg-type, misc]
    )
    answer = json.loads(found.choices[0].message.content or "")
    assert set(answer) == {"count", "last"}
    assert 0 <= answer["count"] <= 99


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.audio.transcriptions.create(file=Path(CLIP.file), model="gpt-4o-transcribe")
    with pytest.raises(openai.BadRequestError, match="'n' 2") as refused:
        client.chat.completions.create(model="whisper-1", messages=_question("x"), n=2)
    assert refused.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="schema"):
        client.chat.completions.create(
            model="whisper-1",
            messages=_question("x"),
            response_format={"type": "json_schema"},  # type: ignore[call-overload]
        )
    assert "whisper-1" in [model.id for model in client.models.list()]


def test_a_server_under_load(demo_int4: Path, session: Session) -> None:
    asked = requests(session, 60)
    with serving(demo_int4, "onnxruntime", workers=1, queue=4) as server:
        outcome, (warm, end) = asyncio.run(under_load(server, asked, clients=8))
        assert outcome.faults == []
        assert outcome.ends.total() == len(asked)
        assert outcome.refused > 0
        assert end < warm + (32 << 20)
        assert ending(server, asked, count=4) == []
