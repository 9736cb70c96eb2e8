"""What a sweep takes over and what it does again: keys, failures, bundles that stand there; and what it says at its end."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ossicle.cli import main as cli
from ossicle.compiler import cells, report, speed, sweep, sweep_jobs, sweep_plan, sweep_worker
from ossicle.compiler.cells import Cell, Found, Proof, Speed
from ossicle.compiler.figures import Comparison, Said, Verification, judge
from ossicle.compiler.making import tools
from ossicle.compiler.speech import Clip, Speech
from ossicle.compiler.sweep_plan import Keys, Plan
from ossicle.targets import manifest as manifests
from ossicle.targets import registry
from ossicle.targets.contract import Thresholds
from ossicle.targets.manifest import AdapterSource, Source
from ossicle.targets.probe import Answer, Report, Request
from ossicle.targets.recipes import RECIPES
from ossicle.tests.fakes import write_bundle
from typer.testing import CliRunner

CELL = Cell("int4", "onnx", "onnxruntime")
MTMD = Cell("int4", "gguf", "llamacpp-mtmd")
KEYS = Keys(["a checkpoint", []], "recordings")
SPEECH = Speech("speech.jsonl", (), "0" * 64)
CLIP = Comparison("a", 1, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 10, (Said("en", None, "a", "a", "a"),))


def proved(cell: Cell, **limits: float) -> Proof:
    return Proof(None, "bundles/int4", 7, judge(cell.target, cell.engine, "executed", [CLIP], Thresholds(**limits)))


def test_another_machine_other_packages_and_another_recipe_of_the_name_decide_other_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = KEYS.proof(CELL)
    assert KEYS.speed(CELL, {"processor": "a"}) != KEYS.speed(CELL, {"processor": "b"})
    with monkeypatch.context() as patch:
        patch.setattr(registry, "tools", lambda targets: dict.fromkeys(targets, "9.9"))
        assert KEYS.proof(CELL) != before
    changed = replace(RECIPES["int4"], lm_head=RECIPES["int8"].lm_head)
    monkeypatch.setattr(sweep_plan, "named_recipe", lambda _: changed)
    assert KEYS.proof(CELL) != before


def test_merged_adapters_decide_figures() -> None:
    def keys(*weights: float) -> Keys:
        adapters = tuple(AdapterSource("legal", weight, ()) for weight in weights)
        opened: Any = SimpleNamespace(source=Source("a", ()), adapters=adapters, imatrix=None)
        return Keys.of(Plan("a", ("int4",), ("onnx",)), opened, SPEECH)

    assert len({keys(*weights).proof(CELL) for weights in ((), (0.5,), (1.0,))}) == 3


def test_failures_are_kept_until_they_are_to_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells.write_proof(tmp_path, CELL, KEYS.proof(CELL), Proof("it broke"))
    assert [list(sweep._proved(tmp_path, [CELL], KEYS, again)) for again in (False, True)] == [[CELL], []]
    cells.write_speed(tmp_path, CELL, KEYS.speed(CELL, {}), Speed(reason="it broke, too"))
    monkeypatch.setattr(speed, "measure", lambda *_: Speed(load=1.0))
    for again, reason in ((False, "it broke, too"), (True, None)):
        ((found,), _) = sweep._speeds(tmp_path, {CELL: proved(CELL)}, KEYS, SPEECH, {}, True, again, None)
        assert found.reason == reason


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 0", None),
        ("echo noise >&2; echo the disk is full >&2; exit 1", "the disk is full"),
        ("echo Killed >&2; exit 3", "its process ended with status 3: Killed"),
        ("kill -9 $$", "its process ended with status -9"),
    ],
)
def test_a_job_that_fails_tells_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str | None
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert sweep_jobs.run(str(tmp_path), "int4", 1) == reason


def test_a_bundle_is_marked_with_what_its_targets_own_engines_make_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, marked = tmp_path / "bundles" / "int4", list[Verification]()
    folder.mkdir(parents=True)
    manifests.write(folder, replace(write_bundle(folder), recipe=json.loads(json.dumps(asdict(RECIPES["int4"])))))
    monkeypatch.setattr(sweep_worker, "mark", lambda _, whole: marked.append(whole))
    monkeypatch.setattr(report, "write", lambda *_: None)
    sweep_worker._mark(
        tmp_path, SPEECH, {CELL: proved(CELL), MTMD: proved(MTMD), Cell("int4", "coreml", "coreml"): None}
    )
    assert [[one.target for one in whole.targets] for whole in marked] == [["onnx"]]


def test_only_a_bundle_of_exactly_this_stands(tmp_path: Path) -> None:
    recipe = RECIPES["int4"]
    artifact = replace(write_bundle(tmp_path).artifacts[-1], target="onnx", stage="decoder")
    held = replace(
        write_bundle(tmp_path),
        recipe=json.loads(json.dumps(asdict(recipe))),
        artifacts=(artifact,),
        tools=tools(["onnx"]),
    )
    opened = SimpleNamespace(source=held.source, adapters=(), imatrix=None, quantized=None)
    made: Any = SimpleNamespace(checkpoint=opened, recipe=recipe)
    for stored, targets, stands in (
        (held, ["onnx"], True),
        (held, ["onnx", "gguf"], False),
        (replace(held, tools=held.tools | {"torch": "0"}), ["onnx"], False),
        (replace(held, recipe=held.recipe | {"compute": "float16"}), ["onnx"], False),
    ):
        manifests.write(tmp_path, stored)
        assert sweep_worker._stands(made, tmp_path, targets) == stands


def test_speeds_are_of_recordings_of_all_lengths_behind_one_that_warms_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, asked = [], list[str]()
    for size in (5, 1, 9, 7, 3, 2, 8, 4, 6, 10, 11):
        (tmp_path / f"{size}.wav").write_bytes(b"x" * size)
        clips.append(Clip(f"{size}.wav", tmp_path / f"{size}.wav"))

    def ask(_: Path, requests: list[Request], **__: object) -> Report:
        asked.extend(Path(str(one.audio)).stem for one in requests)
        taken = {"audio": 4.0, "encode": 1.0, "prefill": 0.5, "decode": 1.0, "tokens": 10}
        answers = tuple(Answer("transcribe", 9.0, text="", timings=taken) for _ in requests)
        return Report("fake", "same graph", {}, (), 1.0, 7, answers)

    monkeypatch.setattr(speed, "ask", ask)
    assert speed.measure(tmp_path, "onnxruntime", clips).audio == 24.0
    assert asked == ["1", "1", "3", "5", "7", "9", "11"]


@pytest.mark.parametrize(("proof", "code"), [(proved(CELL, kl=1.0), 0), (proved(CELL, kl=1e-9), 0), (Proof("died"), 1)])
def test_the_exit_code_tells_of_cells_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proof: Proof, code: int
) -> None:
    swept = sweep.Swept((Found(CELL, proof),), {}, tmp_path / "report.html", 0)
    monkeypatch.setattr(sweep, "sweep", lambda *_, **__: swept)
    monkeypatch.setattr("ossicle.cli.sweep.facts", dict)
    done = CliRunner().invoke(cli.app, ["sweep", "nowhere", "--quant", "int4", "--out", str(tmp_path / "out")])
    assert done.exit_code == code, done.output
