"""OpenVINO models of traced stages: read from ONNX, weights and tables as parameters until the model is written.

A parameter has a type and a shape but no numbers, so nothing can fold a weight into memory. Written, it becomes a constant
at a known offset of the `.bin`, whose bytes targets/openvino_weights.py fills.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from . import onnx_graph, openvino_attention, openvino_weights
from .contract import Float32, QuantizedTensor, Recipe, TracedStage, WeightStore
from .integers import padded
from .openvino_weights import Constants
from .streaming import Layout


def graph(stage: TracedStage, recipe: Recipe) -> Any:
    """The openvino.Model of a traced stage in float32, every weight and table a parameter of its own name."""
    import onnx_ir as ir
    import openvino

    model = onnx_graph.graph(stage, replace(recipe, compute="float32"), openvino_attention.forms())
    for name, value in list(model.graph.initializers.items()):
        if name in stage.weights or name in stage.constants:
            model.graph.initializers.pop(name)
            model.graph.inputs.append(value)
    core = openvino.Core()
    core.add_extension(openvino_attention.extensions())
    return core.read_model(io.BytesIO(ir.to_proto(model).SerializeToString(deterministic=True)))


def place(model: Any, weights: WeightStore, known: Iterable[str], tables: Mapping[str, Float32]) -> Constants:
    """Give every weight of a model its form, and its place in the `.bin`; tables have theirs behind them."""
    constants = Constants(Layout(file_bytes=None))
    parameters = {parameter.get_friendly_name(): parameter for parameter in model.get_parameters()}
    for name in [name for name in parameters if name in set(known)]:
        _place_weight(model, parameters[name], weights, constants)
    for name in [name for name in parameters if name in tables]:
        openvino_weights.table(constants, parameters[name], tables[name])
    model.validate_nodes_and_infer_types()
    return constants


def write(model: Any, constants: Constants, path: Path) -> None:
    """Write the model's xml at `path`, weights as constants; the model's own constants go behind them in the layout.

    Models that share `constants` share one `.bin`.
    """
    import openvino

    data = path.with_suffix(".own")
    openvino.serialize(model, str(path), str(data))
    own = np.fromfile(data, np.uint8)
    data.unlink()
    slot = constants.layout.add(path.stem, np.uint8, own.shape)
    constants.layout.jobs.append((own.nbytes, lambda files: files.write(slot, 0, own)))
    tree = ElementTree.parse(path)
    for layer in tree.getroot().iter("layer"):
        _settle(layer, constants, slot.offset)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _place_weight(model: Any, parameter: Any, weights: WeightStore, constants: Constants) -> None:
    """Put the form that a weight is stored in where its parameter stood."""
    name = parameter.get_friendly_name()
    users = list(parameter.output(0).get_target_inputs())
    tensor = openvino_weights.store_of(weights, name)
    if tensor is None:
        stored, value = openvino_weights.floats(constants, weights.source(name), weights.format(name))
        _use(users, value)
    elif users[0].get_node().get_type_name() == "Gather":
        stored = _look_up(users[0].get_node(), tensor, constants)
    else:
        stored, value = openvino_weights.matrix(constants, tensor)
        _use(users, value, padded(tensor) - tensor.shape[1])
    model.remove_parameter(parameter)
    model.add_parameters(stored)


def _use(users: list[Any], value: Any, missing: int = 0) -> None:
    """Give `value` to every user; a product with its transpose takes it as it is, `missing` columns padded."""
    for user in users:
        node = user.get_node()
        products = _products(node) if node.get_type_name() == "Transpose" else []
        for product in products:
            _multiply(product, value, missing)
        if not products:
            user.replace_source_output(value.output(0))


def _products(transpose: Any) -> list[Any]:
    users = [user.get_node() for user in transpose.output(0).get_target_inputs()]
    return users if all(node.get_type_name() == "MatMul" for node in users) else []


def _multiply(product: Any, value: Any, missing: int) -> None:
    from openvino import opset13 as operators

    hidden = product.input_value(0)
    if missing:
        rank = hidden.get_partial_shape().rank.get_length()
        before, behind = np.zeros(rank, np.int64), np.array([0] * (rank - 1) + [missing], np.int64)
        hidden = operators.pad(hidden, before, behind, "constant", np.float32(0)).output(0)
    whole = operators.matmul(hidden, value, False, True)
    _replace(product, whole)


def _look_up(gather: Any, tensor: QuantizedTensor, constants: Constants) -> list[Any]:
    stored, value = openvino_weights.rows(constants, tensor, gather.input_value(1))
    _replace(gather, value)
    return stored


def _replace(node: Any, successor: Any) -> None:
    old, new = node.output(0), successor.output(0)
    new.set_names(old.get_names())
    for user in old.get_target_inputs():
        user.replace_source_output(new)


def _settle(layer: Any, constants: Constants, start: int) -> None:
    """Make a weight's parameter the constant it is, move any other constant behind the weights, and name the rest anew.

    The names that the engine makes up count up over a process, and the same inputs have to give the same bytes.
    """
    name, kind, data = layer.get("name"), layer.get("type"), layer.find("data")
    held = constants.held.get(name)
    if held is not None:
        layer.set("type", "Const")
        data.set("offset", str(held.slot.offset))
        data.set("size", str(held.slot.size))
    elif kind == "Const":
        data.set("offset", str(start + int(data.get("offset"))))
    if held is None and kind not in ("Parameter", "Result"):
        layer.set("name", f"{kind}_{layer.get('id')}")
