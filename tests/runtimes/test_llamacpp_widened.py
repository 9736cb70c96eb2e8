"""llama.cpp with all weights widened to float32: what a file of any type stores, multiplied with nothing rounded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest
import torch
from ossicle.compiler.pipeline import build
from ossicle.runtimes import choose, llamacpp, openvino
from ossicle.runtimes.device import doctor
from ossicle.runtimes.llamacpp_widened import widened_bytes
from ossicle.runtimes.needs import need
from ossicle.runtimes.opening import load
from ossicle.runtimes.options import Options
from ossicle.targets import gguf_file, manifest
from ossicle.targets.contract import EngineError
from ossicle.tests import checkpoints
from ossicle.tests.runtimes.tiny_gguf import CONFIG, HIDDEN, logits, prompt, write_bundle

HEADS = {"attn_q": 4, "attn_k": 2}  # rows of these are permuted


@pytest.fixture(scope="module", params=["fp16", "q4_k_m"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A bundle, and torch with the numbers that its file stores."""
    model = checkpoints.model(CONFIG)
    bundle = write_bundle(tmp_path_factory.mktemp("widened"), model, recipe=request.param)
    return bundle, as_stored(bundle, model)


def opened(bundle: Path, **options: Any) -> Any:
    return llamacpp.RUNTIME.open(bundle, manifest.read(bundle), Options(threads=1, **options))


def scored(bundle: Path, **options: Any) -> Any:
    engine = opened(bundle, **options)
    found = engine.score(prompt(40))
    engine.close()
    return found


def as_stored(bundle: Path, model: Any) -> Any:
    """Torch with the numbers that gguf-py reads from a file."""
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj"}  # fmt: skip
    parameters = dict(model.named_parameters())
    for tensor in gguf.GGUFReader(next((bundle / "gguf").glob("voxtral-*.gguf"))).tensors:
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        block, _, part = tensor.name.removesuffix(".weight").rpartition(".")
        if part in names:
            if part in HEADS:
                values = values.reshape(HEADS[part], -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            layer = block.replace("blk", "model.language_model.layers")
            parameters[f"{layer}.{names[part]}.weight"].data = torch.from_numpy(values)
        elif part == "output":
            parameters["lm_head.weight"].data = torch.from_numpy(values)
    return model


def test_what_is_stored_is_multiplied_with_nothing_rounded(built: tuple[Path, Any]) -> None:
    bundle, model = built
    expected = logits(model, prompt(40))
    exact = np.abs(scored(bundle, compute="float32") - expected).max()
    rounded = np.abs(scored(bundle) - expected).max()
    assert exact <= 1e-4 < rounded


def test_only_llama_cpp_is_chosen_and_only_where_its_wide_numbers_fit(
    built: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, held = built[0], manifest.read(built[0])
    files = gguf.GGUFReader(next((bundle / "gguf").glob("voxtral-*.gguf")))
    wide = widened_bytes(bundle, held, "float32")
    assert widened_bytes(bundle, held, "") == 0
    assert wide == 4 * sum(int(one.n_elements) for one in files.tensors)
    with load(bundle, compute="float32", measure=False) as session:
        assert session.engine.endswith("llamacpp-cpu")
    encoder = need(held, "onnx", "encoder", "cpu", 0).total
    free = encoder + need(held, "gguf", "decoder", "cpu", 4096, widened=wide).total - 1
    monkeypatch.setattr(choose, "doctor", lambda: replace(doctor(), memory_available=free))
    load(bundle, measure=False).close()
    with pytest.raises(EngineError, match=r"llamacpp: its stages take .* together"):
        load(bundle, compute="float32", measure=False)


def test_a_file_in_pieces_whose_head_is_the_embedding(tmp_path: Path) -> None:
    tied = checkpoints.model(CONFIG, tied=True)
    checkpoint = checkpoints.save_memory(tmp_path / "tied", tied)
    asked: dict[str, Any] = {"targets": ("gguf",), "recipe": "fp32", "verify": False, "split_bytes": 100_000}
    bundle = build(checkpoint, tmp_path / "bundle", **asked).folder
    files = sorted((bundle / "gguf").glob("voxtral-*-of-*.gguf"))
    assert len(files) > 2
    assert not any("output.weight" in gguf_file.read(file).tensors for file in files)
    heads = 2 * tied.get_input_embeddings().weight.numel()  # the embedding, and the head that llama.cpp holds apart
    numbers = sum(one.numel() for one in tied.model.language_model.layers.parameters()) + HIDDEN + heads
    assert widened_bytes(bundle, manifest.read(bundle), "float32") == 4 * numbers
    np.testing.assert_allclose(scored(bundle, compute="float32"), logits(tied, prompt(40)), atol=1e-4, rtol=0)


def test_a_tensor_that_is_missing_is_named_and_no_child_is_left(built: tuple[Path, Any], tmp_path: Path) -> None:
    whole = next((built[0] / "gguf").glob("voxtral-*.gguf"))
    (tmp_path / "gguf").mkdir()
    changed = whole.read_bytes().replace(b"blk.1.ffn_down", b"blk.1.ffn_dowm")
    (tmp_path / "gguf" / whole.name).write_bytes(changed)
    before = set(psutil.Process().children())
    with pytest.raises(EngineError, match=r"asks for tensor 'blk\.1\.ffn_down\.weight', which the file has not"):
        llamacpp.RUNTIME.open(tmp_path, manifest.read(built[0]), Options(compute="float32"))
    assert set(psutil.Process().children()) <= before


def test_what_nobody_computes_in_is_refused(built: tuple[Path, Any]) -> None:
    with pytest.raises(EngineError, match=r"no compute 'float64' \(it has: float32\)"):
        opened(built[0], compute="float64")
    with pytest.raises(
        EngineError, match=r"'openvino' has no compute 'float32' \(it has: what the bundle says alone\)"
    ):
        openvino.RUNTIME.open(built[0], manifest.read(built[0]), Options(compute="float32"))
