"""K-quants, bfloat16 and split files of GGUF against llama.cpp's own quantizer, ggml's functions and gguf-py."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ossicle.benchmarks.kquants import ggml
from ossicle.cli import main as cli
from ossicle.compiler import pipeline, stored
from ossicle.compiler.families import family
from ossicle.compiler.pipeline import build
from ossicle.compiler.quantize import Weights
from ossicle.runtimes.llamacpp import RUNTIME
from ossicle.runtimes.options import Options
from ossicle.targets import gguf_blocks, gguf_file, gguf_mixes, gguf_names, registry
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import BuildError, Override, RecipeError, WeightFormat
from ossicle.targets.recipes import RECIPES
from ossicle.tests import checkpoints
from typer.testing import CliRunner

MIXES = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k")
SMALL = checkpoints.tiny_config(
    text={"hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 3, "head_dim": 64},
    audio={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1},
)
# What llama_model_quantize of package cyllama 0.2.18 made of F32 files of random models: by model and file type, the types of
# a tensor's layers from the first to the last.
GOLDEN = json.loads(Path(__file__).with_name("llama_cpp_types.json").read_text())


class Shaped:
    """A tensor of which nothing but the shape is known."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


def types(entry: Mapping[str, Any], recipe: str) -> dict[str, str]:
    """What each kind of matrix is stored as, layer after layer, in the words of the golden table."""
    voxtral = family("voxtral")
    shapes = voxtral.parameters(checkpoints.tiny_config(text=entry["text"]))
    weights = Weights({name: Shaped(s) for name, s in shapes.items()}, RECIPES[recipe], voxtral, entry["tied"])
    found: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if len(shape) != 2 or voxtral.part(name) not in ("embedding", "decoder", "lm_head"):
            continue
        parts = gguf_names.text_name(name).split(".")
        found.setdefault(parts[-2], []).append(gguf_blocks.holding(weights.format(name)).name)
    if entry["tied"]:  # stored once
        assert found.pop("output") == found["token_embd"]
    return {kind: " ".join(f"{len(list(run))}x{name}" for name, run in groupby(one)) for kind, one in found.items()}


@pytest.mark.parametrize("recipe", MIXES)
@pytest.mark.parametrize("model", GOLDEN)
def test_every_matrix_gets_the_type_that_llama_cpp_gives_it(model: str, recipe: str) -> None:
    assert types(GOLDEN[model], recipe) == GOLDEN[model]["types"][recipe]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model, and the folder of its checkpoint."""
    model = checkpoints.model(SMALL)
    return model, checkpoints.save_hub(tmp_path_factory.mktemp("made") / "checkpoint", model)


def compiled(checkpoint: Path, out: Path, recipe: Any, **options: Any) -> list[Path]:
    """The decoder's files of a bundle for llama.cpp."""
    build(checkpoint, out, targets=("gguf",), recipe=recipe, verify=False, **options)
    return sorted(path for path in (out / "gguf").iterdir() if not path.name.startswith("mmproj"))


def originals(model: Any) -> dict[str, np.ndarray]:
    """The decoder's float32 weights by their names in GGUF, q/k rows where llama.cpp has them."""
    weights = {}
    for name, parameter in model.named_parameters():
        if "language_model" not in name and name != "lm_head.weight":
            continue
        weights[gguf_names.text_name(name)] = permuted(gguf_names.text_name(name), parameter.detach().float().numpy())
    return weights


def permuted(name: str, values: np.ndarray) -> np.ndarray:
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return values
    return np.ascontiguousarray(values.reshape(-1, 2, 32, values.shape[1]).swapaxes(1, 2).reshape(values.shape))


@pytest.mark.parametrize("recipe", MIXES)
def test_every_tensor_has_the_bytes_of_ggml(made: tuple[Any, Path], tmp_path: Path, recipe: str) -> None:
    (path,) = compiled(made[1], tmp_path / "out", recipe)
    assert path.name == f"voxtral-{recipe.upper()}.gguf"
    weights = originals(made[0])
    reader = gguf.GGUFReader(path)
    kind = gguf.LlamaFileType[f"MOSTLY_{recipe.upper()}"]
    assert reader.fields["general.file_type"].contents() == kind
    compared = set()
    for tensor in reader.tensors:
        name = tensor.tensor_type.name
        if name != "F32":
            compared.add(name)
            assert np.array_equal(tensor.data, ggml(weights[tensor.name], name, None)), tensor.name
    assert len(compared) >= (2 if recipe == "q6_k" else 3)


def test_bfloat16_is_stored_as_it_came(tmp_path: Path) -> None:
    model = checkpoints.model(SMALL, dtype="bfloat16")
    (path,) = compiled(checkpoints.save_hub(tmp_path / "checkpoint", model), tmp_path / "out", "bf16")
    weights = originals(model)
    for tensor in gguf.GGUFReader(path).tensors:
        narrow = len(tensor.shape) > 1
        assert tensor.tensor_type.name == ("BF16" if narrow else "F32"), tensor.name
        bits = weights[tensor.name].view(np.uint32)
        stored_bits = tensor.data.view(np.uint16) if narrow else tensor.data.view(np.uint32)
        assert np.array_equal(stored_bits.astype(np.uint32) << (16 if narrow else 0), bits), tensor.name


@given(hnp.arrays(np.float32, 64, elements=st.floats(-(2.0**126), 2.0**126, width=32)))
@settings(max_examples=60)
def test_bfloat16_is_rounded_as_torch_rounds(values: np.ndarray) -> None:
    halves = (values.view(np.uint32) & 0xFFFF0000 | 0x8000).view(np.float32)  # half way between two
    for numbers in (values, halves):
        theirs = torch.from_numpy(numbers).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        assert np.array_equal(gguf_blocks.brain_floats(numbers), theirs)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, np.finfo(np.float32).max])
def test_what_bfloat16_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="infinite, not a number or too large for bfloat16"):
        gguf_blocks.pack_floats(np.array([[1.0, value]], np.float32), gguf_blocks.BF16)


@pytest.mark.parametrize("recipe", ["q4_k_m", "bf16"])
def test_an_infinite_weight_is_refused_by_name(tmp_path: Path, recipe: str) -> None:
    model = checkpoints.model(SMALL)
    with torch.no_grad():
        model.get_parameter("model.language_model.layers.1.mlp.up_proj.weight")[3, 5] = torch.inf
    checkpoint = checkpoints.save_hub(tmp_path / "checkpoint", model)
    with pytest.raises(
        BuildError, match=r"layers\.1\.mlp\.up_proj\.weight' cannot be stored as .*: rows 0 to 288: a weight"
    ):
        compiled(checkpoint, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


def test_rows_that_no_block_fits_get_what_llama_cpp_falls_back_to() -> None:
    wide = {gguf_mixes.Q2_K: "Q4_0", gguf_mixes.Q3_K: "Q4_0", gguf_mixes.Q4_K: "Q5_0"}
    wide |= {gguf_mixes.Q5_K: "Q5_1", gguf_mixes.Q6_K: "Q8_0"}
    for form, narrow in wide.items():
        assert [gguf_mixes.fitting(form, columns).name for columns in (512, 96, 48)] == [form.name, narrow, "float16"]
    for form in (WeightFormat(4, 32), WeightFormat(16), gguf_mixes.BFLOAT16):
        assert gguf_mixes.fitting(form, 7) == form


def test_single_layers_can_be_overridden() -> None:
    listed = Override("decoder", "*.up_proj.weight", gguf_mixes.Q6_K, "0,2")
    recipe = replace(RECIPES["q4_k_s"], overrides=(listed, *RECIPES["q4_k_s"].overrides))
    voxtral = family("voxtral")
    shapes = voxtral.parameters(SMALL)
    weights = Weights({name: Shaped(shape) for name, shape in shapes.items()}, recipe, voxtral)
    names = [f"model.language_model.layers.{layer}.mlp.up_proj.weight" for layer in range(3)]
    assert [weights.format(name).name for name in names] == ["Q6_K", "Q4_K", "Q6_K"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_manifest_tells_the_whole_recipe(name: str) -> None:
    recipe = RECIPES[name]
    assert stored.recipe_of(json.loads(json.dumps(asdict(recipe)))) == recipe


def test_a_manifest_without_overrides_is_understood() -> None:
    document = json.loads(json.dumps(asdict(RECIPES["int4"])))
    del document["overrides"]
    for part in ("encoder", "embedding", "decoder", "lm_head"):
        del document[part]["kind"]
    assert stored.recipe_of(document) == RECIPES["int4"]


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("recipe", "said"), [("q4_k_m", "Q4_K for decoder, Q6_K for lm_head, Q6_K for '"), ("bf16", "bfloat16 for")]
)
def test_other_formats_refuse_what_they_cannot_hold(target: str, recipe: str, said: str) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    with pytest.raises(RecipeError, match=rf"target '{target}' cannot hold .*{said}.*\(it can: float32, float16, int8"):
        registry.target(target).check(RECIPES[recipe])
    registry.target(target).check(RECIPES[recipe], ("audio_encoder",))


def test_a_split_decoder_is_found_from_its_first_file(made: tuple[Any, Path], tmp_path: Path) -> None:
    (whole,) = compiled(made[1], tmp_path / "whole", "q4_k_m")
    parts = compiled(made[1], tmp_path / "split", "q4_k_m", split_bytes=250_000)
    assert [path.name for path in parts] == [
        f"voxtral-Q4_K_M-{number:05}-of-{len(parts):05}.gguf" for number in range(1, len(parts) + 1)
    ]
    assert len(parts) > 2
    one, several = gguf.GGUFReader(whole), [gguf.GGUFReader(path) for path in parts]
    held = [(tensor.name, tensor.data.tobytes()) for reader in several for tensor in reader.tensors]
    assert held == [(tensor.name, tensor.data.tobytes()) for tensor in one.tensors]
    for number, reader in enumerate(several):
        fields = {key: reader.fields[key] for key in ("split.no", "split.count", "split.tensors.count")}
        assert [field.contents() for field in fields.values()] == [number, len(parts), len(held)]
        assert [field.types[0].name for field in fields.values()] == ["UINT16", "UINT16", "INT32"]
        assert sum(tensor.n_bytes for tensor in reader.tensors) <= 250_000 or len(reader.tensors) == 1
    assert one.fields.keys() - several[0].fields.keys() == set()
    assert np.array_equal(*(score(tmp_path / name) for name in ("whole", "split")))


def score(folder: Path) -> np.ndarray:
    """Logits that llama.cpp gives, and embeddings that the runtime looks up, in one array."""
    if reason := RUNTIME.usable():
        pytest.skip(reason)
    engine = RUNTIME.open(folder, manifests.read(folder), Options(threads=1))
    try:
        embeddings = engine.embed(np.arange(12))
        return np.concatenate([embeddings.ravel(), engine.score(embeddings).ravel()])
    finally:
        engine.close()


def test_a_size_to_split_at_without_gguf_is_refused(made: tuple[Any, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--split-size is for target gguf, and the targets are onnx"):
        build(made[1], tmp_path / "out", recipe="int4", split_bytes=1000, verify=False)


@pytest.mark.parametrize(("text", "size"), [("2GB", 2 * 10**9), ("1.5 gb", 15 * 10**8), ("500MB", 5 * 10**8)])
def test_a_size_to_split_at_is_read(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(pipeline, "build", lambda *_, **options: asked.update(options) or 1 / 0)
    CliRunner().invoke(cli.app, ["build", "checkpoint", "--out", "out", "--split-size", text])
    assert asked["split_bytes"] == size


@pytest.mark.parametrize("text", ["2", "GB", "-1GB", "0MB", "2TB"])
def test_what_is_no_size_to_split_at_is_refused(text: str) -> None:
    found = CliRunner().invoke(cli.app, ["build", "checkpoint", "--out", "out", "--split-size", text])
    assert found.exit_code == 1
    assert f"'{text}' is no size of a file (it can be, for example: 2GB, 1.5GiB, 500MB)" in found.stderr


def test_a_row_that_is_no_whole_block_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    for kind in (gguf_blocks.Q4_K, gguf_blocks.Q6_K):
        path.write_bytes(gguf_file.header({}, [gguf_file.TensorInfo("w", (1, 96), kind, 0)]) + bytes(4096))
        with pytest.raises(gguf_file.BundleError, match=f"'w' has rows of 96, no multiple of {kind.name}'s block 256"):
            gguf_file.read(path)
