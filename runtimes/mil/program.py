"""An ML Program as it is written in `model.mlmodel`: functions, operations, declared types, constants and their places."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from .messages import MESSAGES
from .tensors import ELEMENTS, Element, TensorType
from .wire import Message, decode

_ARRAYS = {65568: "fp32", 65552: "fp16", 131104: "int32", 131080: "int8"}  # ArrayFeatureType.ArrayDataType


@dataclass(frozen=True)
class Blob:
    """A constant in a file of weights: the record at `offset` says where its bytes are."""

    element: Element
    shape: tuple[int, ...]
    file: str
    offset: int


@dataclass(frozen=True)
class Immediate:
    """A constant within the program: its bytes, as a file of weights would have them."""

    element: Element
    shape: tuple[int, ...]
    raw: bytes = field(repr=False)


@dataclass(frozen=True)
class Text:
    """A constant of strings."""

    shape: tuple[int, ...]
    values: tuple[str, ...]


Constant = Blob | Immediate | Text
Operand = str | Constant  # the name of a value, or a constant on the spot


@dataclass(frozen=True)
class Declared:
    """A value's name and type; `is_state` where it is what a state holds."""

    name: str
    type: TensorType
    is_state: bool = False


@dataclass(frozen=True)
class Operation:
    """One operation; an argument is one operand, or several where it is a tuple."""

    name: str
    kind: str
    inputs: Mapping[str, tuple[Operand, ...]]
    outputs: tuple[Declared, ...]
    attributes: Mapping[str, Constant]


@dataclass(frozen=True)
class Feature:
    """An input, output or state as the model's description has it: which sizes each dimension may have (None: any).

    `shapes` are alternatives; of each dimension the least and the most.
    """

    name: str
    element: str
    shapes: tuple[tuple[tuple[int, int | None], ...], ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape is one of those described."""
        return any(
            len(sizes) == len(shape)
            and all(
                least <= size and (most is None or size <= most)
                for size, (least, most) in zip(shape, sizes, strict=True)
            )
            for sizes in self.shapes
        )

    @property
    def words(self) -> str:
        """Type and shapes for people: "fp16 [1, 1 to 512, 64]"."""
        return f"{self.element} " + " or ".join(f"[{', '.join(map(_size, sizes))}]" for sizes in self.shapes)


@dataclass(frozen=True)
class Function:
    """One function of a program, and what the model's description says of it."""

    name: str
    opset: str
    inputs: tuple[Declared, ...]
    operations: tuple[Operation, ...] = field(repr=False)
    outputs: tuple[str, ...]
    described_inputs: tuple[Feature, ...]
    described_outputs: tuple[Feature, ...]
    described_states: tuple[Feature, ...]


@dataclass(frozen=True)
class Model:
    """A package's functions by name, and which of them is meant where none is named."""

    functions: Mapping[str, Function]
    default: str


def read(data: bytes) -> Model:
    """The program in the bytes of a `model.mlmodel`.

    Raises:
        ValueError: they are no Core ML model, or one that is no ML Program.
    """
    model = decode(data, MESSAGES, "Model")
    if not model.get("program", {}).get("functions"):
        raise ValueError("it is no ML Program")
    description = model.get("description") or decode(b"", MESSAGES, "Description")
    several = {entry.get("name", ""): entry for entry in description["functions"]}
    functions = {
        name: _function(name, body, several.get(name) or description)
        for name, body in sorted(model["program"]["functions"].items())
    }
    default = description.get("default", "") or ("main" if "main" in functions else next(iter(functions)))
    return Model(functions, default)


def _function(name: str, body: Message, description: Message) -> Function:
    if "opset" not in body or body["opset"] not in body["blocks"]:
        raise ValueError(f"function '{name}' has no block for its opset '{body.get('opset', '')}'")
    block = body["blocks"][body["opset"]]
    return Function(
        name,
        body["opset"],
        tuple(map(_declared, body["inputs"])),
        tuple(map(_operation, block["operations"])),
        tuple(block["outputs"]),
        *(tuple(map(_feature, description[kind])) for kind in ("input", "output", "state")),
    )


def _operation(entry: Message) -> Operation:
    outputs = tuple(map(_declared, entry["outputs"]))
    attributes = {name: _constant(value) for name, value in entry["attributes"].items()}
    named = attributes.get("name")
    name = named.values[0] if isinstance(named, Text) and named.values else ", ".join(out.name for out in outputs)
    inputs = {name: tuple(_operands(argument)) for name, argument in entry["inputs"].items()}
    return Operation(name, entry.get("type", ""), inputs, outputs, attributes)


def _operands(argument: Message) -> Iterator[Operand]:
    for binding in argument["bindings"]:
        if "value" in binding:
            yield _constant(binding["value"])
        else:
            yield binding.get("name", "")


def _declared(entry: Message) -> Declared:
    name, of = entry.get("name", ""), entry.get("type", {})
    if "state" in of:
        return Declared(name, _type(name, of["state"].get("wrapped", {})), is_state=True)
    return Declared(name, _type(name, of))


def _type(name: str, of: Message) -> TensorType:
    if "tensor" not in of:
        raise ValueError(f"value '{name}' is no tensor")
    tensor = of["tensor"]
    dimensions = tensor["dimensions"]
    if any(entry.get("unknown", {}).get("variadic") for entry in dimensions):
        return TensorType(_element(name, tensor), None)
    return TensorType(_element(name, tensor), tuple(map(_dimension, dimensions)))


def _dimension(entry: Message) -> int | None:
    return int(entry["constant"].get("size", 0)) if "constant" in entry else None


def _element(name: str, tensor: Message) -> Element:
    number = tensor.get("dtype", 0)
    if number not in ELEMENTS:
        raise ValueError(f"value '{name}' is of the unknown element type {number}")
    return ELEMENTS[number]


def _constant(value: Message) -> Constant:
    of = _type("of a constant", value.get("type", {}))
    if of.shape is None or None in of.shape:
        raise ValueError("a constant has no fixed shape")
    shape = tuple(size for size in of.shape if size is not None)
    if "blob" in value:
        return Blob(of.element, shape, value["blob"].get("file", ""), value["blob"].get("offset", 0))
    held = value.get("immediate", {}).get("tensor", {})
    if "strings" in held:
        return Text(shape, _counted(tuple(held["strings"]["values"]), shape))
    return Immediate(of.element, shape, _immediate(of.element, shape, held))


def _immediate(element: Element, shape: tuple[int, ...], held: Message) -> bytes:
    if "bytes" in held:
        return bytes(held["bytes"].get("values", b""))
    kind = next((kind for kind in ("floats", "ints", "bools", "longs", "doubles") if kind in held), None)
    if kind is None or element.bits < 8:
        raise ValueError(f"a constant of {element.name} holds no such numbers")
    values = _counted(tuple(held[kind]["values"]), shape)
    with np.errstate(over="ignore"):
        numbers = np.array(values).astype(element.stored)
    if not element.is_float and (numbers != np.array(values)).any():
        raise ValueError(f"a constant of {element.name} holds numbers beyond it")
    return numbers.tobytes()


def _counted(values: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    if len(values) != prod(shape):
        raise ValueError(f"a constant of shape {list(shape)} holds {len(values)} values")
    return values


def _feature(entry: Message) -> Feature:
    name, of = entry.get("name", ""), entry.get("type", {})
    array = of["state"].get("array") if "state" in of else of.get("array")
    if array is None or array.get("dtype") not in _ARRAYS:
        raise ValueError(f"'{name}' is described as no array of a known type")
    return Feature(name, _ARRAYS[array["dtype"]], tuple(_shapes(array)))


def _shapes(array: Message) -> Iterable[tuple[tuple[int, int | None], ...]]:
    if "enumerated" in array:
        return [tuple((size, size) for size in entry["shape"]) for entry in array["enumerated"]["shapes"]]
    if "ranges" in array:
        return [tuple(_range(entry) for entry in array["ranges"]["sizes"])]
    return [tuple((size, size) for size in array["shape"])]


def _range(entry: Message) -> tuple[int, int | None]:
    most = entry.get("most", 0)
    return entry.get("least", 0), None if most < 0 else most


def _size(sizes: tuple[int, int | None]) -> str:
    least, most = sizes
    return str(least) if least == most else f"{least} to {'any' if most is None else most}"
