"""MIL, the program of a Core ML package, written operator by operator: named values with types, in protobuf.

https://apple.github.io/coremltools/mlmodel/Format/MIL.html
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

# The opset of iOS 18 and macOS 15, and the specification that came with it.
OPSET, SPECIFICATION = "CoreML8", 9
WEIGHTS = "@model_path/weights/weight.bin"

_ELEMENTS: Mapping[str, str] = {
    "bool": "BOOL", "string": "STRING", "int32": "INT32", "float16": "FLOAT16", "float32": "FLOAT32",
    "int8": "INT8", "uint8": "UINT8", "int4": "INT4", "uint4": "UINT4", "uint3": "UINT3",
}  # fmt: skip

Shape = tuple[int | None, ...]  # None: a dimension that varies


@dataclass(frozen=True)
class Value:
    """A named value of a program, of a type as MIL has them ("float16", "int4", ...)."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Blob:
    """Numbers in the package's file of weights: the record at `offset`."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


Given = Value | Sequence[Value] | Blob


@dataclass
class Block:
    """The operations of one function, in order."""

    operations: list[Any] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)
    _constants: dict[tuple[Any, ...], Value] = field(default_factory=dict)

    def add(
        self, kind: str, inputs: Mapping[str, Given], dtype: str, *shapes: Shape, name: str = "", title: str = ""
    ) -> list[Value]:
        """The results of a new operation, one for each shape; named after the operation unless `name` is given.

        `title` is what tools show, of any characters.
        """
        mil = schema("MIL")

        name = name or self._fresh(kind)
        names = [name] if len(shapes) < 2 else [f"{name}_{index}" for index in range(len(shapes))]
        made = [Value(one, dtype, shape) for one, shape in zip(names, shapes, strict=False)]
        operation = mil.Operation(type=kind, outputs=[_named_type(value) for value in made])
        for key, given in inputs.items():
            operation.inputs[key].arguments.extend(_bindings(given))
        operation.attributes["name"].CopyFrom(_literal(title or name))
        self.operations.append(operation)
        return made

    def one(
        self, kind: str, inputs: Mapping[str, Given], dtype: str, shape: Shape, *, name: str = "", title: str = ""
    ) -> Value:
        """The only result of a new operation."""
        return self.add(kind, inputs, dtype, shape, name=name, title=title)[0]

    def constant(self, value: Any, dtype: str) -> Value:
        """A small constant, written into the program: a number, a string, or a flat list of them. Equal ones are one."""
        key = (dtype, tuple(value) if isinstance(value, list) else value, isinstance(value, list))
        if key not in self._constants:
            self._constants[key] = self._constant(_literal(value, dtype), value, dtype)
        return self._constants[key]

    def stored(self, blob: Blob, title: str) -> Value:
        """A constant whose numbers are in the file of weights."""
        mil = schema("MIL")

        made = Value(self._fresh("weight"), blob.dtype, blob.shape)
        operation = mil.Operation(type="const", outputs=[_named_type(made)])
        operation.attributes["val"].CopyFrom(_stored(blob))
        operation.attributes["name"].CopyFrom(_literal(title))
        self.operations.append(operation)
        return made

    def rename(self, value: Value, name: str) -> Value:
        """A result under another name, before anything uses it."""
        output = next(
            output
            for operation in reversed(self.operations)
            for output in operation.outputs
            if output.name == value.name
        )
        output.name = name
        return Value(name, value.dtype, value.shape)

    def _constant(self, literal: Any, value: Any, dtype: str) -> Value:
        mil = schema("MIL")

        made = Value(self._fresh("const"), dtype, (len(value),) if isinstance(value, list) else ())
        operation = mil.Operation(type="const", outputs=[_named_type(made)])
        operation.attributes["val"].CopyFrom(literal)
        operation.attributes["name"].CopyFrom(_literal(made.name))
        self.operations.append(operation)
        return made

    def _fresh(self, kind: str) -> str:
        self._counts[kind] = self._counts.get(kind, -1) + 1
        return f"{kind}_{self._counts[kind]}"


@cache
def schema(name: str) -> Any:
    """coremltools' protobuf messages: "MIL", "Model", "FeatureTypes"."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of all that this machine lacks of a Mac
    try:
        return import_module(f"coremltools.proto.{name}_pb2")
    finally:
        logger.setLevel(level)


def function(block: Block, inputs: Sequence[Value], states: Sequence[Value], outputs: Sequence[Value]) -> Any:
    """The function that a block is the body of."""
    mil = schema("MIL")

    made = mil.Function(opset=OPSET, inputs=[_named_type(value) for value in inputs])
    for state in states:
        named = made.inputs.add(name=state.name)
        named.type.stateType.wrappedType.CopyFrom(value_type(state.dtype, state.shape))
    body = made.block_specializations[OPSET]
    body.outputs.extend(value.name for value in outputs)
    body.operations.extend(block.operations)
    return made


def value_type(dtype: str, shape: Shape) -> Any:
    """The protobuf of a tensor's type."""
    mil = schema("MIL")

    made = mil.ValueType()
    made.tensorType.dataType = getattr(mil, _ELEMENTS[dtype])
    made.tensorType.rank = len(shape)
    for size in shape:
        dimension = made.tensorType.dimensions.add()
        if size is None:
            dimension.unknown.SetInParent()
        else:
            dimension.constant.size = size
    return made


def _named_type(value: Value) -> Any:
    mil = schema("MIL")

    return mil.NamedValueType(name=value.name, type=value_type(value.dtype, value.shape))


def _bindings(given: Given) -> list[Any]:
    mil = schema("MIL")

    if isinstance(given, Blob):
        return [mil.Argument.Binding(value=_stored(given))]
    values = [given] if isinstance(given, Value) else given
    return [mil.Argument.Binding(name=value.name) for value in values]


def _stored(blob: Blob) -> Any:
    mil = schema("MIL")

    made = mil.Value(type=value_type(blob.dtype, blob.shape))
    made.blobFileValue.fileName = WEIGHTS
    made.blobFileValue.offset = blob.offset
    return made


def _literal(value: Any, dtype: str = "string") -> Any:
    """The protobuf of a number, a string or a flat list of them; float16 goes as bytes."""
    mil = schema("MIL")

    values = value if isinstance(value, list) else [value]
    made = mil.Value(type=value_type(dtype, (len(value),) if isinstance(value, list) else ()))
    tensor = made.immediateValue.tensor
    if dtype == "float16":
        tensor.bytes.values = np.array(values, np.float16).tobytes()
    else:
        kinds = {"string": tensor.strings, "bool": tensor.bools, "int32": tensor.ints, "float32": tensor.floats}
        kinds[dtype].values.extend(values)
    return made
