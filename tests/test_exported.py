"""The benchmark's contestants made by transformers' exporters: the same logits as the model, and a reason where one fails."""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ossicle.benchmarks import end_to_end
from ossicle.benchmarks.exported import OnnxExport
from ossicle.tests.checkpoints import model, save_hub

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers.py"


def test_an_export_continues_a_prompt_as_the_model_does(tmp_path: Path) -> None:
    """Encoder, projector, a prompt of embeddings, and steps on the cache that was handed over; then another prompt."""
    torch = pytest.importorskip("torch")
    made = model()
    checkpoint = save_hub(tmp_path / "checkpoint", made)
    command = [sys.executable, str(PEERS), "export-onnx", str(checkpoint), str(tmp_path / "onnx")]
    subprocess.run(command, check=True, capture_output=True)
    export = OnnxExport(tmp_path / "onnx")
    mel = np.random.default_rng(0).standard_normal((1, 16, 80), np.float32)
    for ids in ([3, 5, 7], [11]):
        heard = export.hear(mel)
        with torch.inference_mode():
            expected = made.get_audio_features(torch.from_numpy(mel)).pooler_output
            rows = torch.cat([expected, made.get_input_embeddings()(torch.tensor(ids))])
            whole = made(
                inputs_embeds=torch.cat([rows, made.get_input_embeddings()(torch.tensor([2, 9]))])[None]
            ).logits[0]
        np.testing.assert_allclose(heard, expected.numpy(), atol=1e-4)
        logits = [export.read(rows.numpy()), export.step(2), export.step(9)]
        np.testing.assert_allclose(np.stack(logits), whole[-3:].numpy(), atol=1e-3)


def test_a_missing_export_is_named(tmp_path: Path) -> None:
    (tmp_path / "lm_head.onnx").touch()
    with pytest.raises(
        FileNotFoundError, match=r"lacks audio_encoder, decode, language_model, multi_modal_projector: run"
    ):
        OnnxExport(tmp_path)


def test_a_contestant_that_fails_has_a_line_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    stock = {"engine": "llama.cpp", "open": 1.0, "peak": 2**30}
    one = {"encode": 4.0, "prefill": 1.0, "decode": 2.0, "prompt_tokens": 200, "new_tokens": 100}
    found = {"llama.cpp": end_to_end.figures([stock | {"passes": [one]}])}
    entry = end_to_end.Entry("an export", ["export onnx", "nowhere", "--bundle", "."], may_fail=True)
    told, failed = end_to_end._take_turns([entry], argparse.Namespace(rounds=1, passes=1, tokens=1))
    end_to_end.report(found, {"llama.cpp": stock | {"passes": [one]}}, failed)
    assert not told
    assert "| an export | FileNotFoundError: nowhere lacks audio_encoder, decode" in capsys.readouterr().out
