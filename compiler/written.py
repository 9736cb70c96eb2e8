"""Files that are written beside their place and moved there at the end: whole, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..targets.contract import BuildError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`, which it becomes once the block ends; nothing is left where the block fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with refused(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with refused(path):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        BuildError: it cannot be written.
    """
    with whole(path) as partial, refused(path):
        partial.write_text(text, encoding="utf-8")


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Say of what the system refuses in the block that it is this file's writing.

    Raises:
        BuildError: it refused.
    """
    try:
        yield
    except OSError as reason:
        raise BuildError(
            f"'{path}' cannot be written: {reason.strerror or reason}. Nothing of it was kept. Give another place"
        ) from reason


def check_place(path: Path, option: str) -> None:
    """Refuse a file's place that cannot be written to, before there is anything to write; `option` is what named it.

    Raises:
        BuildError: it is a folder, or lies in one that refuses.
    """
    if path.is_dir():
        raise BuildError(f"'{path}' is a folder. Name a file in it: {option} {path / 'NAME'}")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BuildError(
            f"'{path}' cannot be written: '{parent}' is not a folder that you may write to. Give another {option}"
        )
