"""A command run in a process of its own, with the time and the memory that it took."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A process starts with the peak of the one that made it, so that one has to be small: this, whatever the caller holds.
_LAUNCHER = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
taken = [os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss]
with open(sys.argv[1], "w") as stream:
    json.dump(taken, stream)
"""
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of one unit of ru_maxrss


@dataclass(frozen=True)
class Measured:
    """What a command took: seconds on the clock, seconds of CPU, and its largest resident set in bytes."""

    seconds: float
    cpu: float
    peak: int
    output: str

    @property
    def gibibytes(self) -> float:
        return self.peak / 2**30


def measure(command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> Measured:
    """Run `command` and wait for it; its output, both streams, is kept.

    The peak counts the process and the children it waited for, each on its own, and pages of mapped files as well.

    Raises:
        RuntimeError: the command failed; with the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="ossicle-measure-") as folder:
        record = Path(folder) / "usage.json"
        started = time.perf_counter()
        launched = subprocess.run(
            [sys.executable, "-S", "-c", _LAUNCHER, str(record), *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - started
        code, cpu, peak = json.loads(record.read_text())
    if code:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {code}:\n{launched.stdout[-4000:]}")
    return Measured(seconds, cpu, peak * _PEAK_UNIT, launched.stdout)


def machine() -> str:
    """The processor, its cores, the memory and the load of this machine, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    load = os.getloadavg()[0]
    return f"{_processor()}, {os.cpu_count()} cores, {memory / 2**30:.0f} GiB; load {load:.1f} at the start"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "a processor without a name"
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "a processor")
