"""OpenVINO's decoder in fixed shapes, for devices that compile no others: keys and values go in and out, a row at a time.

A row's cache has a fixed number of columns, its tokens at the right; a mask says which columns hold one. Blocks of a prompt are
filled up on the left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..targets.contract import EngineError, Float32, Int64
from .base import Sequences
from .handing import KeyValues, check_handed
from .openvino_models import run

WIDTH = 64  # tokens of a prompt that are run together
COLUMNS = 2048  # the most tokens of a row, where the model itself does not have fewer


@dataclass(frozen=True)
class _Row:
    """Keys and values [1, heads, columns, head_dim] of every layer, and 1 for each column [columns] that holds a token."""

    caches: tuple[Float32, ...]
    mask: Int64


class StaticDecoder:
    """Decoders of fixed shapes: `compiled(width)` is the one that takes so many tokens behind `columns` cached ones."""

    def __init__(self, compiled: Callable[[int], Any], columns: int) -> None:
        self._models = {width: compiled(width) for width in (1, WIDTH)}
        self._past = [name for name in _names(self._models[1].inputs) if name.startswith("past_key_values.")]
        self._shape = tuple(self._models[1].input(self._past[0]).shape)
        self._columns = columns

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        """Logits [batch, vocabulary] after each prompt [sequence, hidden], and the state."""
        lengths = [len(prompt) for prompt in prompts]
        return self._each([self._empty() for _ in prompts], [0] * len(lengths), prompts)

    def advance(self, state: Sequences, embeddings: Float32) -> tuple[Float32, Sequences]:
        """Logits [batch, vocabulary] after `embeddings` [batch, new, hidden] continue a state, and the state after them."""
        return self._each(state.cache, state.lengths, list(embeddings))

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        """The state of these rows alone."""
        return Sequences([state.lengths[row] for row in rows], [state.cache[row] for row in rows])

    def give(self, state: Sequences) -> list[KeyValues]:
        """What the state remembers, row by row."""
        return [KeyValues.of([cache[0][:, row.mask > 0] for cache in row.caches]) for row in state.cache]

    def take(self, rows: Sequence[KeyValues]) -> Sequences:
        """A state that remembers what these rows do."""
        _, heads, _, head_dim = self._shape
        check_handed("openvino", rows, len(self._past) // 2, heads, head_dim)
        return Sequences([row.tokens for row in rows], [self._filled(row) for row in rows])

    def score(self, prompt: Float32, last: int) -> Float32:
        """Logits [last, vocabulary] at the last positions of a prompt; 0: at all of them."""
        logits, _ = self._run(self._empty(), 0, prompt)
        return logits[-(last or len(prompt)) :]

    def _each(
        self, rows: Sequence[_Row], lengths: Sequence[int], prompts: Sequence[Float32]
    ) -> tuple[Float32, Sequences]:
        runs = [self._run(*one) for one in zip(rows, lengths, prompts, strict=True)]
        grown = [length + len(prompt) for length, prompt in zip(lengths, prompts, strict=True)]
        return np.stack([logits[-1] for logits, _ in runs]), Sequences(grown, [row for _, row in runs])

    def _run(self, row: _Row, length: int, embeddings: Float32) -> tuple[Float32, _Row]:
        """Logits [new, vocabulary] at `embeddings` [new, hidden] behind a row of so many tokens, and the row after them."""
        new = len(embeddings)
        self._check_room(length + new)
        width = 1 if new == 1 else WIDTH
        blank = -new % width
        filled = np.pad(embeddings, ((blank, 0), (0, 0)))
        parts = []
        for start in range(0, len(filled), width):
            places = np.arange(start, start + width) - blank  # below 0 where there is no token
            logits, row = self._block(row, filled[start : start + width], length + places, places >= 0)
            parts.append(logits)
        return np.concatenate(parts)[blank:], row

    def _block(self, row: _Row, embeddings: Float32, positions: Any, real: Any) -> tuple[Float32, _Row]:
        width = len(embeddings)
        row = _with_room(row, width)
        mask = np.concatenate([row.mask, real.astype(np.int64)])
        inputs = {
            "inputs_embeds": embeddings[None],
            "attention_mask": mask[None],
            "position_ids": np.maximum(positions, 0)[None],
        }
        results = run(self._models[width], inputs | dict(zip(self._past, row.caches, strict=True)))
        grown = (results[name.replace("past_key_values", "present")] for name in self._past)
        return results["logits"][0], _Row(tuple(cache[:, :, width:] for cache in grown), mask[width:])

    def _filled(self, given: KeyValues) -> _Row:
        self._check_room(given.tokens)
        row, first = self._empty(), self._columns - given.tokens
        for cache, array in zip(row.caches, given.arrays(), strict=True):
            cache[0, :, first:] = array
        row.mask[first:] = 1
        return row

    def _check_room(self, tokens: int) -> None:
        if tokens > self._columns:
            raise EngineError(f"engine 'openvino' holds {self._columns} tokens on this device, and was given {tokens}.")

    def _empty(self) -> _Row:
        return _Row(tuple(np.zeros(self._shape, np.float32) for _ in self._past), np.zeros(self._columns, np.int64))


def fix(model: Any, width: int, columns: int) -> None:
    """Give a stateless decoder the shapes of one row with `width` tokens behind `columns` cached ones."""
    shapes = {}
    for port in model.inputs:
        shape, name = port.get_partial_shape(), port.get_any_name()
        sizes = [dimension.get_length() if dimension.is_static else 0 for dimension in shape]
        if name.startswith("past_key_values."):
            shapes[name] = [1, sizes[1], columns, sizes[3]]
        else:
            shapes[name] = [1, columns + width if name == "attention_mask" else width, *sizes[2:]]
    model.reshape(shapes)


def _with_room(row: _Row, width: int) -> _Row:
    """The row with its first `width` columns free, tokens moved together to the right if they are not."""
    if not row.mask[:width].any():
        return row
    tokens = np.flatnonzero(row.mask)
    caches = tuple(np.zeros_like(cache) for cache in row.caches)
    for moved, cache in zip(caches, row.caches, strict=True):
        moved[:, :, -len(tokens) :] = cache[:, :, tokens]
    return _Row(caches, np.sort(row.mask))


def _names(ports: Sequence[Any]) -> list[str]:
    return [port.get_any_name() for port in ports]
