"""Where a bundle is made: one build at a time, and what is left of it."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest
from ossicle.compiler.staging import STATE, Staging
from ossicle.targets import locks
from ossicle.targets.contract import BuildError
from ossicle.tests.fakes import write_bundle


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


def kill(out: Path) -> None:
    """A build that ends in the middle, one stage of it done."""
    with suppress(KeyboardInterrupt), Staging.open(out, {}) as staging:
        staging.finish(write_bundle(staging.folder).artifacts[0])
        raise KeyboardInterrupt


def test_a_finished_stage_is_taken_over_while_its_files_are_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill(out)
    with Staging.open(out, {}) as staging:
        (target, stage), *_ = ((one.target, one.stage) for one in write_bundle(tmp_path / "like").artifacts)
        found = staging.finished(target, stage)
        assert found is not None
        path = staging.folder / found.files[0].path
        path.write_bytes(path.read_bytes()[:-1])
        assert staging.finished(target, stage) is None


@pytest.mark.parametrize("state", [None, "{", "[]", "{}"])
def test_what_nothing_is_known_of_is_not_taken_over(tmp_path: Path, state: str | None) -> None:
    out = tmp_path / "out"
    kill(out)
    left = tmp_path / ".out.ossicle-build"
    (left / "left-over").touch()
    (left / STATE).unlink() if state is None else (left / STATE).write_text(state)
    with Staging.open(out, {}) as staging:
        assert [path.name for path in staging.folder.iterdir()] == [STATE]


def test_a_bundle_stands_until_the_one_that_replaces_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = tmp_path / "out", Path.rename
    write_bundle(out)

    def refuse(path: Path, place: Path) -> Path:
        if path.name == ".out.ossicle-build":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, place)

    monkeypatch.setattr(Path, "rename", refuse)
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(BuildError, match="cannot be written"), Staging.open(out, {}, force=True) as staging:
        staging.publish()
    assert sorted(path.name for path in out.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
