"""A function's constants, each made when it is first wanted, and shared by all functions that store it once.

They take four bytes a number as long as they are wanted again. Where memory does not reach, large ones are made anew each time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ...targets.contract import EngineError
from ...targets.memory import available
from .arguments import Arguments
from .compressed import OPERATORS
from .package import Package
from .program import Constant, Operand, Operation
from .tensors import Tensor

LARGE = 1 << 20  # bytes; whatever is smaller is kept
RESERVE = 2 << 30  # bytes of memory that constants leave for all else


@dataclass(frozen=True)
class Compressed:
    """Constants, and the operation that makes one of them."""

    kind: str
    operands: tuple[tuple[str, tuple["Fixed", ...]], ...]
    name: str


Fixed = Constant | Compressed  # what a value is whose numbers are known before a program runs


class Constants:
    """The tensors of a package's constants."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._made: dict[Fixed, Tensor] = {}

    def tensor(self, fixed: Fixed) -> Tensor:
        """The numbers of a constant.

        Raises:
            BundleError: its file is missing or damaged.
            EngineError: its parts do not fit together.
        """
        if fixed in self._made:
            return self._made[fixed]
        tensor = self._make(fixed)
        if _may_stay(tensor.array.nbytes):
            self._made[fixed] = tensor
        return tensor

    def _make(self, fixed: Fixed) -> Tensor:
        """Parts of a compressed constant are not kept."""
        if not isinstance(fixed, Compressed):
            return self._package.tensor(fixed)
        values = {name: tuple(map(self._make, parts)) for name, parts in fixed.operands}
        try:
            result = OPERATORS[fixed.kind](Arguments(values))
        except ValueError as reason:
            raise EngineError(
                f"'{self._package.folder}': {fixed.kind} '{fixed.name}' cannot be made: {reason}. "
                "Build the bundle again: ossicle build"
            ) from reason
        if not isinstance(result, Tensor):
            raise TypeError(f"{fixed.kind} gives {len(result)} tensors")
        return result


def _may_stay(size: int) -> bool:
    free = available() if size >= LARGE else None
    return free is None or free - size > RESERVE


def fixed_value(operation: Operation, known: Mapping[str, Fixed]) -> Fixed | None:
    """What an operation's value is before a program runs; None where it takes running.

    Raises:
        KeyError: it is given what is no constant.
    """
    if operation.kind == "const":
        return operation.attributes["val"]
    if operation.kind not in OPERATORS:
        return None
    given: Mapping[str, tuple[Operand, ...]] = {
        **{name: (value,) for name, value in operation.attributes.items() if name != "name"},
        **operation.inputs,
    }
    operands = tuple((name, tuple(_fixed(operand, known) for operand in given[name])) for name in sorted(given))
    return Compressed(operation.kind, operands, operation.name)


def _fixed(operand: Operand, known: Mapping[str, Fixed]) -> Fixed:
    """A constant's own, whether it has a name or stands on the spot.

    Raises:
        KeyError: a name is not that of a constant.
    """
    return known[operand] if isinstance(operand, str) else operand
