"""Functions that a model may call."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCall:
    """A call of a function, as the model asks for it."""

    id: str  # 9 letters and digits; the result of the call is given back under it
    name: str
    arguments: str  # JSON, an object that holds to the function's schema
