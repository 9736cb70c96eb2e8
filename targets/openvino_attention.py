"""Attention of OpenVINO models: ossicle's opaque operators in the forms that the engine's plugins fuse.

They cross over as nodes of the ONNX domain `ossicle`, which OpenVINO's reader turns into its own operators by the
extensions given here: the cache in front of ScaledDotProductAttention, rotary embedding as one product with each table.
"""

from typing import Any

import numpy as np

from . import attention_forms
from .attention_forms import Forms, visible, with_present

DOMAIN = "ossicle"


def forms() -> Forms:
    """What stands in a traced program for each opaque operator."""
    return attention_forms.forms(_cached_attention, _attention, _all)


def extensions() -> list[Any]:
    """What makes OpenVINO's reader of ONNX know the operators of `forms`."""
    from openvino.frontend.onnx import ConversionExtension

    converters = {"CachedAttention": _convert_cached_attention, "Attention": _convert_attention}
    return [ConversionExtension(name, DOMAIN, converter) for name, converter in converters.items()]


def _cached_attention(
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
    """The operator with what it sees [batch, 1, new, total], and the rows of its tables [batch, 1, new, head_dim]."""
    import torch

    def rows(table: Any) -> Any:
        half = torch.nn.functional.embedding(positions, table)
        return torch.cat([half, half], -1)[:, None]

    seen = visible(query.shape[1], mask)
    inputs = (query, key, value, past_key, past_value, seen, rows(cos), rows(sin))
    attributes = {"heads": heads, "kv_heads": kv_heads, "scale": scale, "width": past_key.shape[3]}
    return with_present(f"{DOMAIN}::CachedAttention", inputs, attributes, past_key, version=1)


def _attention(query: Any, key: Any, value: Any, heads: int, scale: float) -> Any:
    import torch

    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::Attention",
        (query, key, value),
        attrs={"heads": heads, "scale": scale, "width": query.shape[-1] // heads},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )


def _all(hidden: Any, _count: Any) -> Any:
    """Every position, as optimum-intel has it: who wants the last ones slices in front of the head."""
    return hidden.clone()


def _convert_attention(node: Any) -> list[Any]:
    from openvino import opset13 as operators

    heads, width = node.get_attribute("heads"), node.get_attribute("width")
    split = [_split(node.get_input(index), heads, width) for index in range(3)]
    scale = operators.constant(np.float32(node.get_attribute("scale")))
    zero = operators.constant(np.float32(0))  # no mask
    mixed = operators.scaled_dot_product_attention(*split, zero, scale)
    return [_joined(mixed, heads * width)]


def _convert_cached_attention(node: Any) -> list[Any]:
    from openvino import opset13 as operators

    heads, kv_heads, width = (node.get_attribute(name) for name in ("heads", "kv_heads", "width"))
    query, key, value, past_key, past_value, visible, cos, sin = (node.get_input(index) for index in range(8))
    tables = (cos, sin)
    query = _rotated(_split(query, heads, width), tables, width)
    key = _rotated(_split(key, kv_heads, width), tables, width)
    keys = operators.concat([past_key, key], 2)
    values = operators.concat([past_value, _split(value, kv_heads, width)], 2)
    shared = [_repeated(part, heads, kv_heads, width) for part in (keys, values)]
    scale = operators.constant(np.float32(node.get_attribute("scale")))
    mixed = operators.scaled_dot_product_attention(query, *shared, visible, scale)
    return [_joined(mixed, heads * width), keys.output(0), values.output(0)]


def _split(values: Any, heads: int, width: int) -> Any:
    """[batch, sequence, heads * width] as [batch, heads, sequence, width]."""
    from openvino import opset13 as operators

    apart = operators.reshape(values, np.array([0, 0, heads, width], np.int64), special_zero=True)
    return operators.transpose(apart, np.array([0, 2, 1, 3], np.int64))


def _joined(values: Any, hidden: int) -> Any:
    from openvino import opset13 as operators

    back = operators.transpose(values, np.array([0, 2, 1, 3], np.int64))
    return operators.reshape(back, np.array([0, 0, hidden], np.int64), special_zero=True).output(0)


def _rotated(values: Any, tables: tuple[Any, Any], width: int) -> Any:
    """Rotary embedding of halves, in the form that plugins find: x * cos + (-x2, x1) * sin."""
    from openvino import opset13 as operators

    axis, halves = operators.constant(np.array(3, np.int64)), np.array([width // 2] * 2, np.int64)
    first, second = operators.variadic_split(values, axis, halves).outputs()
    turned = operators.concat([operators.multiply(second, np.float32(-1)), first], -1)
    cos, sin = tables
    return operators.add(operators.multiply(values, cos), operators.multiply(turned, sin))


def _repeated(values: Any, heads: int, kv_heads: int, width: int) -> Any:
    """Each key and value head once for every query head that reads it."""
    from openvino import opset13 as operators

    if heads == kv_heads:
        return values
    apart = operators.unsqueeze(values, np.array(2, np.int64))
    shape = np.array([1, 1, heads // kv_heads, 1, 1], np.int64)
    spread = operators.broadcast(apart, shape, broadcast_spec="BIDIRECTIONAL")
    return operators.reshape(spread, np.array([0, heads, -1, width], np.int64), special_zero=True)
