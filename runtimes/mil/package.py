"""An `.mlpackage` folder: its program, and the constants in its files of weights."""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...targets.contract import BundleError
from . import program
from .program import Blob, Constant, Immediate, Model
from .tensors import ELEMENTS, Array, Tensor, from_bytes, stored_bytes, widened

MANIFEST = "Manifest.json"
SENTINEL = 0xDEADBEEF
RECORD = struct.Struct("<IIQQQ32x")  # sentinel, type, bytes, offset, bits of padding, reserved
_MODEL = "@model_path/"


@dataclass(frozen=True)
class Package:
    """A package that was read: where its model lies, and the program in it."""

    folder: Path
    model_file: Path
    model: Model
    _files: dict[str, Array] = field(default_factory=dict, repr=False)

    def tensor(self, constant: Constant) -> Tensor:
        """The numbers of a constant.

        Raises:
            BundleError: its file is missing or damaged.
        """
        if isinstance(constant, Blob):
            return self._read(constant)
        try:
            if isinstance(constant, Immediate):
                return from_bytes(np.frombuffer(constant.raw, np.uint8), constant.element, constant.shape)
            return widened(ELEMENTS[2], np.array(constant.values).reshape(constant.shape))
        except ValueError as reason:
            raise self.damaged(self.model_file, str(reason)) from reason

    def damaged(self, path: Path, reason: str) -> BundleError:
        """What a file that does not hold what it should is to the caller."""
        return BundleError(f"'{path}' is damaged: {reason}. Copy or build the bundle again: ossicle build")

    def _read(self, blob: Blob) -> Tensor:
        path = self._path(blob.file)
        raw = self._bytes(path, blob.file)
        try:
            return from_bytes(_record(raw, blob), blob.element, blob.shape)
        except (ValueError, struct.error) as reason:
            raise self.damaged(path, f"at offset {blob.offset} {reason}") from reason

    def _path(self, file: str) -> Path:
        inside = PurePosixPath(file.removeprefix(_MODEL))
        if not file.startswith(_MODEL) or inside.is_absolute() or ".." in inside.parts:
            raise self.damaged(self.model_file, f"weights are in '{file}', which is not beside it")
        return self.model_file.parent / inside

    def _bytes(self, path: Path, file: str) -> Array:
        if file not in self._files:
            try:
                self._files[file] = np.memmap(path, np.uint8, "r")
            except (OSError, ValueError) as reason:  # an empty file cannot be mapped
                raise self.damaged(path, str(reason)) from reason
        return self._files[file]


def read(folder: Path) -> Package:
    """The package in a folder.

    Raises:
        BundleError: there is none, or its model cannot be read.
    """
    path = _model_file(folder)
    try:
        return Package(folder, path, program.read(path.read_bytes()))
    except FileNotFoundError:
        raise BundleError(f"'{path}' is missing. Copy or build the bundle again: ossicle build") from None
    except (OSError, ValueError) as reason:
        raise BundleError(
            f"'{path}' cannot be read: {reason}. Copy or build the bundle again: ossicle build"
        ) from reason


def _model_file(folder: Path) -> Path:
    """Where the manifest of a package says that its model lies."""
    path = folder / MANIFEST
    try:
        items: Any = json.loads(path.read_text(encoding="utf-8"))
        inside = PurePosixPath(items["itemInfoEntries"][items["rootModelIdentifier"]]["path"])
    except (OSError, ValueError, KeyError, TypeError) as reason:
        raise BundleError(
            f"'{folder}' is no Core ML package: {MANIFEST}: {type(reason).__name__} {reason}. "
            "Copy or build the bundle again: ossicle build"
        ) from reason
    if inside.is_absolute() or ".." in inside.parts:
        raise BundleError(f"'{path}' leads out of its package: '{inside}'. Build the bundle again: ossicle build")
    return folder / "Data" / inside


def _record(raw: Array, blob: Blob) -> Array:
    """The bytes that the record at a blob's offset points to."""
    sentinel, kind, size, offset, padding = RECORD.unpack(raw[blob.offset : blob.offset + RECORD.size].tobytes())
    expected = stored_bytes(blob.element, blob.shape)
    if sentinel != SENTINEL:
        raise ValueError("there is no record of a constant")
    if kind != blob.element.record:
        raise ValueError(f"the record is of type {kind} and not {blob.element.name}")
    if size != expected or padding != -_bits(blob) % 8:
        raise ValueError(f"the record is of {size} bytes, {padding} bits unused, and not of {expected} bytes")
    if offset + size > len(raw):
        raise ValueError(f"{size} bytes from {offset} are cut off after {max(0, len(raw) - offset)}")
    return raw[offset : offset + size]


def _bits(blob: Blob) -> int:
    return int(np.prod(blob.shape, dtype=np.int64)) * blob.element.bits
