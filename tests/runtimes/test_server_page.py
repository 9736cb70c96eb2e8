"""The page at / in a real browser: a recording is dropped, its words are read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ossicle.runtimes.opening import load
from ossicle.runtimes.session import Session
from ossicle.tests.fakes import FakeRuntime, write_bundle
from ossicle.tests.servers import served, slow_session, wav


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder)
    return load(folder, engine=FakeRuntime())


@pytest.fixture(scope="module")
def address(session: Session) -> Iterator[str]:
    with served(session) as (url, _):
        yield url


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, opened; whatever its policy forbids or its script fails at fails the test."""
    faults: list[str] = []
    opened = browser.new_page()
    opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(address)
    yield opened
    opened.close()
    assert [fault for fault in faults if "status of 4" not in fault] == []


def _drop(page: Any, name: str, content: bytes) -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "audio/wav", "buffer": content})


def _finished(page: Any) -> None:
    page.wait_for_selector("#figures:not([hidden])", state="attached")
    page.wait_for_selector("#stop[disabled]")


def test_a_recording_is_dropped_and_its_words_are_read(page: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("beside")
    write_bundle(folder)
    with load(folder, engine=FakeRuntime()) as beside:
        expected = beside.transcribe(wav()).text
    _drop(page, "a.wav", wav())
    _finished(page)
    assert page.text_content("#text") == expected
    assert page.text_content("#chosen") == "a.wav"
    assert "1.00 s" in page.text_content("#timings")
    assert page.text_content("#stages") == "encoderfake-cpuprefillfake-cpudecoderfake-cpu"
    assert page.text_content("#problem") == ""
    assert not page.is_visible("#key")


def test_a_question_is_answered(page: Any) -> None:
    page.fill("#question", "<b>what?</b>")
    assert page.text_content("#go") == "Ask"
    with page.expect_request("**/v1/chat/completions"):
        _drop(page, "a.wav", wav())
    _finished(page)
    assert len(page.text_content("#text")) > 0


def test_what_the_server_refuses_is_read_and_never_run(page: Any) -> None:
    _drop(page, "<img src=x onerror=alert(1)>.wav", b"nothing")
    page.wait_for_selector("#problem:not(:empty)")
    assert "cannot be read as audio" in page.text_content("#problem")
    assert page.text_content("#chosen") == "<img src=x onerror=alert(1)>.wav"
    assert page.locator("main img").count() == 0


def test_what_the_server_cannot_read_is_turned_into_wav(page: Any) -> None:
    _drop(page, "a.bin", wav())
    _finished(page)
    assert "1.00 s" in page.text_content("#timings")
    _drop(page, "b.webm", b"nothing")
    page.wait_for_selector("#problem:not(:empty)")
    assert "b.webm holds no sound" in page.text_content("#problem")


def test_speech_is_recorded(page: Any) -> None:
    page.click("#record")
    page.wait_for_selector("#record[aria-pressed=true]")
    page.wait_for_timeout(600)
    page.click("#record")
    _finished(page)
    assert page.text_content("#chosen") == "Your recording"


def test_an_answer_is_stopped(browser: Any, tmp_path: Path) -> None:
    write_bundle(tmp_path)
    with slow_session(tmp_path, 0.3) as slow, served(slow) as (url, _):
        page = browser.new_page()
        page.goto(url)
        _drop(page, "a.wav", wav(28.0))
        page.click("#stop")
        page.wait_for_selector("#stop[disabled]")
        assert page.text_content("#problem") == ""
        page.close()


def test_a_key_is_asked_for(browser: Any, session: Session) -> None:
    with served(session, api_key="s3cret") as (url, _):
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#key", state="visible")
        _drop(page, "a.wav", wav())
        page.wait_for_selector("#problem:has-text('key is missing')")
        page.fill("#key", "s3cret")
        page.click("#go")
        _finished(page)
        page.close()


def test_the_page_is_whole_and_may_run_nothing_else(address: str) -> None:
    found = httpx.get(address + "/")
    policy = found.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy
    source = (Path(__file__).parents[2] / "runtimes/server/page.html").read_text(encoding="utf-8")
    assert "innerHTML" not in source
    assert "http" not in source.replace("https alone", "")
