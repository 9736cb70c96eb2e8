"""What an operation is given, by name, as the operation wants it."""

from collections.abc import Callable, Mapping
from math import prod

from .tensors import Element, Tensor


class Arguments:
    """The arguments of one operation. Each getter raises `ValueError` for one that is missing or of another kind."""

    def __init__(self, values: Mapping[str, tuple[Tensor, ...]]) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def tensors(self, name: str) -> tuple[Tensor, ...]:
        """All tensors of a tuple."""
        if name not in self._values:
            raise ValueError(f"'{name}' is not given")
        return self._values[name]

    def tensor(self, name: str) -> Tensor:
        """The tensor of this name."""
        found = self.tensors(name)
        if len(found) != 1:
            raise ValueError(f"'{name}' is {len(found)} tensors instead of one")
        return found[0]

    def optional(self, name: str) -> Tensor | None:
        """The tensor of this name; None where it is not given."""
        return self.tensor(name) if name in self else None

    def integers(self, name: str, default: list[int] | None = None) -> list[int]:
        """Whole numbers of a tensor of any shape."""
        if name not in self and default is not None:
            return default
        found = self.tensor(name)
        if found.element.is_float or found.element.name in ("bool", "string"):
            raise ValueError(f"'{name}' is {found.element.name} instead of integers")
        return [int(value) for value in found.array.ravel()]

    def integer(self, name: str, default: int | None = None) -> int:
        """One whole number."""
        (value,) = self.integers(name, None if default is None else [default])
        return value

    def flags(self, name: str, default: list[bool]) -> list[bool]:
        """Truth values of a tensor."""
        return [bool(value) for value in self.tensor(name).array.ravel()] if name in self else default

    def flag(self, name: str) -> bool:
        """One truth value, False where it is not given."""
        (value,) = self.flags(name, [False])
        return value

    def number(self, name: str, default: float) -> float:
        """One number."""
        if name not in self:
            return default
        found = self.tensor(name)
        if prod(found.shape) != 1 or found.element.name == "string":
            raise ValueError(f"'{name}' is not one number")
        return float(found.array.reshape(()))

    def word(self, name: str, default: str) -> str:
        """One string."""
        if name not in self:
            return default
        found = self.tensor(name)
        if found.element.name != "string" or prod(found.shape) != 1:
            raise ValueError(f"'{name}' is not one string")
        return str(found.array.reshape(()))


Result = Tensor | tuple[Tensor, ...]
Operator = Callable[[Arguments], Result]


def common(*tensors: Tensor) -> Element:
    """The element type that tensors share.

    Raises:
        ValueError: they do not.
    """
    kinds = {tensor.element.name for tensor in tensors}
    if len(kinds) != 1:
        raise ValueError(f"its tensors are of different types: {', '.join(sorted(kinds))}")
    return tensors[0].element


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        ValueError: there is none such.
    """
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} among {rank}")
    return axis % rank
