"""What `ossicle build` makes of --max-size, --fit and --recipe."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..targets.contract import RecipeError
from .common import file_size

CONTEXT = 8192  # tokens that keys and values are kept of, where --fit does not say


def builder(
    quant: str | None, max_size: str | None, fit: str | None, recipe: Path | None, calibration: Path | None
) -> Callable[..., Any]:
    """What builds: the named recipe, or a recipe that is found.

    Raises:
        RecipeError: the options contradict each other.
        BuildError: a size is none.
        OssicleError: the device is unknown.
    """
    from ..compiler import pipeline, spending

    asked = _asked(max_size, fit)
    if not asked and recipe is None:
        _refuse(calibration, "--calibration", "it measures losses for --max-size or --fit, and neither is given")
        return partial(pipeline.build, recipe=quant or "int4")
    _refuse(quant, "--quant", "--max-size, --fit and --recipe bring a recipe of their own")
    if recipe is not None:
        _refuse(calibration, "--calibration", "--recipe brings its own losses")
    return partial(spending.build, spent=spending.Budget(asked, calibration, recipe))


def _asked(max_size: str | None, fit: str | None) -> tuple[Any, ...]:
    from ..compiler import budget

    sized = (budget.of_size(file_size(max_size, "--max-size")),) if max_size is not None else ()
    return (*sized, _fitted(fit)) if fit is not None else sized


def _fitted(text: str) -> Any:
    from ..compiler import budget
    from ..targets.devices import device
    from .here import here

    name, _, tokens = text.partition(":")
    if tokens and not (tokens.isdecimal() and int(tokens)):
        raise RecipeError(
            f"'{tokens}' is no number of tokens in --fit {text}. Give, for example: --fit {name}:{CONTEXT}"
        )
    return budget.on_device(here() if name == "here" else device(name), int(tokens or CONTEXT))


def _refuse(value: object, option: str, reason: str) -> None:
    if value is not None:
        raise RecipeError(f"{option} does not go with the rest: {reason}. Leave it out")
