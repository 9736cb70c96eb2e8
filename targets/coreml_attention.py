"""Attention in MIL: rotary embedding from tables, keys and values written to their slots, scaled_dot_product_attention.

The slot of a token is its position, and a token sees the slots up to its own: neither rests on the width of a mask. All
slots take part, so that a step's shapes are fixed, which the neural engine asks for. Query heads that read the same key
head stand one below the other, so that no key is copied.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from . import coreml_ops as ops
from .coreml_mil import Block, Value

_HIDDEN = -3e4  # added to what is not seen; finite, since float16 engines turn infinities into NaN


@dataclass
class Cache:
    """The keys and values of one function, and what all of its layers share."""

    held: Mapping[str, Value]  # by name: states, or inputs where the function keeps none
    stateful: bool
    cos: Value  # [1, positions, 1, width / 2]
    sin: Value
    mask: Value  # [1, 1, positions, slots]
    begin: Value  # int32 [4], its third the first slot that is written
    end: Value
    given: list[Value] = field(default_factory=list)  # the caches as they are then, where there are no states
    _masks: dict[int, Value] = field(default_factory=dict)

    def mask_for(self, block: Block, times: int) -> Value:
        """The mask of so many query heads below each other."""
        if times not in self._masks:
            self._masks[times] = ops.repeat(block, self.mask, 2, times)
        return self._masks[times]

    def replace(self, block: Block, name: str, rows: Value) -> Value:
        """A cache with `rows` in their slots, from now on."""
        held = self.held[name]
        if not self.stateful:
            self.given.append(ops.put_rows(block, held, rows, self.begin, self.end, name=f"new_{name}"))
            return self.given[-1]
        ops.write_state(block, held, ops.put_rows(block, ops.read_state(block, held), rows, self.begin, self.end))
        return ops.read_state(block, held)


def places(block: Block, positions: Value) -> tuple[Value, Value]:
    """The slots of consecutive positions [1, T]: the first, and the one behind the last, each as int32 [4]."""
    first = ops.element(block, positions, 0)
    fixed = positions.shape[1] == 1
    count = block.constant([1], "int32") if fixed else ops.element(block, ops.shape_of(block, positions), 1)
    around = (block.constant([0, 0], "int32"), block.constant([0], "int32"))
    behind = ops.binary(block, "add", first, count)
    begin, end = (ops.concat(block, [around[0], slot, around[1]]) for slot in (first, behind))
    return begin, end


def causal(block: Block, positions: Value, slots: int, dtype: str) -> Value:
    """What is added to the scores of each position [1, T]: nothing where it sees, [1, 1, T, slots]."""
    columns = ops.expand(block, block.constant(list(range(slots)), "int32"), [0, 1, 2])
    rows = ops.expand(block, positions, [1, 3])
    seen = ops.cast(block, ops.binary(block, "less_equal", columns, rows), dtype)
    return ops.scaled(block, ops.binary(block, "sub", block.constant(1.0, dtype), seen), _HIDDEN)


def rotary_rows(block: Block, table: Value, positions: Value) -> Value:
    """Rows of a table [positions, width / 2] at positions [1, T], for every head: [1, T, 1, width / 2]."""
    return ops.expand(block, ops.gather(block, table, positions, 0), [2])


def cached_attention(
    block: Block, inputs: Sequence[Value], cache: Cache, layer: str, heads: int, kv_heads: int, scale: float
) -> Value:
    """Attention of query, key and value [1, T, heads * width] with what the cache holds, their own keys included."""
    query, key, value = inputs
    width = _size(query.shape[-1]) // heads
    keys = cache.replace(block, f"key_cache_{layer}", _turned(block, _apart(block, key, kv_heads), cache))
    values = cache.replace(block, f"value_cache_{layer}", _heads_first(block, _apart(block, value, kv_heads)))
    asked = _scaled(block, _turned(block, _apart(block, query, heads), cache), scale, width)
    length, times = asked.shape[2], heads // kv_heads
    asked = _regrouped(block, asked, kv_heads, times)
    mixed = ops.attention(block, asked, keys, values, cache.mask_for(block, times))
    sizes = [1, heads, -1 if length is None else length, width]
    return _joined(block, ops.reshape(block, mixed, sizes, (1, heads, length, width)))


def attention(block: Block, inputs: Sequence[Value], heads: int, scale: float) -> Value:
    """Attention of query, key and value [1, T, heads * width] in which all see all."""
    width = _size(inputs[0].shape[-1]) // heads
    query, key, value = (_heads_first(block, _apart(block, one, heads)) for one in inputs)
    return _joined(block, ops.attention(block, _scaled(block, query, scale, width), key, value, None))


def _apart(block: Block, x: Value, heads: int) -> Value:
    """[1, T, heads * width] as [1, T, heads, width]."""
    length, width = x.shape[1], _size(x.shape[2]) // heads
    return ops.reshape(block, x, [1, -1 if length is None else length, heads, width], (1, length, heads, width))


def _heads_first(block: Block, x: Value) -> Value:
    return ops.transpose(block, x, [0, 2, 1, 3])


def _joined(block: Block, x: Value) -> Value:
    _, heads, length, width = x.shape
    hidden = _size(heads) * _size(width)
    return ops.reshape(
        block, _heads_first(block, x), [1, -1 if length is None else length, hidden], (1, length, hidden)
    )


def _turned(block: Block, x: Value, cache: Cache) -> Value:
    """Rotary embedding of halves of [1, T, heads, width]: (x1 cos - x2 sin, x2 cos + x1 sin), heads in front."""
    half = _size(x.shape[-1]) // 2
    first, second = ops.split(block, x, [half, half])
    products = [ops.binary(block, "mul", one, by) for one in (first, second) for by in (cache.cos, cache.sin)]
    turned = [ops.binary(block, "sub", products[0], products[3]), ops.binary(block, "add", products[2], products[1])]
    return _heads_first(block, ops.concat(block, turned))


def _regrouped(block: Block, x: Value, kv_heads: int, times: int) -> Value:
    """[1, heads, T, width] as [1, kv heads, heads / kv heads * T, width]."""
    _, _, length, width = x.shape
    tall = None if length is None else length * times
    return ops.reshape(block, x, [1, kv_heads, -1 if tall is None else tall, _size(width)], (1, kv_heads, tall, width))


def _scaled(block: Block, query: Value, scale: float, width: int) -> Value:
    """The query such that the operator, which divides by the root of the width, multiplies by `scale`."""
    factor = scale * math.sqrt(width)
    return query if math.isclose(factor, 1, rel_tol=1e-6) else ops.scaled(block, query, factor)


def _size(size: int | None) -> int:
    assert size is not None
    return size
