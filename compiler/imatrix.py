"""What was measured of a model's activations: llama.cpp's importance matrix, in its GGUF form.

For each matrix the file has the sums of squares of every column's inputs (`<tensor>.in_sum2`), and how many they are of
(`<tensor>.counts`): https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..targets import gguf_blocks, gguf_file, gguf_names
from ..targets.contract import BuildError, BundleError, BundleFile, Float32, TensorSource
from ..targets.gguf_file import Contents
from ..targets.manifest import file_entry
from .families import Family

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Imatrix:
    """The file, and the mean square of each column's inputs [K] by the canonical name of the matrix [N, K]."""

    file: BundleFile
    importances: Mapping[str, Float32] = field(repr=False)


def read(path: Path, tensors: Mapping[str, TensorSource], model: Family) -> Imatrix:
    """The importance matrix in a file, for every matrix of the decoder; for the embedding and the head where it has them.

    Raises:
        BuildError: it is no such file, or not this model's; every gap is named.
    """
    contents = _contents(path)
    wanted = {name: tensors[name].shape[1] for name in tensors if _of_decoder(name, model)}
    held = {name: gguf_names.text_name(name) for name in wanted}
    given = {name for name in wanted if held[name] + _SUMS in contents.tensors}
    faults = [
        f"it has no '{held[name]}{_SUMS}'" for name in wanted if name not in given and model.part(name) == "decoder"
    ]
    importances = {name: _means(contents, held[name]) for name in given}
    faults += [
        f"'{held[name]}' has {means.size} columns instead of {wanted[name]}"
        for name, means in importances.items()
        if means.size != wanted[name]
    ]
    if faults:
        raise BuildError(
            f"imatrix '{path}' is not this model's: {'; '.join(sorted(faults))}. "
            "Make it from a GGUF file of the same checkpoint, with llama.cpp's llama-imatrix"
        )
    return Imatrix(file_entry(path.parent, path), importances)


def _contents(path: Path) -> Contents:
    try:
        contents = gguf_file.read(path)
    except BundleError as reason:
        raise _refusal(path, str(reason.__cause__)) from reason
    if contents.metadata.get("general.type") != "imatrix":
        raise _refusal(path, f"its general.type is {contents.metadata.get('general.type')!r}")
    if faults := list(_faults(contents)):
        raise _refusal(path, "; ".join(faults))
    return contents


def _refusal(path: Path, reason: str) -> BuildError:
    return BuildError(
        f"'{path}' is no imatrix in llama.cpp's GGUF form: {reason}. "
        "Make one with: llama-imatrix -m MODEL.gguf -f TEXT -o FILE.gguf"
    )


def _faults(contents: Contents) -> Iterator[str]:
    for name, info in contents.tensors.items():
        if info.type is not gguf_blocks.F32:
            yield f"'{name}' is {info.type.name} instead of F32"
        elif name.endswith(_SUMS) and name.removesuffix(_SUMS) + _COUNTS not in contents.tensors:
            yield f"'{name}' has no counts"
        elif info.rows != 1 and name.endswith(_SUMS):
            yield f"'{name}' is of {info.rows} experts, of which this model has none"


def _of_decoder(name: str, model: Family) -> bool:
    return model.part(name) == "embedding" or (model.part(name) in ("decoder", "lm_head") and model.linear(name))


def _means(contents: Contents, name: str) -> Float32:
    """Sums over counts; ones, which weigh nothing, where nothing was counted."""
    sums, counts = (_numbers(contents, name + suffix) for suffix in (_SUMS, _COUNTS))
    means: Float32 = sums / counts[0] if counts[0] > 0 else np.ones_like(sums)
    return means


def _numbers(contents: Contents, name: str) -> Float32:
    return gguf_blocks.unpack(contents.bytes_of(name), contents.tensors[name].type).reshape(-1)
