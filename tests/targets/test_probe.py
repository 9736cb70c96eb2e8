"""Requests and reports survive their way through disk, and what is neither is refused."""

from pathlib import Path

import numpy as np
import pytest
from ossicle.targets.contract import EngineError
from ossicle.targets.probe import Answer, Report, Request, read_report, read_requests, write_report, write_requests


def test_requests_come_back_equal(tmp_path: Path) -> None:
    requests = (
        Request("score", "a.wav", language="en", tokens=(5, 6)),
        Request("ask", "b.wav", question="which room? ü", max_tokens=7),
    )
    write_requests(tmp_path / "requests.json", requests)
    assert read_requests(tmp_path / "requests.json") == requests


NO_REQUESTS = ["", "{}x", '[{"kind": "sing", "audio": "a", "tokens": []}]', '[{"kind": "audio"}]', "[3]"]


@pytest.mark.parametrize("text", NO_REQUESTS)
def test_what_is_no_request_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "requests.json").write_text(text)
    with pytest.raises(EngineError, match=r"requests\.json"):
        read_requests(tmp_path / "requests.json")


def test_reports_come_back_equal(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    answers = (Answer("transcribe", 0.5, text="öl", tokens=(1, 2)), Answer("logmel", 0.25, array=array))
    report = Report("fake-cpu", "interpreted", {"numpy": "2"}, ("json", "numpy"), 1.5, 1000, answers)
    write_report(tmp_path / "report.npz", report)
    again = read_report(tmp_path / "report.npz")
    assert again.answers[0] == answers[0]
    assert again.answers[1].array is not None
    np.testing.assert_array_equal(again.answers[1].array, array)
    assert (again.engine, again.proof, again.modules) == (report.engine, "interpreted", report.modules)
    assert again.versions == report.versions
    assert (again.load_seconds, again.peak_memory) == (report.load_seconds, report.peak_memory)


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.npz").write_bytes(b"PK not a zip")
    with pytest.raises(EngineError, match=r"report\.npz"):
        read_report(tmp_path / "report.npz")
