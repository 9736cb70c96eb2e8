"""Choosing among three engines for the shipped model: measured, explained, and given up where one fails mid-answer."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ossicle.cli.main import app
from ossicle.compiler import speech
from ossicle.runtimes import measure, measured
from ossicle.runtimes.bench import bench
from ossicle.runtimes.opening import load
from ossicle.targets.contract import EngineError
from typer.testing import CliRunner

CLIP = next(clip for clip in speech.load(speech.shipped()).clips if clip.name[:2].isdigit())
SINGLE = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def bundle(demo: Callable[..., Path]) -> Path:
    return demo("int8", "onnx", "openvino", "gguf")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of measurements of this module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("kept")
        patch.setenv(measured.FOLDER, str(folder))
        yield folder


@pytest.fixture(scope="module")
def text(bundle: Path) -> str:
    with load(bundle, engine="onnxruntime") as session:
        return session.transcribe(CLIP.file, language="en").text


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        ("encoder=openvino,decoder=onnxruntime", "openvino-cpu+onnxruntime-cpu"),
        ("encoder=onnxruntime,prefill=openvino,decoder=onnxruntime", "onnxruntime-cpu+openvino-cpu"),
        ("encoder=openvino,prefill=onnxruntime,decoder=openvino", "openvino-cpu+onnxruntime-cpu"),
        ("encoder=onnxruntime,decoder=llamacpp", "onnxruntime-cpu+llamacpp-cpu"),
    ],
)
def test_engines_hear_read_and_answer_together(bundle: Path, text: str, engine: str, name: str) -> None:
    with load(bundle, engine=engine) as session:
        found = session.transcribe(CLIP.file, language="en")
        assert (session.engine, found.text, found.engine) == (name, text, name)
        assert set(session.stages.values()) == set(name.split("+"))


def test_bench_measures_every_engine_and_explains_each(
    bundle: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "ROUNDS", 2)
    found = bench(bundle, budget=60, again=True)
    for stage in ("encoder", "prefill", "decoder"):
        rows = [row for row in found.stages if row.stage == stage]
        assert [row.engine for row in rows if row.chosen]
        assert all(row.reason for row in rows)
        timed = {row.engine for row in rows if row.seconds}
        assert timed == {*SINGLE} | ({"llamacpp"} if stage != "encoder" else set())
    singles = {plan.plan: plan.seconds for plan in found.plans if plan.plan in SINGLE}
    assert all(singles.values())
    chosen = next(plan for plan in found.plans if plan.chosen)
    assert chosen.seconds
    assert chosen.seconds <= min(seconds for seconds in singles.values() if seconds) * (1 + 1e-9)
    assert len(list(kept.glob("measurements/*.json"))) == 1


@pytest.mark.usefixtures("kept")
def test_a_session_is_opened_as_measured(bundle: Path, text: str) -> None:
    best = next(plan for plan in bench(bundle, budget=60).plans if plan.chosen)
    with load(bundle, measure=True) as session:
        assert [session.transcribe(CLIP.file, language="en").text, set(session.stages.values())] == [
            text,
            {f"{part.partition('=')[2] or part}-cpu" for part in best.plan.split(",")},
        ]


def test_what_bench_measures_is_what_sessions_look_up(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []

    def looking(folder: Path, choices: Any, options: Any, **_: Any) -> None:
        looked.append(measured.file(folder, choices, options))

    monkeypatch.setattr("ossicle.runtimes.bench.measured", looking)
    monkeypatch.setattr("ossicle.runtimes.opening.measured", looking)
    for compute in ("", "float32"):
        found = bench(bundle, compute=compute)
        assert {one.engine for one in found.stages if one.stage == "decoder" and one.possible} == (
            {"llamacpp"} if compute else {"llamacpp", *SINGLE}
        )
        load(bundle, compute=compute, measure=True).close()
    assert looked[0] == looked[1] != looked[2] == looked[3]


@pytest.mark.usefixtures("kept")
def test_the_command_tells_the_same(bundle: Path) -> None:
    done = CliRunner().invoke(app, ["bench", str(bundle), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["plan"] == bench(bundle).plan
    shown = CliRunner().invoke(app, ["bench", str(bundle)])
    assert shown.exit_code == 0
    for word in ("llamacpp", "averages pairs of frames", "Runs here as: "):
        assert word in " ".join(shown.output.split())


def test_a_child_that_is_killed_in_the_middle_of_an_answer_costs_nothing(
    bundle: Path, text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """llama.cpp is what rank speaks for, and dies after some tokens; the next engine goes on behind them."""
    order = dict.fromkeys(("prefill", "decoder"), ("llamacpp", "onnxruntime", "openvino"))
    monkeypatch.setattr("ossicle.runtimes.select._ON_CPU", {"encoder": ("openvino", "onnxruntime"), **order})
    with load(bundle) as session:
        assert session.engine == "openvino-cpu+llamacpp-cpu"
        before = session.transcribe(CLIP.file, language="en").text
        stream = session.stream(CLIP.file, language="en")
        pieces = [next(stream) for _ in range(3)]
        (child,) = psutil.Process().children()
        os.kill(child.pid, signal.SIGKILL)
        pieces += list(stream)
        assert "".join(pieces) == before == text
        assert (stream.reply.engine, session.engine) == ("onnxruntime-cpu", "onnxruntime-cpu")
        assert session.transcribe(CLIP.file, language="en").text == text
    (told,) = [one for one in caplog.records if one.name == "ossicle"]
    assert "'openvino-cpu+llamacpp-cpu' failed" in told.getMessage()
    assert "SIGKILL" in told.getMessage()


def test_an_engine_that_raises_at_load_gives_way_unless_it_was_named(
    bundle: Path, text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:

    def refuse(*_: object) -> None:
        raise EngineError("engine 'onnxruntime' refuses the graph")

    monkeypatch.setattr("ossicle.runtimes.onnxruntime.open_session", refuse)
    with load(bundle) as session:
        assert session.engine == "openvino-cpu"
        assert session.transcribe(CLIP.file, language="en").text == text
    assert "engine 'onnxruntime' cannot be opened, and the next one is tried" in caplog.text
    with pytest.raises(EngineError, match="refuses the graph"):
        load(bundle, engine="onnxruntime")
