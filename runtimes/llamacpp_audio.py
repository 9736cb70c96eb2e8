"""llama.cpp's own audio path, its library `mtmd`, in the child process: recordings to what stands for them in a prompt.

The structures are those of mtmd.h at the version that is pinned,
https://github.com/ggml-org/llama.cpp/blob/master/tools/mtmd/mtmd.h.
"""

import ctypes
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..targets.contract import EngineError, Float32
from .llamacpp_api import Api, Log, check_defaults, fields
from .llamacpp_context import Context

_AUDIO = 2  # the type of a chunk
_RATE = 16000  # Hz
_POINTER, _TEXT = ctypes.c_void_p, ctypes.c_char_p
_INT, _BOOL, _SIZE = ctypes.c_int32, ctypes.c_bool, ctypes.c_size_t


class MtmdParams(ctypes.Structure):
    """mtmd_context_params."""

    _fields_ = [
        ("use_gpu", _BOOL),
        ("device", _POINTER),
        ("print_timings", _BOOL),
        ("n_threads", _INT),
        *fields(_POINTER, "image_marker media_marker"),
        ("flash_attn_type", _INT),
        ("warmup", _BOOL),
        *fields(_INT, "image_min_tokens image_max_tokens"),
        *fields(_POINTER, "cb_eval cb_eval_user_data"),
        ("batch_max_tokens", _INT),
        *fields(_POINTER, "progress_callback progress_user_data"),
    ]


class InputText(ctypes.Structure):
    """mtmd_input_text."""

    _fields_ = [("text", _TEXT), ("text_len", _SIZE), *fields(_BOOL, "add_special parse_special")]


PARAMS_DEFAULTS = {
    "use_gpu": True, "device": None, "print_timings": True, "n_threads": 4, "image_marker": None,
    "flash_attn_type": -1, "warmup": True, "image_min_tokens": -1, "image_max_tokens": -1,
    "cb_eval": None, "batch_max_tokens": 1024, "progress_callback": None,
}  # fmt: skip

_FUNCTIONS: Mapping[str, tuple[Any, ...]] = {  # name -> result, arguments
    "mtmd_log_set": (None, Log, _POINTER),
    "mtmd_context_params_default": (MtmdParams,),
    "mtmd_default_marker": (_TEXT,),
    "mtmd_init_from_file": (_POINTER, _TEXT, _POINTER, MtmdParams),
    "mtmd_get_audio_sample_rate": (_INT, _POINTER),
    "mtmd_bitmap_init_from_audio": (_POINTER, _SIZE, _POINTER),
    "mtmd_bitmap_free": (None, _POINTER),
    "mtmd_input_chunks_init": (_POINTER,),
    "mtmd_input_chunks_size": (_SIZE, _POINTER),
    "mtmd_input_chunks_get": (_POINTER, _POINTER, _SIZE),
    "mtmd_input_chunks_free": (None, _POINTER),
    "mtmd_tokenize": (_INT, _POINTER, _POINTER, ctypes.POINTER(InputText), ctypes.POINTER(_POINTER), _SIZE),
    "mtmd_input_chunk_get_type": (ctypes.c_int, _POINTER),
    "mtmd_input_chunk_get_n_tokens": (_SIZE, _POINTER),
    "mtmd_encode_chunk": (_INT, _POINTER, _POINTER),
    "mtmd_get_output_embd": (ctypes.POINTER(ctypes.c_float), _POINTER),
}


class Ear:
    """An opened `mmproj` beside the model whose prompts it is for."""

    def __init__(self, api: Api, context: Context, path: str, threads: int) -> None:
        self._api, self._hidden = api, context.hidden
        api.bind(_FUNCTIONS)
        api.mtmd_log_set(api.log, None)
        params = api.mtmd_context_params_default()
        check_defaults("mtmd_context_params", params, PARAMS_DEFAULTS)
        params.use_gpu = params.warmup = params.print_timings = False
        params.n_threads = threads
        self._marker = api.mtmd_default_marker()
        self._mtmd = api.mtmd_init_from_file(path.encode(), context.model, params)
        if not self._mtmd:
            raise api.fault(f"'{path}' cannot be loaded")
        if (rate := api.mtmd_get_audio_sample_rate(self._mtmd)) != _RATE:
            raise EngineError(f"'{path}' hears audio at {rate} Hz (it has to be: {_RATE})")
        # Silence tells how much stands for a window, and that mtmd_input_text is laid out as it has to be.
        self.tokens = self.hear(np.zeros(_RATE, np.float32)).shape[1]

    def hear(self, samples: Float32) -> Float32:
        """What stands for a recording, [windows, tokens, hidden]; there may be one window more than it has."""
        samples = np.ascontiguousarray(samples, np.float32)
        bitmap = self._api.mtmd_bitmap_init_from_audio(len(samples), samples.ctypes.data)
        chunks = self._api.mtmd_input_chunks_init()
        try:
            text = InputText(self._marker, len(self._marker), False, True)
            if answer := self._api.mtmd_tokenize(self._mtmd, chunks, text, (_POINTER * 1)(bitmap), 1):
                raise self._api.fault(f"mtmd_tokenize answers {answer} to {len(samples)} samples")
            windows = [self._encode(chunk) for chunk in self._audio_chunks(chunks)]
        finally:
            self._api.mtmd_input_chunks_free(chunks)
            self._api.mtmd_bitmap_free(bitmap)
        if not windows:
            raise self._api.fault(f"mtmd_tokenize finds no audio in {len(samples)} samples")
        return np.stack(windows)

    def _audio_chunks(self, chunks: Any) -> Iterator[Any]:
        for place in range(self._api.mtmd_input_chunks_size(chunks)):
            chunk = self._api.mtmd_input_chunks_get(chunks, place)
            if self._api.mtmd_input_chunk_get_type(chunk) == _AUDIO:
                yield chunk

    def _encode(self, chunk: Any) -> Float32:
        count = self._api.mtmd_input_chunk_get_n_tokens(chunk)
        if answer := self._api.mtmd_encode_chunk(self._mtmd, chunk):
            raise self._api.fault(f"mtmd_encode_chunk answers {answer}")
        return np.array(np.ctypeslib.as_array(self._api.mtmd_get_output_embd(self._mtmd), (count, self._hidden)))
