"""ONNX graphs of traced stages: ossicle's opaque operators in the form asked for, then optimized, weights still unknown.

Weights are initializers without values here, so that nothing can fold them into memory; targets/onnx_weights.py stores them.
"""

import logging
import warnings
from typing import Any
from weakref import WeakKeyDictionary

from .attention_forms import Forms, forms, last, rotated, visible, with_present
from .contract import Port, Recipe, TracedStage

OPSET = 23
# Graphs by the program that they were made of, as long as that is there.
_TRANSLATED: WeakKeyDictionary[Any, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()


def graph(stage: TracedStage, recipe: Recipe, chosen: Forms | None = None) -> Any:
    """The onnx_ir.Model of a traced stage: operators chosen, optimized, inputs and outputs named, weights without values.

    `chosen`: what each opaque operator becomes, where it is not what the recipe says. A traced program is translated once for
    each choice that concerns it; whoever asks again has a copy.
    """
    chosen = chosen or _forms(recipe)
    operators = {node.target for node in stage.program.graph.nodes}
    key = (stage.inputs, stage.outputs, *(form for operator, form in chosen.items() if operator in operators))
    made = _TRANSLATED.setdefault(stage.program, {})
    if key not in made:
        made[key] = _translated(stage, chosen)
    model = made[key].clone()
    if recipe.compute == "float16":
        _halve(model)
    _forget_origins(model)
    return model


def _translated(stage: TracedStage, chosen: Forms) -> Any:
    """A stage's graph in float32."""
    import onnx_ir as ir

    model = _translate(stage, chosen)
    for name, value in model.graph.initializers.items():
        if name in stage.constants:
            value.const_value = ir.tensor(stage.constants[name], name=name)
        elif name in stage.weights:
            value.const_value = None
    _optimize(model)
    _declare_ports(model, stage)
    return model


def ports(declared: tuple[Port, ...], values: Any) -> tuple[Port, ...]:
    """The declared ports that the graph kept, with the element types it has now."""
    kept = {value.name: value for value in values}
    return tuple(
        Port(port.name, _type_name(kept[port.name].dtype), port.shape) for port in declared if port.name in kept
    )


def _forms(recipe: Recipe) -> Forms:
    if recipe.attention == "fused":
        return forms(_group_query_attention, _multi_head_attention, last)
    return forms(_attention_with_past, _attention, last)


def _translate(stage: TracedStage, chosen: Forms) -> Any:
    import torch

    # it warns that torchvision's operators are not there, which no stage has
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own use of its pytree
        translated = torch.onnx.export(
            stage.program.run_decompositions(dict(chosen)),
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            input_names=[port.name for port in stage.inputs],
            output_names=[port.name for port in stage.outputs],
        )
    return translated.model


def _optimize(model: Any) -> None:
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import optimize_ir
    from onnxscript.rewriter import onnx_fusions

    # it warns of every initializer without a value, which is how they are meant to be here
    logging.getLogger("onnx_ir.passes.common.initializer_deduplication").setLevel(logging.ERROR)
    optimize_ir(model)
    onnx_fusions.fuse(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    for value in [value for value in model.graph.inputs if not value.uses()]:
        model.graph.inputs.remove(value)


def _declare_ports(model: Any, stage: TracedStage) -> None:
    import onnx_ir as ir

    shapes = {port.name: port.shape for port in (*stage.inputs, *stage.outputs)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(shapes[value.name])


def _halve(model: Any) -> None:
    """Compute in float16: every float value becomes one, except inputs and outputs that are no cache, which are cast."""
    import onnx_ir as ir

    half, single = ir.TensorType(ir.DataType.FLOAT16), ir.TensorType(ir.DataType.FLOAT)
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            value.type = half
            if value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy().astype("float16"), name=value.name)
    for node in model.graph:
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.type = half
    for value in list(model.graph.inputs):
        if value.dtype == ir.DataType.FLOAT:
            value.type = half if _is_cache(value) else single
            if not _is_cache(value):
                _cast_input(model, value, half)
    for index, value in enumerate(list(model.graph.outputs)):
        if value.dtype == ir.DataType.FLOAT16 and not _is_cache(value):
            _cast_output(model, index, value, single)


def _is_cache(value: Any) -> bool:
    return str(value.name).startswith(("past_key_values.", "present."))


def _cast_input(model: Any, value: Any, half: Any) -> None:
    import onnx_ir as ir

    users = list(value.uses())
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)}, name=f"{value.name}_cast")
    cast.outputs[0].name, cast.outputs[0].type = f"{value.name}_half", half
    for user, index in users:
        user.replace_input_with(index, cast.outputs[0])
    model.graph.insert_before(model.graph[0], cast)


def _cast_output(model: Any, index: int, value: Any, single: Any) -> None:
    import onnx_ir as ir

    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}_cast")
    cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = value.name, single, value.shape
    value.name = f"{value.name}_half"
    model.graph.append(cast)
    model.graph.outputs[index] = cast.outputs[0]


def _forget_origins(model: Any) -> None:
    """Drop what tracing noted (source lines, symbol names), so that the same inputs give the same bytes."""
    model.producer_name, model.producer_version, model.doc_string = "ossicle", None, None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name, model.graph.doc_string = "main_graph", None
    ends = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for index, node in enumerate(model.graph):
        node.metadata_props.clear()
        node.name, node.doc_string = f"{node.op_type}_{index}", None
        for output in node.outputs:
            output.metadata_props.clear()
            if id(output) not in ends:
                output.shape = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _type_name(dtype: Any) -> str:
    return {"FLOAT": "float32", "FLOAT16": "float16", "INT64": "int64"}[dtype.name]


def _group_query_attention(
    query: Any,
    key: Any,
    value: Any,
    past_key: Any,
    past_value: Any,
    mask: Any,
    _positions: Any,
    cos: Any,
    sin: Any,
    heads: int,
    kv_heads: int,
    scale: float,
) -> Any:
    """com.microsoft GroupQueryAttention: rotary inside; each row's tokens stand at the left, as many as its mask has ones.

    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
    """
    import torch

    end = (mask.sum(1) - 1).to(torch.int32)
    total = torch.scalar_tensor(mask.shape[1], dtype=torch.int32)
    inputs = (query, key, value, past_key, past_value, end, total, cos, sin)
    attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": scale, "do_rotary": 1, "rotary_interleaved": 0}
    return with_present("com.microsoft::GroupQueryAttention", inputs, attributes, past_key, version=1)


def _attention_with_past(
    query: Any,
    key: Any,
    value: Any,
    past_key: Any,
    past_value: Any,
    mask: Any,
    positions: Any,
    cos: Any,
    sin: Any,
    heads: int,
    kv_heads: int,
    scale: float,
) -> Any:
    """ONNX's own RotaryEmbedding and Attention: positions and padding as the mask says."""
    turned = (rotated(query, heads, positions, cos, sin), rotated(key, kv_heads, positions, cos, sin))
    inputs = (*turned, value, visible(query.shape[1], mask), past_key, past_value)
    attributes = {"q_num_heads": heads, "kv_num_heads": kv_heads, "scale": scale}
    return with_present("Attention", inputs, attributes, past_key)


def _multi_head_attention(query: Any, key: Any, value: Any, heads: int, scale: float) -> Any:
    import torch

    return torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (query, key, value),
        attrs={"num_heads": heads, "scale": scale},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )


def _attention(query: Any, key: Any, value: Any, heads: int, scale: float) -> Any:
    import torch

    return torch.onnx.ops.symbolic(
        "Attention",
        (query, key, value),
        attrs={"q_num_heads": heads, "kv_num_heads": heads, "scale": scale},
        dtype=query.dtype,
        shape=query.shape,
    )
