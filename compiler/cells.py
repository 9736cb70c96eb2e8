"""The cells of a sweep: a recipe by a quantizer in a target's format on an engine; what was found, and the files that keep it.

A cell has two files under the sweep's folder, written whole or not at all: `proofs/CELL.json` with its size and how it compares
with the original, `speeds/CELL.json` with what running it takes. Each holds a key over everything that decided it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import report
from .figures import Check, Comparison, Figures, Said, TargetVerification
from .written import write_text

VERSION = 1


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    recipe: str
    target: str
    engine: str
    quantizer: str = "nearest"

    @property
    def build(self) -> str:
        """Of the build that all targets of a recipe and quantizer share."""
        return self.recipe if self.quantizer == "nearest" else f"{self.recipe}+{self.quantizer}"

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.build}.{self.target}.{self.engine}"

    def __str__(self) -> str:
        return f"{self.build} in {self.target} on {self.engine}"


@dataclass(frozen=True)
class Proof:
    """What a cell's artifacts are worth. Where `reason` tells why there is nothing to compare, `verified` is None.

    `bundle` is its folder, relative to the sweep's; `size` the bytes of all files of its target.
    """

    reason: str | None = None
    bundle: str = ""
    size: int = 0
    verified: TargetVerification | None = None


@dataclass(frozen=True)
class Speed:
    """What running a cell takes here: the least of repeats, the most of memory. `reason` tells why there are no figures."""

    reason: str | None = None
    tokens_per_second: float = 0.0  # of the answers' own steps
    real_time_factor: float = 0.0  # seconds of work per second of audio
    load: float = 0.0  # seconds
    memory: int = 0  # bytes, resident, of every process of the engine
    audio: float = 0.0  # seconds of the recordings that it was measured on
    proof: str = (
        "executed"  # of another, what stood in for the target's engine here was measured: not the target's speed
    )


@dataclass(frozen=True)
class Found:
    """A cell and all that is known of it. A bundle that is verified alone has no speed."""

    cell: Cell
    proof: Proof
    speed: Speed | None = None

    @property
    def timed(self) -> Speed | None:
        """The speed of the target's own engine; None where there is none."""
        own = self.speed and not self.speed.reason and self.speed.proof == "executed"
        return self.speed if own else None

    @property
    def reason(self) -> str | None:
        """Why something is missing; None where nothing is."""
        return self.proof.reason or (self.speed.reason if self.speed else None)


def key(*parts: Any) -> str:
    """A digest of everything that decides a cell's figures."""
    return hashlib.sha256(json.dumps([VERSION, *parts], sort_keys=True).encode()).hexdigest()


def write_proof(folder: Path, cell: Cell, decided: str, proof: Proof) -> None:
    """Keep a cell's proof."""
    _write(folder / "proofs" / f"{cell.name}.json", decided, report.finite(asdict(proof)))


def read_proof(folder: Path, cell: Cell, decided: str) -> Proof | None:
    """The proof that is kept of a cell; None where there is none, or it was decided by other things."""
    entry = _read(folder / "proofs" / f"{cell.name}.json", decided)
    if entry is None:
        return None
    verified = entry.pop("verified")
    return Proof(**entry, verified=read_target(verified) if verified else None)


def write_speed(folder: Path, cell: Cell, decided: str, speed: Speed) -> None:
    """Keep a cell's speed."""
    _write(folder / "speeds" / f"{cell.name}.json", decided, asdict(speed))


def read_speed(folder: Path, cell: Cell, decided: str) -> Speed | None:
    """The speed that is kept of a cell, as `read_proof`."""
    entry = _read(folder / "speeds" / f"{cell.name}.json", decided)
    return None if entry is None else Speed(**entry)


def read_target(entry: Mapping[str, Any]) -> TargetVerification:
    """A target's verification, of the document that `report.document` makes of it."""
    clips = tuple(
        Comparison(**_numbers(clip) | {"said": tuple(Said(**said) for said in clip["said"])}) for clip in entry["clips"]
    )
    checks = tuple(Check(**_numbers(check, but=("figure", "worst"))) for check in entry["checks"])
    figures = Figures(**_numbers(entry["figures"]))
    return TargetVerification(entry["target"], entry["engine"], entry["proof"], checks, figures, clips)


def _numbers(entry: Mapping[str, Any], but: tuple[str, ...] = ("clip",)) -> dict[str, Any]:
    """The entry with the words that stand for numbers which JSON does not know made numbers again."""
    return {
        name: float(value) if isinstance(value, str) and name not in but else value for name, value in entry.items()
    }


def _write(path: Path, decided: str, entry: Mapping[str, Any]) -> None:
    write_text(path, json.dumps({"key": decided, "found": entry}, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _read(path: Path, decided: str) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found: dict[str, Any] = document["found"]
        return found if document["key"] == decided else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or none that can be read: it is found again
