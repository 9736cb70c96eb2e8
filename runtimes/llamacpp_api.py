"""llama.cpp's C API in the shared library that package xllamacpp brings, for one exact version of it.

The structures are those of llama.h at that version, https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h, and the
defaults read through them are compared with what they have to be before anything is run. A fault within the library ends the
process, so `Api`, which loads it, is only made in runtimes/llamacpp_worker.py.
"""

import ctypes
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..targets.contract import EngineError

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


def check_defaults(name: str, found: ctypes.Structure, expected: Mapping[str, Any]) -> None:
    """Refuse defaults that are not read as they have to be.

    Raises:
        EngineError: naming every field that is not.
    """
    wrong = [f"{field} is {getattr(found, field)!r}" for field in expected if getattr(found, field) != expected[field]]
    if wrong:
        raise EngineError(f"package xllamacpp lays out {name} otherwise: {', '.join(wrong)}")


def _loadable(path: Path) -> bool:
    return path.suffix in (".so", ".pyd", ".dylib")
