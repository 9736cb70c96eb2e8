"""A LoRA adapter as a GGUF file that llama.cpp adds to a decoder as it runs.

    general.type "adapter", adapter.type "lora", adapter.lora.alpha
    TENSOR.lora_a [r, K]  TENSOR.lora_b [N, r], float32

llama.cpp adds alpha / r * b @ a to what a matrix computes, with one alpha for all; where an adapter's matrices have scales
that no one alpha gives, the difference is in their b. Rows of b are permuted as those of the matrix. Source:
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.cpp.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from . import gguf_file, gguf_metadata, gguf_names
from .contract import Float32, LowRankUpdate, TensorSource
from .gguf_blocks import F32


def write(path: Path, name: str, updates: Mapping[str, LowRankUpdate], model: gguf_metadata.Model) -> None:
    """Write an adapter, its updates by the canonical name of what they are added to; one tensor is in memory at a time.

    Raises:
        BuildError: an update is of a tensor that has no name in a decoder's file.
    """
    alpha = _alpha(next(iter(updates.values())))
    shapes = [(tensor, shape) for canonical, update in updates.items() for tensor, shape in _shapes(canonical, update)]
    placed = gguf_file.place([(tensor, shape, F32) for tensor, shape in shapes])
    head = gguf_file.header(_metadata(name, alpha), placed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(head)
        for canonical, update in updates.items():
            for tensor in _values(canonical, update, alpha, int(model.text["head_dim"])):
                stream.write(tensor.astype("<f4").tobytes())
                stream.write(bytes(gguf_file.aligned(stream.tell()) - stream.tell()))


def _metadata(name: str, alpha: float) -> dict[str, gguf_file.Value]:
    return {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": name,
        "general.file_type": F32.file_type,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }


def _alpha(update: LowRankUpdate) -> float:
    """The alpha that llama.cpp scales an update by as it has to be."""
    return update.scale * update.a.shape[0]


def _shapes(canonical: str, update: LowRankUpdate) -> list[tuple[str, tuple[int, ...]]]:
    tensor = gguf_names.text_name(canonical)
    return [(f"{tensor}.lora_a", update.a.shape), (f"{tensor}.lora_b", update.b.shape)]


def _values(canonical: str, update: LowRankUpdate, alpha: float, head: int) -> Iterator[Float32]:
    yield _whole(update.a)
    b = _whole(update.b)
    if _alpha(update) != alpha:
        b = (b * np.float64(_alpha(update) / alpha)).astype(np.float32)
    if gguf_names.rotated(gguf_names.text_name(canonical)):
        b = b[np.argsort([gguf_names.permuted_row(row, head) for row in range(len(b))])]
    yield b


def _whole(tensor: TensorSource) -> Float32:
    return tensor.rows(0, tensor.shape[0])
