"""The probe in a process of its own: it answers what a session answers, and loads no torch."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ossicle.runtimes.opening import load
from ossicle.targets.probe import Report, Request, command, read_report, write_requests
from ossicle.tests.runtimes.tiny_onnx import weights, write_onnx_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    write_onnx_bundle(folder, weights(), "fused")
    return folder


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("speech") / "a.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 31 * 16000), 16000)
    return str(path)


@pytest.fixture(scope="module")
def report(bundle: Path, wav: str, tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("probe")
    requests = [
        Request("logmel", wav),
        Request("audio", wav),
        Request("score", wav, language="en", tokens=(50, 60, 70)),
        Request("transcribe", wav, language="en", max_tokens=9),
        Request("ask", wav, question="which room?", max_tokens=9),
    ]
    write_requests(folder / "requests.json", requests)
    subprocess.run(command(bundle, folder / "requests.json", folder / "out.npz", threads=1), check=True)
    return read_report(folder / "out.npz")


def test_it_answers_what_a_session_answers(report: Report, bundle: Path, wav: str) -> None:
    mel, audio, score, transcribed, asked = report.answers
    question = [{"type": "audio", "audio": wav}, {"type": "text", "text": "which room?"}]
    with load(bundle, threads=1) as session:
        np.testing.assert_array_equal(mel.array, session.log_mel(wav))
        np.testing.assert_array_equal(audio.array, session.embed_audio(wav))
        np.testing.assert_array_equal(score.array, session.score(wav, (50, 60, 70), language="en"))
        words = session.transcribe(wav, language="en", max_tokens=9)
        assert (transcribed.text, transcribed.tokens) == (words.text, words.tokens)
        reply = session.chat([{"role": "user", "content": question}], max_tokens=9)
        assert (asked.text, asked.tokens) == (reply.text, reply.tokens)


def test_it_loads_neither_torch_nor_transformers(report: Report) -> None:
    assert "onnxruntime" in report.modules
    assert not {"torch", "transformers", "onnx"} & set(report.modules)


def test_it_says_what_answered(report: Report) -> None:
    assert report.engine == "onnxruntime-cpu"
    assert {"onnxruntime", "numpy", "tokenizers", "ossicle"} <= set(report.versions)
    assert report.peak_memory > 10**7
    assert report.load_seconds > 0
    assert min(answer.seconds for answer in report.answers) > 0


def test_it_fails_with_the_reason_and_writes_nothing(bundle: Path, tmp_path: Path) -> None:
    write_requests(tmp_path / "requests.json", [Request("transcribe", "nothing.wav")])
    arguments = command(bundle, tmp_path / "requests.json", tmp_path / "out.npz")
    failed = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr == "'nothing.wav' does not exist. Give the path of a recording.\n"
    assert not (tmp_path / "out.npz").exists()
