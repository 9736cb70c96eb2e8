"""What a Core ML package's weights take of memory while they are written: a few row blocks, however large the model."""

import tracemalloc
from pathlib import Path

import pytest
from ossicle.compiler.families import family
from ossicle.compiler.pipeline import Silent
from ossicle.compiler.quantize import Weights
from ossicle.compiler.safetensors import read_header
from ossicle.targets import coreml_graph, streaming
from ossicle.targets.coreml_graph import Emission
from ossicle.targets.coreml_mil import Block, Value
from ossicle.targets.coreml_weights import Records
from ossicle.targets.recipes import recipe
from ossicle.tests.test_memory import COLUMNS, MOST, hollow_checkpoint, layers, linear_graph


def peak_of_filling(folder: Path, quant: str, count: int, rows: int) -> int:
    """The most memory in bytes, beyond what was there before, while the weights of `count` products are written."""
    folder.mkdir()
    names, shape = layers(count), (rows, COLUMNS)
    tensors = read_header(hollow_checkpoint(folder / "model.safetensors", names, shape))
    records = Records("float16")
    emission = Emission(Block(), records, Weights(tensors, recipe(quant), family("voxtral")))
    emission.values["x"] = Value("x", "float16", (1, COLUMNS))
    assert len(coreml_graph.emit(linear_graph(names, shape), emission)) == count
    tracemalloc.start()
    try:
        streaming.fill(records.layout, [folder / "weight.bin"], Silent(), "filling")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [(folder / "weight.bin").stat().st_size] == records.layout.sizes()
    return peak


@pytest.mark.parametrize("quant", ["fp16", "int8", "int4-asymmetric", "palette4"])
def test_a_matrix_of_any_height_takes_a_few_row_blocks(tmp_path: Path, quant: str) -> None:
    peak_of_filling(tmp_path / "compile", quant, 1, 64)  # numba compiles at the first use
    assert peak_of_filling(tmp_path / "high", quant, 2, 6 * streaming.BLOCK // COLUMNS) < MOST


def test_any_number_of_matrices_takes_a_few_row_blocks(tmp_path: Path) -> None:
    peak_of_filling(tmp_path / "compile", "int4", 1, 64)
    assert peak_of_filling(tmp_path / "many", "int4", 20, streaming.BLOCK // COLUMNS) < MOST
