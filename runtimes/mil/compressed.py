"""Operations whose arguments are constants: compressed weights made whole.

Core ML does this as it loads a program or as it runs; the numbers are the same, computed in float32 and rounded once.
"""

from collections.abc import Mapping

import numpy as np

from .arguments import Arguments, Operator, Result, axis_of
from .tensors import BY_NAME, Array, Tensor, computed


def _blockwise_shift_scale(a: Arguments) -> Result:
    """(data - offset) * scale, each scale and offset for a block of data."""
    data, scale, offset = a.tensor("data"), a.tensor("scale"), a.optional("offset")
    if offset is not None and offset.shape != scale.shape:
        raise ValueError(f"offset {list(offset.shape)} is not of scale's shape {list(scale.shape)}")
    sizes = _blocks(data, scale.shape)
    blocks = data.array.reshape([size for pair in zip(scale.shape, sizes, strict=True) for size in pair])
    aside = [size for length in scale.shape for size in (length, 1)]
    result = blocks.astype(np.float32)
    if offset is not None:
        result -= offset.array.reshape(aside)
    result *= scale.array.reshape(aside)
    return computed(scale.element, result.reshape(data.shape))


def _blocks(data: Tensor, parts: tuple[int, ...]) -> list[int]:
    """How many neighbours share one of `parts` along each axis."""
    if len(parts) != data.array.ndim or any(not n or size % n for size, n in zip(data.shape, parts, strict=True)):
        raise ValueError(f"{list(data.shape)} does not divide into {list(parts)} blocks")
    return [size // n for size, n in zip(data.shape, parts, strict=True)]


def _lut_to_dense(a: Arguments) -> Result:
    """Entries of palettes [*blocks, entries, width]: each index is for `width` neighbours along `vector_axis`."""
    indices, palettes = a.tensor("indices"), a.tensor("lut")
    rank, (entries, width) = indices.array.ndim, palettes.shape[-2:]
    if entries != 1 << indices.element.bits:
        raise ValueError(
            f"indices of {indices.element.name} have {1 << indices.element.bits} entries, lut has {entries}"
        )
    sizes = _blocks(indices, palettes.shape[:-2])
    own = np.ix_(*(np.arange(length) // size for length, size in zip(indices.shape, sizes, strict=True)))
    vectors = palettes.array[(*own, indices.array)]
    if width == 1:
        return Tensor(palettes.element, vectors[..., 0])
    axis = axis_of(a.integer("vector_axis"), rank)
    shape = list(indices.shape)
    shape[axis] *= width
    return Tensor(palettes.element, np.moveaxis(vectors, -1, axis + 1).reshape(shape))


def _sparse_to_dense(a: Arguments) -> Result:
    values, mask = a.tensor("nonzero_data"), a.tensor("mask")
    places = mask.array != 0
    if places.sum() != len(values.array):
        raise ValueError(f"the mask has {places.sum()} places for {len(values.array)} values")
    result = np.zeros(mask.shape, values.array.dtype)
    result[places] = values.array
    return Tensor(values.element, result)


def _affine_dequantize(a: Arguments) -> Result:
    """(data - zero point) * scale, one of each, or one for each place along `axis`."""
    data, scale, zero = a.tensor("quantized_data"), a.tensor("scale"), a.tensor("zero_point")
    axis = axis_of(a.integer("axis"), data.array.ndim)
    shift, factor = (_along(tensor.array, axis, data.array.ndim) for tensor in (zero, scale))
    return computed(scale.element, (data.array.astype(np.float32) - shift) * factor)


def _along(values: Array, axis: int, rank: int) -> Array:
    shape = [1] * rank
    shape[axis] = -1
    return values.astype(np.float32).reshape(shape if values.ndim else [1] * rank)


def _cast(a: Arguments) -> Result:
    source = a.tensor("source_val")
    to = BY_NAME.get(a.word("output_dtype", ""))
    if to is None or not to.is_float:
        raise ValueError(f"output_dtype '{a.word('output_dtype', '')}' is no float")
    return computed(to, source.array)


OPERATORS: Mapping[str, Operator] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": _cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_sparse_to_dense": _sparse_to_dense,
}
