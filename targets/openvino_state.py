"""The stateful form of a decoder: keys and values are variables of the model, and `beam_idx` says whose row each row continues.

Variables, inputs and outputs are named and shaped as optimum-intel's, and stand where plugins look for them to fuse the cache
into their attention: ReadValue, Gather by `beam_idx`, Concat, ScaledDotProductAttention, Assign.
"""

from typing import Any

import numpy as np

PAST, PRESENT = "past_key_values", "present"
BEAM = "beam_idx"


def stateful(model: Any) -> Any:
    """The model with every pair of `past_key_values.*` and `present.*` as a variable; `model` stays as it is."""
    import openvino
    from openvino import opset13 as operators

    model = model.clone()
    beam = operators.parameter([-1], openvino.Type.i32, name=BEAM)
    beam.output(0).set_names({BEAM})
    parameters = {parameter.get_friendly_name(): parameter for parameter in model.get_parameters()}
    batch = _batch(parameters["inputs_embeds"])
    pasts = [name for name in parameters if name.startswith(f"{PAST}.")]
    sinks = [_variable(model, parameters.pop(name), beam, batch) for name in pasts]
    return openvino.Model(
        [model.output("logits").get_node()], sinks, [*parameters.values(), beam], model.get_friendly_name()
    )


def _batch(embeddings: Any) -> Any:
    from openvino import opset13 as operators

    first = operators.constant(np.array([0], np.int64))
    return operators.gather(operators.shape_of(embeddings, "i64"), first, operators.constant(np.array(0, np.int64)))


def _variable(model: Any, past: Any, beam: Any, batch: Any) -> Any:
    """The Assign of a variable that stands in for a parameter; before the first run it is empty."""
    import openvino
    from openvino import opset13 as operators

    name, shape = past.get_friendly_name(), past.get_partial_shape()
    output = name.replace(PAST, PRESENT)
    sizes = operators.constant(np.array([shape[1].get_length(), 0, shape[3].get_length()], np.int64))
    empty = operators.broadcast(operators.constant(np.float32(0)), operators.concat([batch, sizes], 0))
    users = list(past.output(0).get_target_inputs())
    read = operators.read_value(empty, name + output, openvino.Type.f32, shape)
    rows = operators.gather(read, beam, operators.constant(np.array(0, np.int64)))
    for user in users:
        user.replace_source_output(rows.output(0))
    return operators.assign(model.output(output).get_node().input_value(0).get_node(), name + output)
