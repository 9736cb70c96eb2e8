"""What was measured of a bundle on a device: a row for each engine or plan that was tried, and the file that keeps them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .plans import STAGES, Placement, Plan, Stage

VERSION = 1
ANSWER = 100  # tokens of the answer that plans are compared by, after one window of audio and its prompt
NOISE = 0.03  # a mixed plan, or other threads, must be better than what is simpler by this share

Stages = Mapping[Stage, Placement]  # what was opened: a whole plan, or some of its stages


@dataclass(frozen=True)
class Times:
    """Seconds, the least of repeats; None where the stage was not tried."""

    encoder: float | None = None  # of one window
    prefill: float | None = None  # of the prompt with one window
    step: float | None = None  # of one token

    @property
    def total(self) -> float | None:
        """Seconds for one window of audio, its prompt and an answer of ANSWER tokens; None where anything is missing."""
        if self.encoder is None or self.prefill is None or self.step is None:
            return None
        return self.encoder + self.prefill + ANSWER * self.step

    def least(self, other: "Times") -> "Times":
        """The lesser of both, stage by stage."""
        pairs = zip(_known(self), _known(other), strict=True)
        return Times(*(min((t for t in pair if t is not None), default=None) for pair in pairs))


@dataclass(frozen=True)
class Row:
    """One trial. `reason` tells why it has no times, or not all."""

    stages: Stages
    times: Times = field(default_factory=Times)
    load: float = 0.0  # seconds
    memory: int = 0  # the most that its processes held, in bytes; 0 where the system does not tell
    hands: bool = False  # whether it hands keys and values over
    reason: str | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan that was tried; None where some stages alone were."""
        return Plan(*(self.stages[stage] for stage in STAGES)) if len(self.stages) == len(STAGES) else None


@dataclass(frozen=True)
class Measurements:
    """All rows, and the seconds that they took."""

    rows: tuple[Row, ...] = ()
    seconds: float = 0.0
    version: int = VERSION

    def times(self, plan: Plan) -> Times:
        """The least that a plan as a whole has taken."""
        found = Times()
        for row in self.rows:
            if row.plan == plan and row.reason is None:
                found = found.least(row.times)
        return found


def encode(measurements: Measurements) -> str:
    """Measurements as JSON."""
    return json.dumps(asdict(measurements), indent=1)


def decode(text: str) -> Measurements:
    """Measurements of a text that `encode` made.

    Raises:
        ValueError: it is none, or of another version.
    """
    try:
        document = json.loads(text)
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']} instead of {VERSION}")
        return Measurements(tuple(map(_row, document["rows"])), float(document["seconds"]))
    except (KeyError, TypeError, AttributeError) as reason:
        raise ValueError(f"{type(reason).__name__} {reason}") from reason


def stages_of(document: Mapping[str, Any]) -> dict[Stage, Placement]:
    """Stages and their placements of a document."""
    return {stage: Placement(**document[stage]) for stage in STAGES if stage in document}


def of_plan(plan: Plan) -> dict[Stage, Placement]:
    """A plan's stages, each with its placement."""
    return {stage: getattr(plan, stage) for stage in STAGES if getattr(plan, stage) is not None}


def with_threads(plan: Plan, changed: Placement, threads: int) -> Plan:
    """The plan with so many threads where one placement is."""
    placed = (getattr(plan, stage) for stage in STAGES)
    return Plan(*(replace(one, threads=threads) if one == changed else one for one in placed))


def _row(document: Mapping[str, Any]) -> Row:
    times = Times(**{name: None if value is None else float(value) for name, value in document["times"].items()})
    known: dict[str, Any] = {name: document[name] for name in ("load", "memory", "hands", "reason")}
    return Row(stages_of(document["stages"]), times, **known)


def _known(times: Times) -> Sequence[float | None]:
    return times.encoder, times.prefill, times.step
