"""Candidates of each stage -> plans for the whole, ranked: what is named is taken, what fits into memory is offered."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..targets.contract import EngineError
from ..targets.manifest import Manifest
from .base import Runtime, encoder_lacking
from .device import DeviceFacts, doctor, runtime_facts
from .measurements import ANSWER, NOISE, Measurements
from .needs import room, size
from .plans import AUTO, STAGES, Placement, Plan, Stage, asked, placement
from .registry import runtimes, unknown
from .select import Candidate, Wanted, candidates, none_left, refusal


@dataclass(frozen=True)
class Ranked:
    """A plan, and why it stands where it stands."""

    plan: Plan
    why: str


@dataclass(frozen=True)
class Choices:
    """What there is to choose from: candidates of every stage, and the word that a user has for each ("auto": any)."""

    manifest: Manifest
    words: Mapping[Stage, str]
    known: tuple[Runtime, ...]
    facts: DeviceFacts | None = None  # None where everything is named
    candidates: tuple[Candidate, ...] = ()
    may_measure: bool = False  # whether the user left the choice open, and not the lack of an encoder alone

    def runtime(self, name: str) -> Runtime:
        """The runtime of this name.

        Raises:
            EngineError: there is none.
        """
        for runtime in (*self.known, *runtimes()):
            if runtime.name == name:
                return runtime
        raise unknown(name, self.known)

    def possible(self, stage: Stage) -> list[Placement]:
        """Where a stage can run, best first: where it is named to, or wherever nothing speaks against it."""
        word = self.words[stage]
        if word == AUTO:
            return [one.placement for one in self.candidates if one.stage == stage and one.reason is None]
        return [placement(word)]

    def named(self, stage: Stage) -> Runtime:
        """The runtime that a stage is named to."""
        return self.runtime(placement(self.words[stage]).runtime)

    @property
    def is_open(self) -> bool:
        """Whether there is something to choose by measurement."""
        counts = [len(self.possible(stage)) for stage in STAGES]
        return self.may_measure and counts[-1] > 0 and max(counts) > 1


def consider(manifest: Manifest, engine: str | Mapping[str, str] | Runtime, provider: str, wanted: Wanted) -> Choices:
    """What there is to choose from for a bundle here. The machine is asked for facts where something is left to choose.

    Raises:
        EngineError: what is named is unknown, or cannot run the bundle here.
    """
    if not isinstance(engine, str | Mapping) and not hasattr(engine, "usable"):
        raise EngineError(
            f"engine {engine!r:.60} is not possible (it can be: auto, a name such as onnxruntime, one for each stage)."
        )
    known = runtimes() if isinstance(engine, str | Mapping) else (engine,)
    words = asked(engine if isinstance(engine, str | Mapping) else engine.name, provider)
    choices = Choices(manifest, words, known, may_measure=AUTO in words.values())
    _check_named(choices)
    # An engine that is named for everything, and has no audio encoder, takes audio from the best that has one.
    if len(set(words.values())) == 1 and words["encoder"] != AUTO and encoder_lacking(choices.named("encoder")):
        choices = replace(choices, words={**words, "encoder": AUTO})
    if AUTO not in choices.words.values():
        return choices
    facts = doctor()
    return replace(choices, facts=facts, candidates=candidates(facts, manifest, wanted))


def by_rank(choices: Choices) -> tuple[Ranked, ...]:
    """The plans that rank alone speaks for, best first: a decoder of each kind, with its own encoder where it has one.

    Raises:
        EngineError: there is none; every candidate with its reason.
    """
    refused: dict[str, str | None] = {
        str(one.placement): one.reason for one in choices.candidates if one.stage == "decoder"
    }
    ranked = _ranked(choices, refused)
    if not ranked:
        raise none_left(choices.manifest, refused)
    return tuple(ranked)


def _ranked(choices: Choices, refused: dict[str, str | None] | None = None) -> list[Ranked]:
    """Plans by rank; those that do not fit are put into `refused` with their reasons."""
    encoders, ranked = choices.possible("encoder"), []
    for decoder in choices.possible("decoder"):
        plan = Plan(
            decoder if decoder in encoders else next(iter(encoders), None),
            decoder if choices.words["prefill"] in (AUTO, choices.words["decoder"]) else choices.possible("prefill")[0],
            decoder,
        )
        reason = misfit(choices, plan)
        if reason is None:
            ranked.append(Ranked(plan, _why(choices, plan)))
        elif refused is not None:
            refused[str(plan)] = reason
    return ranked


def by_measurement(choices: Choices, measurements: Measurements) -> tuple[Ranked, ...]:
    """The plans that were measured as a whole, the best first, and behind them those that rank alone speaks for.

    What is less simple is best only where it beats what is simpler by more than noise.
    """
    totals = {row.plan: measurements.times(row.plan).total for row in measurements.rows if row.plan}
    whole = {plan: total for plan, total in totals.items() if total is not None}
    found = [Ranked(plan, f"measured: {_work(whole[plan])}") for plan in sorted(whole, key=lambda plan: whole[plan])]
    if whole:
        best = simplest_best(whole)
        found.sort(key=lambda ranked: ranked.plan != best)
    failed = {row.plan for row in measurements.rows if row.reason}
    rest = [ranked for ranked in _ranked(choices) if ranked.plan not in whole]
    rest.sort(key=lambda ranked: ranked.plan in failed)
    if not found and not rest:
        return by_rank(choices)
    return (*found, *rest)


def distinct(ranked: Sequence[Ranked]) -> tuple[Ranked, ...]:
    """The first of those plans that differ in numbers of threads alone, which would fail together."""
    first: dict[Plan, Ranked] = {}
    for one in ranked:
        bare = (placed and replace(placed, threads=0) for placed in (getattr(one.plan, stage) for stage in STAGES))
        first.setdefault(Plan(*bare), one)
    return tuple(first.values())


def simplest_best(totals: Mapping[Plan, float]) -> Plan:
    """The fastest plan by its seconds, a simpler one where the difference may be noise."""
    chosen, *others = sorted(totals, key=lambda plan: (_parts(plan), totals[plan]))
    for plan in others:
        if totals[plan] < totals[chosen] * (1 - NOISE):
            chosen = plan
    return chosen


def misfit(choices: Choices, plan: Plan) -> str | None:
    """Why a plan does not fit into memory as a whole; None where it does, or nothing was left to choose."""
    if choices.facts is None:
        return None
    takes: Counter[str] = Counter()
    for one in choices.candidates:
        wanted = getattr(plan, one.stage)
        # prefill and steps of one engine share its weights and its cache
        if wanted == one.placement and not (one.stage == "prefill" and plan.prefill == plan.decoder):
            takes[one.need.kind] += one.need.total
    for kind, total in takes.items():
        free = room(choices.facts, kind)
        if free is not None and total > free:
            return f"its stages take {size(total)} together, and {size(free)} are free"
    return None


def _check_named(choices: Choices) -> None:
    """Refuse what is named and cannot run the bundle here; of an engine for everything its decoder is asked for."""
    single = len(set(choices.words.values())) == 1
    for stage in ("decoder",) if single else STAGES:
        if choices.words[stage] == AUTO:
            continue
        runtime = choices.named(stage)
        if reason := refusal(runtime_facts(runtime), choices.manifest, stage):
            raise none_left(choices.manifest, {runtime.name: reason})


def _parts(plan: Plan) -> tuple[int, int]:
    """How far from simple a plan is: its engines, and the numbers of threads that are set."""
    return len(plan.stages), sum(one.threads > 0 for one in plan.stages)


def _work(seconds: float) -> str:
    return f"{seconds:.2f} s for a window of audio, its prompt and {ANSWER} tokens"


def _why(choices: Choices, plan: Plan) -> str:
    if choices.words["decoder"] != AUTO:
        return "its decoder was named"
    (found,) = (one for one in choices.candidates if (one.stage, one.placement) == ("decoder", plan.decoder))
    return f"by rank, not measured: its decoder {found.rank}"
