"""Sweeps: what a grid is, that a killed one goes on without doing anything twice, and what is refused."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ossicle.cli import main as cli
from ossicle.cli.sweep import _print, _quantizers, facts
from ossicle.compiler import cells, pipeline, reference, speed, sweep, sweep_jobs, sweep_worker, written
from ossicle.compiler.cells import Cell, Found, Proof, Speed
from ossicle.compiler.figures import Comparison, Said, judge
from ossicle.compiler.sweep_jobs import Crew
from ossicle.compiler.sweep_plan import NAME, Keys, Plan
from ossicle.targets.contract import BuildError, RecipeError, SweepError, Thresholds
from ossicle.targets.probe import Answer, Report
from ossicle.targets.probe import Proof as Proved
from ossicle.tests import checkpoints
from typer.testing import CliRunner

RUNNER = CliRunner()
WHOLE = checkpoints.tiny_config(audio={"max_source_positions": 1500})  # which hears windows of 30 s
MACHINE = {"system": "a", "python": "3", "processor": {"name": "a", "cores": 1}, "memory": 1, "engines": {}}
SAID = (Said("en", None, "nan", "inf", "a"),)
CLIP = Comparison("nan", 1, 0.0, float("inf"), 1e-6, 1e-6, 0.5, 0.5, 1.0, 10, SAID, None, None)
VERIFIED = judge("onnx", "onnxruntime-cpu", "executed", [CLIP], Thresholds())


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
    assert [str(cell) for cell in replace(plan, engines=("llamacpp-mtmd",)).grid[0]] == [
        "int4 in onnx on onnxruntime",
        "int4 in gguf on llamacpp-mtmd",
        "q4_k_m in gguf on llamacpp-mtmd",
    ]
    (cell,) = refused
    assert (cell.recipe, cell.target) == ("q4_k_m", "onnx")
    assert "cannot hold" in refused[cell]


def test_quantizers_are_another_axis_where_there_are_integers() -> None:
    possible, refused = Plan("x", ("int4", "bf16"), ("gguf",), quantizers=("nearest", "gptq")).grid
    assert [(str(cell), cell.name) for cell in possible] == [
        ("int4 in gguf on llamacpp", "int4.gguf.llamacpp"),
        ("int4+gptq in gguf on llamacpp", "int4+gptq.gguf.llamacpp"),
        ("bf16 in gguf on llamacpp", "bf16.gguf.llamacpp"),
    ]
    assert refused == {}
    alone = Plan("x", ("int4", "bf16", "q4_k_m"), ("gguf",), quantizers=("gptq", "hqq")).grid[0]
    assert [cell.build for cell in alone] == ["int4+gptq", "int4+hqq", "bf16", "q4_k_m+gptq"]


def test_what_is_kept_of_a_cell_comes_back_the_same(tmp_path: Path) -> None:
    cell, proof = Cell("int4", "onnx", "onnxruntime", "gptq"), Proof(None, "bundles/int4+gptq", 7, VERIFIED)
    cells.write_proof(tmp_path, cell, "key", proof)
    assert cells.read_proof(tmp_path, cell, "key") == proof
    assert cells.read_proof(tmp_path, cell, "another key") is None
    cells.write_speed(tmp_path, cell, "key", Speed(load=2.0))
    assert cells.read_speed(tmp_path, cell, "key") == Speed(load=2.0)
    (tmp_path / "speeds" / f"{cell.name}.json").write_text('{"key": "key", "fou')
    assert cells.read_speed(tmp_path, cell, "key") is None


def test_what_cannot_be_written_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(BuildError, match=r"a\.json' cannot be written: No space left"):
        written.write_text(tmp_path / "a.json", "all")
    assert list(tmp_path.iterdir()) == []


def test_the_least_of_repeats_counts_and_the_first_answer_does_not() -> None:
    def report(decode: float, memory: int) -> Report:
        taken = {"audio": 4.0, "encode": 1.0, "prefill": 0.5, "decode": decode, "tokens": 10}
        answers = tuple(
            Answer("transcribe", 9.0, text="", timings=taken | {"decode": d}) for d in (99.0, decode, decode)
        )
        return Report("fake", "executed", {}, (), decode, memory, answers)

    found = speed.summarize([report(2.0, 5), report(1.0, 7), report(3.0, 6)])
    assert found == Speed(tokens_per_second=10.0, real_time_factor=5.0 / 8.0, load=1.0, memory=7, audio=8.0)


def test_what_stands_in_for_an_engine_is_asked_once_and_has_no_speed_of_its_own(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {"audio": 4.0, "encode": 1.0, "prefill": 0.5, "decode": 1.0, "tokens": 10}
    answers = (Answer("transcribe", 9.0, text="", timings=taken),) * 2
    asked: list[str] = []
    proof: Proved = "interpreted"

    def ask(*_: object, engine: str) -> Report:
        asked.append(engine)
        return Report("fake", proof, {}, (), 1.0, 7, answers)

    monkeypatch.setattr(speed, "ask", ask)
    interpreted = speed.measure(Path("a"), "coreml", plan.recordings().clips)
    assert (interpreted.proof, len(asked)) == ("interpreted", 1)
    found = Found(Cell("int4", "coreml", "coreml"), Proof(None, "bundles/a", 7, VERIFIED), interpreted)
    assert (found.timed, found.reason) == (None, None)
    proof = "executed"
    executed = speed.measure(Path("a"), "onnxruntime", plan.recordings().clips)
    assert (replace(found, speed=executed).timed, len(asked)) == (executed, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--quant", "int5"), "precision 'int5' is unknown"),
        (("--quant", "int4", "--target", "onx"), "target 'onx' is unknown"),
        (("--quant", "int4", "--engine", "llamacpp"), "engine 'llamacpp' runs none of the targets"),
        (("--quant", "int4", "--executor", "threads"), "executor 'threads' is unknown"),
        (("--quant", "int4", "--quantizer", "nearest,gtpq"), "quantizer 'gtpq' is unknown"),
        (("--quant", "q4_k_m", "--target", "gguf", "--quantizer", "mse"), "'mse' has no meaning for recipe 'q4_k_m'"),
        (("--quant", "int4", "--imatrix", "measured.gguf"), "has no use for an imatrix"),
        (("--quant", "int4", "--quantizer", "gptq;mse,decodr=gptq"), "part 'decodr' is unknown"),
        (("--quant", "q4_k_m"), "no cell of the sweep is possible"),
        (("--quant", "int4", "--engine", "onnxruntime-x"), "engine 'onnxruntime-x' is unknown (it can be: "),
        (("--quant", ","), "--quant names nothing"),
        (("--quant", "int4", "--target", " , "), "--target names nothing"),
        (("--quant", "int4", "--calibration-speech", "a.jsonl"), "--calibration-speech has no use here"),
        (("--quant", "int4", "--address", "10.0.0.1:6379"), "--address '10.0.0.1:6379' is of a cluster of Ray"),
    ],
)
def test_words_that_name_nothing_are_refused_before_any_work(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = RUNNER.invoke(cli.app, ["sweep", "nowhere", "--out", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 1
    assert said in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_written_here_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    arguments = ["sweep", "nowhere", "--out", str(tmp_path / "out"), "--quant", "int4", "--target", "onnx,openvino"]
    done = RUNNER.invoke(cli.app, arguments)
    assert done.exit_code == 1
    assert 'pip install "ossicle[openvino]"' in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("nearest, mse,mse", ("nearest", "mse")),
        ("gptq;mse,decoder=gptq", ("gptq", "mse,decoder=gptq")),
        ("mse,decoder=gptq", ("mse,decoder=gptq",)),
        ("mse; decoder=gptq, mse;mse,decoder=gptq", ("mse", "mse,decoder=gptq")),
    ],
)
def test_quantizers_that_differ_part_by_part_have_semicolons_between(text: str, found: tuple[str, ...]) -> None:
    assert _quantizers(text) == found
    builds = [cell.build for cell in Plan("x", ("int4",), ("onnx",), quantizers=found or ("nearest",)).grid[0]]
    assert builds == [f"int4+{one}".removesuffix("+nearest") for one in found or ("nearest",)]


def test_every_cell_is_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    passed = replace(VERIFIED, checks=())
    proofs = [Proof(None, "bundles/a", 7, passed), Proof(None, "bundles/b", 7, VERIFIED), Proof("it died")]
    found = tuple(Found(Cell(name, "onnx", "onnxruntime"), proof) for name, proof in zip("abc", proofs, strict=True))
    _print(sweep.Swept(found, {}, Path("report.html"), 0))
    assert "3 cells, 1 passed, 1 beyond their limits, 1 failed, 0 known before" in capsys.readouterr().out


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("sweep")
    checkpoint = checkpoints.save_hub(folder / "tiny", checkpoints.model(WHOLE))
    soundfile.write(folder / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    (folder / "speech.jsonl").write_text(json.dumps({"file": "a.wav", "text": "a word", "language": "en"}))
    return Plan(str(checkpoint), ("int8", "int4"), ("onnx",), speech=str(folder / "speech.jsonl"))


def job(out: str, name: str, _: int, endless: str = "") -> None:
    """A job that proves its cells at once; the one of the name `endless` never ends."""
    if name == endless:
        time.sleep(600)
    plan = Plan(**{k: sweep_worker._tuples(v) for k, v in json.loads(Path(out, NAME).read_text()).items()})
    keys = Keys.of(plan, plan.open(), plan.recordings())
    for cell in (one for one in plan.grid[0] if one.build == name):
        cells.write_proof(Path(out), cell, keys.proof(cell), Proof(None, f"bundles/{name}", 7, VERIFIED))


def timed(bundle: Path, *_: object, endless: str = "") -> Speed:
    """A speed that takes no time; of the bundle `endless` it is never there."""
    if bundle.name == endless:
        time.sleep(600)
    return Speed(load=1.0)


def endless(plan: str, out: str, build: str, measured: str) -> None:
    """A sweep that never ends: at the proof of a build, or at the speed of another."""
    sweep_jobs.run = partial(job, endless=build)
    speed.measure = partial(timed, endless=measured)
    chosen = Plan(**{k: sweep_worker._tuples(v) for k, v in json.loads(plan).items()})
    sweep.sweep(chosen, Path(out), crew=Crew(), machine=MACHINE)


def _kill(plan: Plan, out: Path, build: str, measured: str) -> dict[Path, int]:
    """Start a sweep that never ends there, kill it as soon as a cell more is known; when each file was written."""
    code = "import sys; from ossicle.tests.compiler.test_sweep import endless; endless(*sys.argv[1:])"
    before, command = _written(out), [sys.executable, "-P", "-c", code, json.dumps(asdict(plan)), str(out)]
    process = subprocess.Popen([*command, build, measured], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and _written(out) == before:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    told = process.communicate()[1]
    after = _written(out)
    assert (process.returncode, len(after)) == (-signal.SIGKILL, len(before) + 1), told
    return after


def _written(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("*/*.json")}


def test_a_killed_sweep_goes_on_and_does_nothing_twice(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", list[str]()
    proved = _kill(plan, out, "int4", "")
    monkeypatch.setattr(sweep_jobs, "run", lambda out, name, threads: (asked.append(name), job(out, name, threads))[1])
    swept = sweep.sweep(plan, out, crew=Crew(), machine=MACHINE, timed=False)
    assert ([one.cell.recipe for one in swept.found], swept.kept) == (["int8", "int4"], 1)
    assert asked == [sweep_jobs.ORIGINAL, "int4"]
    both = _kill(plan, out, "int4", "int4")  # in its speeds: whatever asks for a proof again never ends either
    assert {path.name for path in both} == {"int8.onnx.onnxruntime.json", "int4.onnx.onnxruntime.json"}
    monkeypatch.setattr(speed, "measure", lambda bundle, *_: (asked.append(bundle.name), timed(bundle))[1])
    swept = sweep.sweep(plan, out, crew=Crew(), machine=MACHINE)
    assert asked == [sweep_jobs.ORIGINAL, "int4", "int4"]
    assert all(one.speed == Speed(load=1.0) for one in swept.found)
    assert all(_written(out)[path] == when for path, when in (proved | both).items())
    again = sweep.sweep(plan, out, crew=Crew(), machine=MACHINE)
    assert (again.found, again.kept, len(asked)) == (swept.found, 2, 3)
    _others_are_done_again(plan, out)


def _others_are_done_again(plan: Plan, out: Path) -> None:
    """Other recordings decide other figures: nothing is taken over."""
    other = Path(str(plan.speech)).with_name("other.jsonl")
    other.write_text(json.dumps({"file": "a.wav", "text": "another word"}))
    changed = replace(plan, speech=str(other))
    keys = Keys.of(changed, changed.open(), changed.recordings())
    assert all(cells.read_proof(out, cell, keys.proof(cell)) is None for cell in plan.grid[0])


def test_recordings_to_calibrate_on_decide_what_is_made_on_them_alone(plan: Plan) -> None:
    made = replace(plan, quantizers=("nearest", "gptq"), heard=plan.speech)
    keys = [Keys.of(one, one.open(), one.recordings()) for one in (made, replace(made, heard=None))]
    assert {cell.quantizer for cell in made.grid[0] if keys[0].proof(cell) == keys[1].proof(cell)} == {"nearest"}


@pytest.mark.slow
def test_integers_are_made_once_and_their_bundle_is_proved(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job as its process does it: the original's readings, GPTQ's integers, a bundle of them, and how it compares."""
    monkeypatch.setattr(reference, "MAX_TOKENS", 6)
    made = replace(plan, recipes=("int4",), quantizers=("gptq",), heard=plan.speech)
    (cell,) = made.grid[0]
    sweep_worker.read_original(made, tmp_path)
    sweep_worker.prove(made, tmp_path, cell.build)
    keys = Keys.of(made, made.open(), made.recordings())
    proof = cells.read_proof(tmp_path, cell, keys.proof(cell))
    assert proof is not None
    assert (proof.reason, proof.bundle) == (None, "bundles/int4+gptq")
    files = [*(tmp_path / "quantized").iterdir(), *(tmp_path / proof.bundle / "onnx").iterdir()]
    before = [file.stat().st_ino for file in files]
    sweep_worker.prove(made, tmp_path, cell.build)
    assert before == [file.stat().st_ino for file in files]
    held = sweep_worker.Made.of(made, tmp_path, cell)
    assert sweep_worker._stands(held, tmp_path / proof.bundle, ["onnx"])
    (tmp_path / proof.bundle / "tokenizer.json").unlink()
    assert not sweep_worker._stands(held, tmp_path / proof.bundle, ["onnx"])
    assert {path.name for path in (tmp_path / proof.bundle).iterdir()} >= {"verification.html", "verification.md"}


def test_measured_activations_weigh_what_has_a_use_for_them(plan: Plan) -> None:
    weighed = replace(plan, recipes=("int4", "q4_k_m"), targets=("gguf",), imatrix="m", quantizers=("nearest", "mse"))
    builds = {cell.build: weighed.imatrix_of(sweep_worker.recipe_of(cell)) for cell in weighed.grid[0]}
    assert builds == {"int4": None, "int4+mse": Path("m"), "q4_k_m": Path("m")}
    with pytest.raises(RecipeError, match="has no use for an imatrix"):
        pipeline.check_imatrix(sweep_worker.recipe_of(weighed.grid[0][0]), Path("m"))


def test_the_machine_is_told_of_as_doctor_tells_it() -> None:
    told = facts()
    assert told["processor"]["cores"] > 0
    assert "onnxruntime" in told["engines"]


def test_one_sweep_at_a_time_and_only_in_its_own_folder(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SweepError, match="is no folder of a sweep"):
        sweep.sweep(plan, tmp_path, crew=Crew(), machine=MACHINE)
    with sweep._alone(tmp_path / "out"), pytest.raises(SweepError, match="another sweep is at work"):
        sweep.sweep(plan, tmp_path / "out", crew=Crew(), machine=MACHINE)


def test_a_worker_that_dies_fails_its_own_cells_alone(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(_: Path, jobs: list[str], __: Crew) -> object:
        return ((job, None if job == sweep_jobs.ORIGINAL else "its process ended with status -9") for job in jobs)

    monkeypatch.setattr(sweep, "finished", died)
    swept = sweep.sweep(plan, tmp_path / "out", crew=Crew(), machine=MACHINE)
    assert [one.reason for one in swept.failed] == ["its process ended with status -9"] * 2
    assert "ended with status -9" in swept.page.read_text(encoding="utf-8")
    monkeypatch.setattr(sweep, "finished", lambda *_: pytest.fail("a failure was tried again without being asked"))
    assert len(sweep.sweep(plan, tmp_path / "out", crew=Crew(), machine=MACHINE).failed) == 2


def test_a_worker_ends_with_the_sweep_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "ossicle.compiler.sweep_worker", str(tmp_path), "int4"]
    (tmp_path / "sweep.json").symlink_to(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe")  # which it waits for, without end
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    time.sleep(0.5)
    assert process.poll() is None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=300) == 2
