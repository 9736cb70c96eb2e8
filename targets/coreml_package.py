"""A Core ML package (`.mlpackage`): a folder with a specification, the file of weights, and a list of both.

https://apple.github.io/coremltools/mlmodel/index.html
"""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from .coreml_mil import SPECIFICATION, Block, Shape, Value, function, schema

_AUTHOR = "com.apple.CoreML"
_ARRAYS: Mapping[str, str] = {"float16": "FLOAT16", "float32": "FLOAT32", "int32": "INT32"}


@dataclass(frozen=True)
class Function:
    """A function of a package; the dimension of an input that varies goes from 1 to `longest`."""

    block: Block
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    states: tuple[Value, ...] = ()
    longest: int = 1


def paths(package: Path) -> tuple[Path, Path, Path]:
    """The files of a package: the list, the specification and the weights."""
    data = package / "Data" / _AUTHOR
    return package / "Manifest.json", data / "model.mlmodel", data / "weights" / "weight.bin"


def specification(functions: Mapping[str, Function], description: str) -> Any:
    """The specification of a package; the first of several functions is the one that runs where none is named."""
    model = schema("Model").Model(specificationVersion=SPECIFICATION)
    model.mlProgram.version = 1
    for name, one in functions.items():
        model.mlProgram.functions[name].CopyFrom(function(one.block, one.inputs, one.states, one.outputs))
    if len(functions) == 1:
        _describe(model.description, next(iter(functions.values())))
    else:
        for name, one in functions.items():
            _describe(model.description.functions.add(name=name), one)
        model.description.defaultFunctionName = next(iter(functions))
    model.description.metadata.shortDescription = description
    model.description.metadata.versionString = __version__
    model.description.metadata.userDefined["ossicle.version"] = __version__
    return model


def write(package: Path, model: Any) -> None:
    """Write a package but for its weights."""
    listed, stored, weights = paths(package)
    weights.parent.mkdir(parents=True, exist_ok=True)
    content = model.SerializeToString(deterministic=True)
    stored.write_bytes(content)
    listed.write_text(json.dumps(_items(content), indent=4, sort_keys=True) + "\n", encoding="utf-8")


def _items(content: bytes) -> dict[str, Any]:
    """The list of a package's items, their identifiers made from what the specification holds."""

    def item(name: str, path: str, description: str) -> dict[str, str]:
        return {"author": _AUTHOR, "description": description, "name": name, "path": f"{_AUTHOR}/{path}"}

    digest = hashlib.sha256(content).digest()
    names = [str(uuid.UUID(bytes=digest[start : start + 16], version=5)) for start in (0, 16)]
    return {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            names[0]: item("model.mlmodel", "model.mlmodel", "CoreML Model Specification"),
            names[1]: item("weights", "weights", "CoreML Model Weights"),
        },
        "rootModelIdentifier": names[0],
    }


def _describe(description: Any, one: Function) -> None:
    """Fill in what a function takes, gives and keeps."""
    for value in one.inputs:
        _array(description.input.add(name=value.name).type.multiArrayType, value, one.longest)
    for value in one.outputs:
        _array(description.output.add(name=value.name).type.multiArrayType, value)
    for value in one.states:
        _array(description.state.add(name=value.name).type.stateType.arrayType, value)


def _array(array: Any, value: Value, longest: int = 0) -> None:
    """An array's type; `longest` bounds the dimension that varies, and an output that varies has no shape."""
    array.dataType = getattr(schema("FeatureTypes").ArrayFeatureType, _ARRAYS[value.dtype])
    if None not in value.shape:
        array.shape.extend(value.shape)
    elif longest:
        array.shape.extend(1 if size is None else size for size in value.shape)
        for low, high in _ranges(value.shape, longest):
            array.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)


def _ranges(shape: Shape, longest: int) -> Sequence[tuple[int, int]]:
    return [(1, longest) if size is None else (size, size) for size in shape]
