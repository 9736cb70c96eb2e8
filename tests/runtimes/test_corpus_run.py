"""A corpus through real worker processes on a real bundle: killed, gone on with, stopped, begun otherwise."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import soundfile
from ossicle.runtimes.corpus_pool import Pool
from ossicle.runtimes.corpus_run import Crew, Loading, transcribe_corpus
from ossicle.runtimes.corpus_workers import ProcessHelper
from ossicle.runtimes.opening import load
from ossicle.targets.contract import BundleError, CorpusError, EngineError, PromptError

BUNDLE = Path(__file__).parents[1] / "golden" / "bundle-v1"
SPEECH = Path(__file__).parents[2] / "demo" / "speech"
TOKENS = 100  # of a transcript: long enough for a kill to come in the middle
CREW = Crew(workers=2, threads=1)

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Corpus:
    """Recordings, what a session by itself says of each, and those that no session can read."""

    folder: Path
    texts: dict[str, str]
    broken: frozenset[str]

    @property
    def names(self) -> list[str]:
        return sorted([*self.texts, *self.broken])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(35):
        path = folder / f"sub {number % 3}" / f"n° {number:02d} ünï.wav"
        path.parent.mkdir(exist_ok=True)
        samples, rate = soundfile.read(SPEECH / f"{1 + number % 5:02d}-digits-espeak.wav", dtype="int16")
        soundfile.write(path, samples[number * 400 :], rate)
    good = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.wav")}
    broken = {
        "empty.wav": b"",
        "text.mp3": b"no sound",
        "cut.flac": b"fLaC",
        "zéro.ogg": b"\0" * 999,
        "head.wav": b"RIFF",
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    with load(BUNDLE, threads=1) as session:
        texts = {name: session.transcribe(path, language="en", max_tokens=TOKENS).text for name, path in good.items()}
    return Corpus(folder, texts, frozenset(broken))


def run(corpus: Corpus, out: Path, **options: Any) -> Any:
    return transcribe_corpus(BUNDLE, corpus.folder, out, language="en", max_tokens=TOKENS, **{"crew": CREW} | options)


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; nothing where there is none yet."""
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def check(corpus: Corpus, out: Path) -> None:
    """Every file is once in what was written, with the text that a session gives by itself; the broken are listed."""
    found, failed = lines(out / "transcripts.jsonl"), lines(out / "failed.jsonl")
    assert [entry["id"] for entry in found] == sorted(corpus.texts)
    assert {entry["id"]: entry["text"] for entry in found} == corpus.texts
    assert sorted(entry["id"] for entry in failed) == sorted(corpus.broken)
    assert all(entry["error"] for entry in failed)
    assert set(Counter(entry["id"] for entry in lines(out / "results.jsonl")).values()) == {1}


def started(corpus: Corpus, out: Path, *options: str) -> subprocess.Popen[bytes]:
    """The command, in a process group of its own."""
    command = [
        "transcribe-corpus",
        BUNDLE,
        corpus.folder,
        out,
        "--language",
        "en",
        "--max-tokens",
        TOKENS,
        "--workers",
        2,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "ossicle.cli", *map(str, command), *options],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(out: Path, settled: int, process: subprocess.Popen[bytes]) -> None:
    while len(lines(out / "results.jsonl")) < settled:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def test_killed_again_and_again_nothing_is_lost_or_done_twice(corpus: Corpus, tmp_path: Path) -> None:
    for settled in (4, 17):
        with started(corpus, tmp_path) as process:
            wait_for(tmp_path, settled, process)
            os.killpg(process.pid, signal.SIGKILL)
        assert not (tmp_path / "transcripts.jsonl").exists()
        assert len(lines(tmp_path / "results.jsonl")) < len(corpus.names)
    with (tmp_path / "results.jsonl").open("ab") as results:
        results.write(b'{"id": "sub 0/n')  # as a kill within a write leaves it
    before = lines(tmp_path / "results.jsonl")
    summary = run(corpus, tmp_path)
    check(corpus, tmp_path)
    assert lines(tmp_path / "results.jsonl")[: len(before)] == before
    assert (summary.files, summary.done, summary.failed, summary.left) == (40, 35, 5, 0)
    assert summary.run_files == 40 - len(before)
    assert summary.words == sum(len(text.split()) for text in corpus.texts.values())
    assert run(corpus, tmp_path).run_files == 0


def test_ctrl_c_finishes_the_files_at_work_and_the_same_command_goes_on(corpus: Corpus, tmp_path: Path) -> None:
    with started(corpus, tmp_path) as process:
        wait_for(tmp_path, 5, process)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert b"Go on with the same command" in said
    results = lines(tmp_path / "results.jsonl")
    assert 5 <= len(results) < len(corpus.names)
    assert len(lines(tmp_path / "transcripts.jsonl")) + len(lines(tmp_path / "failed.jsonl")) == len(results)
    with started(corpus, tmp_path, "--json") as process:
        printed, said = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert json.loads(printed)["done"] == 35
    check(corpus, tmp_path)


def test_no_worker_outlives_a_run_that_is_killed(corpus: Corpus, tmp_path: Path) -> None:
    with started(corpus, tmp_path) as process:
        wait_for(tmp_path, 3, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert alive == []


def test_workers_that_are_killed_are_replaced(corpus: Corpus, tmp_path: Path) -> None:
    with started(corpus, tmp_path) as process:
        wait_for(tmp_path, 5, process)
        workers = psutil.Process(process.pid).children()
        for worker in workers:  # once: a file that is struck twice is rightly listed as failed
            worker.kill()
        process.communicate(timeout=300)
    assert workers
    check(corpus, tmp_path)


class Deadly(ProcessHelper):
    """A process that is killed whenever it is given a certain file."""

    def transcribe(self, item: Any) -> dict[str, Any]:
        if item.id == "a.wav":
            self.kill_child()
        return super().transcribe(item)

    def kill_child(self) -> None:
        assert self._child is not None
        self._child.kill()
        self._child._process.wait()


def test_a_file_that_kills_its_workers_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.wav", "b.wav"):
        shutil.copyfile(SPEECH / "06-command-espeak.wav", tmp_path / name)
    monkeypatch.setattr("ossicle.runtimes.corpus_run.ProcessHelper", Deadly)
    out = tmp_path / "out"
    summary = transcribe_corpus(BUNDLE, tmp_path, out, max_tokens=3, crew=Crew(workers=1, threads=1))
    assert (summary.done, summary.failed) == (1, 1)
    (failed,) = lines(out / "failed.jsonl")
    assert failed["id"] == "a.wav"
    assert "SIGKILL" in failed["error"]
    assert "as it did before" in failed["error"]


def test_files_that_failed_changed_or_are_new(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shutil.copyfile(SPEECH / "06-command-espeak.wav", source / "good.wav")
    (source / "bad.wav").write_bytes(b"no sound")
    again = partial(transcribe_corpus, BUNDLE, source, out, max_tokens=3, crew=Crew(workers=1, threads=1))
    assert (again().run_files, again().run_files, again(retry_failed=True).run_files) == (2, 0, 1)
    shutil.copyfile(SPEECH / "07-command-espeak.wav", source / "bad.wav")
    shutil.copyfile(SPEECH / "08-command-espeak.wav", source / "new.wav")
    summary = again()
    assert (summary.run_files, summary.done, summary.failed) == (2, 3, 0)
    (source / "good.wav").unlink()
    assert again().files == 2
    assert [entry["id"] for entry in lines(out / "transcripts.jsonl")] == ["bad.wav", "new.wav"]


def test_a_manifest_keeps_its_order_and_what_it_says(tmp_path: Path) -> None:
    entries = [
        {"audio": str(SPEECH / "long-30s.wav"), "id": "z", "speaker": 1, "text": "reference"},
        {"audio": "gone.wav", "id": "y"},
        {"audio": str(SPEECH / "06-command-espeak.wav"), "id": "x", "language": "fr"},
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, entries)))
    out = tmp_path / "out"
    transcribe_corpus(BUNDLE, tmp_path / "corpus.jsonl", out, language="en", max_tokens=3, crew=Crew(workers=1))
    first, last = lines(out / "transcripts.jsonl")
    assert (first["id"], first["language"], first["given"]) == ("z", "en", {"speaker": 1, "text": "reference"})
    assert (last["id"], last["language"]) == ("x", "fr")
    (failed,) = lines(out / "failed.jsonl")
    assert "does not exist" in failed["error"]


def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    shutil.copyfile(SPEECH / "06-command-espeak.wav", tmp_path / "a.wav")
    out = tmp_path / "out"
    for reason, options in {
        BundleError: {"bundle": tmp_path},
        PromptError: {"max_tokens": 0},
        CorpusError: {"source": tmp_path / "nothing"},
    }.items():
        with pytest.raises(reason):
            transcribe_corpus(**{"bundle": BUNDLE, "source": tmp_path, "out": out, **options})
    with pytest.raises(CorpusError, match="executor 'spark' is unknown"):
        transcribe_corpus(BUNDLE, tmp_path, out, crew=Crew(executor="spark"))
    for crew in (Crew(workers=-1), Crew(limit=float("nan"))):
        with pytest.raises(CorpusError, match=r"(workers -1|limit nan) is not possible"):
            transcribe_corpus(BUNDLE, tmp_path, out, crew=crew)
    with pytest.raises(PromptError, match="language 'EN' is not possible"):
        transcribe_corpus(BUNDLE, tmp_path, out, language="EN")
    assert not out.exists()


@pytest.mark.parametrize(
    ("loading", "said"),
    [
        (Loading(engine="openvino"), "openvino"),
        (
            Loading(compute="float32"),
            r"onnxruntime: it has no compute 'float32'.*llamacpp: the bundle has no artifacts",
        ),
    ],
)
def test_an_engine_that_no_worker_can_open_ends_the_run(tmp_path: Path, loading: Loading, said: str) -> None:
    shutil.copyfile(SPEECH / "06-command-espeak.wav", tmp_path / "a.wav")
    with pytest.raises(EngineError, match=said):
        transcribe_corpus(BUNDLE, tmp_path, tmp_path / "out", loading=loading, crew=CREW)


def test_a_run_of_before_there_was_a_compute_goes_on() -> None:
    assert "compute" not in Loading().terms()
    assert Loading(compute="float32").terms() == {**Loading().terms(), "compute": "float32"}


def test_a_pool_that_is_stopped_by_its_watcher_leaves_the_rest(corpus: Corpus, tmp_path: Path) -> None:
    def watch(pool: Pool) -> None:
        pool.stop()

    summary = run(corpus, tmp_path, watch=watch)
    assert summary.left > 0
    run(corpus, tmp_path)
    check(corpus, tmp_path)


class Stuck(ProcessHelper):
    """A process that stands still at a certain file, the first time that it is given it."""

    stood: ClassVar[list[str]] = []

    def transcribe(self, item: Any) -> dict[str, Any]:
        if item.id == "a.wav" and not self.stood:
            assert self._child is not None
            self.stood.append(item.id)
            os.kill(self._child.pid, signal.SIGSTOP)
        return super().transcribe(item)


@pytest.mark.timeout(120)
def test_a_worker_that_stands_still_is_ended_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.wav", "b.wav"):
        shutil.copyfile(SPEECH / "06-command-espeak.wav", tmp_path / name)
    monkeypatch.setattr("ossicle.runtimes.corpus_run.ProcessHelper", Stuck)
    crew = Crew(workers=1, threads=1, limit=3)
    summary = transcribe_corpus(BUNDLE, tmp_path, tmp_path / "out", max_tokens=3, crew=crew)
    assert (summary.done, summary.failed, Stuck.stood) == (2, 0, ["a.wav"])


def test_a_workers_memory_counts_keys_and_values_as_they_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def share(each: int, *_: int) -> None:
        counted.append(each)
        raise CorpusError("enough is known.")

    monkeypatch.setattr("ossicle.runtimes.corpus_run.share", share)
    for kv_cache in ("", "int8"):
        with pytest.raises(CorpusError, match="enough"):
            transcribe_corpus(BUNDLE, SPEECH, tmp_path / f"kv {kv_cache}", loading=Loading(kv_cache=kv_cache))
    assert counted[1] < counted[0]
