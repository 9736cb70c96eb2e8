"""How a server ends: what it accepted is finished, what comes too late is refused, and it takes no longer than it may."""

import asyncio
import json
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
from ossicle.runtimes.server.admission import Visit
from ossicle.tests.fakes import write_bundle
from ossicle.tests.servers import PROCESS, process, slow_session

TOKENS = 60


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder)
    return folder


@contextmanager
def _busy(
    bundle: Path, token: float, grace: float, requests: int
) -> Iterator[tuple[subprocess.Popen[str], str, list[Any]]]:
    """A server's process, its address, and the answers to requests that it has accepted, as futures."""
    arguments = ["-c", PROCESS, str(bundle), str(token), str(grace)]
    with process(arguments) as (running, address), ThreadPoolExecutor() as pool:
        asked = [pool.submit(_ask, address, i) for i in range(requests)]
        while httpx.get(address + "/health").json()["queue"]["taken"] < requests:
            sleep(0.01)
        yield running, address, asked


def _ask(address: str, number: int) -> httpx.Response:
    asked = {"messages": _messages(number), "max_tokens": TOKENS, "stream": number % 2 == 1}
    return httpx.post(address + "/v1/chat/completions", json=asked, timeout=120)


def _messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {number}"}]


def _text(answer: httpx.Response) -> str:
    """Of an answer that came whole, or piece by piece."""
    if answer.headers["content-type"] == "application/json":
        return str(answer.json()["choices"][0]["message"]["content"])
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_finished(bundle: Path, sign: signal.Signals) -> None:
    with slow_session(bundle, 0) as session:
        expected = [session.chat(_messages(i), max_tokens=TOKENS).text for i in range(4)]
    with _busy(bundle, 0.01, 60, 4) as (running, address, asked):
        running.send_signal(sign)
        while httpx.get(address + "/health").status_code == 200:
            sleep(0.01)
        late = _ask(address, 9)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
        assert late.headers["retry-after"] == "10"
        answers = [one.result() for one in asked]
        assert [one.status_code for one in answers] == [200] * 4
        assert [_text(one) for one in answers] == expected
        assert running.wait(60) == 0


def test_grace_ends(bundle: Path) -> None:
    with _busy(bundle, 0.1, 0.3, 2) as (running, _, asked):
        started = monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        assert monotonic() - started < 45
        whole, streamed = (one.result() for one in asked)
        assert whole.status_code == 503
        assert "shutting_down" in (streamed.text if streamed.status_code == 200 else streamed.json()["error"]["code"])


def test_a_second_signal_ends_at_once(bundle: Path) -> None:
    with _busy(bundle, 0.4, 60, 1) as (running, address, asked):
        running.send_signal(signal.SIGTERM)
        while httpx.get(address + "/health").status_code == 200:
            sleep(0.01)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        assert running.stderr is not None
        assert running.stderr.read() == ""
        (error,) = [one.exception() or one.result() for one in asked]
        assert isinstance(error, httpx.HTTPError) or error.status_code == 503


def test_a_request_that_a_thread_is_still_at_may_be_cut_off() -> None:
    left: list[Visit] = []

    class Workers:
        def submit(self, _: Any) -> None: ...

        forget = submit

    async def cut_off() -> None:
        visit = Visit(Workers(), monotonic() + 60, left.append)  # type: ignore[arg-type]
        visit.start(lambda *_: iter(()))  # type: ignore[arg-type, return-value]
        leaving = asyncio.create_task(visit.__aexit__(None, None, None))
        await asyncio.sleep(0)
        assert not left
        leaving.cancel()
        await leaving
        assert left == [visit]

    asyncio.run(cut_off())
