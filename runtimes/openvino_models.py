"""OpenVINO models as they are read, compiled and run, each failure an `EngineError` that names its file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import octets
from ..targets.contract import EngineError

KEEP = "num_logits_to_keep"
_PIECE = 3 << 18  # bytes unfolded at a time


def read(core: Any, path: Path, data: Path) -> Any:
    """The model of an xml over its `.bin`, three-bit integers unfolded.

    Raises:
        EngineError: OpenVINO refuses it.
    """
    try:
        model = core.read_model(path, data)
    except RuntimeError as reason:
        raise _refused(path, reason) from reason
    unfold(model)
    return model


def unfold(model: Any) -> None:
    """Make four-bit integers of a model's three-bit ones: the CPU plugin would make float32 of them as it compiles.

    What stands for `u3 - 4` is `i4` from then on, the same numbers.
    """
    from openvino import Type
    from openvino import opset13 as operators

    for codes in [node for node in model.get_ops() if _holds_three_bits(node)]:
        offset = _user(_user(codes))
        held = operators.convert(_four_bits(codes), Type.f16)
        for user in offset.output(0).get_target_inputs():
            user.replace_source_output(held.output(0))


def _holds_three_bits(node: Any) -> bool:
    from openvino import Type

    return bool(node.get_type_name() == "Constant" and node.get_element_type() == Type.u3)


def _user(node: Any) -> Any:
    (user,) = node.output(0).get_target_inputs()
    return user.get_node()


def _four_bits(codes: Any) -> Any:
    """A constant of i4 that holds the numbers of one of u3 less four."""
    from openvino import Tensor, Type
    from openvino.op import Constant

    made = Tensor(Type.i4, codes.shape)
    packed, nibbles = codes.data.reshape(-1), made.data.reshape(-1).view(np.uint8)
    for start in range(0, len(packed), _PIECE):
        piece = octets.split_to_nibbles(packed[start : start + _PIECE])
        place = start // 3 * 4
        nibbles[place : place + len(piece)] = piece
    return Constant(made)


def compiled(core: Any, model: Any, path: Path, device: str, settings: Mapping[str, Any]) -> Any:
    """A model ready to run on a device ("CPU"); `path` is where it was read from.

    Raises:
        EngineError: OpenVINO refuses it.
    """
    try:
        return core.compile_model(model, device, dict(settings))
    except RuntimeError as reason:
        raise _refused(path, reason) from reason


def keep_last(model: Any) -> None:
    """Give a decoder the input `num_logits_to_keep` (0: all), so that its head sees those last positions alone."""
    from openvino import Type
    from openvino import opset13 as operators

    count = operators.parameter([], Type.i64, name=KEEP)
    count.output(0).set_names({KEEP})
    head = model.output("logits").get_node().input_value(0).get_node().input(0)
    first = operators.negative(operators.unsqueeze(count, np.array(0, np.int64)))
    bounds = [operators.constant(np.array([number], np.int64)) for number in (np.iinfo(np.int64).max, 1, 1)]
    last = operators.slice(head.get_source_output(), first, *bounds)  # behind -0 is everything
    head.replace_source_output(last.output(0))
    model.add_parameters([count])
    model.validate_nodes_and_infer_types()


def run(model: Any, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Outputs of a compiled model by name, each an array of its own.

    Raises:
        EngineError: OpenVINO fails.
    """
    try:
        results = model({name: np.asarray(value, order="C") for name, value in inputs.items()})
    except RuntimeError as reason:
        raise failed(reason) from reason
    return {port.get_any_name(): results[port] for port in model.outputs}


def failed(reason: RuntimeError) -> EngineError:
    """What a run that OpenVINO gave up is to the caller."""
    return EngineError(f"engine 'openvino' failed: {reason}")


def _refused(path: Path, reason: RuntimeError) -> EngineError:
    import openvino

    return EngineError(
        f"engine 'openvino' {openvino.__version__} refuses '{path}': {reason}. "
        "Check the bundle with: ossicle inspect BUNDLE"
    )
