"""Where a bundle is made: one build at a time, and what is left of it."""

import errno
import os
from pathlib import Path
from typing import IO

import pytest
from ossicle.compiler.staging import Staging
from ossicle.targets import locks
from ossicle.targets.contract import BuildError


@pytest.mark.parametrize("inputs", [{"recipe": "int4"}, {"recipe": "int8"}])
def test_a_second_build_of_one_place_leaves_the_first_alone(tmp_path: Path, inputs: dict[str, str]) -> None:
    out = tmp_path / "out"
    with Staging.open(out, {"recipe": "int4"}) as first:
        (first.folder / "weights").write_text("half")
        with (
            pytest.raises(BuildError, match=r"'.*out' is being built by another process\. Wait"),
            Staging.open(out, inputs),
        ):
            pass
        assert (first.folder / "weights").read_text() == "half"
        first.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_kill_leaves_locked_nobody_is_taken_up_again(tmp_path: Path) -> None:
    (tmp_path / ".out.ossicle-build.lock").touch()
    with Staging.open(tmp_path / "out", {}) as staging:
        staging.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("reason", "had"), [(errno.ENOLCK, True), (errno.EWOULDBLOCK, False), (errno.EACCES, False)])
def test_a_file_system_without_locks_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int, had: bool
) -> None:
    def refuse(_: IO[str]) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(locks, "_lock", lambda: refuse)
    with (tmp_path / "lock").open("a") as stream:
        assert locks.taken(stream) is had
