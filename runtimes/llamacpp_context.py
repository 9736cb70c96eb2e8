"""A model loaded by llama.cpp, and what it remembers of sequences."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError, Float32
from .llamacpp_api import Api, Batch, ModelParams

CACHE_TYPES = {"float32": 0, "float16": 1, "int8": 8, "int4": 2}  # F32, F16, Q8_0 and Q4_0 by ggml's numbers
MAX_SEQUENCES = 64
BATCH = 512  # tokens computed together
NO_ROOM = 1  # what llama_decode answers where the cache is full


@dataclass(frozen=True)
class Opening:
    """What a model is opened with: its file, threads, what keys and values are kept in, and files of adapters, none added yet.

    `mmproj` is the file of llama.cpp's own audio path, where that is taken; `widened`: all weights become float32.
    """

    path: str
    threads: int
    cache: str = "float32"
    flash_attention: bool = False
    adapters: Sequence[str] = ()
    mmproj: str = ""
    widened: bool = False


Loader = Callable[[Api, str, ModelParams], Any]


def load_stored(api: Api, path: str, params: ModelParams) -> Any:
    """The model of a file as it is stored; None where it is refused."""
    return api.llama_model_load_from_file(path.encode(), params)


class Context:
    """A loaded model and its cache: sequences by number, which all share one row of cells that grows as they do."""

    def __init__(self, api: Api, opening: Opening, room: int, load: Loader = load_stored) -> None:
        self._api, self._opening = api, opening
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = load(api, opening.path, params)
        if not self.model:
            raise api.fault(f"'{opening.path}' cannot be loaded")
        # Before the first context is made: it has room in its graphs for as many as the model has by then.
        self._adapters = [self._adapter(path) for path in opening.adapters]
        self._scales = [0.0] * len(self._adapters)
        self.hidden = int(api.llama_model_n_embd(self.model))
        self.vocabulary = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model)))
        self._room, self._live = room, set[int]()
        self._context = self._made(room)

    def decode(self, parts: Sequence[Sequence[int]], values: NDArray[Any]) -> Float32:
        """Logits [kept, vocabulary] of tokens added to sequences.

        Each part is (sequence, first position, tokens, how many of its last logits are kept); `values` are their embeddings
        [tokens, hidden] float32 or their ids [tokens] int32, part after part.

        Raises:
            EngineError: llama.cpp fails, or its logits are no numbers; then these sequences are forgotten.
        """
        if not len(values) or (values.ndim == 2 and values.shape[1] != self.hidden):
            raise EngineError(
                f"{list(values.shape)} are no embeddings or tokens (embeddings are [tokens, {self.hidden}])"
            )
        sequences, positions, kept = (np.concatenate(columns) for columns in zip(*map(_spread, parts), strict=True))
        self._live |= {int(part[0]) for part in parts}
        step = BATCH if max(part[3] for part in parts) <= 1 else BATCH // 8  # logits of many positions take much memory
        logits = [
            self._decode(values[at : at + step], *(column[at : at + step] for column in (positions, sequences, kept)))
            for at in range(0, len(values), step)
        ]
        found = np.concatenate(logits)
        if not np.isfinite(found.max(axis=1, initial=0.0)).all():
            # What is no number in a cell would spoil every later sequence: a weight of 0 times it is none either.
            self._live -= {int(part[0]) for part in parts}
            self._renew(self._room)
            raise EngineError("engine 'llamacpp' gave logits that are no numbers. Check it with: ossicle verify")
        return found

    def adapt(self, scales: Sequence[float]) -> None:
        """Add so much of each adapter, in their order, to all that is computed from now on."""
        if list(scales) != self._scales:
            self._apply(self._context, scales)
            self._scales = list(scales)

    def copy(self, source: int, to: int, tokens: int) -> None:
        """Let a sequence begin with the first tokens of another, in the same cells."""
        self._live.add(to)
        self._api.llama_memory_seq_cp(self._memory(), source, to, 0, tokens)

    def remove(self, sequences: Sequence[int]) -> None:
        """Forget sequences."""
        for sequence in sequences:
            self._api.llama_memory_seq_rm(self._memory(), sequence, -1, -1)
        self._live -= set(sequences)

    def _decode(self, values: NDArray[Any], positions: Any, sequences: Any, kept: Any) -> Float32:
        count = len(values)
        ones = np.ones(count, np.int32)
        pointers = sequences.ctypes.data + 4 * np.arange(count, dtype=np.uint64)
        embedded = values.ndim == 2
        batch = Batch(
            count,
            None if embedded else values.ctypes.data,
            values.ctypes.data if embedded else None,
            *(column.ctypes.data for column in (positions, ones, pointers, kept)),
        )
        while (answer := self._api.llama_decode(self._context, batch)) == NO_ROOM:
            self._renew(self._room + max(self._room, count))
        if answer:
            raise self._api.fault(f"llama_decode answers {answer} to {count} tokens")
        rows = [self._api.llama_get_logits_ith(self._context, int(place)) for place in np.flatnonzero(kept)]
        logits = [np.ctypeslib.as_array(row, (self.vocabulary,)) for row in rows]
        return np.array(logits, np.float32).reshape(len(rows), self.vocabulary)

    def _renew(self, room: int) -> None:
        """A cache of so many tokens, holding what is live in the old one."""
        states = {sequence: self._state(sequence) for sequence in sorted(self._live)}
        self._api.llama_free(self._context)
        self._room, self._context = room, self._made(room)
        for sequence, state in states.items():
            if state.size and not self._api.llama_state_seq_set_data(
                self._context, state.ctypes.data, state.nbytes, sequence
            ):
                raise self._api.fault(f"a cache of {self._room} tokens does not take sequence {sequence} over")

    def _state(self, sequence: int) -> NDArray[np.uint8]:
        state = np.empty(self._api.llama_state_seq_get_size(self._context, sequence), np.uint8)
        written = self._api.llama_state_seq_get_data(self._context, state.ctypes.data, state.nbytes, sequence)
        return state[:written]

    def _made(self, room: int) -> Any:
        params = self._api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = room, BATCH, BATCH, MAX_SEQUENCES
        params.n_threads = params.n_threads_batch = self._opening.threads
        params.type_k = params.type_v = CACHE_TYPES[self._opening.cache]
        params.flash_attn_type, params.kv_unified = int(self._opening.flash_attention), True
        context = self._api.llama_init_from_model(self.model, params)
        if not context:
            raise self._api.fault(f"a cache of {room} tokens in {self._opening.cache} cannot be made")
        self._apply(context, self._scales)
        return context

    def _adapter(self, path: str) -> Any:
        adapter = self._api.llama_adapter_lora_init(self.model, path.encode())
        if not adapter:
            raise self._api.fault(f"adapter '{path}' cannot be loaded")
        return adapter

    def _apply(self, context: Any, scales: Sequence[float]) -> None:
        added = [(adapter, scale) for adapter, scale in zip(self._adapters, scales, strict=True) if scale]
        pointers = (ctypes.c_void_p * len(added))(*(adapter for adapter, _ in added))
        factors = (ctypes.c_float * len(added))(*(scale for _, scale in added))
        if self._api.llama_set_adapters_lora(context, pointers, len(added), factors):
            raise self._api.fault("the adapters cannot be applied")

    def _memory(self) -> Any:
        return self._api.llama_get_memory(self._context)


def _spread(part: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int8]]:
    """Sequence, position and whether logits are kept, of each token of a part."""
    sequence, start, count, keep = part
    kept = np.zeros(count, np.int8)
    kept[count - keep :] = 1
    return np.full(count, sequence, np.int32), np.arange(start, start + count, dtype=np.int32), kept
