"""What `ossicle build` and `ossicle quantize` make of --max-size, --fit and --recipe."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..targets.contract import RecipeError
from .common import file_size
from .options import listed

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

    limits = asked(max_size, fit)
    if not limits and recipe is None:
        _refuse(calibration, "--calibration", "it measures losses for --max-size or --fit, and neither is given")
        return partial(pipeline.build, recipe="int4" if quant is None else quant)
    _refuse(quant, "--quant", "--max-size, --fit and --recipe bring a recipe of their own")
    if recipe is not None:
        _refuse(calibration, "--calibration", "--recipe brings its own losses")
    return partial(spending.build, spent=spending.Budget(limits, calibration, recipe))


def quantizing(
    quant: str | None, max_size: str | None, fit: str | None, target: str | None, recipe: Path | None
) -> Callable[..., tuple[int, str]]:
    """What makes a checkpoint's integers, and says how many matrices have some, and in which recipe or recipe's file.

    Raises:
        RecipeError: the options contradict each other.
        BuildError: a size is none.
        OssicleError: the device is unknown.
    """
    if limits := asked(max_size, fit):
        _refuse(quant, "--quant", "--max-size and --fit bring a recipe of their own")
        _refuse(recipe, "--recipe", "--max-size and --fit find formats, and its are found already")
        return partial(_within, limits, listed("onnx" if target is None else target))
    _refuse(target, "--target", "integers are the same for every target; it says what --max-size or --fit is for")
    if recipe is None:
        return partial(_named, "int4" if quant is None else quant)
    _refuse(quant, "--quant", "--recipe brings a recipe of its own")
    return partial(_filed, recipe)


def _within(
    limits: tuple[Any, ...],
    targets: tuple[str, ...],
    checkpoint: Any,
    quantizer: str,
    out: Path,
    speech: Path | None,
    progress: Any,
) -> tuple[int, str]:
    from ..compiler import spending

    spent = spending.Budget(limits, speech)
    count, path = spending.quantize(
        checkpoint, out, spent=spent, targets=targets, quantizer=quantizer, progress=progress
    )
    return count, str(path)


def _named(quant: str, checkpoint: Any, quantizer: str, *given: Any) -> tuple[int, str]:
    from ..compiler.quantize_on_speech import quantize
    from ..targets.recipes import recipe

    return quantize(checkpoint, recipe(quant), quantizer, *given), quant


def _filed(path: Path, checkpoint: Any, quantizer: str, *given: Any) -> tuple[int, str]:
    from ..compiler.quantize_on_speech import quantize
    from ..compiler.recipe_file import recipe_in

    found = recipe_in(path, checkpoint.family)
    return quantize(checkpoint, found, quantizer, *given), found.name


def asked(max_size: str | None, fit: str | None) -> tuple[Any, ...]:
    """The limits that the options give (compiler/budget.py).

    Raises:
        BuildError: a size is none.
        OssicleError: the device is unknown.
    """
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
