"""MIL functions of traced stages: each node of the stage's ONNX graph as operators of MIL.

The graph is read in float32; here values are of the records' type, but for the sums of RMSNorm, which are float32 always.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import coreml_ops as ops
from . import onnx_graph
from .attention_forms import forms, with_present
from .contract import BuildError, Recipe, TracedStage, WeightStore
from .coreml_attention import Cache, attention, cached_attention
from .coreml_mil import Block, Value
from .coreml_weights import Records, floats, matrix, zeros

_DOMAIN = "ossicle"


@dataclass
class Emission:
    """One function as it is written: the values of the ONNX graph that are there already, by name."""

    block: Block
    records: Records
    weights: WeightStore
    values: dict[str, Value] = field(default_factory=dict)
    cache: Cache | None = None
    kept: Value | None = None  # the positions that get logits; None: all

    def value(self, held: Any) -> Value:
        """What an ONNX value is here; a weight is made at its first use."""
        if held.name not in self.values:
            self.values[held.name] = floats(self.block, self.records, self.weights.source(held.name))
        return self.values[held.name]


def graph(stage: TracedStage, recipe: Recipe) -> Any:
    """The onnx_ir.Model of a stage in float32, ossicle's operators as nodes of their own.

    Raises:
        BuildError: it has operators that have no form in MIL.
    """
    model = onnx_graph.graph(stage, recipe, forms(_cached_attention_node, _attention_node, _last_node))
    unknown = sorted({node.op_type for node in model.graph} - set(_EMITTERS))
    if unknown:
        raise BuildError(
            f"target 'coreml' has no form for {', '.join(unknown)} of stage '{stage.name}' "
            f"(it has: {', '.join(sorted(_EMITTERS))}). Build for another target: ossicle targets"
        )
    return model


def emit(model: Any, emission: Emission) -> list[Value]:
    """The outputs of a graph, in order, with every node written into the emission's block."""
    for node in model.graph:
        result = _EMITTERS[node.op_type](node, emission)
        if result is not None:
            emission.values[node.outputs[0].name] = result
    return [emission.values[output.name] for output in model.graph.outputs if output.name in emission.values]


def _cached_attention_node(
    query: Any,
    key: Any,
    value: Any,
    past_key: Any,
    past_value: Any,
    _mask: Any,
    _positions: Any,
    _cos: Any,
    _sin: Any,
    heads: int,
    kv_heads: int,
    scale: float,
) -> Any:
    """A node of its name, without what MIL does not need."""
    inputs, attributes = (
        (query, key, value, past_key, past_value),
        {"heads": heads, "kv_heads": kv_heads, "scale": scale},
    )
    return with_present(f"{_DOMAIN}::CachedAttention", inputs, attributes, past_key, version=1)


def _attention_node(query: Any, key: Any, value: Any, heads: int, scale: float) -> Any:
    import torch

    return torch.onnx.ops.symbolic(
        f"{_DOMAIN}::AllAttention",
        (query, key, value),
        attrs={"heads": heads, "scale": scale},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )


def _last_node(hidden: Any, _count: Any) -> Any:
    import torch

    return torch.onnx.ops.symbolic(f"{_DOMAIN}::Kept", (hidden,), dtype=hidden.dtype, shape=hidden.shape, version=1)


def _emit_cached_attention(node: Any, emission: Emission) -> Value:
    attributes = _attributes(node)
    layer = node.inputs[3].name.split(".")[1]
    assert emission.cache is not None
    inputs = [emission.value(held) for held in node.inputs[:3]]
    sizes = (attributes["heads"], attributes["kv_heads"], attributes["scale"])
    return cached_attention(emission.block, inputs, emission.cache, layer, *sizes)


def _emit_attention(node: Any, emission: Emission) -> Value:
    attributes = _attributes(node)
    inputs = [emission.value(held) for held in node.inputs]
    return attention(emission.block, inputs, attributes["heads"], attributes["scale"])


def _emit_kept(node: Any, emission: Emission) -> Value:
    hidden = emission.value(node.inputs[0])
    return hidden if emission.kept is None else ops.gather(emission.block, hidden, emission.kept, 1)


def _emit_matmul(node: Any, emission: Emission) -> Value:
    """x @ W.T, with its bias where that is all that follows."""
    name = node.inputs[1].producer().inputs[0].name
    block, follower = emission.block, _bias_add(node)
    weight = matrix(block, emission.records, emission.weights, name)
    x = emission.value(node.inputs[0])
    rows, columns = weight.shape
    assert rows is not None
    assert columns is not None
    bias = emission.value(follower.inputs[1]) if follower else zeros(block, emission.records, rows)
    return ops.linear(block, ops.pad(block, x, columns - (x.shape[-1] or 0)), weight, bias)


def _emit_add(node: Any, emission: Emission) -> Value:
    producer = node.inputs[0].producer()
    if producer is not None and producer.op_type == "MatMul" and _bias_add(producer) is node:
        return emission.value(node.inputs[0])
    return _emit_binary(node, emission, "add")


def _emit_multiply(node: Any, emission: Emission) -> Value:
    """A product; x * sigmoid(x) is one operator."""
    gate = next((held for held in node.inputs if _is_own_gate(held, node)), None)
    if gate is not None:
        return ops.activation(emission.block, "silu", emission.value(gate.producer().inputs[0]))
    return _emit_binary(node, emission, "mul")


def _emit_binary(node: Any, emission: Emission, kind: str) -> Value:
    return ops.binary(emission.block, kind, *(emission.value(held) for held in node.inputs))


def _emit_sigmoid(node: Any, emission: Emission) -> Value | None:
    users = [user for user, _ in node.outputs[0].uses()]
    if all(user.op_type == "Mul" and _is_own_gate(node.outputs[0], user) for user in users):
        return None
    return ops.activation(emission.block, "sigmoid", emission.value(node.inputs[0]))


def _emit_rms_norm(node: Any, emission: Emission) -> Value:
    """x / sqrt(mean of squares + epsilon) * gamma; squares of float16 would leave its range."""
    block, x = emission.block, emission.value(node.inputs[0])
    wide = ops.cast(block, x, "float32")
    squares = ops.mean(block, ops.binary(block, "mul", wide, wide))
    factor = ops.rsqrt(block, squares, _attributes(node)["epsilon"])
    normal = ops.cast(block, ops.binary(block, "mul", wide, factor), x.dtype)
    return ops.binary(block, "mul", normal, emission.value(node.inputs[1]))


def _emit_layer_norm(node: Any, emission: Emission) -> Value:
    x, gamma, beta = (emission.value(held) for held in node.inputs)
    return ops.layer_norm(emission.block, x, gamma, beta, _attributes(node)["epsilon"])


def _emit_gelu(node: Any, emission: Emission) -> Value:
    exact = _attributes(node).get("approximate", "none") == "none"
    return ops.gelu(emission.block, emission.value(node.inputs[0]), exact=exact)


def _emit_conv(node: Any, emission: Emission) -> Value:
    """ONNX lists the pads in front of all axes and then those behind; MIL goes axis by axis."""
    attributes = _attributes(node)
    x, weight, *bias = (emission.value(held) for held in node.inputs)
    pads, axes = attributes["pads"], len(attributes["strides"])
    return ops.conv(
        emission.block,
        x,
        weight,
        bias[0] if bias else None,
        strides=attributes["strides"],
        pads=[pads[axis + side * axes] for axis in range(axes) for side in (0, 1)],
        dilations=attributes["dilations"],
        groups=attributes["group"],
    )


def _emit_transpose(node: Any, emission: Emission) -> Value | None:
    """A weight's transpose is the product's own affair."""
    if node.inputs[0].is_initializer():
        return None
    return ops.transpose(emission.block, emission.value(node.inputs[0]), _attributes(node)["perm"])


def _emit_reshape(node: Any, emission: Emission) -> Value:
    """A shape whose dimensions are all known but one."""
    x = emission.value(node.inputs[0])
    sizes = [int(size) for size in node.inputs[1].const_value.numpy()]
    known = [size for size in x.shape if size is not None]
    count = 1
    for size in known:
        count *= size
    for size in sizes:
        count //= size if size > 0 else 1
    return ops.reshape(emission.block, x, sizes, tuple(count if size < 0 else size for size in sizes))


def _emit_gather(node: Any, emission: Emission) -> Value:
    """Rows of the embedding."""
    name, block = node.inputs[0].name, emission.block
    table = matrix(block, emission.records, emission.weights, name)
    rows = ops.gather(block, table, emission.value(node.inputs[1]), 0)
    width = emission.weights.source(name).shape[1]
    return rows if table.shape[1] == width else ops.columns(block, rows, width)


_EMITTERS: Mapping[str, Callable[[Any, Emission], Value | None]] = {
    "Add": _emit_add,
    "AllAttention": _emit_attention,
    "CachedAttention": _emit_cached_attention,
    "Conv": _emit_conv,
    "Gather": _emit_gather,
    "Gelu": _emit_gelu,
    "Kept": _emit_kept,
    "LayerNormalization": _emit_layer_norm,
    "MatMul": _emit_matmul,
    "Mul": _emit_multiply,
    "RMSNormalization": _emit_rms_norm,
    "Reshape": _emit_reshape,
    "Sigmoid": _emit_sigmoid,
    "Transpose": _emit_transpose,
}


def _attributes(node: Any) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _bias_add(product: Any) -> Any:
    """The addition of a weight [N] that alone uses a product; None where there is none."""
    users = [user for user, _ in product.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Add" or users[0].inputs[0] is not product.outputs[0]:
        return None
    other = users[0].inputs[1]
    return users[0] if other.is_initializer() and len(other.shape) == 1 else None


def _is_own_gate(held: Any, product: Any) -> bool:
    """Whether a factor of a product is the sigmoid of the other one."""
    producer = held.producer()
    return (
        producer is not None
        and producer.op_type == "Sigmoid"
        and any(other is producer.inputs[0] for other in product.inputs)
    )
