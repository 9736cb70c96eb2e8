"""The decoder of a TensorRT bundle: one cache per sequence in which every run writes its own tokens, in place.

A row's tokens are at the left of its cache. A run sees as much of the caches as its mask is wide; that width goes in steps of
`SLOTS`, so that from one token to the next shapes and addresses are the same and a captured graph can be launched again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..targets.contract import EngineError, Float32, Port
from ..targets.tensorrt_profiles import LOGITS
from .base import Sequences
from .tensorrt_buffers import Block, Buffer, Graph, Scratch

SLOTS = 256
STEP, PROMPT = 0, 1  # profiles, in the order of targets/tensorrt_profiles.py; an engine may have one for both


@dataclass(frozen=True)
class Limits:
    """What a decoder is prepared for."""

    context: int  # tokens of one sequence
    prompt: int  # tokens read at a time
    batch: int  # sequences that step together


@dataclass(frozen=True)
class Caches:
    """Keys and values [batch, heads, context, width] by the name of the input that they are."""

    buffers: Mapping[str, Buffer]

    def row(self, index: int) -> "Caches":
        """Those of one sequence, in the same memory."""
        return Caches({name: buffer.row(index) for name, buffer in self.buffers.items()})


class Decoder:
    """An opened decoder."""

    def __init__(self, name: str, graph: Graph, inputs: Sequence[Port], vocabulary: int, limits: Limits) -> None:
        self._name = name
        self._graph = graph
        self._scratch = Scratch(graph.device)
        self._past = {port.name: port for port in inputs if port.name.startswith("past_key_values.")}
        self._vocabulary = vocabulary
        self._limits = limits

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        lengths = [len(prompt) for prompt in prompts]
        self._check(lengths)
        caches = self._allocated(len(prompts))
        logits = [self._read(caches.row(i), prompt, 0, 1) for i, prompt in enumerate(prompts)]
        return np.concatenate(logits), Sequences(lengths, caches)

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        length = state.lengths[0]
        self._check([length + len(prompt)])
        return self._read(state.cache, prompt, length, 1), Sequences([length + len(prompt)], state.cache)

    def step(self, state: Sequences, embeddings: Float32) -> tuple[Float32, Sequences]:
        """Logits [batch, vocabulary] behind one more token for each row, of embeddings [batch, hidden]."""
        lengths = [length + 1 for length in state.lengths]
        self._check(lengths)
        logits = self._run(STEP, state.cache, embeddings[:, None], state.lengths, 1)
        return logits[:, 0], Sequences(lengths, state.cache)

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        lengths = [state.lengths[row] for row in rows]
        kept = self._allocated(len(rows))
        for name, target in kept.buffers.items():
            for index, row in enumerate(rows):
                self._copy(target.row(index), state.cache.buffers[name].row(row), lengths[index])
        return Sequences(lengths, kept)

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        self._check([len(prompt)])
        return self._read(self._allocated(1), prompt, 0, last or len(prompt))

    def _read(self, caches: Caches, prompt: Float32, start: int, last: int) -> Float32:
        """Logits [last, vocabulary] at the end of a prompt that one row goes on with behind `start` tokens, piece by piece."""
        found = []
        most = self._limits.prompt if last <= LOGITS else min(LOGITS, self._limits.prompt)
        for piece in _pieces(len(prompt), most):
            wanted = max(0, piece.stop - max(piece.start, len(prompt) - last))
            logits = self._run(PROMPT, caches, prompt[None, piece], [start + piece.start], max(wanted, 1))
            found.append(logits[0, :wanted])
        return np.concatenate(found)

    def _run(self, profile: int, caches: Caches, embeddings: Float32, past: Sequence[int], last: int) -> Float32:
        """Logits [batch, last, vocabulary] of new tokens [batch, new, hidden] behind `past` tokens of each row."""
        batch, new = embeddings.shape[:2]
        held = np.asarray(past, np.int64)[:, None] + new
        slots = np.arange(self._width(int(held.max())))[None]
        inputs = {
            "inputs_embeds": self._scratch.put("inputs_embeds", np.asarray(embeddings, np.float32)),
            "attention_mask": self._scratch.put("attention_mask", (slots < held).astype(np.int64)),
            "position_ids": self._scratch.put("position_ids", held - new + np.arange(new)[None]),
        }
        logits = self._scratch.take("logits", (batch, last, self._vocabulary), np.float32)
        present = {name.replace("past_key_values", "present"): buffer for name, buffer in caches.buffers.items()}
        numbers = {"num_logits_to_keep": last}
        self._graph.run(profile, inputs | dict(caches.buffers), numbers, {"logits": logits} | present)
        return self._scratch.get(logits)

    def _width(self, tokens: int) -> int:
        return min(-(-tokens // SLOTS) * SLOTS, self._limits.context)

    def _allocated(self, batch: int) -> Caches:
        if batch > self._limits.batch:
            raise EngineError(
                f"engine '{self._name}' cannot run {batch} sequences at once (it can: {self._limits.batch}). "
                "Prepare it for more with: ossicle engine BUNDLE --batch N"
            )
        return Caches({name: self._cache(port, batch) for name, port in self._past.items()})

    def _cache(self, port: Port, batch: int) -> Buffer:
        """A cache of zeros: what is masked is multiplied by 0, and might be no number otherwise."""
        shape = (batch, *(int(size) for size in port.shape[1:]))
        dtype = np.dtype(port.dtype)
        memory = self._graph.device.allocate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        return Buffer(memory.address, shape, dtype, memory)

    def _copy(self, target: Buffer, source: Buffer, tokens: int) -> None:
        """Copy the tokens of one sequence, head by head."""
        _, heads, context, width = target.shape
        token = width * target.dtype.itemsize
        to, held = (Block(buffer.address, context * token) for buffer in (target, source))
        self._graph.device.copy(to, held, tokens * token, heads)

    def _check(self, lengths: Sequence[int]) -> None:
        if max(lengths) > self._limits.context:
            raise EngineError(
                f"engine '{self._name}' holds {self._limits.context} tokens of a sequence, and {max(lengths)} are given. "
                "Build it for more with: ossicle build CHECKPOINT --target tensorrt --context N"
            )


def _pieces(length: int, most: int) -> Iterator[slice]:
    for start in range(0, length, most):
        yield slice(start, min(start + most, length))
