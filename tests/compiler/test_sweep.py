"""Sweeps: what a grid is, that a killed one goes on without doing anything twice, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ossicle.compiler import cells, cli, speed, sweep, sweep_jobs
from ossicle.compiler.cells import Cell, Proof, Speed
from ossicle.compiler.figures import Comparison, Said, judge
from ossicle.compiler.sweep_jobs import Crew
from ossicle.compiler.sweep_plan import Keys, Plan
from ossicle.targets.contract import SweepError, Thresholds
from ossicle.targets.probe import Answer, Report
from ossicle.tests import checkpoints
from typer.testing import CliRunner

RUNNER = CliRunner()
WHOLE = checkpoints.tiny_config(audio={"max_source_positions": 1500})  # which hears windows of 30 s


def test_a_grid_has_every_cell_and_says_why_some_cannot_be() -> None:
    plan = Plan("x", ("int4", "q4_k_m"), ("onnx", "gguf"), ("onnxruntime", "llamacpp", "llamacpp-mtmd"))
    possible, refused = plan.grid
    assert [str(cell) for cell in possible] == [
        "int4 in onnx on onnxruntime",
        "int4 in gguf on llamacpp",
        "int4 in gguf on llamacpp-mtmd",
        "q4_k_m in gguf on llamacpp",
        "q4_k_m in gguf on llamacpp-mtmd",
    ]
    (cell,) = refused
    assert (cell.recipe, cell.target) == ("q4_k_m", "onnx")
    assert "cannot hold" in refused[cell]


def test_what_is_kept_of_a_cell_comes_back_the_same(tmp_path: Path) -> None:
    said = (Said("en", None, "nan", "inf", "a"),)
    clip = Comparison("nan", 1, 0.0, float("inf"), 1e-6, 1e-6, 0.5, 0.5, 1.0, 10, said, None, None)
    verified = judge("onnx", "onnxruntime-cpu", "executed", [clip], Thresholds())
    cell, proof = Cell("int4", "onnx", "onnxruntime"), Proof(None, "bundles/int4", 7, verified)
    cells.write_proof(tmp_path, cell, "key", proof)
    assert cells.read_proof(tmp_path, cell, "key") == proof
    assert cells.read_proof(tmp_path, cell, "another key") is None
    cells.write_speed(tmp_path, cell, "key", Speed(load=2.0))
    assert cells.read_speed(tmp_path, cell, "key") == Speed(load=2.0)
    (tmp_path / "speeds" / f"{cell.name}.json").write_text('{"key": "key", "fou')
    assert cells.read_speed(tmp_path, cell, "key") is None


def test_the_least_of_repeats_counts_and_the_first_answer_does_not() -> None:
    def report(decode: float, memory: int) -> Report:
        taken = {"audio": 4.0, "encode": 1.0, "prefill": 0.5, "decode": decode, "tokens": 10}
        answers = tuple(
            Answer("transcribe", 9.0, text="", timings=taken | {"decode": d}) for d in (99.0, decode, decode)
        )
        return Report("fake", "executed", {}, (), decode, memory, answers)

    found = speed.summarize([report(2.0, 5), report(1.0, 7), report(3.0, 6)])
    assert found == Speed(tokens_per_second=10.0, real_time_factor=5.0 / 8.0, load=1.0, memory=7, audio=8.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--quant", "int5"), "precision 'int5' is unknown"),
        (("--quant", "int4", "--target", "onx"), "target 'onx' is unknown"),
        (("--quant", "int4", "--engine", "llamacpp"), "engine 'llamacpp' runs none of the targets"),
        (("--quant", "int4", "--executor", "threads"), "executor 'threads' is unknown"),
        (("--quant", "q4_k_m"), "no cell of the sweep is possible"),
    ],
)
def test_words_that_name_nothing_are_refused_before_any_work(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = RUNNER.invoke(cli.app, ["sweep", "nowhere", "--out", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 1
    assert said in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("sweep")
    checkpoint = checkpoints.save_hub(folder / "tiny", checkpoints.model(WHOLE))
    soundfile.write(folder / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    (folder / "speech.jsonl").write_text(json.dumps({"file": "a.wav", "text": "a word", "language": "en"}))
    return Plan(str(checkpoint), ("int8", "int4"), ("onnx",), speech=str(folder / "speech.jsonl"))


def _command(plan: Plan, out: Path) -> list[str]:
    arguments = ["sweep", plan.checkpoint, "--quant", ",".join(plan.recipes), "--speech", str(plan.speech)]
    main = "import sys; from ossicle.compiler.cli import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", main, *arguments, "--out", str(out), "--no-speed"]


def _kill_after_a_cell(plan: Plan, out: Path) -> Path:
    """Start a sweep and kill it as soon as one cell is proved; that cell's file."""
    process = subprocess.Popen(_command(plan, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not list((out / "proofs").glob("*.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    told = process.communicate()[0]
    files = list((out / "proofs").glob("*.json"))
    assert len(files) == 1, told
    return files[0]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_does_nothing_twice(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    proved = _kill_after_a_cell(plan, out)
    before = (proved.stat().st_mtime_ns, (out / "bundles" / "int8" / "manifest.json").stat().st_ino)
    asked: list[list[str]] = []
    finished = sweep_jobs.finished
    monkeypatch.setattr(sweep, "finished", lambda o, jobs, crew: (asked.append(list(jobs)), finished(o, jobs, crew))[1])
    monkeypatch.setattr(speed, "REPEATS", 1)
    swept = sweep.sweep(plan, out, crew=Crew())
    assert asked == [[sweep_jobs.ORIGINAL], ["int4"]]
    assert proved.stat().st_mtime_ns == before[0]
    assert (out / "bundles" / "int8" / "manifest.json").stat().st_ino == before[1]
    assert [one.cell.recipe for one in swept.found] == ["int8", "int4"]
    assert all(one.proof.verified and one.speed and one.speed.real_time_factor > 0 for one in swept.found)
    assert swept.found[1].proof.size < swept.found[0].proof.size
    assert {path.name for path in (out / "bundles" / "int4").iterdir()} >= {"verification.html", "verification.md"}

    monkeypatch.setattr(sweep, "finished", lambda *_: pytest.fail("something was done again"))
    monkeypatch.setattr(speed, "measure", lambda *_: pytest.fail("something was measured again"))
    again = sweep.sweep(plan, out, crew=Crew())
    assert (again.found, again.kept) == (swept.found, 2)
    _others_are_done_again(plan, out)


def _others_are_done_again(plan: Plan, out: Path) -> None:
    """Other recordings decide other figures: nothing is taken over."""
    other = Path(str(plan.speech)).with_name("other.jsonl")
    other.write_text(json.dumps({"file": "a.wav", "text": "another word"}))
    changed = replace(plan, speech=str(other))
    keys = Keys.of(changed, changed.open(), changed.recordings())
    assert all(cells.read_proof(out, cell, keys.proof(cell)) is None for cell in plan.grid[0])


def test_one_sweep_at_a_time_and_only_in_its_own_folder(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SweepError, match="is no folder of a sweep"):
        sweep.sweep(plan, tmp_path, crew=Crew())
    with sweep._alone(tmp_path / "out"), pytest.raises(SweepError, match="another sweep is at work"):
        sweep.sweep(plan, tmp_path / "out", crew=Crew())


def test_a_worker_that_dies_fails_its_own_cells_alone(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(_: Path, jobs: list[str], __: Crew) -> object:
        return ((job, None if job == sweep_jobs.ORIGINAL else "its process ended with status -9") for job in jobs)

    monkeypatch.setattr(sweep, "finished", died)
    swept = sweep.sweep(plan, tmp_path / "out", crew=Crew())
    assert [one.reason for one in swept.failed] == ["its process ended with status -9"] * 2
    assert "ended with status -9" in swept.page.read_text(encoding="utf-8")
    monkeypatch.setattr(sweep, "finished", lambda *_: pytest.fail("a failure was tried again without being asked"))
    assert len(sweep.sweep(plan, tmp_path / "out", crew=Crew()).failed) == 2


def test_a_worker_ends_with_the_sweep_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "ossicle.compiler.sweep_worker", str(tmp_path), "int4"]
    (tmp_path / "sweep.json").symlink_to(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe")  # which it waits for, without end
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    time.sleep(0.5)
    assert process.poll() is None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 2
