"""MIL executed in numpy, value by value as the program declares them.

A value of a program has a type, and Core ML holds to it: one of float16 is rounded to float16
(https://apple.github.io/coremltools/docs-guides/source/typed-execution.html), while sums within an operation are float32 unless
an app asks for less (MLModelConfiguration.allowLowPrecisionAccumulationOnGPU). So every operation here takes float16 numbers,
computes in float32 and rounds once; where a value is float32 nothing is rounded further. Which operations a device fuses, and
what the neural engine sums in, Apple does not tell: a device's own numbers lie about these, as far as float16 rounds. What each
operation computes: https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html.

Every value is held against its declared type and shape, inputs and outputs against the model's description besides.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...targets.contract import EngineError
from . import compressed, elementwise, layout, package, products
from .arguments import Arguments, Operator, Result
from .constants import Constants, Fixed, fixed_value
from .package import Package
from .program import Declared, Feature, Function, Operand, Operation
from .tensors import Array, Tensor, described, fits, zeros

OPERATORS: Mapping[str, Operator] = {**elementwise.OPERATORS, **layout.OPERATORS, **products.OPERATORS}
# Operations on states: the argument that names the state, and the one that it becomes.
STATE: Mapping[str, tuple[str, str]] = {
    "coreml_update_state": ("state", "value"),
    "read_state": ("input", ""),
    "write_state": ("input", "data"),
}
OPSETS = ("CoreML7", "CoreML8")  # earlier ones gather from the end and reshape otherwise

States = dict[str, Tensor]
Source = str | Fixed


@dataclass(frozen=True)
class Step:
    """An operation with its constants in place, and the values that nothing wants after it."""

    operation: Operation
    arguments: Mapping[str, tuple[Source, ...]]
    done: tuple[str, ...]


class Program:
    """A package that can be run. Nothing of a run stays: states go in and come out."""

    def __init__(self, folder: Path) -> None:
        """Read a package.

        Raises:
            BundleError: it is missing or damaged.
            EngineError: it has operations or opsets that are not known here, all of them, or values that nothing makes.
        """
        found = package.read(folder)
        _check_operations(found)
        constants = Constants(found)
        self.default = found.model.default
        self.functions = {name: Runner(found, function, constants) for name, function in found.model.functions.items()}

    def function(self, name: str = "") -> "Runner":
        """A function that can be run, the package's own choice where none is named.

        Raises:
            EngineError: there is none of this name.
        """
        wanted = name or self.default
        if wanted not in self.functions:
            raise EngineError(
                f"the package has no function '{wanted}' (it has: {', '.join(self.functions)}). "
                "Build the bundle again: ossicle build"
            )
        return self.functions[wanted]


class Runner:
    """One function of a package."""

    def __init__(self, found: Package, function: Function, constants: Constants) -> None:
        self.function = function
        self._folder = found.folder
        self._constants = constants
        self._states = {value.name: value for value in function.inputs if value.is_state}
        self._check_description()
        self._fixed: dict[str, Fixed] = {}
        self._steps = tuple(self._linked())

    def states(self) -> States:
        """The states before the first run: zeros.

        Raises:
            EngineError: they do not fit in memory.
        """
        try:
            return {name: zeros(state.type) for name, state in self._states.items()}
        except (ValueError, MemoryError) as reason:
            raise EngineError(
                self._message(f"the states of '{self.function.name}' cannot be made: {reason}")
            ) from reason

    def run(self, inputs: Mapping[str, Array], states: States | None = None) -> tuple[dict[str, Array], States]:
        """Outputs by name, in their own types, and the states after it; those given stay as they are.

        Raises:
            BundleError: a file of weights is damaged.
            EngineError: inputs are not those that the function declares, or an operation fails or is not as declared.
        """
        held = dict(self.states() if states is None else states)
        values = self._accepted(inputs)
        with np.errstate(all="ignore"):
            for step in self._steps:
                self._execute(step, values, held)
        return {name: self._given(name, values) for name in self.function.outputs}, held

    def _execute(self, step: Step, values: dict[str, Tensor], states: States) -> None:
        operation = step.operation
        try:
            result = self._result(step, values, states)
        except (ValueError, IndexError, TypeError, KeyError, OverflowError, MemoryError) as reason:
            raise self._failed(operation, f"fails: {reason}") from reason
        results = result if isinstance(result, tuple) else (result,)
        if len(results) != len(operation.outputs):
            raise self._failed(operation, f"gives {len(results)} values and declares {len(operation.outputs)}")
        for declared, value in zip(operation.outputs, results, strict=True):
            self._check(operation, declared, value)
            values[declared.name] = value
        for name in step.done:
            values.pop(name, None)

    def _result(self, step: Step, values: Mapping[str, Tensor], states: States) -> Result:
        operation = step.operation
        if operation.kind in STATE:
            return self._state_result(step, values, states)
        return OPERATORS[operation.kind](Arguments(_evaluated(step.arguments, values, self._constants)))

    def _state_result(self, step: Step, values: Mapping[str, Tensor], states: States) -> Result:
        """`read_state` gives a state, `write_state` replaces it, `coreml_update_state` does both."""
        operation = step.operation
        holder, data = STATE[operation.kind]
        (name,) = operation.inputs[holder]
        if not isinstance(name, str) or name not in states:
            raise ValueError(f"there is no state '{name}'")
        if not data:
            return states[name]
        given = Arguments(_evaluated({data: step.arguments[data]}, values, self._constants)).tensor(data)
        self._check(operation, self._states[name], given)
        states[name] = given
        return given if operation.outputs else ()

    def _linked(self) -> Iterator[Step]:
        """The operations that take running, in order."""
        steps = []
        known = {value.name for value in self.function.inputs}
        for operation in self.function.operations:
            try:
                fixed = fixed_value(operation, self._fixed)
                if fixed is not None:
                    self._fixed[operation.outputs[0].name] = fixed
                    continue
                steps.append((operation, self._sources(operation, known)))
            except (KeyError, IndexError) as reason:
                raise self._failed(operation, f"is given {reason}, which is no value before it") from reason
            known |= {value.name for value in operation.outputs}
        if lost := [name for name in self.function.outputs if name not in known | self._fixed.keys()]:
            raise EngineError(self._message(f"function '{self.function.name}' never makes {', '.join(lost)}"))
        return _with_ends(steps, self.function.outputs)

    def _sources(self, operation: Operation, known: set[str]) -> dict[str, tuple[Source, ...]]:
        return {
            name: tuple(self._source(operand, known) for operand in operands)
            for name, operands in operation.inputs.items()
        }

    def _source(self, operand: Operand, known: set[str]) -> Source:
        if not isinstance(operand, str):
            return operand
        if operand in self._fixed:
            return self._fixed[operand]
        if operand not in known:
            raise KeyError(operand)
        return operand

    def _accepted(self, inputs: Mapping[str, Array]) -> dict[str, Tensor]:
        wanted = {value.name: value for value in self.function.inputs if not value.is_state}
        if wanted.keys() != inputs.keys():
            raise EngineError(
                self._message(
                    f"function '{self.function.name}' takes {', '.join(wanted)} and is given {', '.join(inputs)}"
                )
            )
        features = {feature.name: feature for feature in self.function.described_inputs}
        return {name: self._input(wanted[name], features[name], np.asarray(inputs[name])) for name in wanted}

    def _input(self, declared: Declared, feature: Feature, given: Array) -> Tensor:
        element = declared.type.element
        if (
            given.dtype != np.dtype(element.stored)
            or not feature.holds(given.shape)
            or not fits(declared.type.shape, given.shape)
        ):
            raise EngineError(
                self._message(
                    f"input '{declared.name}' is {given.dtype} {list(given.shape)} and described as {feature.words}, "
                    f"declared as {described(declared.type)}"
                )
            )
        return Tensor(element, given.astype(element.carried))

    def _given(self, name: str, values: Mapping[str, Tensor]) -> Array:
        tensor = values[name] if name in values else self._constants.tensor(self._fixed[name])
        feature = next(feature for feature in self.function.described_outputs if feature.name == name)
        if feature.element != tensor.element.name or not (feature.shapes == ((),) or feature.holds(tensor.shape)):
            raise EngineError(self._message(f"output '{name}' is {described(tensor)} and described as {feature.words}"))
        return tensor.array.astype(tensor.element.stored)

    def _check(self, operation: Operation, declared: Declared, value: Tensor) -> None:
        if not declared.type.holds(value):
            raise self._failed(
                operation, f"gives '{declared.name}' as {described(value)} and declares it {described(declared.type)}"
            )

    def _check_description(self) -> None:
        """The description names the inputs, states and outputs that the function has, in its types."""
        function = self.function
        pairs = (
            ("inputs", function.described_inputs, [value for value in function.inputs if not value.is_state]),
            ("states", function.described_states, list(self._states.values())),
        )
        for kind, features, declared in pairs:
            described_as = {(feature.name, feature.element) for feature in features}
            if described_as != {(value.name, value.type.element.name) for value in declared}:
                raise EngineError(self._message(f"function '{function.name}' has other {kind} than its description"))
        if {feature.name for feature in function.described_outputs} != set(function.outputs):
            raise EngineError(self._message(f"function '{function.name}' has other outputs than its description"))

    def _failed(self, operation: Operation, reason: str) -> EngineError:
        return EngineError(
            self._message(f"{operation.kind} '{operation.name}' of function '{self.function.name}' {reason}")
        )

    def _message(self, reason: str) -> str:
        return f"'{self._folder}': {reason}. Build the bundle again: ossicle build"


def _evaluated(
    arguments: Mapping[str, tuple[Source, ...]], values: Mapping[str, Tensor], constants: Constants
) -> dict[str, tuple[Tensor, ...]]:
    return {
        name: tuple(values[source] if isinstance(source, str) else constants.tensor(source) for source in sources)
        for name, sources in arguments.items()
    }


def _with_ends(
    steps: Sequence[tuple[Operation, Mapping[str, tuple[Source, ...]]]], outputs: Iterable[str]
) -> Iterator[Step]:
    """Each step with the values that it is the last to want."""
    last: dict[str, int] = {}
    for number, (operation, arguments) in enumerate(steps):
        last |= {value.name: number for value in operation.outputs}
        last |= {source: number for sources in arguments.values() for source in sources if isinstance(source, str)}
    done: dict[int, list[str]] = {}
    for name, number in last.items():
        if name not in outputs:
            done.setdefault(number, []).append(name)
    for number, (operation, arguments) in enumerate(steps):
        yield Step(operation, arguments, tuple(done.get(number, ())))


def _check_operations(found: Package) -> None:
    """Refuse what is not known here, all of it at once."""
    functions = found.model.functions.values()
    kinds = {operation.kind for function in functions for operation in function.operations}
    unknown = sorted(kinds - OPERATORS.keys() - compressed.OPERATORS.keys() - {*STATE, "const"})
    opsets = sorted({function.opset for function in functions} - set(OPSETS))
    faults = [f"operations {', '.join(unknown)}"] * bool(unknown) + [f"opset {', '.join(opsets)}"] * bool(opsets)
    if faults:
        raise EngineError(
            f"'{found.folder}' has {' and '.join(faults)}, which the interpreter does not know "
            f"(it knows opset {', '.join(OPSETS)} and: {', '.join(sorted(OPERATORS))}). Run it on a Mac"
        )
