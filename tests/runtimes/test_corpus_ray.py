"""A corpus over a Ray of this machine: the same results as with processes, actors replaced when they die."""

import builtins
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ossicle.runtimes import corpus_ray
from ossicle.runtimes.corpus_run import Crew, transcribe_corpus
from ossicle.runtimes.corpus_shares import Share
from ossicle.runtimes.corpus_worker import Worker
from ossicle.targets.contract import CorpusError, EngineError

BUNDLE = Path(__file__).parents[1] / "golden" / "bundle-v1"
SPEECH = Path(__file__).parents[2] / "demo" / "speech"


class Deadly(Worker):
    """A worker that dies at one file whenever it is given it, and at another the first time."""

    def transcribe(self, audio: str, language: str | None) -> dict[str, Any]:
        path = Path(audio)
        once = path.with_suffix(".died")
        if path.stem == "always" or (path.stem == "once" and not once.exists()):
            once.touch()
            os._exit(3)
        return super().transcribe(audio, language)


def corpus(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        shutil.copyfile(SPEECH / f"{number % 5 + 1:02d}-digits-espeak.wav", folder / f"{name}.wav")
    return folder


def texts(out: Path) -> dict[str, str]:
    lines = (out / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["id"]: entry["text"] for entry in map(json.loads, lines)}


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    monkeypatch.setattr(corpus_ray, "_OWN", corpus_ray._OWN | {"num_cpus": 2})


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
@pytest.mark.timeout(300)
def test_actors_that_die_are_replaced_and_processes_go_on_where_ray_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    source, out = corpus(tmp_path / "in ä", "a", "always", "b", "c", "d é", "once"), tmp_path / "out"
    (source / "bad.wav").write_bytes(b"no sound")
    monkeypatch.setattr(corpus_ray, "Worker", Deadly)
    summary = transcribe_corpus(BUNDLE, source, out, max_tokens=20, crew=Crew("ray", workers=2, limit=60))
    assert not ray.is_initialized()
    assert (summary.done, summary.failed, summary.left, summary.workers) == (5, 2, 0, 2)
    failed = [json.loads(line) for line in (out / "failed.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["id"] for entry in failed] == ["always.wav", "bad.wav"]
    assert "as it did before" in failed[0]["error"]

    again = transcribe_corpus(BUNDLE, source, out, max_tokens=20, retry_failed=True, crew=Crew(workers=1, threads=1))
    assert (again.run_files, again.done) == (2, 6)
    transcribe_corpus(BUNDLE, source, tmp_path / "alone", max_tokens=20, crew=Crew(workers=1, threads=1))
    assert texts(out) == texts(tmp_path / "alone")


def test_without_ray_the_command_that_brings_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EngineError, match="pip install 'ossicle\\[ray\\]'"):
        transcribe_corpus(BUNDLE, corpus(tmp_path / "in", "a"), tmp_path / "out", crew=Crew("ray"))


@pytest.mark.parametrize(
    ("has", "asked", "share"),
    [
        ({"CPU": 16.0}, (0, 0, 0.0), Share(16, 1)),
        ({"CPU": 16.0}, (4, 0, 0.0), Share(4, 4)),
        ({"CPU": 16.0}, (0, 8, 0.0), Share(2, 8)),
        ({"CPU": 16.0, "GPU": 2.0}, (0, 0, 1.0), Share(2, 1)),
        ({"CPU": 16.0, "GPU": 2.0}, (0, 2, 0.5), Share(4, 2)),
    ],
)
def test_a_cluster_is_filled(has: Mapping[str, float], asked: tuple[int, int, float], share: Share) -> None:
    assert corpus_ray.room(has, *asked, 100) == share
    assert corpus_ray.room(has, *asked, 1).workers == (asked[0] or 1)


@pytest.mark.parametrize("asked", [(5, 1, 0.0), (0, 5, 0.0), (0, 1, 1.0), (3, 2, 0.0)])
def test_more_than_a_cluster_has_is_refused(asked: tuple[int, int, float]) -> None:
    with pytest.raises(CorpusError, match="4 CPUs, 0 GPUs"):
        corpus_ray.room({"CPU": 4.0}, *asked, 100)
