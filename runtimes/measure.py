"""A short measurement of a bundle's engines on this device, each in a process of its own, within a budget of seconds.

Trials take turns, so that a busy moment of the machine strikes all of them, and the least of what each has taken counts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from threading import Timer
from time import monotonic
from typing import Any, Protocol

from . import child
from .choose import Choices, misfit
from .device import DeviceFacts
from .measurements import NOISE, Measurements, Row, Stages, Times, of_plan, with_threads
from .needs import room
from .options import Options
from .plans import STAGES, Placement, Plan, Stage

BUDGET, BUDGET_PER_GB = 20.0, 15.0  # seconds by default: for any model, and for each gigabyte that its engines load
ROUNDS = 5  # turns of each trial, where the budget allows
_FIRST = 0.6  # of the budget, for engines one by one; the rest is for the plans that they promise
_ALIVE = 0.6  # of the free memory that trials may take together


class Trial(Protocol):
    """Opened stages that are asked for their times."""

    row: Row

    def open(self, deadline: float) -> None: ...

    def run(self, deadline: float) -> None: ...

    def close(self) -> None: ...


Opener = Callable[[Stages], Trial]


def measure(choices: Choices, opener: Opener, threads: Sequence[int] = (), budget: float = BUDGET) -> Measurements:
    """Rows of every engine that could be chosen for a stage, then of the plans that they promise most of.

    `threads` are numbers to try beside each engine's own.
    """
    started = monotonic()
    rows = list(_tried(_alone(choices), choices, opener, started + _FIRST * budget))
    plans = promising(choices, rows, threads)
    rows += _tried([of_plan(plan) for plan in plans], choices, opener, started + budget)
    return Measurements(tuple(rows), monotonic() - started)


def default_budget(choices: Choices) -> float:
    """Seconds for a bundle of this size."""
    stages: dict[str, int] = {}
    for one in choices.candidates:
        if one.reason is None and one.stage != "prefill":
            stages[one.stage] = max(stages.get(one.stage, 0), one.need.weights)
    return BUDGET + BUDGET_PER_GB * sum(stages.values()) / 1e9


def thread_counts(facts: DeviceFacts | None) -> tuple[int, ...]:
    """Numbers of threads to try beside one for every physical core: one for every core, and half as many."""
    if facts is None:
        return ()
    cores, physical = facts.processor.cores, facts.processor.physical_cores
    return tuple(sorted({cores, max(1, cores // 2)} - {physical}))


def promising(choices: Choices, rows: Sequence[Row], threads: Sequence[int] = ()) -> list[Plan]:
    """Plans worth measuring as a whole: the best of one engine, the best mixes that promise to beat it, and other threads."""
    predicted = sorted(_predicted(choices, rows), key=lambda found: found[1])
    singles = [found for found in predicted if found[0].is_single]
    kinds = (
        [found for found in predicted if not found[0].is_single and found[0].prefill == found[0].decoder],
        [found for found in predicted if found[0].prefill != found[0].decoder],
    )
    limit = singles[0][1] * (1 - NOISE) if singles else float("inf")
    best = [kind[0] for kind in kinds if kind and kind[0][1] < limit]
    plans = [plan for plan, _ in (*singles[:1], *best)]
    if not plans:
        return []
    first = min((*singles[:1], *best), key=lambda found: found[1])[0]
    return plans + [
        with_threads(first, one, count) for one in first.stages if one.provider == "cpu" for count in threads
    ]


def _alone(choices: Choices) -> list[Stages]:
    """The stages that each engine could be chosen for, opened together; what could be for nothing is left out."""
    stages: dict[Placement, list[Stage]] = {}
    for stage in STAGES:
        for placement in choices.possible(stage):
            stages.setdefault(placement, []).append(stage)
    return [dict.fromkeys(_together(held), one) for one, held in stages.items()]


def _together(held: Sequence[Stage]) -> Iterator[Stage]:
    """The stages that are opened for some of them: prefill and decoder are one."""
    for stage in STAGES:
        if stage in held or (stage != "encoder" and {"prefill", "decoder"} & set(held)):
            yield stage


def _predicted(choices: Choices, rows: Sequence[Row]) -> Iterator[tuple[Plan, float]]:
    """Every plan that fits, and what it takes if its parts take together what they take alone."""
    known = {stage: [row for row in rows if stage in row.stages and _time(row, stage) is not None] for stage in STAGES}
    for encoder, reader, decoder in product(*(known[stage] for stage in STAGES)):
        if reader is not decoder and not (reader.hands and decoder.hands):
            continue
        plan = Plan(encoder.stages["encoder"], reader.stages["prefill"], decoder.stages["decoder"])
        allowed = all(getattr(plan, stage) in choices.possible(stage) for stage in STAGES)
        if allowed and misfit(choices, plan) is None:
            times = Times(_time(encoder, "encoder"), _time(reader, "prefill"), _time(decoder, "decoder"))
            yield plan, times.total or 0.0


def _time(row: Row, stage: Stage) -> float | None:
    return {"encoder": row.times.encoder, "prefill": row.times.prefill, "decoder": row.times.step}[stage]


def _tried(wanted: Sequence[Stages], choices: Choices, opener: Opener, deadline: float) -> Iterator[Row]:
    """A row for each of what is wanted: all open side by side where memory allows, or else one after the other."""
    groups = [wanted] if _side_by_side(wanted, choices) else [[one] for one in wanted]
    for place, group in enumerate(groups):
        share = (deadline - monotonic()) / (len(groups) - place)
        with ExitStack() as opened:
            trials = [opener(stages) for stages in group]
            for trial in trials:
                opened.callback(trial.close)
            _take_turns(trials, monotonic() + share)
            yield from (trial.row for trial in trials)


def _take_turns(trials: Sequence[Trial], deadline: float) -> None:
    """Every trial once, and then all of them again as long as there is time for all: the least of more turns is less."""
    lasted = 0.0
    for trial in trials:
        trial.open(deadline)
        lasted += _run(trial, deadline)  # at once, so that those who come first are known whatever the others take
    for turn in range(1, ROUNDS):
        if not trials or monotonic() + lasted > deadline:
            return
        first = turn % len(trials)
        lasted = sum(_run(trial, deadline) for trial in (*trials[first:], *trials[:first]))


def _run(trial: Trial, deadline: float) -> float:
    """The seconds that a trial's turn took."""
    started = monotonic()
    if trial.row.reason is None:
        trial.run(deadline)
    return monotonic() - started


def _side_by_side(wanted: Sequence[Stages], choices: Choices) -> bool:
    if choices.facts is None:
        return True
    free = room(choices.facts, "cpu")
    needs = {(one.stage, one.placement): one.need.total for one in choices.candidates}
    bare = [
        {(stage, replace(one, threads=0)) for stage, one in stages.items() if stage != "prefill"} for stages in wanted
    ]
    return free is None or sum(needs.get(key, 0) for keys in bare for key in keys) <= _ALIVE * free


class Child:
    """A trial in a process of its own."""

    def __init__(self, folder: Path, options: Options, stages: Stages) -> None:
        self.row = Row(stages)
        self._opening = {
            "bundle": str(folder),
            "stages": {stage: asdict(placement) for stage, placement in stages.items()},
            "options": asdict(options),
        }
        self._child = child.Child("measure_worker")

    def open(self, deadline: float) -> None:
        """Open the stages; a failure becomes the row's reason."""
        if answer := self._asked("open", deadline, **self._opening):
            self.row = replace(self.row, load=answer["load"], hands=answer["hands"])

    def run(self, deadline: float) -> None:
        """Put audio and a prompt through what is open, and keep the least times."""
        for action in ("encoder", "decoder"):
            if action in self.row.stages and self.row.reason is None and (answer := self._asked(action, deadline)):
                self.row = replace(self.row, times=self.row.times.least(Times(**answer)))

    def close(self) -> None:
        """End the process."""
        self._child.end(patience=0)

    def _asked(self, action: str, deadline: float, **told: Any) -> dict[str, Any] | None:
        """What the child answers; None where it fails, whose reason is in the row then."""
        left = deadline - monotonic()
        if left <= 0:
            self._late("the budget was spent before its turn came")
            return None
        watch = Timer(left, self._child.kill)
        watch.start()
        try:
            answer = self._child.ask({"do": action, **told})
        finally:
            watch.cancel()
        if answer is not None and "error" not in answer:
            self.row = replace(self.row, memory=max(self.row.memory, answer.pop("memory")))
            return answer
        if answer is None and monotonic() >= deadline:
            self._late("it did not come to its end within the budget")
        else:
            self._failed(self._death() if answer is None else answer["error"])
        return None

    def _death(self) -> str:
        end = self._child.end()
        return f"its process ended ({end.cause}){end.last_line}"

    def _late(self, reason: str) -> None:
        """What was measured in full before the budget ended stands."""
        wanted = {"encoder": self.row.times.encoder, "decoder": self.row.times.step}
        if any(stage in self.row.stages and seconds is None for stage, seconds in wanted.items()):
            self._failed(reason)

    def _failed(self, reason: str) -> None:
        self.row = replace(self.row, reason=reason)
