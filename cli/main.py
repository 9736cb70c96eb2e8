"""The command `ossicle`: one function a command, and nothing heavy imported before a command needs it."""

import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from . import (  # noqa: F401 - their commands register themselves
    bench,
    build,
    calibrate,
    corpus,
    plan,
    push,
    run,
    serve,
    sweep,
)
from .common import Json, app, guarded, needs_build_extra, options, print_everything, print_json, tell


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ossicle {__version__}")
        raise typer.Exit


def _hush() -> None:
    """Keep what libraries tell their programmers from the user's terminal."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@app.callback()
def common(
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Options before any command."""
    options["debug"] = debug
    tell()
    print_everything()
    if not debug:
        _hush()


@app.command(epilog="Example: ossicle inspect voxtral-int4")
@guarded
def inspect(
    location: Annotated[str, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="What to look into.")],
    as_json: Json = False,
) -> None:
    """What a bundle or a checkpoint holds: stages, files, sizes, precision, memory, verification."""
    from ..targets import manifest as manifests
    from . import show

    if (Path(location) / manifests.NAME).is_file():
        found = manifests.read(Path(location))
        print_json(show.bundle_document(found)) if as_json else show.bundle(found)
        return
    from ..compiler.checkpoint import open_checkpoint

    held = show.checkpoint_document(open_checkpoint(location))
    print_json(held) if as_json else show.checkpoint(held)


@app.command(epilog="Example: ossicle doctor --bundle voxtral-int4")
@guarded
def doctor(
    as_json: Json = False,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="BUNDLE", help="Say of every engine whether it can run this bundle."),
    ] = None,
    measure: Annotated[bool, typer.Option(help="Measure how fast memory is read, in half a second.")] = True,
) -> None:
    """What this machine has, which engines work here, and why the others do not."""
    import ossicle

    from ..targets import manifest as manifests
    from .doctor import document, show

    held = None if bundle is None else manifests.read(bundle)
    found = document(ossicle.doctor(measure=measure), held)
    print_json(found) if as_json else show(found)


@app.command()
@guarded
def targets(as_json: Json = False) -> None:
    """What can be built for, the formats that each target holds, and whether it is installed."""
    from . import show

    print_json(show.target_rows()) if as_json else show.targets()


@app.command()
@guarded
def demo(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Keep the bundles here. By default they go away.")
    ] = None,
) -> None:
    """Build, verify and run the small Voxtral that ossicle ships, with and without its adapter."""
    needs_build_extra("the demo")
    from .demo import show
    from .progress import Bars

    with Bars() as bars:
        passed = show(out, bars)
    if not passed:
        raise typer.Exit(1)


def main() -> None:
    """The command line's entry."""
    app()
