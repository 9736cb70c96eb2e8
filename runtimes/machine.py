"""Where facts come from: the machine's files, its commands and its drivers, none of which can make a question fail."""

import ctypes
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONGEST = 10.0  # seconds that a command of the system may take
LARGEST = 1 << 22  # bytes that are read of a file
_DIGITS = 32


def _answer(command: Sequence[str]) -> str:
    """What a command of the system says; "" where it is missing, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=LONGEST, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")


def _library(name: str) -> Any | None:
    """A library of the system by its file's name; None where there is none."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


@dataclass(frozen=True)
class Machine:
    """What is asked for facts. Another root, other answers and other libraries stand in for another machine."""

    system: str = field(default_factory=platform.system)  # "Linux", "Darwin", "Windows"
    architecture: str = field(default_factory=platform.machine)  # "x86_64", "aarch64", "arm64", "AMD64"
    root: Path = Path("/")
    ask: Callable[[Sequence[str]], str] = _answer
    library: Callable[[str], Any | None] = _library

    def text(self, path: str | Path) -> str:
        """A small file's text, `path` under the root; "" where it cannot be read."""
        try:
            with (self.root / path).open("rb") as stream:
                return stream.read(LARGEST).decode("utf-8", "replace").strip("\0 \t\r\n")
        except (OSError, ValueError):  # a path with a zero in it is a ValueError
            return ""

    def number(self, path: str | Path) -> int | None:
        """The number that a file holds; None where it holds none."""
        return number(self.text(path))

    def folders(self, path: str | Path, pattern: str = "*") -> list[Path]:
        """What stands in a folder under the root, in order; nothing where there is no such folder."""
        try:
            return sorted((self.root / path).glob(pattern))
        except OSError:
            return []

    def is_there(self, path: str | Path) -> bool:
        """Whether a path under the root exists."""
        try:
            return (self.root / path).exists()
        except OSError:
            return False


HERE = Machine()


def number(text: str) -> int | None:
    """A whole number from 0 up, decimal or with 0x; None where the text is none that a machine would say."""
    try:
        held = int(text[:_DIGITS], 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        return None
    return held if held >= 0 and len(text) < _DIGITS else None


def fields(text: str) -> dict[str, str]:
    """The lines `name: value` of a text; the first counts of those that repeat."""
    pairs = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in text.splitlines())]
    return {name: value for name, value in reversed(pairs) if name}
