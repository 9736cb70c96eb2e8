"""What a server keeps out and gives up: keys, strange hosts, too much, too long, clients that go away."""

import asyncio
import io
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from ossicle.runtimes.opening import load
from ossicle.runtimes.server import uploads
from ossicle.runtimes.server.jobs import Job
from ossicle.runtimes.server.options import ServerOptions, is_local
from ossicle.runtimes.server.running import listen, url
from ossicle.runtimes.server.service import Service
from ossicle.targets.contract import ServerError
from ossicle.tests.fakes import FakeEngine, FakeRuntime, write_bundle
from ossicle.tests.servers import served, slow_session, wav

TRANSCRIBE, CHAT = "/v1/audio/transcriptions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder)
    return folder


@pytest.fixture
def slow(bundle: Path) -> Iterator[tuple[str, Service]]:
    """A server with one place at work and one that waits, an answer of which takes some two seconds."""
    with slow_session(bundle, 0.001) as session, served(session, queue=1) as opened:
        yield opened


def _file(seconds: float = 1.0, seed: int = 0) -> dict[str, Any]:
    return {"file": ("a.wav", wav(seconds, seed), "audio/wav")}


def _until(condition: Any, seconds: float = 60.0) -> None:
    end = monotonic() + seconds
    while not condition():
        assert monotonic() < end, "it did not come to pass"
        sleep(0.005)


def test_a_key_is_asked_for(bundle: Path) -> None:
    with load(bundle, engine=FakeRuntime()) as session, served(session, api_key="s3cret") as (address, _):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            found = httpx.post(address + TRANSCRIBE, files=_file(), headers=headers)
            assert (found.status_code, found.json()["error"]["code"]) == (401, "invalid_api_key")
        for path in ("/metrics", "/v1/models", "/openapi.json", "/nothing"):
            assert httpx.get(address + path).status_code == 401
        for path in ("/", "/health"):
            assert httpx.get(address + path).status_code == 200
        key = {"Authorization": "Bearer s3cret"}
        assert httpx.post(address + TRANSCRIBE, files=_file(), headers=key).status_code == 200


def test_pages_elsewhere_may_not_ask_unless_they_are_named(bundle: Path) -> None:
    friend = "https://friend.example"
    with load(bundle, engine=FakeRuntime()) as session, served(session, origins=(friend,)) as (address, _):
        stranger = httpx.post(address + TRANSCRIBE, files=_file(), headers={"Origin": "https://stranger.example"})
        assert (stranger.status_code, stranger.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in stranger.headers
        named = httpx.post(address + TRANSCRIBE, files=_file(), headers={"Origin": friend})
        assert (named.status_code, named.headers["access-control-allow-origin"]) == (200, friend)
        asked = httpx.options(address + CHAT, headers={"Origin": friend, "Access-Control-Request-Method": "POST"})
        assert (asked.status_code, asked.headers["access-control-allow-headers"]) == (
            204,
            "authorization, content-type",
        )
        own = httpx.post(address + TRANSCRIBE, files=_file(), headers={"Origin": address})
        assert (own.status_code, "access-control-allow-origin" in own.headers) == (200, False)


def test_a_name_that_was_pointed_here_is_not_answered(bundle: Path) -> None:
    with load(bundle, engine=FakeRuntime()) as session, served(session) as (address, _):
        port = address.rpartition(":")[2]
        assert httpx.get(address + "/health", headers={"Host": f"evil.example:{port}"}).status_code == 403
        assert httpx.get(address + "/health", headers={"Host": f"localhost:{port}"}).status_code == 200


def test_a_large_request_is_refused_while_it_is_read(bundle: Path) -> None:
    with load(bundle, engine=FakeRuntime()) as session, served(session, max_upload=1 << 20) as (address, _):
        large = httpx.post(address + TRANSCRIBE, files=_file(30))
        assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
        chunks = iter([json.dumps({"messages": []}).encode()] + [b" " * (1 << 16)] * 40)  # no Content-Length
        sent = httpx.post(address + CHAT, content=chunks, headers={"content-type": "application/json"})
        assert sent.status_code == 413
        assert httpx.post(address + TRANSCRIBE, files=_file()).status_code == 200


def test_a_long_recording_is_refused_with_the_numbers(bundle: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.flac", np.zeros(16000 * 600), 16000)  # small, and long
    with load(bundle, engine=FakeRuntime()) as session, served(session, max_seconds=20) as (address, _):
        file = {"file": (tmp_path / "silence.flac").read_bytes()}
        found = httpx.post(address + TRANSCRIBE, files=file)
        assert found.status_code == 400
        assert "600.0 s long, and this server takes at most 20 s" in found.json()["error"]["message"]


def test_a_full_server_says_when_to_come_again(slow: tuple[str, Service]) -> None:
    address, behind = slow
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(httpx.post, address + TRANSCRIBE, files=_file(1, i), timeout=60) for i in range(2)]
        _until(lambda: behind.places.taken == 2)
        refused = httpx.post(address + TRANSCRIBE, files=_file())
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert httpx.get(address + "/health").json()["queue"] == {"running": 1, "waiting": 1, "taken": 2, "places": 2}
        assert [one.result().status_code for one in waiting] == [200, 200]
    _until(lambda: behind.places.taken == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_given_up(bundle: Path, stream: bool) -> None:
    with slow_session(bundle, 0.05) as session, served(session, timeout=0.5) as (address, behind):
        started = monotonic()
        found = httpx.post(address + TRANSCRIBE, files=_file(), data={"stream": str(stream)}, timeout=60)
        assert monotonic() - started < 20
        if stream:
            assert '"code": "timeout"' in found.text.splitlines()[-2]
        else:
            assert (found.status_code, found.json()["error"]["code"]) == (504, "timeout")
        _until(lambda: behind.workers.running == 0, 1.0)


def test_a_request_that_is_sent_too_slowly_is_given_up(bundle: Path) -> None:
    with load(bundle, engine=FakeRuntime()) as session, served(session, timeout=0.3) as (address, behind):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as sending:
            sending.sendall(_head(host, "application/json", 100) + b"{")
            sending.settimeout(10)
            assert sending.recv(100).startswith(b"HTTP/1.1 408")
        _until(lambda: behind.places.taken == 0)


def _head(host: str, kind: str, length: int) -> bytes:
    return f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n".encode()


def test_a_large_request_is_refused_before_it_is_sent_where_its_client_asks_first(bundle: Path) -> None:
    with load(bundle, engine=FakeRuntime()) as session, served(session, max_upload=1 << 20) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as asking:
            head = _head(host, "application/json", 2 << 20)
            asking.sendall(head.replace(b"\r\n\r\n", b"\r\nexpect: 100-continue\r\n\r\n"))
            assert asking.recv(12) == b"HTTP/1.1 413"


def test_a_recording_that_does_not_say_its_length_is_counted_and_can_be_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "audio_seconds", lambda _: None)
    file = io.BytesIO(wav(2.0))
    assert (uploads.duration(file, 10.0), file.tell()) == (2.0, 0)
    assert uploads.duration(io.BytesIO(wav(30.0)), 1.0) > 1.0


def test_work_is_unwanted_once_its_time_is_over() -> None:
    async def unwanted(seconds: float) -> bool:
        return Job(lambda *_: iter(()), monotonic() + seconds).unwanted  # type: ignore[arg-type, return-value]

    assert [asyncio.run(unwanted(seconds)) for seconds in (60.0, -1.0)] == [False, True]


@pytest.mark.parametrize("stream", [False, True])
def test_the_work_of_a_client_that_goes_away_ends(bundle: Path, stream: bool) -> None:
    with slow_session(bundle, 0.1) as session, served(session) as (address, behind):
        limits = httpx.Timeout(60, read=0.02)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address + TRANSCRIBE, files=_file(), data={"stream": str(stream)}, timeout=limits)
        _until(lambda: behind.workers.running == 0 and behind.places.taken == 0)
        _until(lambda: 'status="499"' in httpx.get(address + "/metrics").text or stream)


def test_a_client_that_goes_away_while_it_waits_leaves_its_place(slow: tuple[str, Service]) -> None:
    address, behind = slow
    first = threading.Thread(target=lambda: httpx.post(address + TRANSCRIBE, files=_file(), timeout=60))
    first.start()
    _until(lambda: behind.workers.running == 1)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(address + TRANSCRIBE, files=_file(), timeout=httpx.Timeout(5, read=0.1))
    _until(lambda: (behind.workers.waiting, behind.places.taken) == (0, 1), 2.0)
    first.join()


def test_a_short_request_overtakes_a_long_one_where_there_are_two_workers(bundle: Path) -> None:
    expected = slow_session(bundle, 0).transcribe(wav()).text
    with (
        slow_session(bundle, 0.002) as session,
        served(session, workers=2) as (address, behind),
        ThreadPoolExecutor() as pool,
    ):
        long = pool.submit(httpx.post, address + TRANSCRIBE, files=_file(), timeout=60)
        _until(lambda: behind.workers.running == 1)
        short = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
        assert httpx.post(address + CHAT, json=short, timeout=60).status_code == 200
        assert not long.done()
        assert long.result().json()["text"] == expected


def test_a_place_is_free_once_nothing_works_for_its_request(bundle: Path) -> None:
    entered, released = threading.Event(), threading.Event()

    class Engine(FakeEngine):
        def encode(self, mel: Any) -> Any:
            entered.set()
            released.wait()
            return super().encode(mel)

    class Runtime(FakeRuntime):
        engine = Engine

    with load(bundle, engine=Runtime()) as session, served(session) as (address, behind):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address + TRANSCRIBE, files=_file(), timeout=httpx.Timeout(5, read=0.2))
        assert entered.wait(5)
        sleep(0.2)
        assert behind.places.taken == 1
        released.set()
        _until(lambda: (behind.workers.running, behind.places.taken) == (0, 0))


def test_a_client_that_goes_away_while_it_sends_leaves_its_place(slow: tuple[str, Service]) -> None:
    address, behind = slow
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sending:
        sending.sendall(_head(host, "application/json", 100) + b"{")
        _until(lambda: behind.places.taken == 1)
    _until(lambda: behind.places.taken == 0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"port": 70000, "queue": -1}, "port 70000 .*; queue -1"),
        ({"workers": 0}, "workers 0"),
        ({"timeout": 0.0, "max_seconds": float("nan")}, "max_seconds nan.*; timeout 0"),
        ({"grace": -1.0}, "grace -1"),
        ({"api_key": "a b"}, "blanks"),
        ({"aliases": ("a", "")}, "an alias without a letter"),
        ({"origins": ("example.org", "https://a.org/x")}, "'example.org'.*'https://a.org/x'"),
    ],
)
def test_impossible_options_are_refused(options: Any, reason: str) -> None:
    with pytest.raises(ServerError, match=reason):
        ServerOptions(**options)


def test_a_key_is_not_shown() -> None:
    assert "s3cret" not in repr(ServerOptions(api_key="s3cret"))


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_what_is_local(host: str, local: bool) -> None:
    assert is_local(host) == local


def test_an_address_that_cannot_be_had_is_told() -> None:
    with listen(ServerOptions(port=0)) as taken:
        taken.listen()
        port = int(url(taken).rpartition(":")[2])
        with pytest.raises(ServerError, match=f"127.0.0.1:{port} cannot be used: Address already in use"):
            listen(ServerOptions(port=port))
