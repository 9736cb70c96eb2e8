"""Weights of an OpenVINO model: each in the constants its format needs, and its numbers streamed into the `.bin`.

Integers are constants [N, groups, group] with float16 scales, and zero points where asymmetric, multiplied out by operators
that stand before the product: the form that the CPU, GPU and NPU plugins keep compressed.
https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/weight-compression.html
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..kernels import octets
from .contract import Float32, QuantizedTensor, TensorSource, WeightFormat, WeightStore
from .integers import padded, write_integers
from .streaming import Layout, Slot, write_floats


@dataclass(frozen=True)
class Constant:
    """A constant of the model, as yet one of its parameters: its OpenVINO element type, and where its bytes go."""

    kind: str  # "f32", "f16", "i8", "u8", "i4", "u4", "u3"
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
        held = (-(-count * _BITS[kind] // 8),) if kind in _BITS else shape
        self.held[name] = Constant(kind, self.layout.add(name, _STORED[kind], held))
        return self.held[name].slot

    @property
    def unfolded(self) -> int:
        """Bytes that our runtime holds beyond those stored: it makes four bits of three as it opens a model."""
        return sum(one.slot.size for one in self.held.values() if one.kind == "u3") // 3


_STORED = {"f32": np.float32, "f16": np.float16} | dict.fromkeys(("i8", "u8", "i4", "u4", "u3"), np.uint8)
_BITS = {"i4": 4, "u4": 4, "u3": 3}  # of codes that share bytes


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
    if tensor.format.bits == 3:
        value = operators.subtract(value, operators.constant(np.float16(4)))
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


def store_of(weights: WeightStore, name: str) -> QuantizedTensor | None:
    """A weight as the recipe's integers; None where it stays floats."""
    return None if weights.format(name).is_float else weights.quantized(name)


def _parts(constants: Constants, tensor: QuantizedTensor) -> list[Any]:
    """Parameters for the codes, the scales and (asymmetric) the zero points of a tensor, their bytes placed."""
    form, count = tensor.format, tensor.shape[0]
    groups = padded(tensor) // form.group
    kind = f"{'i' if form.symmetric and form.bits > 3 else 'u'}{form.bits}"
    names = [f"{tensor.name}.{part}" for part in ("codes", "scales", "zero_points")]
    parts = [
        constants.add(names[0], kind, (count, groups, form.group)),
        constants.add(names[1], "f16", (count, groups, 1)),
    ]
    if not form.symmetric:
        parts.append(constants.add(names[2], kind, (count, groups, 1)))
    slots = [constants.held[name].slot for name in names[: len(parts)]]
    constants.layout.jobs.append(
        (4 * count * tensor.shape[1], lambda files: write_integers(files, tensor, slots, octets.pack_split))
    )
    return parts


def _fill_floats(constants: Constants, source: TensorSource) -> None:
    slot, numbers = constants.held[source.name].slot, int(np.prod(source.shape, dtype=np.int64))
    constants.layout.jobs.append((4 * numbers, lambda files: write_floats(files, slot, source)))
