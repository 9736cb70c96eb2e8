"""Adapters that a bundle keeps are compared with the original that they are merged into, and their faults told."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ossicle.cli import main as cli
from ossicle.compiler import report, report_html, verify_adapters
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.figures import AdapterVerification, Verification, judge, judge_adapter
from ossicle.compiler.lora import AdapterSpec
from ossicle.compiler.marking import mark, section
from ossicle.compiler.readings import Reading, Reply
from ossicle.compiler.reference import Original
from ossicle.compiler.runtime_adapters import Kept, RuntimeAdapterSpec, open_all
from ossicle.compiler.speech import Clip, Speech
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import Thresholds, VerificationError
from ossicle.targets.manifest import RuntimeAdapter
from ossicle.targets.probe import Answer, Report, Request
from ossicle.targets.recipes import RECIPES
from ossicle.tests.compiler.test_verify import comparison
from ossicle.tests.fakes import write_bundle
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

DEMO = Path(__file__).parents[2] / "demo"
PARTS = {"heads": "self_attn", "mlp": "mlp"}
TOKENS = (40, 120, 75, 2)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped adapter's decoder in two, each an adapter of its own."""
    folder = tmp_path_factory.mktemp("adapters")
    stored = load_file(DEMO / "adapter" / "adapter_model.safetensors")
    config = json.loads((DEMO / "adapter" / "adapter_config.json").read_text())
    for name, part in PARTS.items():
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text(json.dumps(config))
        kept = {key: value for key, value in stored.items() if f"{part}." in key and "language_model" in key}
        save_file(kept, folder / name / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def reading() -> Reading:
    clip = Clip("a.wav", DEMO / "speech" / "06-command-espeak.wav")
    heard = Original(open_checkpoint(DEMO / "model")).utterance(clip)
    return Reading(clip, heard.logmel, heard.logmel[:0], (Reply(None, None, "", TOKENS, None),))


@pytest.fixture(scope="module")
def kept(adapters: Path) -> tuple[Kept, ...]:
    specs = [RuntimeAdapterSpec(adapters / name) for name in PARTS]
    return open_all(specs, open_checkpoint(DEMO / "model"), ("onnx",))


@pytest.fixture(autouse=True)
def _one_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audio is the same with every adapter, and encoding it takes most of the time."""
    sound = torch.randn((1, 375, 256), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Original, "_encode", lambda *_: sound)


class Engine:
    """What answers as a bundle would: torch with the adapter merged; with `strength` 0 it forgets to add it."""

    def __init__(self, adapters: Path, reading: Reading, strength: float = 1.0) -> None:
        self._adapters, self._reading, self._strength = adapters, reading, strength

    def ask(self, _: Path, questions: Sequence[Request], *, engine: str) -> Report:
        ((name, scale),) = questions[0].adapters.items()
        assert (scale, engine, len(questions)) == (1.0, "onnxruntime", 1)
        assert questions[0].tokens == TOKENS
        merged = open_checkpoint(DEMO / "model", adapters=[AdapterSpec(self._adapters / name, self._strength)])
        logits = Original(merged).score(self._reading)
        return Report("onnxruntime-cpu", "executed", {}, (), 0.0, 0, (Answer("score", 0.0, array=logits),))


def compared(folder: Path, kept: tuple[Kept, ...], reading: Reading, engine: Engine) -> tuple[AdapterVerification, ...]:
    manifest = write_bundle(folder)
    held = tuple(RuntimeAdapter(one.name, "onnx", manifest.files[0], one.source) for one in kept)
    manifest = replace(manifest, runtime_adapters=held)
    checkpoint, runners = open_checkpoint(DEMO / "model"), {"onnx": "onnxruntime"}
    return verify_adapters.verify(folder, manifest, checkpoint, RECIPES["fp32"], kept, [reading], runners, engine.ask)


def test_what_is_added_as_it_runs_is_held_to_what_is_merged(
    tmp_path: Path, adapters: Path, kept: tuple[Kept, ...], reading: Reading
) -> None:
    """Each adapter with nothing left of the one before."""
    found = compared(tmp_path, kept, reading, Engine(adapters, reading))
    assert [(one.adapter, one.target, one.positions, one.passed) for one in found] == [
        (name, "onnx", len(TOKENS), True) for name in PARTS
    ]
    assert max(one.logits for one in found) < 1e-4


def test_an_engine_that_adds_too_little_is_found(
    tmp_path: Path, adapters: Path, kept: tuple[Kept, ...], reading: Reading
) -> None:
    (found,) = compared(tmp_path, kept[:1], reading, Engine(adapters, reading, 0.9))
    assert [check.figure for check in found.checks if not check.passed] == ["logits", "kl"]


def test_adapters_of_another_bundle_are_refused(tmp_path: Path, kept: tuple[Kept, ...]) -> None:
    manifest = replace(write_bundle(tmp_path), runtime_adapters=())
    with pytest.raises(
        VerificationError, match=r"not built with adapters heads, mlp as they are given \(it keeps: none\)"
    ):
        verify_adapters.check_source(manifest, kept)


def verification(*adapters: AdapterVerification) -> Verification:
    target = judge("onnx", "onnxruntime-cpu", "executed", (comparison(),), THRESHOLDS)
    return Verification("demo", "int4", "speech.jsonl", "0" * 64, THRESHOLDS, (target,), adapters)


THRESHOLDS = Thresholds(embeddings=1e-4, logits=1e-4, kl_stored=8e-4, same_text=True)


def adapter(name: str, kl_clip: float) -> AdapterVerification:
    figures: Any = {"logits": 0.5, "kl": kl_clip / 2, "kl_clip": kl_clip, "top1": 0.99}
    return judge_adapter(name, "onnx", "onnxruntime-cpu", THRESHOLDS, rounds=True, positions=9, **figures)


def test_a_failed_adapter_fails_its_target_until_it_is_compared_again(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    for adapters, failed in (
        ((adapter("legal", 1e-5), adapter("polite", 3e-3)), ["kl_clip with adapter 'polite'"]),
        ((), ["kl_clip with adapter 'polite'"]),
        ((adapter("polite", 1e-6),), []),
    ):
        mark(tmp_path, verification(*adapters))
        entry = manifests.read(tmp_path).verification["onnx"]
        assert (entry["passed"], entry["failed"]) == (not failed, failed)
        assert sorted(entry["adapters"]) == ["legal", "polite"]
        told = CliRunner().invoke(cli.app, ["inspect", str(tmp_path)])
        assert told.exit_code == 0, told.output
        assert ("mean (nats) with adapter 'polite'" in told.output) == bool(failed)


def test_a_share_that_is_not_whole_is_not_told_as_whole() -> None:
    found = verification(replace(adapter("legal", 1.234e-5), top1=0.99642))
    entry = section(found)["onnx"]["adapters"]["legal"]["figures"]
    assert (entry["top1"], entry["kl_clip"]) == (0.9964, 1.2e-5)


def test_the_report_tells_of_each(tmp_path: Path) -> None:
    found = verification(adapter("legal", 1e-5), adapter("polite", 3e-3))
    page = report.markdown(found)
    assert "## Adapters: FAILED" in page
    assert "| polite | onnx (onnxruntime-cpu) | 0.5 | 0.0015 | 0.003 | 99.00 % | kl_clip ≤ 0.0008: FAILED |" in page
    assert report.faults(found) == [
        "onnx with adapter 'polite': KL divergence, worst clip's mean (nats) 0.003 is above 0.0008"
    ]
    assert not found.passed
    html = report_html.write_verification(tmp_path, found, Speech("", (), "")).read_text(encoding="utf-8")
    assert "<td>polite</td><td>onnx (onnxruntime-cpu)</td>" in html
    assert "kl_clip ≤ 0.0008: FAILED" in html
    assert report.document(found)["adapters"][0]["adapter"] == "legal"
