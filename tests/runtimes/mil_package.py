"""Core ML packages put together by hand with Apple's own protobuf classes: what the interpreter is tested on, op by op."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.WARNING)  # coremltools tells at length that it is not on a Mac
    import coremltools  # noqa: F401
    from coremltools.proto import FeatureTypes_pb2, MIL_pb2, Model_pb2

    logging.disable(logging.NOTSET)

NUMBERS = {
    "fp16": MIL_pb2.FLOAT16,
    "fp32": MIL_pb2.FLOAT32,
    **{name: getattr(MIL_pb2, name.upper()) for name in ("int8", "int16", "int32", "int4", "bool", "string")},
    **{f"uint{bits}": getattr(MIL_pb2, f"UINT{bits}") for bits in (1, 2, 3, 4, 6, 8, 16, 32)},
}
NAMES = {"float16": "fp16", "float32": "fp32", "int64": "int32", "int32": "int32", "bool": "bool"}
FEATURES = {
    name: getattr(FeatureTypes_pb2.ArrayFeatureType, number)
    for name, number in {"fp16": "FLOAT16", "fp32": "FLOAT32", "int32": "INT32"}.items()
}


class Stored:
    """A constant of an element type that numpy lacks, or that would be taken for another."""

    def __init__(self, element: str, values: Any) -> None:
        self.element = element
        self.values = np.asarray(values)


def element_of(value: Any) -> str:
    if isinstance(value, Stored):
        return value.element
    kind = np.asarray(value).dtype
    return "string" if kind.kind == "U" else NAMES.get(kind.name, kind.name)


def tensor_type(message: Any, element: str, shape: Sequence[int | None]) -> None:
    message.tensorType.dataType = NUMBERS[element]
    message.tensorType.rank = len(shape)
    for size in shape:
        dimension = message.tensorType.dimensions.add()
        if size is None:
            dimension.unknown.variadic = False
        else:
            dimension.constant.size = size


def immediate(message: Any, value: Any) -> None:
    """Fill in a `Value`, stored as coremltools stores it."""
    element, values = element_of(value), np.asarray(value.values if isinstance(value, Stored) else value)
    tensor_type(message.type, element, values.shape)
    held = message.immediateValue.tensor
    if element == "string":
        held.strings.values.extend([str(one) for one in values.ravel()])
    elif element == "fp32":
        held.floats.values.extend(map(float, values.ravel()))
    elif element == "int32":
        held.ints.values.extend(map(int, values.ravel()))
    elif element == "bool":
        held.bools.values.extend(map(bool, values.ravel()))
    else:
        held.bytes.values = values.tobytes()


class Package:
    """A program of one function that grows operation by operation."""

    def __init__(self, opset: str = "CoreML8") -> None:
        self.model = Model_pb2.Model(specificationVersion=9)
        self.function = self.model.mlProgram.functions["main"]
        self.function.opset = opset
        self.block = self.function.block_specializations[opset]
        self.count = 0

    def input(self, name: str, element: str, shape: Sequence[int | None]) -> str:
        declared = self.function.inputs.add(name=name)
        tensor_type(declared.type, element, shape)
        array = self.model.description.input.add(name=name).type.multiArrayType
        array.dataType = FEATURES[element]
        array.shape.extend(1 if size is None else size for size in shape)
        if None in shape:
            for size in shape:
                array.shapeRange.sizeRanges.add(lowerBound=size or 1, upperBound=size or -1)
        return name

    def const(self, value: Any) -> str:
        name = f"const_{self.count}"
        self.count += 1
        entry = self.block.operations.add(type="const")
        immediate(entry.attributes["name"], name)
        immediate(entry.attributes["val"], value)
        declared = entry.outputs.add(name=name)
        declared.type.CopyFrom(entry.attributes["val"].type)
        return name

    def op(self, kind: str, outputs: Mapping[str, tuple[str, Sequence[int | None]]], **arguments: Any) -> Any:
        """An operation; an argument is a value's name, a list of names, or a constant."""
        given = {
            name: value if isinstance(value, str | list) else self.const(value) for name, value in arguments.items()
        }
        entry = self.block.operations.add(type=kind)
        immediate(entry.attributes["name"], f"{kind}_{len(self.block.operations)}")
        for name, value in given.items():
            for operand in value if isinstance(value, list) else [value]:
                entry.inputs[name].arguments.add(name=operand)
        for name, (element, shape) in outputs.items():
            tensor_type(entry.outputs.add(name=name).type, element, shape)
        return entry

    def output(self, name: str, element: str, shape: Sequence[int]) -> None:
        self.block.outputs.append(name)
        array = self.model.description.output.add(name=name).type.multiArrayType
        array.dataType = FEATURES[element]
        array.shape.extend(shape)

    def write(self, folder: Path, weights: bytes | None = None) -> Path:
        write_package(folder, self.model.SerializeToString(), weights)
        return folder


def write_package(folder: Path, model: bytes, weights: bytes | None = None) -> None:
    """A package folder as Core ML's tools write it."""
    place = folder / "Data" / "com.apple.CoreML"
    place.mkdir(parents=True, exist_ok=True)
    items = {"A": {"author": "com.apple.CoreML", "name": "model.mlmodel", "path": "com.apple.CoreML/model.mlmodel"}}
    document = {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": "A"}
    (folder / "Manifest.json").write_text(json.dumps(document), encoding="utf-8")
    (place / "model.mlmodel").write_bytes(model)
    if weights is not None:
        (place / "weights").mkdir(exist_ok=True)
        (place / "weights" / "weight.bin").write_bytes(weights)
