"""What targets put in the place of ossicle's opaque operators in a traced program, as far as they share it.

A form of cached attention takes what the operator takes: query, key and value [batch, new, heads * width], the past's keys and
values [batch, heads, past, width], mask [batch, total], positions [batch, new], the rotary tables cos and sin, and how many
heads and key heads there are, and the scale.
"""

from collections.abc import Callable
from typing import Any

Forms = dict[Any, Callable[..., Any]]


def forms(cached_attention: Callable[..., Any], attention: Callable[..., Any], last: Callable[..., Any]) -> Forms:
    """What stands in a traced program for each opaque operator, as torch's decompositions."""
    import torch

    operators = torch.ops.ossicle
    return {
        operators.cached_attention.default: cached_attention,
        operators.attention.default: attention,
        operators.last.default: last,
    }


def visible(new: Any, mask: Any) -> Any:
    """True [batch, 1, new, total] where a new token looks: at those before it that the mask has, and at itself."""
    import torch

    total = mask.shape[1]
    rows = torch.arange(new)[:, None] + (total - new)
    columns = torch.arange(total)[None, :]
    # a padded row sees itself, since a row that sees nothing would be NaN and spread
    return (((columns <= rows)[None] & (mask[:, None, :] > 0)) | (columns == rows)[None])[:, None]


def rotated(values: Any, heads: int, positions: Any, cos: Any, sin: Any) -> Any:
    """ONNX's own RotaryEmbedding of halves."""
    import torch

    return torch.onnx.ops.symbolic(
        "RotaryEmbedding",
        (values, cos, sin, positions),
        attrs={"num_heads": heads, "interleaved": 0},
        dtype=values.dtype,
        shape=values.shape,
    )


def with_present(
    operator: str, inputs: tuple[Any, ...], attributes: dict[str, Any], past: Any, version: int | None = None
) -> Any:
    """An operator whose first input is the query [batch, new, hidden]; it gives as much, and the present's keys and values."""
    import torch

    query = inputs[0]
    batch, heads, length, width = past.shape
    present = (batch, heads, length + query.shape[1], width)
    return torch.onnx.ops.symbolic_multi_out(
        operator,
        inputs,
        attrs=attributes,
        dtypes=(query.dtype,) * 3,
        shapes=(query.shape, present, present),
        version=version,
    )


def last(hidden: Any, count: Any) -> Any:
    """The last `count` positions; all of them where it is 0, since -0 is the start."""
    import torch

    end = torch.full((1,), 2**62, dtype=torch.int64)
    axis = torch.full((1,), 1, dtype=torch.int64)
    return torch.onnx.ops.symbolic(
        "Slice", (hidden, -count.reshape(1), end, axis), dtype=hidden.dtype, shape=hidden.shape
    )
