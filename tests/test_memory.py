"""What a build holds in memory is a few row blocks, however large the model."""

import ctypes
import json
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ossicle.benchmarks.process import measure
from ossicle.compiler.families import family
from ossicle.compiler.pipeline import Silent
from ossicle.compiler.quantize import Weights
from ossicle.compiler.safetensors import read_header
from ossicle.targets import memory, onnx_weights, streaming
from ossicle.targets.recipes import recipe

ROOT = Path(__file__).parents[1]
MOST = 12 * 4 * streaming.BLOCK  # two workers, each with a block as read, as float32, and on its way to the disk
COLUMNS = 4096


def layers(count: int) -> list[str]:
    return [f"model.language_model.layers.{index}.mlp.down_proj.weight" for index in range(count)]


def hollow_checkpoint(path: Path, names: Sequence[str], shape: tuple[int, int]) -> Path:
    """A safetensors file of zeros in bfloat16 that takes no room on the disk."""
    size = 2 * shape[0] * shape[1]
    header = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": (index * size, (index + 1) * size)}
        for index, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + size * len(names))
    return path


def linear_graph(names: Sequence[str], shape: tuple[int, int]) -> Any:
    """One x @ W.T for each name, W still without numbers."""
    import onnx_ir as ir

    single = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=single, shape=ir.Shape((1, shape[1])))
    weights = [ir.Value(name=name, type=single, shape=ir.Shape(shape)) for name in names]
    nodes, products = [], []
    for weight in weights:
        transpose = ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{weight.name}_transpose")
        product = ir.node("MatMul", [x, transpose.outputs[0]], name=f"{weight.name}_product")
        product.outputs[0].name = f"{weight.name}_out"
        nodes += [transpose, product]
        products += product.outputs
    graph = ir.Graph([x], products, nodes=nodes, initializers=weights, opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


def peak_of_filling(folder: Path, quant: str, count: int, rows: int) -> int:
    """The most memory in bytes, beyond what was there before, while the data of `count` matrices is written."""
    folder.mkdir()
    names, shape = layers(count), (rows, COLUMNS)
    tensors = read_header(hollow_checkpoint(folder / "model.safetensors", names, shape))
    chosen = recipe(quant)
    weights = Weights(tensors, chosen, family("voxtral"))
    layout = onnx_weights.place(linear_graph(names, shape), chosen, weights, frozenset(names))
    paths = [folder / str(index) for index in range(len(layout.sizes()))]
    tracemalloc.start()
    try:
        streaming.fill(layout, paths, Silent(), "filling")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in paths) == sum(layout.sizes())
    return peak


@pytest.mark.parametrize("quant", ["int4", "int4-asymmetric", "int8", "fp32", "fp16"])
def test_a_build_holds_a_few_row_blocks_of_a_matrix_of_any_height(tmp_path: Path, quant: str) -> None:
    peak_of_filling(tmp_path / "compile", quant, 1, 64)  # numba compiles at the first use
    assert peak_of_filling(tmp_path / "high", quant, 2, 8 * streaming.BLOCK // COLUMNS) < MOST


def test_a_build_holds_a_few_row_blocks_of_any_number_of_matrices(tmp_path: Path) -> None:
    peak_of_filling(tmp_path / "compile", "int4", 1, 64)
    assert peak_of_filling(tmp_path / "many", "int4", 24, streaming.BLOCK // COLUMNS) < MOST


def test_planning_voxtral_small_reads_no_weight_and_stays_within_a_gibibyte() -> None:
    taken = measure([sys.executable, ROOT / "benchmarks" / "build.py", "plan", "--layers", "1"])
    planned = dict(line.split("  ") for line in taken.output.splitlines() if line.startswith("onnx/"))
    assert planned["onnx/embed_tokens_int8.onnx_data"] == "0.755 GB"  # 131072 x 5120 and a float32 scale for every 32
    assert taken.peak < 2**30


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's alone keeps what is freed"
)
def test_what_was_freed_in_pieces_goes_back_to_the_system() -> None:
    pieces = [bytearray(50_000) for _ in range(4000)]
    kept = pieces[::100]  # so that the heap cannot shrink from its end
    del pieces
    before = _resident()
    memory.give_back()
    assert before - _resident() > 100_000_000
    assert len(kept) == 40


def _resident() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
