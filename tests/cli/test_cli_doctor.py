"""What `ossicle doctor`, `ossicle targets` and `ossicle inspect` say: each state in its words, each number in its place."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ossicle
import pytest
from ossicle.cli import doctor, show
from ossicle.runtimes.device import RuntimeFacts
from ossicle.runtimes.refusal import Refusal
from ossicle.targets import manifest as manifests

GOLDEN = Path(__file__).parents[1] / "golden" / "bundle-v1"
ABSENT = Refusal("there is no NVIDIA GPU here", "device")


def facts(reason: str | None, inexact: str | None, proof: Any, absent: str | None) -> dict[str, Any]:
    return doctor._runtime(RuntimeFacts("fake", "onnx", "1", reason, inexact, proof, absent, {}))


@pytest.mark.parametrize(
    ("held", "usable", "missing", "said"),
    [
        ((None, None, "executed", None), True, None, "works here"),
        ((None, "it rounds", "executed", None), True, None, "works here, inexact: it rounds"),
        (
            (None, None, "same graph", ABSENT),
            True,
            "device",
            "same graph only, proves bundles and runs them by name: there is no NVIDIA GPU here",
        ),
        (
            (Refusal("not here. Try", "package", "pip"), None, "executed", None),
            False,
            "package",
            "not here. Try: pip",
        ),
        (("it broke", None, "executed", None), False, "engine", "it broke"),
    ],
)
def test_an_engine_is_told_of_by_what_it_can_do_here(held: Any, usable: bool, missing: str | None, said: str) -> None:
    found = facts(*held)
    assert (found["usable"], found["missing"]) == (usable, missing)
    assert doctor._state(found) == said


def test_stages_are_told_with_those_that_can_first_and_a_line_for_each_reason() -> None:
    def row(stage: str, engine: str, reason: str | None) -> dict[str, Any]:
        return {
            "stage": stage, "engine": engine, "provider": "cpu", "usable": reason is None, "reason": reason, "rank": "first",
        }  # fmt: skip

    stages = [row("encoder", "b", "no GPU"), row("encoder", "a", None), row("decoder", "b", "no GPU")]
    assert doctor._stage_rows(stages) == [
        ("encoder", "a:cpu", "can run it: first"),
        ("encoder, decoder", "b:cpu", "no GPU"),
    ]


def test_a_bundles_stages_need_the_memory_of_their_artifacts() -> None:
    manifest = manifests.read(GOLDEN)
    (encoder,) = (one.memory for one in manifest.artifacts if one.stage == "audio_encoder")
    found = doctor._bundle(ossicle.doctor(), manifest)
    (need,) = {one["memory"] for one in found["stages"] if (one["stage"], one["engine"]) == ("encoder", "onnxruntime")}
    assert need == encoder.weights + encoder.working


def test_a_share_of_the_cores_time_is_told() -> None:
    cores = {"cores": 8, "physical_cores": 4, "quota": None}
    assert doctor._cores(cores) == "8 usable, on 4 physical"
    assert doctor._cores(cores | {"quota": 7.5}).endswith("(limited to the time of 7.5)")


def test_a_target_without_its_package_is_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "find_spec", lambda name: None if name == "openvino" else name)
    show.targets()
    told = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "pip install 'ossicle[openvino,build]'" in told["openvino"]
    assert "installed" in told["onnx"]


def test_sizes_are_of_all_files_and_parameters_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifests.read(GOLDEN)
    show.bundle(manifest)
    told = capsys.readouterr().out
    for artifact in manifest.artifacts:
        assert f"{sum(file.size for file in artifact.files) / 1e3:.1f} kB" in told
    tensors = {"a": SimpleNamespace(shape=(3, 4), dtype="float32"), "b": SimpleNamespace(shape=(5,), dtype="bfloat16")}
    source = SimpleNamespace(name="tiny", files=())
    found = show.checkpoint_document(SimpleNamespace(source=source, config={}, tensors=tensors))
    assert (found["parameters"], found["tensors"], found["precision"]) == (17, 2, ["bfloat16", "float32"])
