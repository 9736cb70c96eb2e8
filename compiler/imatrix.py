"""What was measured of a model's activations: a calibration of ours, or llama.cpp's importance matrix in its GGUF form.

In the latter, for each matrix the file has the sums of squares of every column's inputs (`<tensor>.in_sum2`), and how many
they are of (`<tensor>.counts`): https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..targets import gguf_blocks, gguf_file, gguf_names
from ..targets.contract import BuildError, BundleError, BundleFile, Float32, TensorSource
from ..targets.gguf_file import Contents
from ..targets.manifest import file_entry
from . import calibration
from .calibration import Calibration
from .families import Family
from .written import refused, whole

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Imatrix:
    """The file, and the mean square of each column's inputs [K] by the canonical name of the matrix [N, K]."""

    file: BundleFile
    importances: Mapping[str, Float32] = field(repr=False)


def read(path: Path, checkpoint: Callable[[], str], tensors: Mapping[str, TensorSource], model: Family) -> Imatrix:
    """The importances in a file of either form. `checkpoint` gives the identity that a calibration has to be of.

    llama.cpp's form has to have every matrix of the decoder; the embedding and the head where it has them.

    Raises:
        BuildError: it is no such file, or not this model's; every gap is named.
    """
    if calibration.is_calibration(path):
        return Imatrix(file_entry(path.parent, path), calibration.read(path, checkpoint(), tensors).importances)
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


def write(path: Path, calibrated: Calibration, model: Family) -> None:
    """Write what was measured of the decoder and the head as llama.cpp's GGUF, whole or not at all."""
    arrays: dict[str, Float32] = {}
    for name, one in calibrated.measured.items():
        if _of_decoder(name, model):
            held = gguf_names.text_name(name)
            arrays[held + _SUMS] = one.mean_square * np.float32(one.count)
            arrays[held + _COUNTS] = np.array([one.count], np.float32)
    metadata: dict[str, gguf_file.Value] = {
        "general.type": "imatrix",
        "imatrix.datasets": [calibrated.speech],
        "imatrix.chunk_count": 1,
        "imatrix.chunk_size": max(one.count for one in calibrated.measured.values()),
    }
    places = gguf_file.place([(name, (1, len(array)), gguf_blocks.F32) for name, array in arrays.items()])
    with whole(path) as partial, refused(path), partial.open("wb") as stream:
        stream.write(gguf_file.header(metadata, places))
        for array in arrays.values():
            stream.write(array.tobytes().ljust(gguf_file.aligned(array.nbytes), b"\0"))


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
        "Make one with: ossicle calibrate CHECKPOINT --out FILE, or llama-imatrix -m MODEL.gguf -f TEXT -o FILE.gguf"
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
