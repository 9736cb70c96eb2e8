"""Operations that move elements: shapes, slices, gathers, joins. None of them rounds.

What Core ML leaves undefined is refused: an index outside a tensor, a slice that does not fit its update.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np

from .arguments import Arguments, Operator, Result, axis_of, common
from .tensors import FP32, INT32, Array, Tensor, computed, widened

Index = tuple[int | slice, ...]
_PADS: Mapping[str, Any] = {"reflect": "reflect", "replicate": "edge"}


def _with(x: Tensor, array: Array) -> Tensor:
    """The same kind of tensor with other contents."""
    return Tensor(x.element, np.asarray(array))


def _reshape(a: Arguments) -> Result:
    """A size of 0 is that of the argument, counted from the last; -1 is what is left over."""
    x, sizes = a.tensor("x"), a.integers("shape")
    kept = [1] * len(sizes) + list(x.shape)
    kept = kept[len(kept) - len(sizes) :]
    return _with(x, x.array.reshape([size or old for size, old in zip(sizes, kept, strict=True)]))


def _transpose(a: Arguments) -> Result:
    x, order = a.tensor("x"), a.integers("perm")
    return _with(x, x.array.transpose(order))


def _expand_dims(a: Arguments) -> Result:
    x = a.tensor("x")
    return _with(x, np.expand_dims(x.array, tuple(a.integers("axes"))))


def _squeeze(a: Arguments) -> Result:
    """An axis longer than one stays."""
    x = a.tensor("x")
    axes = [axis_of(axis, x.array.ndim) for axis in a.integers("axes", list(range(x.array.ndim)))]
    return _with(x, np.squeeze(x.array, tuple(axis for axis in axes if x.shape[axis] == 1)))


def _shape(a: Arguments) -> Result:
    return Tensor(INT32, np.array(a.tensor("x").shape, np.int32))


def _tile(a: Arguments) -> Result:
    x, times = a.tensor("x"), a.integers("reps")
    if len(times) != x.array.ndim:
        raise ValueError(f"reps {times} do not fit {list(x.shape)}")
    return _with(x, np.tile(x.array, times))


def _concat(a: Arguments) -> Result:
    values = a.tensors("values")
    element = common(*values)
    if not a.flag("interleave"):
        return Tensor(element, np.concatenate([np.atleast_1d(value.array) for value in values], a.integer("axis")))
    axis = axis_of(a.integer("axis"), values[0].array.ndim)
    side_by_side = np.stack([value.array for value in values], axis + 1)
    shape = list(values[0].shape)
    shape[axis] *= len(values)
    return Tensor(element, side_by_side.reshape(shape))


def _stack(a: Arguments) -> Result:
    values = a.tensors("values")
    return Tensor(common(*values), np.stack([value.array for value in values], a.integer("axis")))


def _split(a: Arguments) -> Result:
    x = a.tensor("x")
    axis = axis_of(a.integer("axis"), x.array.ndim)
    if "split_sizes" not in a:
        return tuple(_with(x, part) for part in np.split(x.array, a.integer("num_splits"), axis))
    sizes = a.integers("split_sizes")
    if sum(sizes) != x.shape[axis]:
        raise ValueError(f"split_sizes {sizes} do not add up to {x.shape[axis]}")
    return tuple(_with(x, part) for part in np.split(x.array, np.cumsum(sizes)[:-1], axis))


def _places(a: Arguments, x: Tensor) -> Index:
    """What a slice takes along each axis, as Python counts: from the end where negative, and no further than there is."""
    rank = x.array.ndim
    begin, end, step = a.integers("begin"), a.integers("end"), a.integers("stride", [1] * rank)
    from_first, to_last, single = (a.flags(f"{name}_mask", [False] * rank) for name in ("begin", "end", "squeeze"))
    if {len(values) for values in (begin, end, step, from_first, to_last, single)} - {rank}:
        raise ValueError(f"begin, end, stride and masks do not fit {rank} axes")
    return tuple(
        begin[i] if single[i] else slice(None if from_first[i] else begin[i], None if to_last[i] else end[i], step[i])
        for i in range(rank)
    )


def _slice_by_index(a: Arguments) -> Result:
    x = a.tensor("x")
    return _with(x, x.array[_places(a, x)])


def _slice_update(a: Arguments) -> Result:
    x, update = a.tensor("x"), a.tensor("update")
    common(x, update)
    result, places = x.array.copy(), _places(a, x)
    if result[places].shape != update.shape:
        raise ValueError(f"update {list(update.shape)} does not fit the slice {list(result[places].shape)}")
    result[places] = update.array
    return _with(x, result)


def _slice_by_size(a: Arguments) -> Result:
    """A size of -1 is what is left."""
    x, begin, sizes = a.tensor("x"), a.integers("begin"), a.integers("size")
    places = []
    for first, size, length in zip(begin, sizes, x.shape, strict=True):
        first += length if first < 0 else 0
        last = length if size == -1 else first + size
        if not 0 <= first <= last <= length:
            raise ValueError(f"begin {begin} and size {sizes} leave {list(x.shape)}")
        places.append(slice(first, last))
    return _with(x, x.array[tuple(places)])


def _within(indices: Array, length: int) -> Array:
    if indices.size and not (indices.min() >= 0 and indices.max() < length):
        raise ValueError(f"indices from {indices.min()} to {indices.max()} leave 0 to {length - 1}")
    return indices


def _gather(a: Arguments) -> Result:
    x, indices = a.tensor("x"), a.tensor("indices")
    axis, batch = axis_of(a.integer("axis", 0), x.array.ndim), a.integer("batch_dims", 0)
    if not 0 <= batch <= min(axis, indices.array.ndim) or x.shape[:batch] != indices.shape[:batch]:
        raise ValueError(f"batch_dims {batch} do not fit {list(x.shape)} and {list(indices.shape)}")
    return _with(x, _taken(x.array, _within(indices.array, x.shape[axis]), axis, batch))


def _taken(x: Array, indices: Array, axis: int, batch: int) -> Array:
    if not batch:
        return np.take(x, indices, axis)
    return np.stack([_taken(one, chosen, axis - 1, batch - 1) for one, chosen in zip(x, indices, strict=True)])


def _gather_along_axis(a: Arguments) -> Result:
    x, indices = a.tensor("x"), a.tensor("indices").array
    axis = axis_of(a.integer("axis", 0), x.array.ndim)
    return _with(x, np.take_along_axis(x.array, _within(indices, x.shape[axis]).astype(np.int64), axis))


def _pad(a: Arguments) -> Result:
    """The last axes, a pair of numbers each."""
    x, pads, mode = a.tensor("x"), a.integers("pad"), a.word("mode", "constant")
    pairs = [(0, 0)] * (x.array.ndim - len(pads) // 2) + list(zip(pads[::2], pads[1::2], strict=True))
    if mode == "constant":
        return _with(x, np.pad(x.array, pairs, constant_values=a.number("constant_val", 0.0)))
    if mode not in _PADS:
        raise ValueError(f"mode '{mode}' is unknown (it can be: constant, {', '.join(_PADS)})")
    return _with(x, np.pad(x.array, pairs, _PADS[mode]))


def _fill(a: Arguments) -> Result:
    return _filled(a, a.integers("shape"))


def _fill_like(a: Arguments) -> Result:
    return _filled(a, list(a.tensor("ref_tensor").shape))


def _filled(a: Arguments, shape: list[int]) -> Tensor:
    value = a.optional("value") or Tensor(FP32, np.zeros((), np.float32))
    return _with(value, np.full(shape, value.array.reshape(()), value.array.dtype))


def _range_1d(a: Arguments) -> Result:
    start, end, step = (a.tensor(name) for name in ("start", "end", "step"))
    element = common(start, end, step)
    first, last, by = (value.array.item() for value in (start, end, step))
    count = max(0, ceil((last - first) / by)) if by else 0
    return computed(element, first + by * np.arange(count))


def _reverse(a: Arguments) -> Result:
    x = a.tensor("x")
    return _with(x, np.flip(x.array, a.integers("axes", list(range(x.array.ndim)))))


def _band_part(a: Arguments) -> Result:
    """All but a band about the diagonal of each matrix becomes zero; a negative width is all."""
    x, lower, upper = a.tensor("x"), a.integer("lower", -1), a.integer("upper", -1)
    above = np.arange(x.shape[-1]) - np.arange(x.shape[-2])[:, None]
    kept = (lower < 0) | (-above <= lower)
    return widened(x.element, np.where(kept & ((upper < 0) | (above <= upper)), x.array, x.array.dtype.type(0)))


OPERATORS: Mapping[str, Operator] = {
    "band_part": _band_part,
    "concat": _concat,
    "expand_dims": _expand_dims,
    "fill": _fill,
    "fill_like": _fill_like,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "pad": _pad,
    "range_1d": _range_1d,
    "reshape": _reshape,
    "reverse": _reverse,
    "shape": _shape,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": _slice_update,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
