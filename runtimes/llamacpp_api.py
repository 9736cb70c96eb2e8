"""llama.cpp's C API in the shared library that package xllamacpp brings, for one exact version of it.

The structures are those of llama.h at that version, https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h, and the
defaults read through them are compared with what they have to be before anything is run. A fault within the library ends the
process, so this is only imported in runtimes/llamacpp_worker.py.
"""

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..targets.contract import EngineError, Float32

CACHE_TYPES = {"float32": 0, "float16": 1, "int8": 8, "int4": 2}  # F32, F16, Q8_0 and Q4_0 by ggml's numbers
MAX_SEQUENCES = 64
BATCH = 512  # tokens computed together
NO_ROOM = 1  # what llama_decode answers where the cache is full
_ERROR = 4  # log level

_POINTER = ctypes.c_void_p
_INT, _UINT, _FLOAT, _BOOL, _SIZE = ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_bool, ctypes.c_size_t


def fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    """Fields of a structure that are all of one kind."""
    return [(name, kind) for name in names.split()]


class ModelParams(ctypes.Structure):
    """llama_model_params."""

    _fields_ = [
        *fields(_POINTER, "devices tensor_buft_overrides"),
        *fields(_INT, "n_gpu_layers split_mode load_mode lazy_mode main_gpu"),
        *fields(_POINTER, "tensor_split progress_callback progress_user_data kv_overrides"),
        *fields(_BOOL, "vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp"),
    ]


class ContextParams(ctypes.Structure):
    """llama_context_params; `unnamed` is in the library and not in the header of its month."""

    _fields_ = [
        *fields(_UINT, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq"),
        *fields(_INT, "n_threads n_threads_batch"),
        *fields(_INT, "ctx_type rope_scaling_type pooling_type attention_type flash_attn_type"),
        *fields(
            _FLOAT, "rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow"
        ),
        ("yarn_orig_ctx", _UINT),
        ("defrag_thold", _FLOAT),
        *fields(_POINTER, "cb_eval cb_eval_user_data"),
        *fields(_INT, "type_k type_v"),
        *fields(_POINTER, "abort_callback abort_callback_data unnamed"),
        *fields(_BOOL, "embeddings offload_kqv no_perf op_offload swa_full kv_unified"),
        ("samplers", _POINTER),
        ("n_samplers", _SIZE),
        ("ctx_other", _POINTER),
    ]


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [("n_tokens", _INT), *fields(_POINTER, "token embd pos n_seq_id seq_id logits")]


Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, _POINTER)

_FUNCTIONS: Mapping[str, tuple[Any, ...]] = {  # name -> result, arguments
    "llama_backend_init": (None,),
    "llama_log_set": (None, Log, _POINTER),
    "llama_model_default_params": (ModelParams,),
    "llama_context_default_params": (ContextParams,),
    "llama_model_load_from_file": (_POINTER, ctypes.c_char_p, ModelParams),
    "llama_model_n_embd": (_INT, _POINTER),
    "llama_model_get_vocab": (_POINTER, _POINTER),
    "llama_vocab_n_tokens": (_INT, _POINTER),
    "llama_init_from_model": (_POINTER, _POINTER, ContextParams),
    "llama_free": (None, _POINTER),
    "llama_decode": (_INT, _POINTER, Batch),
    "llama_get_logits_ith": (ctypes.POINTER(_FLOAT), _POINTER, _INT),
    "llama_get_memory": (_POINTER, _POINTER),
    "llama_memory_seq_cp": (None, _POINTER, _INT, _INT, _INT, _INT),
    "llama_memory_seq_rm": (_BOOL, _POINTER, _INT, _INT, _INT),
    "llama_state_seq_get_size": (_SIZE, _POINTER, _INT),
    "llama_state_seq_get_data": (_SIZE, _POINTER, _POINTER, _SIZE, _INT),
    "llama_state_seq_set_data": (_SIZE, _POINTER, _POINTER, _SIZE, _INT),
    "llama_adapter_lora_init": (_POINTER, _POINTER, ctypes.c_char_p),
    "llama_set_adapters_lora": (_INT, _POINTER, ctypes.POINTER(_POINTER), _SIZE, ctypes.POINTER(_FLOAT)),
}

# What the defaults are at the version that is pinned. Numbers of threads depend on the machine.
MODEL_DEFAULTS = {
    "n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "main_gpu": 0, "tensor_split": None,
    "kv_overrides": None, "vocab_only": False, "check_tensors": False, "use_extra_bufts": True, "no_alloc": False,
}  # fmt: skip
CONTEXT_DEFAULTS = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max_per_seq": 1, "rope_scaling_type": -1,
    "pooling_type": -1, "attention_type": -1, "flash_attn_type": -1, "rope_freq_base": 0.0, "yarn_ext_factor": -1.0,
    "yarn_orig_ctx": 0, "cb_eval": None, "type_k": 1, "type_v": 1, "abort_callback": None, "embeddings": False,
    "offload_kqv": True, "no_perf": True, "op_offload": True, "swa_full": True, "kv_unified": False, "samplers": None,
    "n_samplers": 0, "ctx_other": None,
}  # fmt: skip


def library() -> Path:
    """The shared library of package xllamacpp, found without running any of it.

    Raises:
        EngineError: the package is not installed, or brings none.
    """
    spec = importlib.util.find_spec("xllamacpp")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for folder in folders for path in sorted(Path(folder).glob("xllamacpp*.*")) if _loadable(path)]
    if not found:
        raise EngineError("package xllamacpp is not installed, or has no shared library")
    return found[0]


class Api:
    """The functions of the library, checked and ready. Errors it logs are kept for whoever reports a failure."""

    def __init__(self) -> None:
        self._functions: dict[str, Any] = {}
        try:
            self._library = ctypes.CDLL(str(library()))
        except OSError as reason:
            raise EngineError(f"package xllamacpp is not as it has to be: {reason}") from reason
        self.bind(_FUNCTIONS)
        check_defaults("llama_model_params", self.llama_model_default_params(), MODEL_DEFAULTS)
        check_defaults("llama_context_params", self.llama_context_default_params(), CONTEXT_DEFAULTS)
        self.errors: list[str] = []
        self.log = Log(self._keep)  # must live as long as the library may call it
        self.llama_log_set(self.log, None)
        self.llama_backend_init()

    def __getattr__(self, name: str) -> Any:
        return self._functions[name]

    def bind(self, functions: Mapping[str, tuple[Any, ...]]) -> None:
        """Make functions of the library callable: name -> result, arguments.

        Raises:
            EngineError: the library has no function of this name.
        """
        for name, (result, *arguments) in functions.items():
            try:
                function = getattr(self._library, name)
            except AttributeError as reason:
                raise EngineError(f"package xllamacpp is not as it has to be: {reason}") from reason
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function

    def fault(self, what: str) -> EngineError:
        """An error that says what failed and what the library logged of it."""
        logged, self.errors = "; ".join(self.errors), []
        return EngineError(f"{what}: {logged}" if logged else what)

    def _keep(self, level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            said = text.decode(errors="replace").strip()
            self.errors = [*self.errors[-3:], said]
            print(said, file=sys.stderr, flush=True)  # kept by whoever started this process, should it die of it


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
        return np.concatenate(logits)

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
            self._grow(count)
        if answer:
            raise self._api.fault(f"llama_decode answers {answer} to {count} tokens")
        rows = [self._api.llama_get_logits_ith(self._context, int(place)) for place in np.flatnonzero(kept)]
        logits = [np.ctypeslib.as_array(row, (self.vocabulary,)) for row in rows]
        return np.array(logits, np.float32).reshape(len(rows), self.vocabulary)

    def _grow(self, count: int) -> None:
        """A cache with more room, holding what the old one held."""
        states = {sequence: self._state(sequence) for sequence in sorted(self._live)}
        self._api.llama_free(self._context)
        self._room += max(self._room, count)
        self._context = self._made(self._room)
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
        pointers = (_POINTER * len(added))(*(adapter for adapter, _ in added))
        factors = (_FLOAT * len(added))(*(scale for _, scale in added))
        if self._api.llama_set_adapters_lora(context, pointers, len(added), factors):
            raise self._api.fault("the adapters cannot be applied")

    def _memory(self) -> Any:
        return self._api.llama_get_memory(self._context)


def check_defaults(name: str, found: ctypes.Structure, expected: Mapping[str, Any]) -> None:
    """Refuse defaults that are not read as they have to be.

    Raises:
        EngineError: naming every field that is not.
    """
    wrong = [f"{field} is {getattr(found, field)!r}" for field in expected if getattr(found, field) != expected[field]]
    if wrong:
        raise EngineError(f"package xllamacpp lays out {name} otherwise: {', '.join(wrong)}")


def _spread(part: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int8]]:
    """Sequence, position and whether logits are kept, of each token of a part."""
    sequence, start, count, keep = part
    kept = np.zeros(count, np.int8)
    kept[count - keep :] = 1
    return np.full(count, sequence, np.int32), np.arange(start, start + count, dtype=np.int32), kept


def _loadable(path: Path) -> bool:
    return path.suffix in (".so", ".pyd", ".dylib")
