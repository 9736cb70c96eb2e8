"""What a checkpoint stores, by the canonical names of its family, and checked against its configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..targets.contract import CheckpointError, Float32, TensorSource
from .families import Family, Layout
from .safetensors import StoredTensor

CONFIG: Mapping[Layout, str] = {"huggingface": "config.json", "mistral": "params.json"}


def canonical(
    folder: Path, stored: Mapping[str, StoredTensor], layout: Layout, model: Family, config: Mapping[str, Any]
) -> tuple[dict[str, TensorSource], bool]:
    """Every tensor by its canonical name in the family's order, and whether the head is the embedding.

    Raises:
        CheckpointError: listing every tensor that is missing, or is not as the configuration says.
    """
    shapes = model.parameters(config)
    found, faults = _renamed(stored, shapes, layout, model)
    tied = model.LM_HEAD not in found and model.tied(config)
    if tied and model.EMBEDDING in found:
        found[model.LM_HEAD] = found[model.EMBEDDING]
    absent = [name for name in shapes if name not in found and not model.computed(name, layout)]
    faults += [f"'{name}' {_shape(shapes[name])} is missing" for name in absent]
    if faults:
        listed = "; ".join(faults)
        raise CheckpointError(
            f"'{folder}' does not hold the {model.MODEL_TYPE} that its {CONFIG[layout]} describes: {listed}. "
            "An adapter goes to --adapter; a checkpoint of another model or a partial one cannot be built"
        )
    return {name: _placed(name, found.get(name), shapes[name], layout, model, config) for name in shapes}, tied


def _renamed(
    stored: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], layout: Layout, model: Family
) -> tuple[dict[str, StoredTensor], list[str]]:
    found: dict[str, StoredTensor] = {}
    faults = []
    for name, tensor in stored.items():
        canonical = model.canonical(name, layout)
        if canonical is None:
            continue
        if canonical not in shapes:
            faults.append(f"'{name}' {_shape(tensor.shape)} in '{tensor.path.name}' is no tensor of this family")
        elif canonical in found:
            faults.append(f"'{name}' is the same tensor as '{found[canonical].name}'")
        elif tensor.refusal:
            faults.append(tensor.refusal)
        elif tensor.shape != shapes[canonical]:
            faults.append(f"'{name}' is {_shape(tensor.shape)}, the configuration says {_shape(shapes[canonical])}")
        if canonical in shapes:
            found.setdefault(canonical, tensor)
    return found, faults


def _placed(
    name: str,
    stored: StoredTensor | None,
    shape: tuple[int, ...],
    layout: Layout,
    model: Family,
    config: Mapping[str, Any],
) -> TensorSource:
    if stored is None:
        return Sinusoids(name, (shape[0], shape[1]))
    tensor = replace(stored, name=name)
    heads = model.permuted_heads(name, config) if layout == "mistral" else None
    return tensor if heads is None else HalfSplit(tensor, heads)


@dataclass(frozen=True)
class HalfSplit:
    """A q or k matrix of Mistral's layout with its rows in transformers' order.

    Within each head of d rows, interleaved RoPE turns row 2i with row 2i + 1, transformers' turns row i with row i + d/2.
    """

    stored: TensorSource
    heads: int

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    def rows(self, start: int, stop: int) -> Float32:
        head = self.shape[0] // self.heads
        first, last = start // head * head, -(-stop // head) * head
        pairs = self.stored.rows(first, last).reshape(-1, head // 2, 2, *self.shape[1:])
        ordered: Float32 = pairs.swapaxes(1, 2).reshape(last - first, *self.shape[1:])
        return ordered[start - first : stop - first]


@dataclass(frozen=True)
class Sinusoids:
    """Whisper's table of positions [positions, channels], which Mistral's layout leaves out: sines, then cosines."""

    name: str
    shape: tuple[int, int]
    dtype: str = "float32"

    def rows(self, start: int, stop: int) -> Float32:
        half = self.shape[1] // 2
        step = np.float32(np.log(10000) / (half - 1))
        rates = np.exp(-step * np.arange(half, dtype=np.float32))
        angles = np.arange(start, stop, dtype=np.float32)[:, None] * rates
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
