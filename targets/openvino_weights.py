"""Weights of an OpenVINO model: each in the constants its format needs, and its numbers streamed into the `.bin`.

Integers are constants [N, groups, group] with float16 scales, and zero points where asymmetric, multiplied out by operators
that stand before the product: the form that the CPU, GPU and NPU plugins keep compressed.
https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/weight-compression.html
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import groupwise
from .contract import Float32, QuantizedRows, QuantizedTensor, TensorSource, WeightFormat, WeightStore
from .streaming import DataFiles, Layout, Slot, row_blocks


@dataclass(frozen=True)
class Constant:
    """A constant of the model, as yet one of its parameters: its OpenVINO element type, and where its bytes go."""

    kind: str  # "f32", "f16", "i8", "u8", "i4", "u4"
    slot: Slot


@dataclass
class Constants:
    """The constants of a model by name, and the layout of its `.bin`."""

    layout: Layout
    held: dict[str, Constant] = field(default_factory=dict)

    def add(self, name: str, kind: str, shape: tuple[int, ...]) -> Any:
        """A parameter node that stands for a constant until the model is written."""
        import openvino
        from openvino import opset13 as operators

        self.hold(name, kind, shape)
        return operators.parameter(list(shape), getattr(openvino.Type, kind), name=name)

    def hold(self, name: str, kind: str, shape: tuple[int, ...]) -> Slot:
        """The place of a constant of this name in the `.bin`."""
        count = int(np.prod(shape, dtype=np.int64))
        held = (-(-count // 2),) if kind in ("i4", "u4") else shape
        self.held[name] = Constant(kind, self.layout.add(name, _STORED[kind], held))
        return self.held[name].slot


_STORED = {"f32": np.float32, "f16": np.float16, "i8": np.uint8, "u8": np.uint8, "i4": np.uint8, "u4": np.uint8}


def floats(constants: Constants, source: TensorSource, form: WeightFormat) -> tuple[list[Any], Any]:
    """The parameters and the float32 value of a weight stored as floats."""
    import openvino
    from openvino import opset13 as operators

    kind = "f32" if form.bits == 32 else "f16"
    stored = constants.add(source.name, kind, source.shape)
    _fill_floats(constants, source)
    value = stored if kind == "f32" else operators.convert(stored, openvino.Type.f32, name=f"{source.name}.f32")
    return [stored], value


def table(constants: Constants, parameter: Any, values: Float32) -> None:
    """Make a parameter stand for a table that no checkpoint holds, in float32."""
    slot = constants.hold(parameter.get_friendly_name(), "f32", values.shape)
    constants.layout.jobs.append((values.nbytes, lambda files: files.write(slot, 0, values)))


def matrix(constants: Constants, tensor: QuantizedTensor) -> tuple[list[Any], Any]:
    """The parameters and the float32 value [N, groups * group] of a quantized matrix; its last columns may be padding."""
    import openvino
    from openvino import opset13 as operators

    parts = _parts(constants, tensor)
    half = openvino.Type.f16
    value = operators.convert(parts[0], half)
    if len(parts) == 3:
        value = operators.subtract(value, operators.convert(parts[2], half))
    value = operators.multiply(value, parts[1])
    flat = operators.constant(np.array([tensor.shape[0], padded(tensor)], np.int64))
    return parts, operators.convert(operators.reshape(value, flat, special_zero=False), openvino.Type.f32)


def rows(constants: Constants, tensor: QuantizedTensor, ids: Any) -> tuple[list[Any], Any]:
    """The parameters of a quantized embedding, and its float32 rows [..., K] at `ids`: only they are multiplied out."""
    import openvino
    from openvino import opset13 as operators

    parts = _parts(constants, tensor)
    axis = operators.constant(np.array(0, np.int64))
    single = openvino.Type.f32
    gathered = [operators.convert(operators.gather(part, ids, axis), single) for part in parts]
    value = operators.subtract(gathered[0], gathered[2]) if len(parts) == 3 else gathered[0]
    value = operators.multiply(value, gathered[1])
    leading = ids.get_partial_shape().rank.get_length()
    flat = operators.constant(np.array([0] * leading + [padded(tensor)], np.int64))
    value = operators.reshape(value, flat, special_zero=True)
    if padded(tensor) == tensor.shape[1]:
        return parts, value
    bounds = [operators.constant(np.array([number], np.int64)) for number in (0, tensor.shape[1], 1, leading)]
    return parts, operators.slice(value, *bounds)


def padded(tensor: QuantizedTensor) -> int:
    """Columns of a quantized matrix with its last group made whole."""
    group = tensor.format.group
    return -(-tensor.shape[1] // group) * group


def store_of(weights: WeightStore, name: str) -> QuantizedTensor | None:
    """A weight as the recipe's integers; None where it stays floats."""
    return None if weights.format(name).is_float else weights.quantized(name)


def _parts(constants: Constants, tensor: QuantizedTensor) -> list[Any]:
    """Parameters for the codes, the scales and (asymmetric) the zero points of a tensor, their bytes placed."""
    form, count = tensor.format, tensor.shape[0]
    groups = padded(tensor) // form.group
    kind = f"{'i' if form.symmetric else 'u'}{form.bits}"
    names = [f"{tensor.name}.{part}" for part in ("codes", "scales", "zero_points")]
    parts = [
        constants.add(names[0], kind, (count, groups, form.group)),
        constants.add(names[1], "f16", (count, groups, 1)),
    ]
    if not form.symmetric:
        parts.append(constants.add(names[2], kind, (count, groups, 1)))
    slots = [constants.held[name].slot for name in names[: len(parts)]]
    constants.layout.jobs.append((4 * count * tensor.shape[1], lambda files: _write_tensor(files, tensor, slots)))
    return parts


def _write_tensor(files: DataFiles, tensor: QuantizedTensor, slots: list[Slot]) -> None:
    count, zeros = tensor.shape[0], []
    for block in tensor.blocks():
        files.write(slots[0], block.start * (slots[0].size // count), _packed_codes(block, tensor))
        files.write(slots[1], block.start * (slots[1].size // count), block.scales)
        zeros += [] if block.zero_points is None else [block.zero_points]
    if zeros:  # of an odd number of groups, a row of nibbles ends within a byte
        files.write(slots[2], 0, _packed(np.concatenate(zeros).reshape(1, -1), tensor.format))


def _packed_codes(block: QuantizedRows, tensor: QuantizedTensor) -> NDArray[np.uint8]:
    """Rows of whole groups; two's complement around zero where the format is symmetric."""
    form = tensor.format
    middle = 1 << (form.bits - 1)
    codes = groupwise.pad_columns(block.codes, padded(tensor), middle)
    return _packed(codes ^ np.uint8(middle) if form.symmetric else codes, form)


def _packed(codes: NDArray[np.uint8], form: WeightFormat) -> NDArray[np.uint8]:
    return groupwise.pack_pairs(codes) if form.bits == 4 else codes


def _fill_floats(constants: Constants, source: TensorSource) -> None:
    slot = constants.held[source.name].slot

    def job(files: DataFiles) -> None:
        for start, stop in row_blocks(source.shape):
            values = source.rows(start, stop).astype(slot.dtype, copy=False)
            files.write(slot, start * (slot.size // source.shape[0]), values)

    constants.layout.jobs.append((4 * int(np.prod(source.shape, dtype=np.int64)), job))
