"""Where a bundle is made: a hidden folder beside its place, moved there at the end.

Finished stages are noted, so that a build which was killed goes on where it was. Nothing in the folder loads as a bundle
before its manifest is written, which is the last thing to happen.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ..targets.contract import Artifact, BuildError
from ..targets.locks import taken
from ..targets.manifest import NAME, artifact_of

STATE = "build.json"


@dataclass
class Staging:
    """The folder of a bundle in the making, and where the bundle goes."""

    folder: Path
    out: Path
    inputs: str
    _done: dict[str, Any]
    _interrupted: bool = False

    @classmethod
    @contextmanager
    def open(cls, out: Path, inputs: Mapping[str, Any], *, force: bool = False) -> Iterator[Self]:
        """The staging folder for `out`: of an earlier attempt with the same inputs, or new.

        Left by Ctrl-C or a kill, it stays for the next attempt, unfinished stages apart. Left by an error, it is removed.

        Raises:
            BuildError: `out` is taken or cannot be written to, another process builds it, or the disk is full.
        """
        check_free(out, force=force)
        folder = out.parent / f".{out.name}.ossicle-build"
        with _alone(out, folder):
            check_free(out, force=force)  # another build may have ended meanwhile
            try:
                staging = cls._resume(folder, out, _digest(inputs))
                with staging._noting_interrupts():
                    yield staging
            except KeyboardInterrupt:
                raise
            except OSError as reason:
                shutil.rmtree(folder, ignore_errors=True)
                raise _failed(out, reason) from reason
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    @classmethod
    def _resume(cls, folder: Path, out: Path, inputs: str) -> Self:
        state = _read_state(folder / STATE)
        if state.get("inputs") != inputs and folder.exists():
            shutil.rmtree(folder)
            state = {}
        folder.mkdir(parents=True, exist_ok=True)
        staging = cls(folder, out, inputs, state.get("done", {}))
        staging._note()
        return staging

    @contextmanager
    def _noting_interrupts(self) -> Iterator[None]:
        """Ctrl-C raises as ever, and is remembered: raised inside a destructor or a callback, Python only prints it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(*_: object) -> None:
            self._interrupted = True
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _stop_if_interrupted(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def finished(self, target: str, stage: str) -> Artifact | None:
        """The artifact that an earlier attempt finished, if it did and its files are all there."""
        entry = self._done.get(f"{target}/{stage}")
        if entry is None:
            return None
        artifact = artifact_of(entry)
        whole = all(_size(self.folder / file.path) == file.size for file in artifact.files)
        return artifact if whole else None

    def finish(self, artifact: Artifact) -> None:
        """Note that a stage is complete on disk."""
        self._done[f"{artifact.target}/{artifact.stage}"] = asdict(artifact)
        self._note()
        self._stop_if_interrupted()

    def publish(self) -> None:
        """Move the bundle to its place, in one step; what was there before goes once the new one stands."""
        self._stop_if_interrupted()
        (self.folder / STATE).unlink()
        old = self.folder.with_name(self.folder.name + "-replaced")
        shutil.rmtree(old, ignore_errors=True)
        if self.out.exists():
            self.out.rename(old)
        try:
            self.folder.rename(self.out)
        except OSError:
            if old.exists():
                old.rename(self.out)
            raise
        shutil.rmtree(old, ignore_errors=True)

    def _note(self) -> None:
        text = json.dumps({"inputs": self.inputs, "done": self._done}, indent=1)
        draft = self.folder / f"{STATE}.new"
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, self.folder / STATE)


@contextmanager
def _alone(out: Path, folder: Path) -> Iterator[None]:
    """Hold a lock beside `folder`, which goes when the build does; after a kill it is there to be taken again.

    Raises:
        BuildError: another process has it, or it cannot be made.
    """
    path = folder.with_name(f"{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")
    except OSError as reason:
        raise _failed(out, reason) from reason
    with stream:
        if not taken(stream):
            raise BuildError(
                f"'{out}' is being built by another process. Wait until it is there, or give another --out"
            )
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps what is open
                path.unlink()


def check_free(out: Path, *, force: bool) -> None:
    """Refuse a place that is taken or cannot be written to, before any work is done.

    Raises:
        BuildError: naming what stands there, or the folder that refuses.
    """
    if out.exists() and not force:
        raise BuildError(f"'{out}' exists. Give another --out, or replace it with --force")
    if out.exists() and not _replaceable(out):
        raise BuildError(f"'{out}' is no bundle (it has no {NAME}), so --force does not replace it. Give another --out")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BuildError(
            f"'{out}' cannot be written: '{parent}' is not a folder that you may write to. Give another --out"
        )


def _replaceable(out: Path) -> bool:
    return out.is_dir() and ((out / NAME).is_file() or not any(out.iterdir()))


def _failed(out: Path, reason: OSError) -> BuildError:
    if reason.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(folder for folder in out.absolute().parents if folder.exists())).free
        return BuildError(
            f"'{out}' cannot be written: the disk is full ({free / 1e9:.1f} GB were left for what remained). "
            "Nothing of the build was kept. Free space, or give an --out on another disk"
        )
    return BuildError(f"'{out}' cannot be written: {reason}. Nothing of the build was kept. Give another --out")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # none, or none that can be read: the build starts over
    return state if isinstance(state, dict) else {}


def _digest(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
