"""Operators of MIL by what they compute: each adds one to a block and gives back its result, with its type inferred.

Every parameter is written out, defaults too, as coremltools does.
https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html
"""

from collections.abc import Sequence

from .coreml_mil import Blob, Block, Given, Shape, Value


def binary(block: Block, kind: str, x: Value, y: Value) -> Value:
    """x + y, x * y, ... of shapes that broadcast: "add", "sub", "mul"; "less_equal" is a truth value."""
    dtype = "bool" if kind == "less_equal" else x.dtype
    return block.one(kind, {"x": x, "y": y}, dtype, _broadcast(x.shape, y.shape))


def scaled(block: Block, x: Value, factor: float) -> Value:
    """x times a number."""
    return binary(block, "mul", x, block.constant(factor, x.dtype))


def activation(block: Block, kind: str, x: Value) -> Value:
    """An operator of one input without parameters: "silu", "sigmoid"."""
    return block.one(kind, {"x": x}, x.dtype, x.shape)


def gelu(block: Block, x: Value, *, exact: bool) -> Value:
    """x * Phi(x), or its approximation by tanh."""
    mode = block.constant("EXACT" if exact else "TANH_APPROXIMATION", "string")
    return block.one("gelu", {"x": x, "mode": mode}, x.dtype, x.shape)


def cast(block: Block, x: Value, dtype: str) -> Value:
    """x in another type; itself where it has it."""
    if x.dtype == dtype:
        return x
    name = {"float16": "fp16", "float32": "fp32"}[dtype]
    return block.one("cast", {"x": x, "dtype": block.constant(name, "string")}, dtype, x.shape)


def linear(block: Block, x: Value, weight: Value, bias: Value) -> Value:
    """x [..., K] @ weight [N, K].T + bias [N]."""
    return block.one("linear", {"x": x, "weight": weight, "bias": bias}, x.dtype, (*x.shape[:-1], weight.shape[0]))


def conv(
    block: Block,
    x: Value,
    weight: Value,
    bias: Value | None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> Value:
    """A convolution of x [batch, channels, ...]; `pads`: in front and behind, of each axis in turn."""
    sizes = []
    for axis, size in enumerate(x.shape[2:]):
        kernel = weight.shape[2 + axis]
        assert size is not None
        assert kernel is not None
        reach = dilations[axis] * (kernel - 1) + 1
        sizes.append((size + pads[2 * axis] + pads[2 * axis + 1] - reach) // strides[axis] + 1)
    given = {
        "x": x,
        "weight": weight,
        "strides": block.constant(list(strides), "int32"),
        "pad_type": block.constant("custom", "string"),
        "pad": block.constant(list(pads), "int32"),
        "dilations": block.constant(list(dilations), "int32"),
        "groups": block.constant(groups, "int32"),
    }
    if bias is not None:
        given["bias"] = bias
    return block.one("conv", given, x.dtype, (x.shape[0], weight.shape[0], *sizes))


def layer_norm(block: Block, x: Value, gamma: Value, beta: Value, epsilon: float) -> Value:
    """x normalized along its last axis."""
    given = {
        "x": x,
        "axes": block.constant([-1], "int32"),
        "gamma": gamma,
        "beta": beta,
        "epsilon": block.constant(epsilon, x.dtype),
    }
    return block.one("layer_norm", given, x.dtype, x.shape)


def mean(block: Block, x: Value) -> Value:
    """The mean along the last axis, which stays as 1."""
    given = {"x": x, "axes": block.constant([-1], "int32"), "keep_dims": block.constant(True, "bool")}
    return block.one("reduce_mean", given, x.dtype, (*x.shape[:-1], 1))


def rsqrt(block: Block, x: Value, epsilon: float) -> Value:
    """1 / sqrt(x + epsilon)."""
    return block.one("rsqrt", {"x": x, "epsilon": block.constant(epsilon, x.dtype)}, x.dtype, x.shape)


def gather(block: Block, x: Value, indices: Value, axis: int, *, name: str = "") -> Value:
    """x at `indices` along an axis, where their shape takes the place of the axis."""
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    given = {
        "x": x,
        "indices": indices,
        "axis": block.constant(axis, "int32"),
        "batch_dims": block.constant(0, "int32"),
        "validate_indices": block.constant(False, "bool"),
    }
    return block.one("gather", given, x.dtype, shape, name=name)


def reshape(block: Block, x: Value, sizes: Sequence[int], shape: Shape) -> Value:
    """x in `shape`; `sizes` says it with -1 for the dimension that varies."""
    return block.one("reshape", {"x": x, "shape": block.constant(list(sizes), "int32")}, x.dtype, shape)


def transpose(block: Block, x: Value, order: Sequence[int]) -> Value:
    """x with its axes in another order."""
    shape = tuple(x.shape[axis] for axis in order)
    return block.one("transpose", {"x": x, "perm": block.constant(list(order), "int32")}, x.dtype, shape)


def expand(block: Block, x: Value, axes: Sequence[int]) -> Value:
    """x with new axes of size 1, `axes` being where they are then."""
    shape = list(x.shape)
    for axis in sorted(axes):
        shape.insert(axis, 1)
    return block.one("expand_dims", {"x": x, "axes": block.constant(list(axes), "int32")}, x.dtype, tuple(shape))


def split(block: Block, x: Value, parts: Sequence[int]) -> list[Value]:
    """x in parts of these sizes along its last axis."""
    given = {"x": x, "split_sizes": block.constant(list(parts), "int32"), "axis": block.constant(-1, "int32")}
    return block.add("split", given, x.dtype, *((*x.shape[:-1], size) for size in parts))


def concat(block: Block, values: Sequence[Value]) -> Value:
    """Values joined along their last axis."""
    sizes = [value.shape[-1] for value in values]
    width = None if None in sizes else sum(size or 0 for size in sizes)
    given: dict[str, Given] = {
        "values": values,
        "axis": block.constant(-1 if len(values[0].shape) > 1 else 0, "int32"),
        "interleave": block.constant(False, "bool"),
    }
    return block.one("concat", given, values[0].dtype, (*values[0].shape[:-1], width))


def repeat(block: Block, x: Value, axis: int, times: int) -> Value:
    """x so many times along an axis, one whole behind another."""
    if times == 1:
        return x
    reps = [times if index == axis else 1 for index in range(len(x.shape))]
    size = x.shape[axis]
    shape = (*x.shape[:axis], None if size is None else size * times, *x.shape[axis + 1 :])
    return block.one("tile", {"x": x, "reps": block.constant(reps, "int32")}, x.dtype, shape)


def pad(block: Block, x: Value, behind: int) -> Value:
    """x with so many zeros behind its last axis; itself where there are none."""
    if not behind:
        return x
    given = {
        "x": x,
        "pad": block.constant([0, behind], "int32"),
        "mode": block.constant("constant", "string"),
        "constant_val": block.constant(0.0, x.dtype),
    }
    last = x.shape[-1]
    return block.one("pad", given, x.dtype, (*x.shape[:-1], None if last is None else last + behind))


def columns(block: Block, x: Value, count: int, *, name: str = "") -> Value:
    """The first columns of x [..., columns]."""
    rank = len(x.shape)
    given = {
        "x": x,
        "begin": block.constant([0] * rank, "int32"),
        "end": block.constant([0] * (rank - 1) + [count], "int32"),
        "stride": block.constant([1] * rank, "int32"),
        "begin_mask": block.constant([True] * rank, "bool"),
        "end_mask": block.constant([True] * (rank - 1) + [False], "bool"),
        "squeeze_mask": block.constant([False] * rank, "bool"),
    }
    return block.one("slice_by_index", given, x.dtype, (*x.shape[:-1], count), name=name)


def element(block: Block, x: Value, index: int) -> Value:
    """One element of x, read flat along its last axis: int32 [1]."""
    rank = len(x.shape)
    squeezed = [True] * (rank - 1) + [False]
    given = {
        "x": x,
        "begin": block.constant([0] * (rank - 1) + [index], "int32"),
        "end": block.constant([1] * (rank - 1) + [index + 1], "int32"),
        "stride": block.constant([1] * rank, "int32"),
        "begin_mask": block.constant([False] * rank, "bool"),
        "end_mask": block.constant([False] * rank, "bool"),
        "squeeze_mask": block.constant(squeezed, "bool"),
    }
    return block.one("slice_by_index", given, x.dtype, (1,))


def shape_of(block: Block, x: Value) -> Value:
    """The sizes of x: int32 [rank]."""
    return block.one("shape", {"x": x}, "int32", (len(x.shape),))


def put_rows(block: Block, cache: Value, rows: Value, begin: Value, end: Value, *, name: str = "") -> Value:
    """cache [1, heads, slots, width] with `rows` in slots begin .. end, each int32 [4], of which only the third counts."""
    whole = [True, True, False, True]
    given = {
        "x": cache,
        "update": rows,
        "begin": begin,
        "end": end,
        "stride": block.constant([1] * 4, "int32"),
        "begin_mask": block.constant(whole, "bool"),
        "end_mask": block.constant(whole, "bool"),
        "squeeze_mask": block.constant([False] * 4, "bool"),
    }
    return block.one("slice_update", given, cache.dtype, cache.shape, name=name)


def read_state(block: Block, state: Value) -> Value:
    """What a state holds now."""
    return block.one("read_state", {"input": state}, state.dtype, state.shape)


def write_state(block: Block, state: Value, data: Value) -> None:
    """Make a state hold `data` from now on."""
    block.add("write_state", {"input": state, "data": data}, data.dtype)


def attention(block: Block, query: Value, key: Value, value: Value, mask: Value | None) -> Value:
    """softmax(query @ key.T / sqrt(width) + mask) @ value, of [1, heads, positions, width]."""
    given = {"query": query, "key": key, "value": value}
    if mask is not None:
        given["attn_mask"] = mask
    return block.one("scaled_dot_product_attention", given, query.dtype, query.shape)


def blockwise(block: Block, data: Value | Blob, scale: Blob, offset: Blob | None, title: str) -> Value:
    """scale * (data - offset), where each scale and offset is for a block of neighbours."""
    given = {"data": data, "scale": scale} | ({"offset": offset} if offset else {})
    return block.one("constexpr_blockwise_shift_scale", given, scale.dtype, data.shape, title=title)


def lookup(block: Block, indices: Blob, tables: Blob, title: str) -> Value:
    """Each index's entry in the table of its block; tables [blocks of each axis..., entries, 1]."""
    given = {"indices": indices, "lut": tables}
    return block.one("constexpr_lut_to_dense", given, tables.dtype, indices.shape, title=title)


def _broadcast(left: Shape, right: Shape) -> Shape:
    """The shape of two together; what varies is never broadcast against a number but 1."""
    rank = max(len(left), len(right))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in (left, right)]
    return tuple(b if a == 1 else a for a, b in zip(*padded, strict=True))
