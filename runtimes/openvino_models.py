"""OpenVINO models as they are read, compiled and run, each failure an `EngineError` that names its file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError

KEEP = "num_logits_to_keep"


def read(core: Any, path: Path, data: Path) -> Any:
    """The model of an xml over its `.bin`.

    Raises:
        EngineError: OpenVINO refuses it.
    """
    try:
        return core.read_model(path, data)
    except RuntimeError as reason:
        raise _refused(path, reason) from reason


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
