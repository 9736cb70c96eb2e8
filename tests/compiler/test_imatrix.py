"""llama.cpp's importance matrix: read, mapped to a checkpoint's tensors, used, and refused where it does not fit."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ossicle.benchmarks.kquants import ggml
from ossicle.compiler import imatrix
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.families import family
from ossicle.compiler.pipeline import build
from ossicle.compiler.provenance import check_source
from ossicle.compiler.quantize import Weights
from ossicle.compiler.stored import Rounded
from ossicle.targets import gguf_names
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import BuildError, RecipeError, VerificationError
from ossicle.targets.recipes import RECIPES
from ossicle.tests import checkpoints

CONFIG = checkpoints.tiny_config(
    text={"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64},
    audio={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1},
)
COUNT = 7.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_hub(tmp_path_factory.mktemp("imatrix") / "checkpoint", checkpoints.model(CONFIG))


def sums() -> dict[str, np.ndarray]:
    """Sums of squares of every column's inputs, by the name of the tensor in GGUF."""
    random = np.random.default_rng(1)
    shapes = family("voxtral").parameters(CONFIG)
    matrices = [name for name, shape in shapes.items() if "language_model" in name and len(shape) == 2]
    return {
        gguf_names.text_name(name): random.exponential(size=shapes[name][1]).astype(np.float32)
        for name in matrices
        if "embed" not in name
    }


def write(path: Path, held: dict[str, np.ndarray], *, kind: str = "imatrix", count: float = COUNT) -> Path:
    """A file as llama-imatrix writes it."""
    writer = gguf.GGUFWriter(path, "", use_temp_file=False)
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    for name, values in held.items():
        writer.add_tensor(f"{name}.in_sum2", values[None])
        writer.add_tensor(f"{name}.counts", np.array([[count]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_matrix_is_weighed_by_its_columns(checkpoint: Path, tmp_path: Path) -> None:
    held = sums()
    given = write(tmp_path / "a.gguf", held)
    out = tmp_path / "out"
    build(checkpoint, out, targets=("gguf",), recipe="q4_k_m", imatrix=given, verify=False)
    opened = open_checkpoint(checkpoint, imatrix=given)
    weights = Weights(opened.tensors, RECIPES["q4_k_m"], family("voxtral"), importances=opened.importances)
    changed = 0
    for tensor in gguf.GGUFReader(next((out / "gguf").glob("voxtral*"))).tensors:
        if tensor.tensor_type.name == "F32":
            continue
        source = next(opened.tensors[n] for n in opened.tensors if named(n) == tensor.name)
        values = source.rows(0, source.shape[0])
        importance = held[tensor.name] / np.float32(COUNT) if tensor.name in held else None
        theirs = ggml(values, tensor.tensor_type.name, importance)
        read = gguf.quants.dequantize(theirs, tensor.tensor_type)
        assert np.array_equal(Rounded(source.name, weights).rows(0, source.shape[0]), read), tensor.name
        assert np.array_equal(in_file(tensor.name, theirs), tensor.data), tensor.name
        changed += importance is not None and not np.array_equal(theirs, ggml(values, tensor.tensor_type.name, None))
    assert changed == len(held) == 7
    manifest = manifests.read(out)
    assert manifest.imatrix == manifests.file_entry(tmp_path, given)
    with pytest.raises(VerificationError, match=r"imatrix a\.gguf is missing.*--imatrix FILE"):
        check_source(manifest, open_checkpoint(checkpoint))
    other = write(tmp_path / "b.gguf", held, count=3)
    with pytest.raises(VerificationError, match=r"imatrix a\.gguf has another sha256"):
        check_source(manifest, open_checkpoint(checkpoint, imatrix=other))
    check_source(manifest, opened)


def named(canonical: str) -> str | None:
    text = "language_model" in canonical or canonical == "lm_head.weight"
    return gguf_names.text_name(canonical) if text else None


def in_file(name: str, rows: np.ndarray) -> np.ndarray:
    """Rows of q and k as llama.cpp has them."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return rows
    return rows.reshape(-1, 2, 32, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def test_what_was_never_counted_weighs_nothing(checkpoint: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint, imatrix=write(tmp_path / "a.gguf", sums(), count=0))
    assert all((means == 1).all() for means in opened.importances.values())


def lacking(held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values for name, values in held.items() if "attn" not in name or "attn_v" in name}


def narrow(held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return held | {"blk.0.ffn_up.weight": np.ones(255, np.float32)}


@pytest.mark.parametrize(
    ("changed", "options", "said"),
    [
        (lacking, {}, r"no 'blk\.0\.attn_k\.weight\.in_sum2'; .*'blk\.0\.attn_output.*'blk\.0\.attn_q"),
        (narrow, {}, r"'blk\.0\.ffn_up\.weight' has 255 columns instead of 256"),
        (dict, {"kind": "model"}, r"no imatrix in llama\.cpp's GGUF form: its general\.type is 'model'.*llama-imatrix"),
    ],
)
def test_what_does_not_fit_is_refused(checkpoint: Path, tmp_path: Path, changed: Any, options: Any, said: str) -> None:
    given = write(tmp_path / "a.gguf", changed(sums()), **options)
    with pytest.raises(BuildError, match=said):
        open_checkpoint(checkpoint, imatrix=given)


def test_a_file_that_is_no_gguf_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    whole = write(tmp_path / "a.gguf", sums()).read_bytes()
    for name, data in {"old.dat": bytes(64), "cut.gguf": whole[:-60], "head.gguf": whole[:100]}.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(BuildError, match=rf"{name}' is no imatrix in llama\.cpp's GGUF form"):
            open_checkpoint(checkpoint, imatrix=path)
    with pytest.raises(BuildError, match="No such file"):
        open_checkpoint(checkpoint, imatrix=tmp_path / "none.gguf")


def test_a_sum_without_a_count_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", sums())
    path.write_bytes(path.read_bytes().replace(b"blk.0.attn_q.weight.counts", b"blk.0.attn_q.weight.countz"))
    with pytest.raises(BuildError, match=r"'blk\.0\.attn_q\.weight\.in_sum2' has no counts"):
        imatrix.read(path, lambda: "", {}, family("voxtral"))


def test_a_recipe_without_blocks_has_no_use_for_it(checkpoint: Path, tmp_path: Path) -> None:
    given = write(tmp_path / "a.gguf", sums())
    with pytest.raises(
        RecipeError, match=r"'int4' has no use for an imatrix \(these have: q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s"
    ):
        build(checkpoint, tmp_path / "out", recipe="int4", imatrix=given, verify=False)
