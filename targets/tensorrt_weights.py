"""Weights of an ONNX graph as TensorRT reads them: integers behind DequantizeLinear, numbers streamed into external data.

A matrix [N, K] is stored as [K, N], which is how it is multiplied: the other way round TensorRT unpacks its integers as it
builds an engine. Groups lie along K all the same, so codes and scales are those of every other format, turned.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import float8, groupwise
from .contract import BuildError, QuantizedRows, QuantizedTensor, Recipe, TensorSource, WeightStore
from .onnx_weights import float_matrix, initializer, placed_by, replace
from .recipes import FLOAT8
from .streaming import DataFiles, Layout, Slot, row_blocks, turned

_BYTE = 256
_ZERO = 128  # what a code of eight bits is counted from
_PER_WORD = 4  # codes of eight bits in an int32


def place(model: Any, recipe: Recipe, weights: WeightStore, known: frozenset[str]) -> Layout:
    """Give every weight of a graph its form and its slot; `known` are the initializers that are weights."""
    return placed_by(_place_linear, _place_embedding, model, recipe, weights, known)


def _place_linear(model: Any, node: Any, name: str, recipe: Recipe, weights: WeightStore, layout: Layout) -> None:
    form = weights.format(name)
    if form == FLOAT8:
        stored = _float8(model, node, weights.source(name), recipe, layout)
    elif form.is_float:
        stored = float_matrix(model, node, weights.source(name), form, layout)
    else:
        stored = _integers(model, node, weights.quantized(name), recipe, layout)
    node.replace_input_with(1, stored)


def _integers(model: Any, node: Any, tensor: QuantizedTensor, recipe: Recipe, layout: Layout) -> Any:
    """https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html with blocks along axis 0."""
    import onnx_ir as ir

    (rows, columns), form = tensor.shape, tensor.format
    if form.bits == 4 and rows % 2:
        raise BuildError(
            f"'{tensor.name}' has {rows} rows, and target 'tensorrt' holds {form.name} of an even number of rows only. "
            "Build with --quant int8"
        )
    groups = -(-columns // form.group)
    whole = groups * form.group
    codes = layout.add(f"{tensor.name}.codes", np.uint8, (whole, rows * form.bits // 8))
    scales = layout.add(f"{tensor.name}.scales", recipe.compute, (groups, rows))
    layout.jobs.append((4 * rows * columns, lambda files: _write_integers(files, tensor, codes, scales)))
    held = initializer(model, codes.name, ir.DataType.INT4 if form.bits == 4 else ir.DataType.INT8, (whole, rows))
    if whole > columns:
        _widen(model, node, whole - columns)
    return _dequantized(model, node, held, scales, {"axis": 0, "block_size": form.group})


def _widen(model: Any, node: Any, columns: int) -> None:
    """Put zeros behind what a matrix is multiplied with, whose last group is made whole: TensorRT has no short ones."""
    write = _Writer(model, node, node.inputs[0].dtype)
    wide = write("Pad", [node.inputs[0], write.integers([0, 0, 0, 0, 0, columns])])
    wide.type = node.inputs[0].type
    node.replace_input_with(0, wide)


def _write_integers(files: DataFiles, tensor: QuantizedTensor, codes: Slot, scales: Slot) -> None:
    zero = np.uint8(1 << (tensor.format.bits - 1))
    for block in _even(tensor.blocks()):
        signed = turned(block.codes - zero)  # what fills the last group stays 0, as the file is made
        packed = groupwise.pack_pairs(signed & np.uint8(15)) if tensor.format.bits == 4 else signed
        files.write_columns(codes, block.start * tensor.format.bits // 8, packed)
        files.write_columns(scales, block.start, turned(block.scales))


def _even(blocks: Iterator[QuantizedRows]) -> Iterator[QuantizedRows]:
    """The same rows in blocks that begin at even ones, since two codes of four bits share a byte."""
    held: list[QuantizedRows] = []
    for block in blocks:
        held = [_joined([*held, block])]
        rows = len(held[0].codes) // 2 * 2
        if rows:
            yield QuantizedRows(held[0].start, held[0].codes[:rows], held[0].scales[:rows], None)
        held = [_rest(held[0], rows)] if rows < len(held[0].codes) else []
    yield from held


def _joined(blocks: list[QuantizedRows]) -> QuantizedRows:
    if len(blocks) == 1:
        return blocks[0]
    codes, scales = (np.concatenate([getattr(block, part) for block in blocks]) for part in ("codes", "scales"))
    return QuantizedRows(blocks[0].start, codes, scales, None)


def _rest(block: QuantizedRows, rows: int) -> QuantizedRows:
    return QuantizedRows(block.start + rows, block.codes[rows:], block.scales[rows:], None)


def _float8(model: Any, node: Any, source: TensorSource, recipe: Recipe, layout: Layout) -> Any:
    """Eight-bit floats with one scale for each row of the matrix, a column of what is stored."""
    import onnx_ir as ir

    rows, columns = source.shape
    codes = layout.add(f"{source.name}.codes", np.uint8, (columns, rows))
    scales = layout.add(f"{source.name}.scales", recipe.compute, (rows,))

    def job(files: DataFiles) -> None:
        for start, stop in row_blocks(source.shape):
            held, scale = float8.quantize(source.rows(start, stop))
            files.write_columns(codes, start, turned(held))
            files.write(scales, start * scales.dtype.itemsize, scale)

    layout.jobs.append((4 * rows * columns, job))
    held = initializer(model, codes.name, ir.DataType.FLOAT8E4M3FN, (columns, rows))
    return _dequantized(model, node, held, scales, {"axis": 1})


def _dequantized(model: Any, node: Any, codes: Any, scales: Slot, attributes: dict[str, int]) -> Any:
    import onnx_ir as ir

    held = initializer(model, scales.name, scales.dtype, scales.shape)
    dequantize = ir.node("DequantizeLinear", [codes, held], attributes, name=f"{node.name}_dequantize")
    output = dequantize.outputs[0]
    output.name, output.type = f"{codes.name}.dequantized", held.type
    model.graph.insert_before(node, dequantize)
    return output


def _place_embedding(model: Any, node: Any, recipe: Recipe, weights: WeightStore, layout: Layout) -> None:
    """A table of int8 codes, four to an int32 word, since TensorRT looks nothing up among int8."""
    import onnx_ir as ir

    name = node.inputs[0].name
    if weights.format(name).is_float:
        return
    tensor = weights.quantized(name)
    (rows, columns), group = tensor.shape, tensor.format.group
    groups = -(-columns // group)
    codes = layout.add(f"{name}.codes", np.uint8, (rows, groups * group))
    scales = layout.add(f"{name}.scales", recipe.compute, (rows, groups))

    def job(files: DataFiles) -> None:
        for block in tensor.blocks():
            padded = groupwise.pad_columns(block.codes, groups * group, _ZERO)
            files.write(codes, block.start * codes.shape[1], padded)
            files.write(scales, block.start * groups * scales.dtype.itemsize, block.scales)

    layout.jobs.append((4 * rows * columns, job))
    words = initializer(model, codes.name, ir.DataType.INT32, (rows, groups * group // _PER_WORD))
    held = initializer(model, scales.name, scales.dtype, scales.shape)
    _look_up(model, node, words, held, tensor)
    model.graph.initializers.pop(name)


def _look_up(model: Any, node: Any, words: Any, scales: Any, tensor: QuantizedTensor) -> None:
    """The rows of a table of words: taken apart from the lowest byte up, less the zero, times their scales."""
    columns, group = tensor.shape[1], tensor.format.group
    write = _Writer(model, node, scales.dtype)
    rest = write("Gather", [words, node.inputs[1]])
    parts = []
    for _ in range(_PER_WORD):  # Mod is never negative, so the last byte comes out as it went in
        parts.append(write("Mod", [rest, write.integer(_BYTE)]))
        rest = write("Div", [write("Sub", [rest, parts[-1]]), write.integer(_BYTE)])
    split = [write("Unsqueeze", [part, write.integers([-1])]) for part in parts]
    by_group = write("Reshape", [write("Concat", split, axis=-1), write.integers([0, 0, -1, group])])
    centred = write("Sub", [write("Cast", [by_group], to=int(scales.dtype)), write.number(_ZERO)])
    spread = write("Unsqueeze", [write("Gather", [scales, node.inputs[1]]), write.integers([-1])])
    rows = write("Reshape", [write("Mul", [centred, spread]), write.integers([0, 0, -1])])
    bounds = [write.integers([bound]) for bound in (0, columns, 2)]
    replace(model, node, write.node("Slice", [rows, *bounds]))


class _Writer:
    """Nodes put in front of a node, one behind the other, and the small constants that they take."""

    def __init__(self, model: Any, before: Any, dtype: Any) -> None:
        self._model = model
        self._before = before
        self._dtype = dtype
        self._count = 0

    def __call__(self, kind: str, inputs: list[Any], **attributes: int) -> Any:
        node = self.node(kind, inputs, **attributes)
        node.outputs[0].name = f"{node.name}_output"
        self._model.graph.insert_before(self._before, node)
        return node.outputs[0]

    def node(self, kind: str, inputs: list[Any], **attributes: int) -> Any:
        import onnx_ir as ir

        self._count += 1
        return ir.node(kind, inputs, attributes, name=f"{self._before.name}_{kind}_{self._count}")

    def integers(self, values: list[int]) -> Any:
        return self._constant("_".join(map(str, values)), np.array(values, np.int64))

    def integer(self, value: int) -> Any:
        return self._constant(f"word_{value}", np.array(value, np.int32))

    def number(self, value: int) -> Any:
        return self._constant(f"float_{value}", np.array(value, self._dtype.numpy()))

    def _constant(self, name: str, value: NDArray[Any]) -> Any:
        import onnx_ir as ir

        held = self._model.graph.initializers
        name = f"{self._before.name}_{name}"
        if name not in held:
            tensor = ir.tensor(value, name=name)
            held[name] = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        return held[name]
