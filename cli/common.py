"""What every command shares: the application, its errors in one line, JSON on standard output."""

import functools
import io
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from ..targets.contract import BuildError, OssicleError

P = ParamSpec("P")
app = typer.Typer(
    name="ossicle",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Compile a trained audio-language model once, prove every artifact, run it on the best engine present.",
)
BUILD = ("torch", "transformers", "safetensors", "onnx", "onnx_ir", "onnxscript", "mistral_common")
options = {"debug": False}

Bundle = Annotated[Path, typer.Argument(help="A folder that `ossicle build` made.", metavar="BUNDLE")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """The command with its errors said in one line: exit code 1, or 130 where the user interrupted it."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except OssicleError as reason:
            if options["debug"]:
                raise
            complain(str(reason))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            complain("interrupted; nothing half-written is left behind")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise
        except OSError as reason:
            if options["debug"]:
                raise
            what = (
                "a file cannot be read or written" if reason.filename is None else f"'{reason.filename}' cannot be used"
            )
            complain(f"{what}: {reason.strerror or reason}")
            raise typer.Exit(1) from None

    return run


def complain(message: str) -> None:
    """One line on standard error."""
    typer.echo(f"ossicle: {' '.join(message.split())}", err=True)


class _Told(logging.Handler):
    """What is logged, on standard error as it is then."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


def print_everything() -> None:
    """Have standard output take names and words that it has no characters for, as standard error does: "\\xe9"."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def tell() -> None:
    """Show on standard error what ossicle says of its own work: that it measures, that an engine gave way."""
    logger = logging.getLogger("ossicle")
    if not logger.handlers:
        handler = _Told()
        handler.setFormatter(logging.Formatter("ossicle: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def needs_build_extra(what: str) -> None:
    """Refuse where the packages of the build extra are not installed.

    Raises:
        BuildError: naming those that are missing, with the pip command.
    """
    from importlib.util import find_spec

    missing = [name for name in BUILD if find_spec(name) is None]
    if missing:
        raise BuildError(f"{what} needs {', '.join(missing)}. Install them with: pip install 'ossicle[build,onnx]'")


def file_size(text: str, option: str) -> int:
    """The size that a text such as "2GB", "1.5 GiB" or "500MB" names.

    Raises:
        BuildError: it names none; with the option that it was given to.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([GM]i?B)", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise BuildError(
            f"'{text}' is no size of a file (it can be, for example: 2GB, 1.5GiB, 500MB). Give another {option}"
        )
    return int(float(found[1]) * {"gb": 1e9, "mb": 1e6, "gib": 2**30, "mib": 2**20}[found[2].lower()])


def print_json(document: Any) -> None:
    """A document as JSON on standard output; what that has no characters for is escaped."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=1)
    typer.echo(text)
