"""The memory that building TensorRT's engines takes, reckoned from their weights alone, and whether it is there."""

from collections.abc import Mapping
from dataclasses import dataclass

from . import memory
from .contract import BuildError

# What a build of a decoder held at most: so much, and so many times its weights, integers and floats (docs/tensorrt.md).
_BASE, _TIMES_INTEGERS, _TIMES_FLOATS = 400_000_000, 4.0, 3.2


@dataclass(frozen=True)
class Load:
    """What the engine of a stage is built of: bytes of weights, and whether these are integers."""

    weights: int
    packed: bool

    @property
    def needed(self) -> int:
        """Bytes of memory that the build takes."""
        return _BASE + int((_TIMES_INTEGERS if self.packed else _TIMES_FLOATS) * self.weights)


def refusal(stage: str, load: Load) -> str | None:
    """Why there is no memory for the engine of a stage, with the numbers; None where there is, or nothing tells."""
    free = memory.available()
    if free is None or load.needed <= free:
        return None
    return (
        f"building the engine of '{stage}' takes about {load.needed / 1e9:.1f} GB of memory for its "
        f"{load.weights / 1e9:.1f} GB of weights, and {free / 1e9:.1f} GB are free here"
    )


def foretold(loads: Mapping[str, Load], *, named: bool) -> list[str]:
    """What is to be said of memory before engines of these stages are built; `named`: their kind was asked for.

    Raises:
        BuildError: there is too little for engines that were asked for, with the numbers of every stage.
    """
    reasons = [reason for stage, load in loads.items() if (reason := refusal(stage, load))]
    if reasons and named:
        raise BuildError(
            f"no engine can be built: {'; '.join(reasons)}. Without engines: --engine none; then, on a machine that has the "
            "memory: ossicle engine BUNDLE"
        )
    free, most = memory.available(), max((load.needed for load in loads.values()), default=0)
    if reasons or free is None:
        return [f"{reason}: it will be left out" for reason in reasons]
    return [f"building TensorRT's engines takes about {most / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"]
