"""Measurements that are kept from one run to the next: one file for a device, a bundle and what was asked of it.

It lies in $OSSICLE_CACHE, or else in the user's cache folder, under measurements. Whatever is wrong with it is said through
the logger "ossicle", and never makes a load fail.
"""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import monotonic, sleep

from ..targets import manifest as manifests
from ..targets.locks import taken
from .choose import Choices
from .device import fingerprint
from .measure import Child, default_budget, measure, thread_counts
from .measurements import Measurements, decode, encode
from .options import Options

FOLDER, SWITCH = "OSSICLE_CACHE", "OSSICLE_MEASURE"
_PAUSE = 0.1  # seconds between two looks at a lock
_SLACK = 5.0  # seconds more than the budget that another process is waited for: it may have begun just now

_log = logging.getLogger("ossicle")


def wanted(measure: bool | None) -> bool:
    """Whether to measure: as the caller says, or else as the environment does; by default it is done."""
    return os.environ.get(SWITCH, "1") != "0" if measure is None else measure


def measured(
    folder: Path,
    choices: Choices,
    options: Options,
    *,
    budget: float | None = None,
    again: bool = False,
) -> Measurements | None:
    """What was measured of a bundle here, now or before; None where another process is still at it, or nothing can be kept.

    Args:
        budget: seconds that it may take, and that another process is waited for; None: by the size of the bundle.
        again: measure although that was done before.
    """
    path, budget = file(folder, choices, options), budget or default_budget(choices)
    if not again and (found := read(path)):
        return found
    with _turn(path, budget + _SLACK) as reason:
        if reason:
            _say(f"engines are chosen by rank, not by measurement: {reason}")
            return None
        if not again and (found := read(path)):
            return found  # another process has measured while this one waited
        _log.info(
            "measuring once which engines run '%s' best here, for up to %.0f s (%s=0 switches it off)",
            folder,
            budget,
            SWITCH,
        )
        threads = () if options.threads else thread_counts(choices.facts)
        found = measure(choices, lambda stages: Child(folder, options, stages), threads, budget)
        write(path, found)
    return found


def file(folder: Path, choices: Choices, options: Options) -> Path:
    """Where measurements of a bundle on this device are kept, for what is asked of it."""
    assert choices.facts is not None
    told = json.dumps([asdict(options), dict(choices.words)], sort_keys=True)
    bundle = hashlib.sha256((folder / manifests.NAME).read_bytes() + told.encode()).hexdigest()[:32]
    return _cache() / "measurements" / f"{fingerprint(choices.facts)}-{bundle}.json"


def read(path: Path) -> Measurements | None:
    """The measurements of a file; None where there are none, or none that can be understood."""
    try:
        return decode(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as reason:
        _say(f"measurements in '{path}' cannot be read, and are made again: {reason}")
        return None


def write(path: Path, measurements: Measurements) -> None:
    """Keep measurements in a file, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as stream:
            stream.write(encode(measurements))
        try:
            Path(stream.name).replace(path)
        except OSError:
            Path(stream.name).unlink()
            raise
    except OSError as reason:
        _say(f"measurements cannot be kept in '{path}': {reason}. Name another folder with {FOLDER}")


@contextmanager
def _turn(path: Path, patience: float) -> Iterator[str | None]:
    """The right to measure, which one process has at a time; what is given is why it cannot be had, None where it is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("ab")
    except OSError as reason:
        yield f"nothing can be kept in '{path.parent}': {reason}. Name another folder with {FOLDER}"
        return
    with lock:
        deadline = monotonic() + patience
        while not taken(lock):
            if monotonic() >= deadline:
                yield "another process is still measuring"
                return
            sleep(_PAUSE)
        yield None  # closing the file gives the lock back


def _cache() -> Path:
    """The folder of what ossicle keeps for itself."""
    if named := os.environ.get(FOLDER):
        return Path(named)
    with suppress(RuntimeError):  # there is no home
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "ossicle" / "cache"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "ossicle"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ossicle"
    return Path(os.devnull)


@cache
def _say(message: str) -> None:
    """A warning, once in a process."""
    _log.warning(message)
