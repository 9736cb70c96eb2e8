"""Bits to a budget: which format each matrix is stored in, so that every target keeps its limit and the least is lost.

What a matrix loses in a format is measured on speech (sensitivity.py), what it takes follows from its shape (targets/sizes.py),
and allocate.py chooses. docs/budget.md tells what counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..targets import sizes
from ..targets.contract import RecipeError, WeightFormat
from ..targets.devices import Device
from ..targets.recipes import INT8
from . import plan
from .allocate import Option, allocate
from .bits import Allocation, Limit, Measured, Spent
from .choices import Choices, uniform

Losses = Mapping[str, Mapping[WeightFormat, float]]


@dataclass(frozen=True)
class Asked:
    """A limit as the user gave it: bytes of each target's artifacts, or what a device can lend with `context` tokens kept."""

    name: str  # of a recipe that keeps it
    said: str
    size: int
    device: Device | None = None
    context: int = 0


def of_size(count: int) -> Asked:
    """So many bytes for the artifacts of each target."""
    said = size(count).replace(" ", "")
    return Asked(f"max-{said}", f"--max-size {said}", count)


def on_device(device: Device, context: int) -> Asked:
    """The limit that a device is: the memory that it lends a model."""
    return Asked(f"fit-{device.name}", f"{device.name} with {context} tokens", int(device.usable), device, context)


def limits(
    choices: Choices, asked: Sequence[Asked], vocabulary: int, more: Mapping[tuple[str, str], int]
) -> list[Limit]:
    """What was asked as a limit of every target, with what all but the matrices takes.

    `vocabulary` is the size of the tokenizer's file; `more` bytes were found to be missing from what is set apart for a limit.

    Raises:
        RecipeError: a device has no engine for a target.
    """
    found = []
    for one in asked:
        _check_engines(one, choices.targets)
        for target in choices.targets:
            beside = _beside(choices, target, vocabulary) + more.get((one.said, target), 0)
            found.append(_limit(choices, one, target, beside))
    return found


def _check_engines(asked: Asked, targets: Sequence[str]) -> None:
    if asked.device and (without := [name for name in targets if name not in asked.device.targets]):
        raise RecipeError(
            f"device '{asked.device.name}' has no engine for target {', '.join(without)} "
            f"(it has: {', '.join(asked.device.targets)}). Give one of those: --target {asked.device.targets[0]}"
        )


def _limit(choices: Choices, asked: Asked, target: str, beside: int) -> Limit:
    recipe = uniform(INT8)
    size = plan.size(choices.model, target, recipe, sizes.positions(target, recipe), choices.targets)
    limit = Limit(asked.said, target, asked.size, 0, in_memory=asked.device is not None, context=asked.context)
    matrices = sum(choices.takes(limit, name, INT8) for name in choices.formats)
    whole = size.memory(asked.context) if asked.device else size.total
    adapters = choices.adapters(target, recipe)
    return replace(limit, fixed=whole - matrices + beside + adapters, beside=beside, adapters=adapters)


def _beside(choices: Choices, target: str, vocabulary: int) -> int:
    layers = {"audio_encoder": "audio_config", "decoder": "text_config"}
    return choices.beside_adapters(target) + sum(
        sizes.beside_weights(
            name, stage, choices.model.config[layers[stage]]["num_hidden_layers"] if stage in layers else 0, vocabulary
        )
        for name, stage in choices.stages(target)
    )


def spend(choices: Choices, limits: Sequence[Limit], losses: Losses, name: str, measured: Measured) -> Allocation:
    """The formats that lose least within every limit.

    Raises:
        RecipeError: a limit is below the least, or no formats keep all of them at once.
    """
    check_possible(choices, limits)
    shared = [[form for form in choices.formats[group[0]] if _in_all(choices, group, form)] for group in choices.groups]
    options = [
        [_option(choices, limits, group, form, losses) for form in forms]
        for group, forms in zip(choices.groups, shared, strict=True)
    ]
    taken = allocate(options, [limit.size - limit.fixed for limit in limits])
    if taken is None:
        raise RecipeError(
            f"no formats keep every target within its limit ({_all(limits)}). Build the targets one by one"
        )
    formats = {
        one: forms[number] for group, forms, number in zip(choices.groups, shared, taken, strict=True) for one in group
    }
    ordered = {one: formats[one] for one in choices.formats}
    return allocation(choices, limits, ordered, losses, name, measured.quantizer, measured)


def allocation(
    choices: Choices,
    limits: Sequence[Limit],
    formats: Mapping[str, WeightFormat],
    losses: Losses,
    name: str,
    quantizer: str,
    measured: Measured | None,
) -> Allocation:
    """What these formats take of each limit, and lose."""
    takes = {one: [choices.takes(limit, one, form) for limit in limits] for one, form in formats.items()}
    reached = [
        replace(limit, taken=limit.fixed + sum(each[place] for each in takes.values()))
        for place, limit in enumerate(limits)
    ]
    spent = {one: Spent(form, max(takes[one], default=0), losses.get(one, {})) for one, form in formats.items()}
    return Allocation(name, choices.targets, quantizer, tuple(reached), spent, measured)


def _in_all(choices: Choices, group: Sequence[str], form: WeightFormat) -> bool:
    return all(form in choices.formats[name] for name in group)


def _option(
    choices: Choices, limits: Sequence[Limit], group: Sequence[str], form: WeightFormat, losses: Losses
) -> Option:
    takes = tuple(sum(choices.takes(limit, name, form) for name in group) for limit in limits)
    return Option(sum(losses[name][form] for name in group), takes)


def check_possible(choices: Choices, limits: Sequence[Limit]) -> None:
    """Refuse limits that are below the least that a target takes, with what holds it.

    Raises:
        RecipeError: naming every target and its least.
    """
    faults = []
    for limit in limits:
        matrices = sum(
            min(choices.takes(limit, name, form) for form in forms) for name, forms in choices.formats.items()
        )
        if limit.fixed + matrices > limit.size:
            beside = "keys and values, activations, " if limit.in_memory else "graphs, "
            beside += f"{size(limit.adapters)} of adapters kept for run time, " if limit.adapters else ""
            faults.append(
                f"target '{limit.target}' takes {size(limit.fixed + matrices)} at the least: {size(matrices)} of matrices in "
                f"their smallest formats, {size(limit.fixed)} of all else ({beside}tables of positions, convolutions, norms)"
            )
    if faults:
        said = " and ".join(dict.fromkeys(limit.said for limit in limits))
        raise RecipeError(f"{said} cannot be kept: {'; '.join(faults)}. Give more, or another --target")


def _all(limits: Sequence[Limit]) -> str:
    return ", ".join(f"{limit.target}: {size(limit.size)}" for limit in limits)


def size(count: int) -> str:
    """Bytes as a message says them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
