"""ONNX Runtime's decoder in its two forms, told apart by its inputs.

Fused (GroupQueryAttention, no `position_ids`) keeps its keys and values at the left of buffers that outlive a step, and
writes new ones in place. Standard (with `position_ids`) gives back longer keys and values at every step; rows are padded on
the left. Keys and values stay in the provider's memory.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import Float32
from .base import Sequences
from .handing import KeyValues
from .onnxruntime_cache import Cache, filled_cache, on_device, run_bound

ROOM = 256  # tokens that a fused cache is longer than what it holds, so that it seldom grows


class Graph:
    """The decoder's graph: what it takes besides embeddings, and the inputs of one run."""

    def __init__(self, session: Any, memory: str, added: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.session = session
        self._added = added  # OrtValues of its low-rank inputs
        self.memory = memory  # the device that keys and values stay on
        inputs = {port.name: port for port in session.get_inputs()}
        self.past = [name for name in inputs if name.startswith("past_key_values.")]
        self.present = [name.replace("past_key_values", "present") for name in self.past]
        self.has_positions = "position_ids" in inputs
        self._can_keep = "num_logits_to_keep" in inputs
        cache = inputs[self.past[0]]
        self.cache_dtype = np.dtype(np.float16 if cache.type == "tensor(float16)" else np.float32)
        self.heads, self.head_dim = cache.shape[1], cache.shape[3]

    def adapted(self, added: Mapping[str, Any]) -> "Graph":
        """The same graph with these OrtValues in its low-rank inputs."""
        return Graph(self.session, self.memory, added)

    def binding(self) -> Any:
        """What a run is bound to, adapters bound already."""
        binding = self.session.io_binding()
        for name, value in self._added.items():
            binding.bind_ortvalue_input(name, value)
        return binding

    def inputs(self, embeddings: Float32, past: Sequence[int], total: int, keep: int) -> dict[str, NDArray[Any]]:
        """All but the cache, for embeddings [batch, new, hidden] behind `past` tokens per row; `total` is the mask's width.

        The mask has each row's tokens at the end that its form pads away from: left for fused, right for standard.
        """
        new = embeddings.shape[1]
        held = np.asarray(past, np.int64)[:, None] + new
        slots = np.arange(total)[None]
        mask = slots >= total - held if self.has_positions else slots < held
        feed: dict[str, NDArray[Any]] = {"inputs_embeds": embeddings, "attention_mask": mask.astype(np.int64)}
        if self.has_positions:
            feed["position_ids"] = held - new + np.arange(new)[None]
        if self._can_keep:
            feed["num_logits_to_keep"] = np.array(keep, np.int64)
        return feed

    def cache_array(self, batch: int, width: int) -> NDArray[Any]:
        return np.zeros((batch, self.heads, width, self.head_dim), self.cache_dtype)


class FusedDecoder:
    """GroupQueryAttention: past and present are one buffer, to which a run adds its tokens."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        width = max(map(len, prompts)) + ROOM
        arrays = [self._graph.cache_array(len(prompts), width) for _ in self._graph.past]
        cache = filled_cache(arrays, self._graph.memory)
        logits = [self._run(cache.row(i), prompt[None], [0]) for i, prompt in enumerate(prompts)]
        return np.concatenate(logits), Sequences([len(prompt) for prompt in prompts], cache)

    def advance(self, state: Sequences, embeddings: Float32) -> tuple[Float32, Sequences]:
        lengths = [length + embeddings.shape[1] for length in state.lengths]
        cache = self._with_room(state.cache, max(lengths))
        return self._run(cache, embeddings, state.lengths), Sequences(lengths, cache)

    def keep(self, state: Sequences, rows: list[int]) -> Sequences:
        return Sequences([state.lengths[row] for row in rows], state.cache.kept(rows))

    def give(self, state: Sequences) -> list[KeyValues]:
        arrays = state.cache.held()
        return [KeyValues.of([a[row, :, :length] for a in arrays]) for row, length in enumerate(state.lengths)]

    def take(self, rows: Sequence[KeyValues]) -> Sequences:
        lengths = [row.tokens for row in rows]
        arrays = [self._graph.cache_array(len(rows), max(lengths) + ROOM) for _ in self._graph.past]
        for index, row in enumerate(rows):
            for array, given in zip(arrays, row.arrays(), strict=True):
                array[index, :, : row.tokens] = given
        return Sequences(lengths, filled_cache(arrays, self._graph.memory))

    def _with_room(self, cache: Cache, width: int) -> Cache:
        return cache if width <= cache.width else cache.longer(width + width // 4 + ROOM)

    def _run(self, cache: Cache, embeddings: Float32, past: Sequence[int]) -> Float32:
        binding = self._graph.binding()
        total = max(past) + embeddings.shape[1]
        binding.bind_output("logits")
        cache.bind(binding, self._graph.past, self._graph.present)
        inputs = self._graph.inputs(embeddings, past, total, keep=1)
        logits = run_bound(self._graph.session, binding, inputs)[0]
        return np.asarray(logits.numpy()[:, -1], np.float32)


class StandardDecoder:
    """ONNX's own attention: every run gives back the whole cache, which stays with the engine between runs."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        empty = {name: self._graph.cache_array(1, 0) for name in self._graph.past}
        runs = [self.advance(Sequences([0], self._values(empty)), prompt[None]) for prompt in prompts]
        state = runs[0][1] if len(runs) == 1 else self._stacked([state for _, state in runs])
        return np.concatenate([logits for logits, _ in runs]), state

    def advance(self, state: Sequences, embeddings: Float32) -> tuple[Float32, Sequences]:
        lengths = [length + embeddings.shape[1] for length in state.lengths]
        binding = self._graph.binding()
        binding.bind_output("logits")
        for name, present in zip(self._graph.past, self._graph.present, strict=True):
            binding.bind_ortvalue_input(name, state.cache[name])
            binding.bind_output(present, self._graph.memory)
        inputs = self._graph.inputs(embeddings, state.lengths, max(lengths), keep=1)
        logits, *values = run_bound(self._graph.session, binding, inputs)
        cache = dict(zip(self._graph.past, values, strict=True))
        return np.asarray(logits.numpy()[:, -1], np.float32), Sequences(lengths, cache)

    def keep(self, state: Sequences, rows: list[int]) -> Sequences:
        lengths = [state.lengths[row] for row in rows]
        kept = {name: value.numpy()[rows, :, -max(lengths) :] for name, value in state.cache.items()}
        return Sequences(lengths, self._values(kept))

    def give(self, state: Sequences) -> list[KeyValues]:
        arrays = [state.cache[name].numpy() for name in self._graph.past]
        return [
            KeyValues.of([array[row, :, array.shape[2] - length :] for array in arrays])
            for row, length in enumerate(state.lengths)
        ]

    def take(self, rows: Sequence[KeyValues]) -> Sequences:
        lengths = [row.tokens for row in rows]
        arrays = {name: self._graph.cache_array(len(rows), max(lengths)) for name in self._graph.past}
        for index, row in enumerate(rows):
            for array, given in zip(arrays.values(), row.arrays(), strict=True):
                array[index, :, max(lengths) - row.tokens :] = given
        return Sequences(lengths, self._values(arrays))

    def _stacked(self, states: Sequence[Sequences]) -> Sequences:
        lengths = [state.lengths[0] for state in states]
        stacked = {}
        for name in self._graph.past:
            stacked[name] = self._graph.cache_array(len(states), max(lengths))
            for row, state in enumerate(states):
                stacked[name][row, :, max(lengths) - lengths[row] :] = state.cache[name].numpy()[0]
        return Sequences(lengths, self._values(stacked))

    def _values(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        return {name: on_device(array, self._graph.memory) for name, array in arrays.items()}
