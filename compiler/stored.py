"""The original with a recipe's own numbers in it: every weight rounded to what the artifacts store, all else float32.

An artifact differs from the original mostly by this rounding, which hides a fault of its own; from this it differs by
no more than how its engine computes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..kernels import float8, kquants, palettes
from ..targets.contract import (
    Float32,
    Override,
    Progress,
    Recipe,
    TensorSource,
    Thresholds,
    VerificationError,
    WeightFormat,
)
from ..targets.gguf_mixes import BFLOAT16
from ..targets.recipes import FLOAT8, PALETTES, RECIPES
from . import reference
from .checkpoint import Checkpoint
from .quantize import Weights, weights_of
from .readings import Reading, reading_at, write_archive
from .speech import Clip


@dataclass(frozen=True)
class StoredReading:
    """What the rounded original makes of a clip: audio embeddings, and the logits of the original's own replies."""

    audio: Float32  # [windows, tokens per window, hidden]
    logits: Float32  # [positions of all replies, vocabulary]


@dataclass(frozen=True)
class Rounded:
    """A tensor as its recipe stores it."""

    name: str
    weights: Weights

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weights.source(self.name).shape

    @property
    def dtype(self) -> str:
        return self.weights.format(self.name).name

    def rows(self, start: int, stop: int) -> Float32:
        form = self.weights.format(self.name)
        if form == FLOAT8:
            return float8.dequantize(*float8.quantize(self.weights.source(self.name).rows(start, stop)))
        if form in PALETTES:
            return self._palettes(start, stop, 2**form.bits)
        if form.is_float:
            return narrowed(self.weights.source(self.name).rows(start, stop), form)
        if form.is_block:
            return kquants.dequantize(self.weights.packed(self.name, start, stop), form.kind)
        return np.concatenate(list(self._integers(start, stop)))

    def _palettes(self, start: int, stop: int, levels: int) -> Float32:
        """Rows of whole tables, cut to those asked for."""
        height = palettes.height(self.shape[0])
        first = start - start % height
        values = self.weights.source(self.name).rows(first, stop + -stop % height)
        tables, codes = palettes.fit(np.ascontiguousarray(values), height, levels)
        return palettes.look_up(tables, codes, height)[start - first : stop - first]

    def _integers(self, start: int, stop: int) -> Iterator[Float32]:
        form = self.weights.format(self.name)
        for block in self.weights.quantized(self.name).blocks():
            if block.start + len(block.codes) <= start or block.start >= stop:
                continue
            zero = 2 ** (form.bits - 1) if block.zero_points is None else _spread(block.zero_points, form, self.shape)
            values = (block.codes.astype(np.float32) - zero) * _spread(block.scales, form, self.shape)
            yield values[max(0, start - block.start) : stop - block.start]


def recipe_of(document: Mapping[str, Any]) -> Recipe:
    """The recipe that a manifest tells of, of any version."""
    entries: dict[str, Any] = {
        name: WeightFormat(**value) if isinstance(value, Mapping) and name != "thresholds" else value
        for name, value in document.items()
    }
    overrides = tuple(
        Override(**entry | {"format": WeightFormat(**entry["format"])}) for entry in document.get("overrides", ())
    )
    return Recipe(**entries | {"thresholds": Thresholds(**document["thresholds"]), "overrides": overrides})


def rounds(recipe: Recipe) -> bool:
    """Whether a recipe stores any weight otherwise than in float32."""
    formats = [getattr(recipe, entry.name) for entry in fields(recipe)]
    narrow = any(form.bits < 32 for form in formats if isinstance(form, WeightFormat))
    return narrow or recipe.compute != "float32"


def rounded(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    """The checkpoint with every tensor as the recipe stores it."""
    weights = weights_of(checkpoint, recipe)
    tensors: dict[str, TensorSource] = {
        name: weights.source(name) if weights.format(name).bits == 32 else Rounded(name, weights)
        for name in checkpoint.tensors
    }
    return replace(checkpoint, tensors=tensors)


def keep(
    checkpoint: Checkpoint, recipe: Recipe, kept: Sequence[tuple[Clip, Path]], progress: Progress | None = None
) -> list[Path]:
    """For every kept reading, the file beside it that holds the rounded original's.

    Raises:
        VerificationError: the original does not fit in this machine's memory.
    """
    original = reference.Original(rounded(checkpoint, recipe))
    files = [one.file.sha256[:12] for one in (checkpoint.imatrix, checkpoint.quantized) if one]
    made = ".".join([recipe.name, recipe.quantizer, *_own(recipe), *files])
    if progress:
        progress.start(f"original in {recipe.name}", len(kept), "clips")
    paths = []
    for clip, path in kept:
        paths.append(path.with_suffix(f".{made}.npz"))
        if not paths[-1].is_file():
            reading = reading_at(path, clip)
            audio = original.encode(reading)
            logits = original.score(reading, audio)
            write_archive(paths[-1], {"audio": audio, "logits": logits})
        if progress:
            progress.advance(1)
    return paths


def _own(recipe: Recipe) -> list[str]:
    """What tells a recipe of the user's own from others of its name."""
    if replace(recipe, quantizer="nearest") == RECIPES.get(recipe.name):
        return []
    return [hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:12]]


def read(path: Path, reading: Reading) -> StoredReading:
    """The reading that `keep` put into a file.

    Raises:
        VerificationError: the file is gone, or damaged.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return StoredReading(archive["audio"], archive["logits"])
    except (OSError, ValueError, KeyError, EOFError) as reason:
        raise VerificationError(
            f"the reading '{path}' of '{reading.clip.name}' cannot be used: {reason}. Remove it and verify again"
        ) from reason


def narrowed(values: Float32, form: WeightFormat) -> Float32:
    """float32 numbers rounded to a format of 16 bits, halves to even, as torch rounds to bfloat16."""
    if form == BFLOAT16:
        import torch

        narrow: Float32 = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
        return narrow
    return values.astype(np.float16).astype(np.float32)


def _spread(values: Any, form: WeightFormat, shape: tuple[int, ...]) -> Float32:
    """One value a group, as one value a column."""
    spread: Float32 = np.repeat(values.astype(np.float32), form.group, axis=1)[:, : shape[1]]
    return spread
