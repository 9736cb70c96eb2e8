"""Messages between a process and its child: a JSON document and arrays, each behind its length.

    u32 length of the document | document | the arrays' bytes, one behind the other

The document says what the arrays are under "arrays": [dtype, shape] of each.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = ("float32", "int32")


def send(stream: IO[bytes], message: Mapping[str, Any], arrays: Sequence[NDArray[Any]] = ()) -> None:
    """Write a message; arrays are float32 or int32."""
    kept = [np.ascontiguousarray(array) for array in arrays]
    document = json.dumps({**message, "arrays": [[str(array.dtype), array.shape] for array in kept]}).encode()
    stream.write(struct.pack("<I", len(document)) + document)
    for array in kept:
        stream.write(array.tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """The next message and its arrays.

    Raises:
        EOFError: the other side ended, between messages or within one.
        ValueError: what came is no message.
    """
    document = json.loads(_exactly(stream, struct.unpack("<I", _exactly(stream, 4))[0]))
    return document, [_array(stream, dtype, shape) for dtype, shape in document.pop("arrays")]


def _array(stream: IO[bytes], dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    if dtype not in _DTYPES:
        raise ValueError(f"an array is of {dtype} (it can be: {', '.join(_DTYPES)})")
    kind = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(_exactly(stream, count * kind.itemsize), kind).reshape(shape)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = stream.read(count - len(data))
        if not piece:
            raise EOFError("the other side ended")
        data += piece
    return bytes(data)
