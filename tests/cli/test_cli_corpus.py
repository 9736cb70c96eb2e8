"""`ossicle transcribe-corpus`: what it takes, prints and ends with. The work itself: tests/runtimes/test_corpus_run.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from ossicle.cli import corpus
from ossicle.cli import main as cli
from ossicle.runtimes import corpus_run
from ossicle.runtimes.corpus_run import Crew, Loading
from ossicle.runtimes.corpus_summary import Summary
from ossicle.targets.contract import CorpusError
from typer.testing import CliRunner

RUNNER = CliRunner()
DONE = Summary(3, 3, 0, 0, 0.5, 99, 180.0, ("fake-cpu",), 3, 0.5, 60.0, 2, 1)


class Asked:
    """In place of a run: keeps what it was asked for."""

    def __init__(self) -> None:
        self.places: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}
        self.summary = DONE

    def __call__(self, *places: Path, **options: Any) -> Summary:
        self.places, self.options = tuple(map(str, places)), options
        return self.summary


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr(corpus_run, "transcribe_corpus", asked)
    return asked


def invoke(*arguments: str) -> Any:
    return RUNNER.invoke(cli.app, ["transcribe-corpus", *arguments])


def test_what_is_said_reaches_the_run(asked: Asked) -> None:
    options = "--workers 4 --threads 2 --language en --engine openvino --adapter a:0.5 --max-tokens 9 --retry-failed"
    options += " --compute float32"
    assert invoke("b", "in", "out", *options.split()).exit_code == 0
    assert asked.places == ("b", "in", "out")
    assert asked.options["loading"] == Loading("openvino", adapters={"a": 0.5}, compute="float32")
    assert asked.options["crew"] == Crew("processes", 4, 2)
    assert (asked.options["language"], asked.options["max_tokens"]) == ("en", 9)
    assert asked.options["retry_failed"]
    assert not asked.options["force"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("b", "in", "out", "--executor", "ray", "--address", "host:1", "--gpus", "0.5"),
        ("in", "out", "--bundle", "b", "--engine", "ray", "--address", "host:1", "--gpus", "0.5"),
    ],
)
def test_ray_is_an_executor_whichever_way_it_is_named(asked: Asked, arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 0
    assert asked.places == ("b", "in", "out")
    assert asked.options["crew"] == Crew("ray", address="host:1", gpus=0.5)
    assert asked.options["loading"] == Loading()


@pytest.mark.parametrize("arguments", [("in", "out"), ("b", "in", "out", "--bundle", "c"), ("b",)])
def test_three_places_are_needed(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "ossicle transcribe-corpus BUNDLE IN OUT" in result.output


def test_json_is_all_that_is_on_standard_output(asked: Asked) -> None:
    asked.summary = Summary(**{**vars(DONE), "failed": 1, "done": 2, "damaged": 1})
    result = invoke("b", "in", "out", "--json")
    document = json.loads(result.stdout)
    assert (document["files"], document["real_time_factor"], document["times_real_time"]) == (3, 0.1, 30.0)
    assert result.exit_code == 1
    assert "failed.jsonl" in result.stderr
    assert "damaged" in result.stderr


def test_files_that_are_left_end_it_as_an_interruption_does(asked: Asked) -> None:
    asked.summary = Summary(**{**vars(DONE), "left": 1, "done": 2})
    result = invoke("b", "in", "out")
    assert result.exit_code == 130
    assert "2 of 3 files are transcribed" in result.stdout
    assert "Go on with the same command" in result.stderr


def test_what_is_refused_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Summary:
        raise CorpusError("'in' does not exist")

    monkeypatch.setattr(corpus_run, "transcribe_corpus", refuse)
    result = invoke("b", "in", "out")
    assert (result.exit_code, result.stderr) == (1, "ossicle: 'in' does not exist\n")


def test_the_executors_of_the_command_are_those_of_the_run() -> None:
    assert corpus.EXECUTORS == corpus_run.EXECUTORS
