"""OpenVINO's decoder with keys and values inside: an infer request holds those of some sequences, and no step copies them.

Rows end at the same column. A shorter prompt joins the longer ones at its own first column, and its mask leaves out those
before. Which rows go on is told to the next run (`beam_idx`), so that keeping some of them moves nothing.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError, Float32
from .base import Sequences
from .handing import KeyValues, check_handed
from .mapped import let_go
from .openvino_models import KEEP, failed

CHUNK = 1024  # tokens of one run, so that its activations do not grow with a prompt
FREE = 2  # requests kept for the next prompts


class StatefulDecoder:
    """A compiled decoder whose variables are keys and values."""

    def __init__(self, model: Any, data: Path | None = None) -> None:
        self._model = model
        self._free: list[_Request] = []
        self._pack(data)

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        """Logits [batch, vocabulary] after each prompt [sequence, hidden], and the state."""
        lengths = [len(prompt) for prompt in prompts]
        firsts = [max(lengths) - length for length in lengths]
        held, logits = self._begin(), np.empty(0, np.float32)
        joined: list[int] = []
        for start, stop in _column_blocks(firsts, max(lengths)):
            rows = [row for row, first in enumerate(firsts) if first <= start]
            held.rows = [joined.index(row) if row in joined else 0 for row in rows]
            columns = [prompts[row][start - firsts[row] : stop - firsts[row]] for row in rows]
            logits = held.run(np.stack(columns), [start - firsts[row] for row in rows], keep=1)
            joined = rows
        return logits[:, -1], Sequences(lengths, held)

    def advance(self, state: Sequences, embeddings: Float32) -> tuple[Float32, Sequences]:
        """Logits [batch, vocabulary] after `embeddings` [batch, new, hidden] continue a state, and the state after them."""
        held, logits = self._taken_over(state.cache), np.empty(0, np.float32)
        batch, new = embeddings.shape[:2]
        for start, stop in _blocks(0, new, batch):
            logits = held.run(embeddings[:, start:stop], [length + start for length in state.lengths], keep=1)
        return logits[:, -1], Sequences([length + new for length in state.lengths], held)

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        """The state of these rows alone; the one that they are taken from can still go on."""
        held: Held = state.cache
        kept = Held(held.request, self._free, [held.rows[row] for row in rows], held.width)
        return Sequences([state.lengths[row] for row in rows], kept)

    def give(self, state: Sequences) -> list[KeyValues]:
        """What the state remembers, row by row: float32, whatever the variables are kept in."""
        held: Held = state.cache
        arrays = held.request.values()
        return [
            KeyValues.of([array[row, :, held.width - length : held.width] for array in arrays])
            for row, length in zip(held.rows, state.lengths, strict=True)
        ]

    def take(self, rows: Sequence[KeyValues]) -> Sequences:
        """A state that remembers what these rows do."""
        held, lengths = self._begin(), [row.tokens for row in rows]
        check_handed("openvino", rows, *held.request.sizes)
        held.rows, held.width = list(range(len(rows))), max(lengths)
        held.request.fill(rows, held.width)
        return Sequences(lengths, held)

    def score(self, prompt: Float32, last: int) -> Float32:
        """Logits [last, vocabulary] at the last positions of a prompt; 0: at all of them."""
        held, count = self._begin(), last or len(prompt)
        parts: list[Float32] = []
        for start, stop in _blocks(0, len(prompt), 1):
            wanted = stop - max(start, len(prompt) - count)
            parts.append(held.run(prompt[None, start:stop], [start], keep=max(1, wanted))[0])
        return np.asarray(np.concatenate(parts)[-count:], np.float32)

    def _pack(self, data: Path | None) -> None:
        """Run one token: then the engine has packed its weights, and those in the file need not be in memory beside them."""
        hidden = self._model.input("inputs_embeds").get_partial_shape()[2].get_length()
        self._begin().run(np.zeros((1, 1, hidden), np.float32), [0], keep=1)
        if data is not None:
            let_go(data)

    def _begin(self) -> "Held":
        request = self._free.pop() if self._free else _Request(self._model.create_infer_request())
        return Held(request, self._free, [], 0)

    def _taken_over(self, held: "Held") -> "Held":
        """The same rows for whoever goes on with them: in a request of their own where another state is still in this one."""
        request, shared = held.request, held.request.states > 1
        taken = self._begin() if shared else Held(request, self._free, [], 0)
        taken.rows, taken.width = held.rows, held.width
        if shared:
            taken.request.copy(request)
        held.leave()
        return taken


class Held:
    """Rows of a request's variables, in the columns up to `width`; given back when nobody refers to this any more."""

    def __init__(self, request: "_Request", free: "list[_Request]", rows: list[int], width: int) -> None:
        self._request: _Request | None = request
        self._free = free
        self.rows = rows
        self.width = width
        request.states += 1

    @property
    def request(self) -> "_Request":
        if self._request is None:
            raise EngineError(
                "engine 'openvino' was given a state that `extend` or `step` has used up. Use what it gave."
            )
        return self._request

    def run(self, embeddings: Float32, lengths: Sequence[int], *, keep: int) -> Float32:
        """Logits [batch, keep, vocabulary] after `embeddings` [batch, new, hidden] behind so many tokens of each row."""
        batch, new = embeddings.shape[:2]
        before = np.asarray(lengths, np.int64)[:, None]
        total = self.width + new
        logits = self.request.run(
            {
                "inputs_embeds": np.asarray(embeddings, order="C"),
                "attention_mask": (np.arange(total) >= total - new - before).astype(np.int64),
                "position_ids": before + np.arange(new),
                "beam_idx": np.asarray(self.rows or [0] * batch, np.int32),  # at first there are no rows
                KEEP: np.array(keep, np.int64),
            }
        )
        self.rows, self.width = list(range(batch)), total
        return logits

    def leave(self) -> None:
        """Let go of the request; the last to do so makes it free for other prompts."""
        request, self._request = self._request, None
        if request is None:
            return
        request.states -= 1
        if request.states == 0 and len(self._free) < FREE:
            request.reset()
            self._free.append(request)

    def __del__(self) -> None:
        self.leave()


class _Request:
    """An infer request, and how many states are in its variables."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._variables = {variable.name: variable for variable in request.query_state()}
        self._names = sorted(self._variables, key=_place)
        _, heads, _, head_dim = self._variables[self._names[0]].state.shape
        self.sizes = len(self._names) // 2, heads, head_dim
        self.states = 0

    def run(self, inputs: dict[str, NDArray[Any]]) -> Float32:
        try:
            self._request.infer(inputs, share_inputs=True)
            return np.array(self._request.get_tensor("logits").data, np.float32)
        except RuntimeError as reason:
            raise failed(reason) from reason

    def copy(self, other: "_Request") -> None:
        """Make this request's variables those of another."""
        for name, variable in self._variables.items():
            variable.state = other._variables[name].state

    def values(self) -> list[NDArray[Any]]:
        """Keys and values [rows, key heads, columns, head_dim] of each layer in turns."""
        return [self._variables[name].state.data for name in self._names]

    def fill(self, rows: Sequence[KeyValues], width: int) -> None:
        """Make the variables those of these rows, which all end at column `width`."""
        import openvino

        for number, name in enumerate(self._names):
            given = [row.arrays()[number] for row in rows]
            heads, _, head_dim = given[0].shape
            array = np.zeros((len(rows), heads, width, head_dim), np.float32)
            for index, one in enumerate(given):
                array[index, :, width - one.shape[1] :] = one
            self._variables[name].state = openvino.Tensor(array)

    def reset(self) -> None:
        self._request.reset_state()


def _column_blocks(firsts: Sequence[int], width: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns within which the same rows are at work, of at most CHUNK tokens."""
    for start, stop in pairwise([*sorted(set(firsts)), width]):
        yield from _blocks(start, stop, sum(first <= start for first in firsts))


def _blocks(start: int, stop: int, rows: int) -> Iterator[tuple[int, int]]:
    size = max(1, CHUNK // rows)
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def _place(name: str) -> tuple[int, str]:
    """Layer and kind of a variable, in the order in which layers follow: "past_key_values.3.keypresent.3.key"."""
    _, layer, kind, *_ = name.split(".")
    return int(layer), kind
