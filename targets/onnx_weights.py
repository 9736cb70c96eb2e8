"""Weights of an ONNX graph: each operator in the form its format needs, and its numbers streamed into external data."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import groupwise
from .contract import QuantizedRows, QuantizedTensor, Recipe, TensorSource, WeightFormat, WeightStore
from .streaming import DataFiles, Layout, Slot, write_floats, write_turned


def place(model: Any, recipe: Recipe, weights: WeightStore, known: frozenset[str]) -> Layout:
    """Give every weight of a graph its form and its slot; `known` are the initializers that are weights."""
    return placed_by(_place_linear, _place_embedding, model, recipe, weights, known)


def placed_by(
    linear: Callable[..., None],
    embedding: Callable[..., None],
    model: Any,
    recipe: Recipe,
    weights: WeightStore,
    known: frozenset[str],
) -> Layout:
    """Slots of a graph's weights, matrices placed by `linear`, tables that are looked up by `embedding`, the rest as floats."""
    layout = Layout()
    for node in list(model.graph):
        name = linear_weight(node)
        if name in known:
            transpose = node.inputs[1].producer()
            weight = transpose.inputs[0]
            linear(model, node, name, recipe, weights, layout)
            _drop_unused(model, transpose, weight)
        elif node.op_type == "Gather" and node.inputs[0].name in known:
            embedding(model, node, recipe, weights, layout)
    for name, value in list(model.graph.initializers.items()):
        if name in known:
            float_slot(layout, value, weights.source(name), transpose=False)
        elif value.const_value is not None and value.const_value.nbytes > 1024 and name not in _placed(layout):
            constant_slot(layout, value)
    return layout


def attach(model: Any, layout: Layout, files: list[str]) -> None:
    """Point a graph's initializers at their slots."""
    import onnx_ir as ir

    for slot in layout.slots:
        value = model.graph.initializers[slot.name]
        value.const_value = ir.ExternalTensor(
            files[slot.file], slot.offset, slot.size, value.dtype, shape=value.shape, name=slot.name
        )


def linear_weight(node: Any) -> str | None:
    """The weight W of MatMul(x, Transpose(W)); None where a node is none."""
    if node.op_type != "MatMul":
        return None
    transpose = node.inputs[1].producer()
    if transpose is None or transpose.op_type != "Transpose" or not transpose.inputs[0].is_initializer():
        return None
    name: str = transpose.inputs[0].name
    return name


def float_matrix(model: Any, node: Any, source: TensorSource, form: WeightFormat, layout: Layout) -> Any:
    """What a node multiplies with: the matrix turned, stored as floats of a format, which may be narrower than the graph's."""
    computed = float_type(node.inputs[1].producer().inputs[0])
    kind = np.dtype("float16") if form.bits == 16 else computed
    stored = initializer(model, f"{source.name}.T", kind, source.shape[::-1])
    float_slot(layout, stored, source, transpose=True)
    if kind == computed:
        return stored
    wide = _cast(node, stored, computed)
    model.graph.insert_before(node, wide.producer())
    return wide


def _cast(node: Any, value: Any, kind: np.dtype[Any]) -> Any:
    """The output of a new node that turns floats into the ones a node computes with."""
    import onnx_ir as ir

    held = ir.DataType.from_numpy(kind)
    cast = ir.node("Cast", [value], {"to": int(held)}, name=f"{node.name}_widened")
    output = cast.outputs[0]
    output.name, output.type, output.shape = f"{cast.name}_output", ir.TensorType(held), value.shape
    return output


def _drop_unused(model: Any, transpose: Any, weight: Any) -> None:
    if not transpose.outputs[0].uses():
        model.graph.remove(transpose, safe=True)
    if not weight.uses():
        model.graph.initializers.pop(weight.name)


def _place_linear(model: Any, node: Any, name: str, recipe: Recipe, weights: WeightStore, layout: Layout) -> None:
    if weights.format(name).is_float:
        node.replace_input_with(1, float_matrix(model, node, weights.source(name), weights.format(name), layout))
    else:
        _place_matmul_n_bits(model, node, weights.quantized(name), recipe, layout)


def _place_matmul_n_bits(model: Any, node: Any, tensor: QuantizedTensor, recipe: Recipe, layout: Layout) -> None:
    """https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits"""
    import onnx_ir as ir

    (rows, columns), form = tensor.shape, tensor.format
    groups = -(-columns // form.group)
    slots = _quantized_slots(model, tensor, layout, (rows, groups, form.group * form.bits // 8), recipe)
    product = ir.node(
        "MatMulNBits",
        [node.inputs[0], *slots],
        {
            "K": columns,
            "N": rows,
            "bits": form.bits,
            "block_size": form.group,
            "accuracy_level": 4 if recipe.integer_activations else 0,
        },
        domain="com.microsoft",
        name=f"{node.name}_quantized",
    )
    replace(model, node, product)


def _place_embedding(model: Any, node: Any, recipe: Recipe, weights: WeightStore, layout: Layout) -> None:
    """https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GatherBlockQuantized"""
    import onnx_ir as ir

    name = node.inputs[0].name
    if weights.format(name).is_float:
        _narrow_table(model, node, weights.format(name))
        return
    tensor = weights.quantized(name)
    (rows, columns), form = tensor.shape, tensor.format
    slots = _quantized_slots(model, tensor, layout, (rows, columns * form.bits // 8), recipe)
    gather = ir.node(
        "GatherBlockQuantized",
        [slots[0], node.inputs[1], *slots[1:]],
        {"gather_axis": 0, "quantize_axis": 1, "block_size": form.group, "bits": form.bits},
        domain="com.microsoft",
        name=f"{node.name}_quantized",
    )
    replace(model, node, gather)
    model.graph.initializers.pop(name)


def _narrow_table(model: Any, node: Any, form: WeightFormat) -> None:
    """Look rows up in a table of a format that is narrower than the graph's floats, and widen them."""
    import onnx_ir as ir

    table, computed = node.inputs[0], float_type(node.inputs[0])
    if form.bits == 8 * computed.itemsize:
        return
    table.type = ir.TensorType(ir.DataType.FLOAT16)
    looked_up = ir.node("Gather", list(node.inputs), {"axis": 0}, name=f"{node.name}_narrow")
    rows = looked_up.outputs[0]
    rows.name, rows.type, rows.shape = f"{looked_up.name}_output", table.type, node.outputs[0].shape
    model.graph.insert_before(node, looked_up)
    replace(model, node, _cast(looked_up, rows, computed).producer())


def replace(model: Any, node: Any, successor: Any) -> None:
    """Put `successor` where a node stands, its first output under the name of the node's."""
    old, new = node.outputs[0], successor.outputs[0]
    new.type, new.shape = old.type, old.shape
    model.graph.insert_before(node, successor)
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    new.name = name
    if successor.domain:
        model.opset_imports[successor.domain] = 1


def _quantized_slots(
    model: Any, tensor: QuantizedTensor, layout: Layout, packed: tuple[int, ...], recipe: Recipe
) -> list[Any]:
    """Initializers for packed codes, scales and (asymmetric) zero points of a tensor, in the operators' order."""
    form, rows = tensor.format, tensor.shape[0]
    groups = -(-tensor.shape[1] // form.group)
    scale_shape = (rows * groups,) if len(packed) == 3 else (rows, groups)
    zero_width = -(-groups * form.bits // 8)
    zero_shape = (rows * zero_width,) if len(packed) == 3 else (rows, zero_width)
    kind = np.dtype(recipe.compute)
    codes = layout.add(f"{tensor.name}.codes", np.uint8, packed)
    scales = layout.add(f"{tensor.name}.scales", kind, scale_shape)
    zeros = None if form.symmetric else layout.add(f"{tensor.name}.zero_points", np.uint8, zero_shape)
    _add_job(layout, tensor, codes, scales, zeros)
    return [initializer(model, slot.name, slot.dtype, slot.shape) for slot in (codes, scales, zeros) if slot]


def _add_job(layout: Layout, tensor: QuantizedTensor, codes: Slot, scales: Slot, zeros: Slot | None) -> None:
    rows = tensor.shape[0]

    def job(files: DataFiles) -> None:
        for block in tensor.blocks():
            files.write(
                codes, block.start * (codes.size // rows), _packed_codes(block, tensor.format, codes.size // rows)
            )
            files.write(scales, block.start * (scales.size // rows), block.scales)
            if zeros is not None:
                files.write(zeros, block.start * (zeros.size // rows), _packed_zero_points(block, tensor.format))

    layout.jobs.append((4 * rows * tensor.shape[1], job))


def _packed_codes(block: QuantizedRows, form: WeightFormat, width: int) -> NDArray[np.uint8]:
    """Rows of `width` bytes: MatMulNBits wants the last group whole, GatherBlockQuantized the columns as they are."""
    codes = groupwise.pad_columns(block.codes, width * 8 // form.bits, 1 << (form.bits - 1))
    return groupwise.pack_pairs(codes) if form.bits == 4 else codes


def _packed_zero_points(block: QuantizedRows, form: WeightFormat) -> NDArray[np.uint8]:
    assert block.zero_points is not None
    return groupwise.pack_pairs(block.zero_points) if form.bits == 4 else block.zero_points


def float_slot(layout: Layout, value: Any, source: TensorSource, *, transpose: bool) -> None:
    """A slot for a weight stored as floats, row by row or, where `transpose`, as the columns of [K, N]."""
    shape = source.shape[::-1] if transpose else source.shape
    slot = layout.add(value.name, float_type(value), shape)
    write = write_turned if transpose else write_floats
    layout.jobs.append((4 * int(np.prod(shape, dtype=np.int64)), lambda files: write(files, slot, source)))


def constant_slot(layout: Layout, value: Any) -> None:
    """A slot for an initializer whose numbers are known."""
    array = np.ascontiguousarray(value.const_value.numpy())
    slot = layout.add(value.name, array.dtype, array.shape)
    layout.jobs.append((array.nbytes, lambda files: files.write(slot, 0, array)))


def _placed(layout: Layout) -> set[str]:
    return {slot.name for slot in layout.slots}


def initializer(model: Any, name: str, kind: Any, shape: tuple[int, ...]) -> Any:
    """A new initializer without a value; `kind`: a numpy dtype, or an onnx_ir.DataType that numpy lacks."""
    import onnx_ir as ir

    held = kind if isinstance(kind, ir.DataType) else ir.DataType.from_numpy(kind)
    value = ir.Value(name=name, type=ir.TensorType(held), shape=ir.Shape(shape))
    model.graph.initializers[name] = value
    return value


def float_type(value: Any) -> np.dtype[Any]:
    """What an initializer of floats is stored as."""
    return np.dtype("float16" if value.dtype.name == "FLOAT16" else "float32")
