"""Files that are there whole or not at all."""

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest
from ossicle.compiler.safetensors_write import Layout, Writer
from ossicle.compiler.written import whole
from ossicle.targets.contract import BuildError


class Full:
    """Numbers that no disk has room for."""

    def tobytes(self) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_of_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "made.safetensors"
    with (
        pytest.raises(BuildError, match=r"made\.safetensors' cannot be written: No space left on device"),
        Writer.open(path, {"a": Layout("F32", (2,))}, {}) as writer,
    ):
        writer.rows("a", 0, Full())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def fail(kind: type[Exception]) -> NoReturn:
    raise kind("elsewhere")


def test_what_else_fails_is_not_said_of_the_file(tmp_path: Path) -> None:
    """A pass over speech has temporary files of its own."""
    layouts = {"a": Layout("F32", (2,))}
    with pytest.raises(OSError, match="elsewhere"), Writer.open(tmp_path / "made", layouts, {}):
        fail(OSError)
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a"
    with whole(path) as partial:
        partial.write_text("first")
    with pytest.raises(ValueError, match="elsewhere"), whole(path) as partial:
        fail(ValueError)
    assert path.read_text() == "first"
    assert [one.name for one in path.parent.iterdir()] == ["a"]
