"""ONNX graphs as TensorRT parses them: ONNX's own operators alone, keys and values written into a cache in place.

TensorRT takes neither the operators of com.microsoft nor an Attention that has a past. So new keys and values are scattered
into the cache, which is both an input and an output, and attention reads as much of it as the mask is wide. A cache's length is
a number, since TensorRT scatters into no other.
"""

from dataclasses import replace
from typing import Any

from .attention_forms import forms, last, rotated
from .contract import Port, Recipe, TracedStage
from .onnx_graph import graph as onnx_graph

OPSET = 24  # TensorScatter


def graph(stage: TracedStage, recipe: Recipe, length: int) -> Any:
    """The onnx_ir.Model of a traced stage in the forms that TensorRT has, caches of `length` tokens, weights without values."""
    model = onnx_graph(cached(stage, length), recipe, forms(_scattered_attention, _attention, last))
    model.opset_imports[""] = OPSET
    return model


def cached(stage: TracedStage, length: int) -> TracedStage:
    """The stage with its keys and values, before and after a run, as one cache of `length` tokens."""
    return replace(stage, inputs=_in_place(stage.inputs, length), outputs=_in_place(stage.outputs, length))


def is_cache(port: Port) -> bool:
    """Whether an input or output is a layer's keys or values."""
    return port.name.startswith(("past_key_values.", "present."))


def _in_place(ports: tuple[Port, ...], length: int) -> tuple[Port, ...]:
    return tuple(
        replace(port, shape=(*port.shape[:2], length, *port.shape[3:])) if is_cache(port) else port for port in ports
    )


def _scattered_attention(
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
    """Row b's new tokens go to positions[b, 0] and behind; its query at position p sees the slots 0 .. p that its mask has.

    https://onnx.ai/onnx/operators/onnx__TensorScatter.html
    """
    keys, values = (
        _scatter(past, _by_head(new, kv_heads), positions[:, 0])
        for past, new in ((past_key, rotated(key, kv_heads, positions, cos, sin)), (past_value, value))
    )
    mixed = _attend(
        _by_head(rotated(query, heads, positions, cos, sin), heads),
        _first(keys, mask.shape[1]),
        _first(values, mask.shape[1]),
        scale,
        _visible(mask, positions),
    )
    return mixed, keys, values


def _visible(mask: Any, positions: Any) -> Any:
    """True [batch, 1, new, slots] where a new token looks: at what its row's mask has, up to itself."""
    import torch

    slots = torch.arange(mask.shape[1])
    return ((slots <= positions[:, :, None]) & (mask[:, None, :] > 0))[:, None]


def _by_head(values: Any, heads: int) -> Any:
    """[batch, tokens, heads * width] as [batch, heads, tokens, width]."""
    return values.unflatten(-1, (heads, -1)).transpose(1, 2)


def _scatter(past: Any, new: Any, places: Any) -> Any:
    import torch

    return torch.onnx.ops.symbolic(
        "TensorScatter", (past, new, places), attrs={"axis": 2}, dtype=past.dtype, shape=past.shape
    )


def _first(cache: Any, slots: Any) -> Any:
    """The first `slots` of a cache. Written as an operator, or tracing would take them for the whole."""
    import torch

    start, axis = (torch.full((1,), value, dtype=torch.int64) for value in (0, 2))
    end = torch.scalar_tensor(slots, dtype=torch.int64).reshape(1)
    batch, heads, _, width = cache.shape
    return torch.onnx.ops.symbolic(
        "Slice", (cache, start, end, axis), dtype=cache.dtype, shape=(batch, heads, slots, width)
    )


def _attend(query: Any, key: Any, value: Any, scale: float, mask: Any = None) -> Any:
    """[batch, heads, tokens, width] of each to [batch, tokens, heads * width]."""
    import torch

    inputs = (query, key, value) if mask is None else (query, key, value, mask)
    mixed = torch.onnx.ops.symbolic("Attention", inputs, attrs={"scale": scale}, dtype=query.dtype, shape=query.shape)
    return mixed.transpose(1, 2).flatten(2)


def _attention(query: Any, key: Any, value: Any, heads: int, scale: float) -> Any:
    query, key, value = (_by_head(values, heads) for values in (query, key, value))
    return _attend(query, key, value, scale)
