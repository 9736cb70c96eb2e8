"""GGUF's blocks made on speech, the whole way on a small model: each matrix in its own format, stored as they were made."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from ossicle.compiler import quantize_on_speech, stored
from ossicle.compiler.checkpoint import Checkpoint, open_checkpoint
from ossicle.compiler.pipeline import build
from ossicle.compiler.provenance import check_source
from ossicle.compiler.quantize import weights_of
from ossicle.compiler.quantize_on_speech import quantize
from ossicle.kernels import kquants
from ossicle.targets import gguf_names
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import RecipeError, VerificationError, WeightFormat
from ossicle.targets.recipes import RECIPES
from ossicle.tests import checkpoints
from ossicle.tests.compiler.test_quantizers import AUDIO, spoken  # noqa: F401 - a fixture

Q3 = RECIPES["q3_k_m"]
TEXT = {"hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 1, "head_dim": 64}
VALUE = "model.language_model.layers.0.self_attn.v_proj.weight"  # more bits than the mix's own
DOWN = "model.language_model.layers.0.mlp.down_proj.weight"  # no row of 288 is a super-block
BY = "mse,decoder=awq-gptq"
FIRST = "model.audio_tower.layers.0.fc1.weight"
QUERY = "model.language_model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = checkpoints.model(checkpoints.tiny_config(audio=AUDIO, text=TEXT))
    return checkpoints.save_hub(tmp_path_factory.mktemp("blocks") / "small", made)


@pytest.fixture(scope="module")
def file(folder: Path, spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("files") / "made"
    quantize(open_checkpoint(folder), Q3, BY, out, spoken)
    return out


def opened(folder: Path, file: Path | None = None) -> Checkpoint:
    return open_checkpoint(folder, quantized=file)


def test_each_matrix_has_blocks_of_its_own_format(folder: Path, file: Path) -> None:
    made = opened(folder, file)
    assert made.quantized is not None
    kinds = {one: form.name for one, form in made.quantized.formats.items()}
    assert [kinds[one] for one in (QUERY, VALUE, DOWN)] == ["Q3_K", "Q5_K", "Q5_0"]
    assert kinds[FIRST] == "int8-g32"
    assert "lm_head.weight" not in kinds  # left to the build, and ggml's search
    weights = weights_of(made, replace(Q3, quantizer=BY))
    for one in (QUERY, VALUE, DOWN, FIRST, "lm_head.weight"):
        count = made.tensors[one].shape[0]
        exact = weights.source(one).rows(0, count)
        rounded = stored.Rounded(one, weights).rows(0, count)
        assert np.linalg.norm(rounded - exact) < 0.25 * np.linalg.norm(exact)
        assert np.array_equal(stored.Rounded(one, weights).rows(3, 9), rounded[3:9])


def test_a_build_stores_the_blocks_as_they_were_made(folder: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(folder, out, targets=("gguf",), recipe="q3_k_m", quantized=file, verify=False)
    manifest = manifests.read(out)
    assert manifest.recipe["quantizer"] == BY
    with pytest.raises(VerificationError, match="quantized made is missing"):
        check_source(manifest, opened(folder))
    made = opened(folder, file).quantized
    assert made is not None
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(next((out / "gguf").glob("voxtral*"))).tensors}
    for one in (VALUE, DOWN):
        tensor = held[gguf_names.text_name(one)]
        assert tensor.tensor_type.name == made.formats[one].kind
        assert np.array_equal(tensor.data, made.packed(one, 0, len(tensor.data)))


def test_a_file_of_another_mix_is_refused(folder: Path, file: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is Q3_K there and Q4_K in the recipe.*Build with --quant q3_k_m"):
        build(folder, tmp_path / "out", targets=("gguf",), recipe="q4_k_m", quantized=file, verify=False)


def test_a_tied_head_with_blocks_of_its_own_stands_beside_the_embedding(
    spoken: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    made = checkpoints.model(checkpoints.tiny_config(audio=AUDIO, text=TEXT), tied=True)
    tied = checkpoints.save_memory(tmp_path / "tied", made)
    by = "decoder=gptq,lm_head=awq"
    quantize(opened(tied), Q3, by, tmp_path / "file", spoken)
    assert weights_of(opened(tied), Q3).tied
    assert not weights_of(opened(tied, tmp_path / "file"), replace(Q3, quantizer=by)).tied
    build(tied, tmp_path / "out", targets=("gguf",), recipe="q3_k_m", quantized=tmp_path / "file", verify=False)
    reader = gguf.GGUFReader(next((tmp_path / "out" / "gguf").glob("voxtral*")))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert (kinds["token_embd.weight"], kinds["output.weight"]) == ("Q3_K", "Q6_K")


def test_scales_of_channels_are_chosen_by_the_search_that_stores_the_blocks() -> None:
    """What a choice costs is what is lost by blocks whose search is weighed by the scaled inputs."""
    rng = np.random.default_rng(5)
    values, seen = rng.standard_normal((8, 256), np.float32), rng.standard_normal((512, 256), np.float32)
    inputs = (seen * np.geomspace(0.01, 10, 256, dtype=np.float32)).T @ seen
    inputs = (inputs + inputs.T) / 2 + 50 * np.eye(256, dtype=np.float32)
    columns = np.geomspace(0.5, 2, 256, dtype=np.float32)
    weighed = (np.diagonal(inputs) / columns**2).astype(np.float32)
    blocks = kquants.quantize(values * columns, "Q3_K", weighed)
    lost = kquants.dequantize(blocks, "Q3_K") / columns - values
    found = quantize_on_speech._cost([values], [WeightFormat(3, 256, kind="Q3_K")], inputs, columns)
    assert found == pytest.approx(np.einsum("nk,kl,nl->", lost, inputs, lost), rel=1e-4)
