"""The command `ossicle plan`: what will run where, before anything is built."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from ..targets import registry
from ..targets.recipes import RECIPES
from ..targets.recipes import recipe as named_recipe
from .common import Json, app, guarded, print_json
from .options import RuntimeAdapters, kept_apart, listed

Quant = Annotated[str | None, typer.Option("--quant", metavar="LIST", help="Recipes; by default all.")]
Targets = Annotated[str | None, typer.Option("--target", metavar="LIST", help="Targets; by default all.")]
Names = Annotated[
    list[str] | None,
    typer.Option("--device", metavar="NAME", help="A device, or 'here' for this machine; may be repeated."),
]
All = Annotated[bool, typer.Option("--all-devices", help="The best fit of every device that is known.")]
Context = Annotated[int, typer.Option("--context", min=1, help="Tokens that keys and values are kept of.")]


@app.command(epilog="Example: ossicle plan ./voxtral-mini --device rtx-4060 --device m2-16")
@guarded
def plan(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A folder or hub id; its config is enough.")],
    device: Names = None,
    all_devices: All = False,
    quant: Quant = None,
    target: Targets = None,
    context: Context = 8192,
    runtime_adapter: RuntimeAdapters = None,
    as_json: Json = False,
) -> None:
    """Sizes, memory and speed of every recipe in every target, before building."""
    from ..compiler.plan import described
    from ..compiler.plan import plan as planned
    from ..compiler.runtime_adapters import numbers as numbers_of

    model = described(checkpoint)
    recipes = [named_recipe(name) for name in listed(quant or "") or tuple(RECIPES)]
    targets = listed(target or "") or registry.names()
    for name in targets:
        registry.target(name)
    numbers = numbers_of(kept_apart(runtime_adapter), model.family, model.config, tied=model.tied)
    found = planned(model, targets, recipes, numbers)
    if device or all_devices:
        _forecasts(model, found, _devices(device or [], all_devices), context, as_json, best_alone=all_devices)
    else:
        _sizes(model, found, context, as_json)


def _devices(names: Sequence[str], every: bool) -> list[Any]:
    from ..targets.devices import DEVICES
    from ..targets.devices import device as named

    chosen = [_here() if name == "here" else named(name) for name in dict.fromkeys(names)]
    return chosen + [one for one in DEVICES.values() if every and one.name not in names]


def _here() -> Any:
    from .here import here

    return here()


def _sizes(model: Any, found: Sequence[Any], context: int, as_json: bool) -> None:
    from . import show

    if as_json:
        print_json([show.plain(one) | {"total": one.total, "memory": one.memory(one.kept(context))} for one in found])
        return
    head = ("recipe", "target", "bundle", "encoder", "embedding", "decoder", f"memory at {context} tokens")
    rows = [
        (
            *(one.recipe, one.target),
            *map(_size, (one.total, one.encoder, one.embedding, one.decoder)),
            _memory(one.memory(one.kept(context)), one.kept(context), context),
        )
        for one in found
    ]
    show.console().print(show.table(head, rows, title=f"{model.name}, nothing built"))


def _forecasts(
    model: Any, found: Sequence[Any], devices: Sequence[Any], context: int, as_json: bool, *, best_alone: bool
) -> None:
    from ..compiler.forecast import forecast
    from . import show

    results = {one.name: [forecast(model, size, one, context) for size in found] for one in devices}
    if as_json:
        print_json({name: [_document(one) for one in rows] for name, rows in results.items()})
        return
    shown = [row for one in devices for row in _rows(one, results[one.name], context, best_alone)]
    memory = f"memory at {context} tokens"
    head = ("device", "recipe", "target", memory, "first token", "tokens/s", "real-time factor", "")
    show.console().print(show.table(head, shown, title=f"{model.name}, forecast of a window of 30 s"))


def _rows(device: Any, results: Sequence[Any], context: int, best_alone: bool) -> Iterator[tuple[str, ...]]:
    """A line for each bundle on a device; or one for the best alone, or for what comes nearest to fitting there."""
    from ..compiler.forecast import best, nearest

    chosen = best(results)
    for one in [chosen or nearest(results, device)] if best_alone else results:
        yield _row(f"{device.title} ({device.name})", one, one is chosen, context)


def _document(one: Any) -> dict[str, Any]:
    from . import show

    told: dict[str, Any] = show.plain(one)
    return told | {"first_token": one.first_token, "real_time_factor": one.real_time_factor}


def _row(title: str, one: Any, chosen: bool, context: int) -> tuple[str, ...]:
    start = (title, one.size.recipe, one.size.target, _memory(one.memory, one.context, context))
    if one.reason:
        return (*start, "", "", "", one.reason)
    speed = (f"{one.first_token:.2f} s", f"{one.tokens_per_second:.1f}", f"{one.real_time_factor:.3f}")
    return (*start, *speed, "best fit" if chosen else "fits")


def _memory(count: int, kept: int, context: int) -> str:
    """Bytes, and of how many tokens where a bundle is prepared for fewer than were asked for."""
    return _size(count) + (f" at {kept}" if kept < context else "")


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)
