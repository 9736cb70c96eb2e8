"""`ossicle bench`: what each engine takes for each stage of a bundle here, and why it is chosen or not."""

from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from .common import Bundle, Json, app, guarded, print_json
from .run import Compute

Budget = Annotated[
    float | None,
    typer.Option("--budget", metavar="SECONDS", min=1.0, help="The longest that measuring takes. By default by size."),
]
Again = Annotated[bool, typer.Option("--again", help="Measure although that was done before.")]
Context = Annotated[
    int | None, typer.Option("--context", min=1, metavar="TOKENS", help="Tokens that memory is reckoned for.")
]


@app.command(epilog="Example: ossicle bench voxtral-int4 --budget 60")
@guarded
def bench(
    bundle: Bundle,
    as_json: Json = False,
    budget: Budget = None,
    again: Again = False,
    context: Context = None,
    compute: Compute = "",
) -> None:
    """Measure which engine runs each stage of a bundle best here; sessions on it are opened so from then on."""
    import ossicle

    from .show import plain

    found = ossicle.bench(bundle, budget=budget, again=again, context=context, compute=compute)
    print_json(plain(found)) if as_json else show(found)


def show(found: Any) -> None:
    """The verdicts of a bench as tables: engines that could run a stage, plans for the whole, engines that cannot."""
    from .show import console, table

    out = console()
    rows = [
        (one.stage, one.engine, _threads([one.threads]), _time(one), decimal(one.memory), one.reason)
        for one in found.stages
        if one.possible
    ]
    out.print(table(("stage", "engine", "threads", "measured", "memory", ""), rows))
    plans = [
        (one.plan, _threads(one.threads), _seconds(one.seconds), decimal(one.memory) if one.memory else "", _said(one))
        for one in found.plans
    ]
    out.print(table(("plan", "threads", "in all", "memory", ""), plans))
    out.print(table(("not possible here", "for", "why"), _impossible(found.stages)))
    out.print(f"Runs here as: {found.plan} (measured in {found.seconds:.1f} s)")


def _impossible(verdicts: Iterable[Any]) -> list[tuple[str, str, str]]:
    """Each engine that cannot run a stage, with the stages that one reason keeps it from."""
    stages: dict[tuple[str, str], list[str]] = {}
    for one in verdicts:
        if not one.possible:
            stages.setdefault((one.engine, one.reason), []).append(one.stage)
    return [(engine, ", ".join(held), reason) for (engine, reason), held in stages.items()]


def _time(one: Any) -> str:
    if one.seconds is None:
        return ""
    unit = "times real time" if one.stage == "encoder" else "tokens/s"
    return f"{_seconds(one.seconds)}, {one.rate:.4g} {unit}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _threads(counts: Any) -> str:
    return ", ".join(str(count or "own") for count in counts)


def _said(one: Any) -> str:
    return f"chosen, {one.reason}" if one.chosen else str(one.reason)
