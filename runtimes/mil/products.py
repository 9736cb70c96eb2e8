"""Matrix products, convolution, attention, normalization and reductions.

Everything within one operation is float32, sums and exponentials too, and its result is rounded once.
"""

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .arguments import Arguments, Operator, Result, axis_of, common
from .tensors import BOOL, INT32, Array, computed


def _linear(a: Arguments) -> Result:
    x, weight, bias = a.tensor("x"), a.tensor("weight"), a.optional("bias")
    element = common(x, weight, *([bias] if bias is not None else []))
    if weight.array.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"weight {list(weight.shape)} does not fit {list(x.shape)}")
    result = x.array.reshape(-1, weight.shape[1]) @ weight.array.T
    if bias is not None:
        result += bias.array
    return computed(element, result.reshape(*x.shape[:-1], weight.shape[0]))


def _matmul(a: Arguments) -> Result:
    x, y = a.tensor("x"), a.tensor("y")
    left, right = (
        tensor.array.swapaxes(-1, -2) if a.flag(f"transpose_{name}") else tensor.array
        for name, tensor in (("x", x), ("y", y))
    )
    return computed(common(x, y), left @ right)


def _attention(a: Arguments) -> Result:
    """Softmax of query and key's products over the square root of their width, plus the mask, times value."""
    query, key, value, mask = a.tensor("query"), a.tensor("key"), a.tensor("value"), a.optional("attn_mask")
    element = common(query, key, value)
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise ValueError("query, key and value are of different batches")
    scores = query.array @ key.array.swapaxes(-1, -2)
    scores *= np.float32(query.shape[-1] ** -0.5)
    if mask is not None and mask.element == BOOL:
        scores = np.where(mask.array, scores, np.float32(-np.inf))
    elif mask is not None:
        common(query, mask)
        scores = scores + mask.array
    return computed(element, _softmaxed(scores, -1) @ value.array)


def _softmax(a: Arguments) -> Result:
    x = a.tensor("x")
    return computed(x.element, _softmaxed(x.array, axis_of(a.integer("axis", -1), x.array.ndim)))


def _softmaxed(x: Array, axis: int) -> Array:
    result: Array = x - x.max(axis, keepdims=True)
    np.exp(result, out=result)
    result /= result.sum(axis, keepdims=True)
    return result


def _layer_norm(a: Arguments) -> Result:
    x, rank = a.tensor("x"), a.tensor("x").array.ndim
    axes = tuple(axis_of(axis, rank) for axis in a.integers("axes", list(range(rank))))
    centred = x.array - x.array.mean(axes, keepdims=True)
    variance = np.square(centred).mean(axes, keepdims=True)
    result = centred / np.sqrt(variance + np.float32(a.number("epsilon", 1e-5)))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    for name, combine in (("gamma", np.multiply), ("beta", np.add)):
        if (given := a.optional(name)) is not None:
            common(x, given)
            result = combine(result, given.array.reshape(shape))
    return computed(x.element, result)


def _conv(a: Arguments) -> Result:
    """Products of the weights with every place that they cover; [batch, channels, *sizes] in and out."""
    x, weight, bias = a.tensor("x"), a.tensor("weight"), a.optional("bias")
    element = common(x, weight, *([bias] if bias is not None else []))
    groups, kernel = a.integer("groups", 1), weight.shape[2:]
    if x.array.ndim != weight.array.ndim or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(f"weight {list(weight.shape)} in {groups} groups does not fit {list(x.shape)}")
    places = _covered(a, x.array, kernel)
    sizes = places.shape[2 : 2 + len(kernel)]
    columns = np.moveaxis(places, 1, 1 + len(kernel)).reshape(len(x.array), prod(sizes), groups, -1)
    filters = weight.array.reshape(groups, weight.shape[0] // groups, -1)
    result = columns.swapaxes(1, 2) @ filters.swapaxes(1, 2)
    result = result.swapaxes(2, 3).reshape(len(x.array), weight.shape[0], *sizes)
    if bias is not None:
        result = result + bias.array.reshape(-1, *[1] * len(kernel))
    return computed(element, result)


def _covered(a: Arguments, x: Array, kernel: tuple[int, ...]) -> Array:
    """What the kernel covers at each place: [batch, channels, *places, *kernel]."""
    ones = [1] * len(kernel)
    steps, dilations = a.integers("strides", ones), a.integers("dilations", ones)
    reach = [(size - 1) * wide + 1 for size, wide in zip(kernel, dilations, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *_padding(a, x.shape[2:], reach, steps)])
    windows = sliding_window_view(padded, tuple(reach), tuple(range(2, x.ndim)))  # type: ignore[call-overload]
    chosen = (slice(None), slice(None), *(slice(None, None, step) for step in (*steps, *dilations)))
    covered: Array = windows[chosen]
    return covered


def _padding(a: Arguments, sizes: tuple[int, ...], reach: list[int], steps: list[int]) -> list[tuple[int, int]]:
    kind = a.word("pad_type", "valid")
    if kind == "custom":
        pads = a.integers("pad")
        return list(zip(pads[::2], pads[1::2], strict=True))
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind not in ("same", "same_lower"):
        raise ValueError(f"pad_type '{kind}' is unknown (it can be: valid, custom, same, same_lower)")
    missing = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(sizes, reach, steps, strict=True)]
    pairs = [(total // 2, total - total // 2) for total in missing]
    return pairs if kind == "same" else [(after, before) for before, after in pairs]


REDUCTIONS: Mapping[str, Callable[..., Array]] = {
    "reduce_max": np.max,
    "reduce_mean": np.mean,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_sum": np.sum,
    "reduce_sum_square": lambda x, axis, keepdims: np.sum(np.square(x), axis=axis, keepdims=keepdims),
    "reduce_l2_norm": lambda x, axis, keepdims: np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims)),
}


def _reduction(function: Callable[..., Array]) -> Operator:
    def run(a: Arguments) -> Result:
        x = a.tensor("x")
        axes = tuple(axis_of(axis, x.array.ndim) for axis in a.integers("axes", list(range(x.array.ndim))))
        return computed(x.element, function(x.array, axis=axes, keepdims=a.flag("keep_dims")))

    return run


def _place(function: Callable[..., Array]) -> Operator:
    """The first place of the largest or smallest."""

    def run(a: Arguments) -> Result:
        x = a.tensor("x").array
        axis = axis_of(a.integer("axis", -1), x.ndim)
        return computed(INT32, np.asarray(function(x, axis=axis, keepdims=a.flag("keep_dims"))))

    return run


def _cumsum(a: Arguments) -> Result:
    x = a.tensor("x")
    axis = axis_of(a.integer("axis", 0), x.array.ndim)
    turned = np.flip(x.array, axis) if a.flag("reverse") else x.array
    total = np.cumsum(turned, axis, turned.dtype)
    if a.flag("exclusive"):
        total = total - turned
    return computed(x.element, np.flip(total, axis) if a.flag("reverse") else total)


OPERATORS: Mapping[str, Operator] = {
    **{kind: _reduction(function) for kind, function in REDUCTIONS.items()},
    "conv": _conv,
    "cumsum": _cumsum,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "reduce_argmax": _place(np.argmax),
    "reduce_argmin": _place(np.argmin),
    "scaled_dot_product_attention": _attention,
    "softmax": _softmax,
}
