"""Weights of an OpenVINO model are never whole in memory while it is built, and stay four bits wide while it runs."""

import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13 as operators
from ossicle.benchmarks.process import measure
from ossicle.compiler.families import family
from ossicle.compiler.pipeline import Silent
from ossicle.compiler.quantize import Weights
from ossicle.compiler.safetensors import read_header
from ossicle.targets import openvino_graph, streaming
from ossicle.targets.contract import QuantizedRows, QuantizedTensor, WeightFormat
from ossicle.targets.recipes import recipe
from ossicle.tests.test_memory import COLUMNS, MOST, hollow_checkpoint, layers

SIDE, COUNT = 3072, 8
RUN = """
import sys
import numpy as np, openvino, psutil
before = psutil.Process().memory_info().rss
model = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
model([np.ones((1, 4, int(sys.argv[2])), np.float32)])
print(psutil.Process().memory_info().rss - before)
"""


def chain(names: list[str], rows: int, columns: int) -> openvino.Model:
    """A product with each matrix [rows, columns]: of one after the other where they are square, else of the same input."""
    given = operators.parameter([1, -1, columns], openvino.Type.f32, name="x")
    weights = [operators.parameter([rows, columns], openvino.Type.f32, name=name) for name in names]
    values, results = given, []
    for weight in weights:
        turned = operators.transpose(weight, operators.constant(np.array([1, 0], np.int64)))
        product = operators.matmul(values, turned, False, False)
        values = product if rows == columns else given
        results.append(operators.result(product))
    return openvino.Model(results, [given, *weights])


def peak_of_filling(folder: Path, quant: str, count: int, rows: int) -> int:
    """The most memory in bytes, beyond what was there before, while the data of `count` matrices is written."""
    folder.mkdir()
    names = layers(count)
    tensors = read_header(hollow_checkpoint(folder / "model.safetensors", names, (rows, COLUMNS)))
    weights = Weights(tensors, recipe(quant), family("voxtral"))
    constants = openvino_graph.place(chain(names, rows, COLUMNS), weights, names, {})
    tracemalloc.start()
    try:
        streaming.fill(constants.layout, [folder / "model.bin"], Silent(), "filling")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (folder / "model.bin").stat().st_size == sum(constants.layout.sizes())
    return peak


@pytest.mark.parametrize("quant", ["int4", "int4-asymmetric", "fp16"])
def test_a_build_holds_a_few_row_blocks_of_a_matrix_of_any_height(tmp_path: Path, quant: str) -> None:
    peak_of_filling(tmp_path / "compile", quant, 1, 64)  # numba compiles at the first use
    assert peak_of_filling(tmp_path / "high", quant, 2, 8 * streaming.BLOCK // COLUMNS) < MOST


class Noise:
    """A `WeightStore` of matrices of random integers."""

    def __init__(self, form: WeightFormat) -> None:
        self._form = form

    def format(self, _name: str) -> WeightFormat:
        return self._form

    def quantized(self, name: str) -> QuantizedTensor:
        return QuantizedTensor(name, (SIDE, SIDE), self._form, self._blocks)

    def _blocks(self) -> Iterator[QuantizedRows]:
        random, groups = np.random.default_rng(0), SIDE // self._form.group
        zeros = None if self._form.symmetric else random.integers(0, 16, (SIDE, groups), np.uint8)
        yield QuantizedRows(
            0, random.integers(0, 16, (SIDE, SIDE), np.uint8), np.full((SIDE, groups), 1e-3, np.float16), zeros
        )


@pytest.mark.parametrize("symmetric", [True, False])
def test_four_bits_take_four_bits_in_the_engine(tmp_path: Path, symmetric: bool) -> None:
    names = layers(COUNT)
    model = chain(names, SIDE, SIDE)
    constants = openvino_graph.place(model, Noise(WeightFormat(4, 128, symmetric)), names, {})
    path = tmp_path / "model.xml"
    openvino_graph.write(model, constants, path)
    streaming.fill(constants.layout, [path.with_suffix(".bin")], Silent(), "filling")
    taken = int(measure([sys.executable, "-c", RUN, path, str(SIDE)]).output)
    float32 = 4 * COUNT * SIDE * SIDE
    assert taken < float32 / 2.5, f"{taken / 2**20:.0f} MiB of {float32 / 2**20:.0f}"
