"""A GGUF file's numbers as float32 in llama.cpp, whatever they are stored in.

ggml rounds what it multiplies with a float16 matrix to float16, with integers to int8, and with a float32 matrix not at all.
So matrices are widened while they are loaded, by `llama_model_init_from_user`, which asks for every tensor that the
architecture may have. https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h
"""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..targets import gguf_blocks, gguf_file
from ..targets.contract import BundleError, EngineError
from ..targets.manifest import Manifest
from .llamacpp_api import Api, ModelParams

_POINTER, _TEXT, _INT, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_size_t
_AT_ONCE = 1 << 22  # numbers unpacked together
_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"
# What a file need not have, and what it then stands for: a shift by nothing, a factor of one.
_ABSENT = {".bias": 0.0, ".scale": 1.0, ".input_scale": 1.0, "rope_freqs.weight": 1.0}


class _InitParams(ctypes.Structure):
    """gguf_init_params."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", _POINTER)]


_Fill = ctypes.CFUNCTYPE(None, _POINTER, _POINTER)  # tensor, user data
_FUNCTIONS: Mapping[str, tuple[Any, ...]] = {  # name -> result, arguments
    "gguf_init_from_file": (_POINTER, _TEXT, _InitParams),
    "gguf_free": (None, _POINTER),
    "gguf_get_n_tensors": (_INT, _POINTER),
    "gguf_get_tensor_name": (_TEXT, _POINTER, _INT),
    "gguf_set_tensor_type": (None, _POINTER, _TEXT, ctypes.c_int),
    "ggml_get_name": (_TEXT, _POINTER),
    "ggml_nbytes": (_SIZE, _POINTER),
    "ggml_backend_tensor_set": (None, _POINTER, _POINTER, _SIZE, _SIZE),
    "llama_model_init_from_user": (_POINTER, _POINTER, _Fill, _POINTER, ModelParams),
}


def load_widened(api: Api, path: str, params: ModelParams) -> Any:
    """The model of a file, and of those that it is split into, with all its numbers in float32; None where it is refused.

    Raises:
        EngineError: a tensor is asked for that the file has not, or of another size.
        BundleError: a file cannot be read.
    """
    api.bind(_FUNCTIONS)
    filling = _Filling(api, _parts(Path(path)))
    metadata = api.gguf_init_from_file(path.encode(), _InitParams(no_alloc=True, ctx=None))
    if not metadata:
        raise api.fault(f"'{path}' cannot be loaded")
    try:
        for place in range(api.gguf_get_n_tensors(metadata)):
            api.gguf_set_tensor_type(metadata, api.gguf_get_tensor_name(metadata, place), gguf_blocks.F32.number)
        model = api.llama_model_init_from_user(metadata, _Fill(filling), None, params)
    finally:
        api.gguf_free(metadata)
    if filling.failure:
        raise filling.failure
    return model


def widened_bytes(folder: Path, manifest: Manifest, compute: str) -> int:
    """What the numbers of a bundle's decoder for llama.cpp take as float32, in bytes; 0 where `compute` is not that.

    Raises:
        BundleError: a file cannot be read.
    """
    if compute != "float32":
        return 0
    held = [one for one in manifest.artifacts if (one.target, one.stage) == ("gguf", "decoder")]
    files = [gguf_file.read(folder / file.path) for one in held for file in one.files]
    numbers = {name: info.rows * info.shape[-1] for file in files for name, info in file.tensors.items()}
    head = 0 if _HEAD in numbers else numbers.get(_EMBEDDING, 0)  # which is the embedding, once more
    return 4 * (sum(numbers.values()) + head)


class _Filling:
    """Gives every tensor its numbers; what goes wrong is kept, since no error passes through the library."""

    def __init__(self, api: Api, parts: Sequence[gguf_file.Contents]) -> None:
        self._api = api
        self._parts = {name: part for part in parts for name in part.tensors}
        self.failure: EngineError | BundleError | MemoryError | None = None

    def __call__(self, tensor: int, _: Any) -> None:
        try:
            self._fill(tensor, self._api.ggml_get_name(tensor).decode())
        except (EngineError, BundleError, MemoryError) as reason:
            self.failure = self.failure or reason

    def _fill(self, tensor: int, name: str) -> None:
        size = self._api.ggml_nbytes(tensor)
        stored = _EMBEDDING if name == _HEAD and name not in self._parts else name  # a head that is the embedding
        if stored not in self._parts:
            return self._set(tensor, np.full(size // 4, _standing_for(name), np.float32), 0)
        part = self._parts[stored]
        info, rows = part.tensors[stored], part.bytes_of(stored)
        columns = info.shape[-1]
        if size != 4 * info.rows * columns:
            raise EngineError(f"tensor '{name}' of '{part.path}' has {info.rows * columns} numbers, not {size // 4}")
        step = max(1, _AT_ONCE // columns)
        for row in range(0, info.rows, step):
            self._set(tensor, gguf_blocks.unpack(rows[row : row + step], info.type), 4 * row * columns)
        return None

    def _set(self, tensor: int, values: Any, offset: int) -> None:
        values = np.ascontiguousarray(values, np.float32)
        self._api.ggml_backend_tensor_set(tensor, values.ctypes.data, offset, values.nbytes)


def _standing_for(name: str) -> float:
    for ending, value in _ABSENT.items():
        if name.endswith(ending):
            return value
    raise EngineError(f"llama.cpp asks for tensor '{name}', which the file has not")


def _parts(path: Path) -> list[gguf_file.Contents]:
    """A file and, where it is split, those that follow it."""
    first = gguf_file.read(path)
    count = int(first.metadata.get("split.count", 1))
    ending = f"-00001-of-{count:05d}.gguf"
    begin = path.name.removesuffix(ending)
    others = [path.with_name(f"{begin}-{number:05d}-of-{count:05d}.gguf") for number in range(2, count + 1)]
    return [first, *map(gguf_file.read, others)]
