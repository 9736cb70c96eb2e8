"""The server's routes, on a runtime of numpy alone, through real sockets."""

import base64
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from ossicle.runtimes.opening import load
from ossicle.runtimes.server.service import _models
from ossicle.runtimes.session import Session
from ossicle.runtimes.subtitles import srt, vtt
from ossicle.targets.contract import EngineError
from ossicle.tests.fakes import FakeEngine, FakeRuntime, demo_tokenizer, write_bundle
from ossicle.tests.runtimes.fake_adapters import SHIFTS, Adapting, Merged
from ossicle.tests.servers import served, wav

TRANSCRIBE, TRANSLATE, CHAT = "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/chat/completions"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder)
    return load(folder, engine=FakeRuntime())


@pytest.fixture(scope="module")
def client(session: Session) -> Iterator[httpx.Client]:
    with served(session, aliases=("whisper-1",)) as (url, _), httpx.Client(base_url=url, timeout=120) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Another session, which answers beside the server."""
    folder = tmp_path_factory.mktemp("beside")
    write_bundle(folder)
    return load(folder, engine=FakeRuntime())


def _file(content: bytes | None = None, name: str = "file") -> dict[str, Any]:
    return {name: ("a.wav", wav() if content is None else content, "audio/wav")}


def _audio(content: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode(), "format": "wav"}}


def _ask(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 8, **fields}


def _events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_transcription_is_the_sessions(client: httpx.Client, expected: Session) -> None:
    found = client.post(TRANSCRIBE, files=_file(), data={"language": "en", "model": "whisper-1"})
    assert found.status_code == 200, found.text
    reply = expected.transcribe(wav(), language="en")
    document = found.json()
    assert document["text"] == reply.text
    assert (document["engine"], document["timings"]["tokens"]) == ("fake-cpu", len(reply.tokens))


def test_a_transcription_as_text(client: httpx.Client, expected: Session) -> None:
    plain = client.post(TRANSCRIBE, files=_file(wav(2.0)), data={"response_format": "text"})
    text = expected.transcribe(wav(2.0)).text
    assert (plain.text, plain.headers["content-type"]) == (text + "\n", "text/plain; charset=utf-8")


@pytest.fixture(scope="module")
def long_file() -> bytes:
    """Two noises with silence between them, longer than a window together."""
    sound = [np.frombuffer(wav(seconds)[-64000 * seconds :], np.float32) for seconds in (20, 15)]
    file = io.BytesIO()
    soundfile.write(file, np.concatenate([sound[0], np.zeros(32000, np.float32), sound[1]]), 16000, format="FLAC")
    return file.getvalue()


def test_a_transcription_with_its_times(client: httpx.Client, expected: Session, long_file: bytes) -> None:
    segments = list(expected.segments(long_file, language="en"))
    data = {"response_format": "verbose_json", "language": "en", "timestamp_granularities[]": ["segment"]}
    verbose = client.post(TRANSCRIBE, files=_file(long_file), data=data).json()
    assert (verbose["task"], verbose["language"], verbose["duration"]) == ("transcribe", "en", 37.0)
    assert len(segments) > 1
    found = [(one["start"], one["end"], one["text"]) for one in verbose["segments"]]
    assert found == [(one.start, one.end, one.text) for one in segments]


def test_a_transcription_as_subtitles(client: httpx.Client, expected: Session, long_file: bytes) -> None:
    segments = list(expected.segments(long_file))
    for form, write in (("srt", srt), ("vtt", vtt)):
        found = client.post(TRANSCRIBE, files=_file(long_file), data={"response_format": form})
        assert (found.status_code, found.text) == (200, "".join(write(segments)))


def test_silence_has_no_words(client: httpx.Client) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(32000), 16000, format="WAV")
    found = client.post(TRANSCRIBE, files=_file(file.getvalue()), data={"response_format": "verbose_json"}).json()
    assert (found["text"], found["segments"], found["duration"]) == ("", [], 2.0)


def test_a_streamed_transcription_adds_up(client: httpx.Client, expected: Session) -> None:
    events = _events(client.post(TRANSCRIBE, files=_file(), data={"stream": "true"}))
    pieces, done = events[:-1], events[-1]
    assert {event["type"] for event in pieces} == {"transcript.text.delta"}
    assert done["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in pieces) == done["text"] == expected.transcribe(wav()).text


def test_a_translation_is_asked_for_in_words(client: httpx.Client, expected: Session) -> None:
    found = client.post(TRANSLATE, files=_file()).json()["text"]
    text = "Translate the speech into English. Answer with the translation alone."
    content = [{"type": "audio", "audio": wav()}, {"type": "text", "text": text}]
    assert found == expected.chat([{"role": "user", "content": content}]).text


def test_a_conversation_is_the_sessions(client: httpx.Client, expected: Session) -> None:
    document = client.post(CHAT, json=_ask({"type": "text", "text": "hello"}, _audio(wav()), model="bundle")).json()
    content = [{"type": "text", "text": "hello"}, {"type": "audio", "audio": wav()}]
    reply = expected.chat([{"role": "user", "content": content}], max_tokens=8)
    (choice,) = document["choices"]
    assert choice["message"]["content"] == reply.text
    assert (choice["finish_reason"], document["model"], document["object"]) == ("length", "bundle", "chat.completion")
    assert document["usage"]["completion_tokens"] == 8


def test_a_streamed_conversation_adds_up(client: httpx.Client) -> None:
    asked = _ask({"type": "text", "text": "hello"})
    whole = client.post(CHAT, json=asked).json()["choices"][0]["message"]["content"]
    *chunks, counts, done = _events(client.post(CHAT, json=asked | _STREAMED))
    assert done == "[DONE]"
    assert counts["choices"] == []
    assert counts["usage"]["completion_tokens"] == 8
    deltas = [chunk["choices"][0] for chunk in chunks]
    assert deltas[0]["delta"]["role"] == "assistant"
    assert [one["finish_reason"] for one in deltas[-2:]] == [None, "length"]
    assert "".join(one["delta"].get("content", "") for one in deltas) == whole


_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


def test_draws_differ_unless_a_seed_is_given(client: httpx.Client) -> None:
    def draw(**fields: Any) -> str:
        document = client.post(CHAT, json=_ask({"type": "text", "text": "hello"}, temperature=1.5, **fields)).json()
        return str(document["choices"][0]["message"]["content"])

    assert draw(seed=1) == draw(seed=1)
    assert len({draw() for _ in range(4)}) > 1


def test_what_is_served_and_how(client: httpx.Client) -> None:
    names = [entry["id"] for entry in client.get("/v1/models").json()["data"]]
    assert names == ["fake", "bundle", "whisper-1"]
    assert client.get("/v1/models/whisper-1").json()["id"] == "whisper-1"
    assert client.get("/v1/models/gpt-4o").status_code == 404
    health = client.get("/health").json()
    assert (health["status"], health["stages"]["encoder"], health["queue"]["places"]) == ("ready", "fake-cpu", 33)
    assert set(client.get("/openapi.json").json()["paths"]) >= {TRANSCRIBE, TRANSLATE, CHAT, "/health"}


def test_metrics_count(client: httpx.Client) -> None:
    def figure(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    good, bad = (f'ossicle_requests_total{{route="{TRANSCRIBE}",status="{status}"}}' for status in (200, 400))
    before = [figure(name) for name in (good, bad, "ossicle_audio_seconds_total")]
    client.post(TRANSCRIBE, files=_file())
    client.post(TRANSCRIBE, files=_file(b"nothing"))

    def counted() -> list[float]:
        after = [figure(name) for name in (good, bad, "ossicle_audio_seconds_total")]
        return [late - early for late, early in zip(after, before, strict=True)]

    until = time.monotonic() + 10  # a request is counted once its answer is sent
    while counted() != [1, 1, 1.0] and time.monotonic() < until:
        time.sleep(0.05)
    assert counted() == [1, 1, 1.0]
    assert figure("ossicle_places_taken") == 0


CONTENT = {"content-type": "application/json"}
AUDIO = {"type": "audio", "path": "/etc/hostname"}
LOUD = wav()[:-4] + b"\xca\xf2\x49\x71"  # its last sample is 1e30
FAULTS: list[tuple[str, dict[str, Any], int, str]] = [
    (CHAT, {"content": b"{", "headers": CONTENT}, 400, "no JSON"),
    (CHAT, {"content": b"[]", "headers": CONTENT}, 400, "no JSON object"),
    (CHAT, {"content": b"\xff", "headers": CONTENT}, 400, "no JSON"),
    (CHAT, {"content": b"[" * 100_000, "headers": CONTENT}, 400, "no JSON"),
    (CHAT, {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "text/plain"),
    (CHAT, {"json": {}}, 400, "'messages' is missing"),
    (CHAT, {"json": {"messages": []}}, 400, "conversation is a list"),
    (CHAT, {"json": {"messages": [1]}}, 400, r"messages\[0\] is no JSON object"),
    (CHAT, {"json": {"messages": [{"role": "user", "content": 3}]}}, 400, "neither a text nor a list"),
    (CHAT, {"json": {"messages": [{"role": "king", "content": "x"}]}}, 400, "'king'"),
    (CHAT, {"json": _ask({"type": "image_url", "image_url": {"url": "http://localhost"}})}, 400, "'image_url'"),
    (CHAT, {"json": _ask(AUDIO)}, 400, r"type 'audio' \(it can be: text, input_audio\)"),
    (CHAT, {"json": _ask({"type": "input_audio", "input_audio": {"data": "??"}})}, 400, "no base64"),
    (CHAT, {"json": _ask({"type": "input_audio", "input_audio": "/etc/hostname"})}, 400, "no base64"),
    (CHAT, {"json": _ask(_audio(b"nothing"))}, 400, "cannot be read as audio"),
    (CHAT, {"json": _ask(_audio(wav()), n=2, logprobs=True)}, 400, "'n' 2 is not possible .*'logprobs' true"),
    (CHAT, {"json": _ask(_audio(wav()), max_completion_tokens=9)}, 400, "differ"),
    (CHAT, {"json": _ask(_audio(wav()), temperature="hot")}, 400, "'temperature' is 'hot'"),
    (CHAT, {"json": _ask(_audio(wav()), stop=[1])}, 400, "'stop'"),
    (CHAT, {"json": _ask(_audio(wav()), heat=1)}, 400, "'heat' is unknown"),
    (CHAT, {"json": _ask(_audio(wav()), model="gpt-4o")}, 404, "'gpt-4o' is not served"),
    (TRANSCRIBE, {"json": {}}, 415, "application/json"),
    (TRANSCRIBE, {"files": _file(name="recording")}, 400, "named 'file'"),
    (TRANSCRIBE, {"files": {"x": (None, "1")}}, 400, "'x' is unknown"),
    (TRANSCRIBE, {"files": {"file": (None, "a.wav")}}, 400, "no recording: one file part named 'file'"),
    (TRANSCRIBE, {"files": _file(LOUD)}, 400, r"samples of up to 1e\+30"),
    (TRANSCRIBE, {"files": _file(b"nothing")}, 400, "^the audio data cannot be read as audio: Format not recognised"),
    (
        CHAT,
        {"content": b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "headers": CONTENT},
        400,
        "no Unicode",
    ),
    (TRANSCRIBE, {"files": _file(b"")}, 400, "cannot be read as audio"),
    (TRANSCRIBE, {"files": _file(b"RIFF" + bytes(100))}, 400, "cannot be read as audio"),
    (TRANSCRIBE, {"files": _file(wav(0.0))}, 400, "no samples"),
    (TRANSCRIBE, {"files": _file(), "data": {"language": "english"}}, 400, "language 'english'"),
    (TRANSCRIBE, {"files": _file(), "data": {"response_format": "diarized_json"}}, 400, "diarized_json"),
    (TRANSCRIBE, {"files": _file(), "data": {"prompt": "names"}}, 400, "'prompt'"),
    (TRANSCRIBE, {"files": _file(), "data": {"temperature": "nan"}}, 400, "'temperature' nan"),
    (TRANSCRIBE, {"files": _file(), "data": {"timestamp_granularities[]": ["word"]}}, 400, "Words have no times"),
    (TRANSCRIBE, {"files": _file(), "data": {"stream": "true", "response_format": "srt"}}, 400, "cannot be streamed"),
    (TRANSCRIBE, {"files": _file(), "data": {"model": "gpt-4o"}}, 404, "'gpt-4o' is not served"),
    (TRANSLATE, {"files": _file(), "data": {"language": "en"}}, 400, "'language' is unknown"),
    ("/v1/embeddings", {"json": {}}, 404, "/v1/embeddings is not possible"),
    ("/health", {"json": {}}, 405, "POST /health is not possible"),
]


@pytest.mark.parametrize(("route", "request_", "status", "reason"), FAULTS)
def test_what_cannot_be_followed_is_refused(
    client: httpx.Client, route: str, request_: dict[str, Any], status: int, reason: str
) -> None:
    found = client.post(route, **request_)
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert re.search(reason, error["message"]), error["message"]
    assert client.post(TRANSCRIBE, files=_file()).status_code == 200


# starlette leaves the file of an unfinished part to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_form_that_is_cut_off_is_refused(client: httpx.Client) -> None:
    kind = {"content-type": "multipart/form-data; boundary=x"}
    for content in (
        b"--x\r\nnothing",
        b"",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nRIFF',
    ):
        assert client.post(TRANSCRIBE, content=content, headers=kind).status_code == 400
    assert client.post(TRANSCRIBE, content=b"", headers={"content-type": "multipart/form-data"}).status_code == 400


def test_an_engine_that_fails_is_told(tmp_path: Path) -> None:
    class Failing(FakeEngine):
        def step(self, state: Any, tokens: Any) -> Any:  # noqa: ARG002
            raise EngineError("engine 'fake-cpu' lost its device.") if self.closed else ValueError("secret")

    class Runtime(FakeRuntime):
        engine = Failing

    write_bundle(tmp_path)
    runtime = Runtime()
    with load(tmp_path, engine=runtime) as session, served(session) as (url, _):
        found = httpx.post(url + TRANSCRIBE, files=_file())
        assert (found.status_code, found.json()["error"]["type"]) == (500, "server_error")
        assert "secret" not in found.text
        runtime.opened[0].closed = True
        found = httpx.post(url + TRANSCRIBE, files=_file())
        assert "lost its device" in found.json()["error"]["message"]
        streamed = _events(httpx.post(url + TRANSCRIBE, files=_file(), data={"stream": "true"}))
        assert "lost its device" in streamed[-1]["error"]["message"]


def test_an_adapter_is_a_model_of_its_own(tmp_path: Path) -> None:
    manifest, tokenizer = write_bundle(tmp_path), demo_tokenizer(tmp_path)
    alone = {name: Session(manifest, tokenizer, Merged(shift)) for name, shift in {"": 0.0, **SHIFTS}.items()}
    session = Session(manifest, tokenizer, Adapting(*SHIFTS))
    with served(session, aliases=("whisper-1",)) as (url, _), httpx.Client(base_url=url, timeout=30) as client:
        models = {entry["id"]: entry.get("parent") for entry in client.get("/v1/models").json()["data"]}
        assert models["fake:legal"] == "fake"
        assert models["whisper-1:polite"] == "whisper-1"
        assert client.get("/health").json()["adapters"] == list(SHIFTS)
        for name in ("legal", "", "polite", "legal"):
            asked = "whisper-1" + (f":{name}" if name else "")
            form = {"model": asked, "response_format": "text"}
            heard = client.post(TRANSCRIBE, files=_file(), data=form).text
            assert heard == alone[name].transcribe(io.BytesIO(wav())).text + "\n"
            answer = client.post(CHAT, json=_ask({"type": "text", "text": "hello"}, model=asked)).json()
            said = alone[name].chat([{"role": "user", "content": "hello"}], max_tokens=8)
            assert (answer["choices"][0]["message"]["content"], answer["model"]) == (said.text, asked)
        error = client.post(CHAT, json=_ask({"type": "text", "text": "hello"}, model="fake:legl")).json()["error"]
        assert "model 'fake:legl' is not served here (near it: fake:legal" in error["message"]


def test_a_name_that_was_given_to_the_bundle_is_the_bundles() -> None:
    found = _models(("fake", "fake:legal"), ("legal",))
    assert found["fake:legal"].adapters is None
    assert found["fake:legal:legal"].adapters == {"legal": 1.0}
