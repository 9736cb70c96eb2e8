"""What was measured of a model's activations on speech: one safetensors file, and what is asked of it.

For every linear matrix [N, K] the file has the mean square of each column's inputs, and the least and the greatest of them,
float32 [K] each; its metadata say of which checkpoint, with which recordings, over how many inputs, and how those counted.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..targets.contract import BuildError, CheckpointError, Float32, TensorSource
from .safetensors import StoredTensor, read_header, read_metadata
from .safetensors_write import Layout, Writer

VERSION = 1
_KIND = "calibration"
BY_SOUND, BY_GRADIENTS = "sound", "gradients"  # how much a position counts; files that do not say so have it by sound
_MEASURED = ("mean_square", "lowest", "highest")


@dataclass(frozen=True)
class Measured:
    """What a matrix [N, K] is multiplied with: of each column [K] the mean square, the least, the greatest; over `count`."""

    mean_square: Float32 = field(repr=False)
    lowest: Float32 = field(repr=False)
    highest: Float32 = field(repr=False)
    count: int


@dataclass(frozen=True)
class Calibration:
    """The measurements by canonical name, of the checkpoint with this identity, on the speech of this name and sha256.

    `weighed`: by its sound alone each position counted, or by gradients, too (positions.py).
    """

    checkpoint: str
    speech: str
    speech_sha256: str
    measured: Mapping[str, Measured]
    weighed: str = BY_SOUND

    @property
    def importances(self) -> dict[str, Float32]:
        return {name: one.mean_square for name, one in self.measured.items()}


def identity(source: Any, adapters: Sequence[Any]) -> str:
    """A hash of a checkpoint's files and adapters (a manifest's `Source` and `AdapterSource`), wherever they lie."""
    text = json.dumps([[file.sha256 for file in source.files], [asdict(one) for one in adapters]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, calibration: Calibration) -> None:
    """Write a calibration, whole or not at all; the same measurements give the same bytes."""
    tensors = {f"{name}.{key}": getattr(one, key) for name, one in calibration.measured.items() for key in _MEASURED}
    layouts = {name: Layout("F32", values.shape) for name, values in tensors.items()}
    with Writer.open(path, layouts, _metadata(calibration)) as writer:
        for name, values in tensors.items():
            writer.rows(name, 0, values.astype("<f4", copy=False))


def read(path: Path, identity: str, tensors: Mapping[str, TensorSource]) -> Calibration:
    """The calibration in a file, of the checkpoint with this identity and these tensors.

    Raises:
        BuildError: it is none, or of another checkpoint; with the command that makes one.
    """
    document = metadata(path, _KIND, VERSION)
    check_identity(path, document, identity)
    try:
        stored = read_header(path)
    except CheckpointError as reason:
        raise refusal(path, _KIND, str(reason)) from reason
    faults = [
        f"'{name}.{key}' is missing or not float32 [{tensors[name].shape[1]}]"
        for name in document["counts"]
        for key in _MEASURED
        if name in tensors and not _fits(stored.get(f"{name}.{key}"), tensors[name].shape[1])
    ] + [f"'{name}' is no tensor of this checkpoint" for name in document["counts"] if name not in tensors]
    if faults:
        raise refusal(path, _KIND, "; ".join(faults))
    measured = {name: _measured(name, stored, count) for name, count in document["counts"].items()}
    weighed = document.get("weighed", BY_SOUND)
    return Calibration(identity, document["speech"], document["speech_sha256"], measured, weighed)


def _measured(name: str, stored: Mapping[str, StoredTensor], count: int) -> Measured:
    square, lowest, highest = (one.rows(0, one.shape[0]) for one in (stored[f"{name}.{key}"] for key in _MEASURED))
    return Measured(square, lowest, highest, count)


def is_calibration(path: Path) -> bool:
    """Whether a file says that it is one."""
    return _document(path).get("kind") == _KIND


def metadata(path: Path, kind: str, version: int) -> dict[str, Any]:
    """What a file of ours says of itself.

    Raises:
        BuildError: it is not of this kind, or newer.
    """
    document = _document(path)
    if document.get("kind") != kind:
        raise refusal(path, kind, "it does not say that it is one" if path.is_file() else "there is no such file")
    if document.get("version") != version:
        raise refusal(path, kind, f"it is of version {document.get('version')}, and {version} is what is read")
    return document


def check_identity(path: Path, document: Mapping[str, Any], identity: str) -> None:
    """Refuse what was made from another checkpoint.

    Raises:
        BuildError: it was.
    """
    if document["checkpoint"] != identity:
        raise BuildError(
            f"'{path}' was made from another checkpoint, or with other adapters (its identity is "
            f"{document['checkpoint'][:12]}, this one's {identity[:12]}). Make it from this one: "
            f"{_COMMANDS[document['kind']]}"
        )


_COMMANDS = {
    "calibration": "ossicle calibrate CHECKPOINT --out FILE",
    "quantized": "ossicle quantize CHECKPOINT --quantizer NAME --out FILE",
}


def refusal(path: Path, kind: str, reason: str) -> BuildError:
    """The error that a file is not what it should be."""
    named = {"calibration": "a calibration", "quantized": "a file of quantized weights"}[kind]
    return BuildError(f"'{path}' cannot be used as {named}: {reason}. Make one with: {_COMMANDS[kind]}")


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_metadata(path).get("ossicle", "{}"))
    except (ValueError, TypeError):
        return {}
    return document if isinstance(document, dict) else {}


def _fits(stored: StoredTensor | None, columns: int) -> bool:
    return stored is not None and stored.dtype == "float32" and stored.shape == (columns,)


def _metadata(calibration: Calibration) -> dict[str, Any]:
    return {
        "kind": _KIND,
        "version": VERSION,
        "checkpoint": calibration.checkpoint,
        "speech": calibration.speech,
        "speech_sha256": calibration.speech_sha256,
        "weighed": calibration.weighed,
        "counts": {name: one.count for name, one in calibration.measured.items()},
    }


@dataclass
class Running:
    """Sums over inputs, so far: one column's squares, least and greatest; and how much all inputs count."""

    squares: Any
    lowest: Any
    highest: Any
    count: int = 0
    counted: float = 0.0

    @classmethod
    def of(cls, columns: int) -> "Running":
        return cls(np.zeros(columns), np.full(columns, np.inf, np.float32), np.full(columns, -np.inf, np.float32))

    def add(self, inputs: Float32, counted: Float32) -> None:
        """Count inputs [rows, K], each as much as `counted` [rows] says."""
        self.squares += np.einsum("rk,rk,r->k", inputs, inputs, counted, dtype=np.float64)
        np.minimum(self.lowest, inputs.min(axis=0), out=self.lowest)
        np.maximum(self.highest, inputs.max(axis=0), out=self.highest)
        self.count += len(inputs)
        self.counted += float(counted.sum())

    def measured(self) -> Measured:
        return Measured((self.squares / self.counted).astype(np.float32), self.lowest, self.highest, self.count)
