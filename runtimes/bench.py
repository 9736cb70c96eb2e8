"""Why a bundle runs here as it does: every engine for every stage, what it was measured to take, and why it is not chosen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..targets import manifest as manifests
from ..targets.contract import EngineError
from .choose import Choices, Ranked, by_measurement, by_rank, consider
from .llamacpp_widened import widened_bytes
from .measured import measured
from .measurements import Measurements, Row, Times
from .options import Options, refuse_unheard_of
from .plans import Placement, Plan, Stage
from .select import CONTEXT, Candidate, Wanted

LONGEST = 86400  # seconds of measuring


@dataclass(frozen=True)
class Verdict:
    """An engine for a stage. `rate` is seconds of audio per second of the encoder, and tokens per second of the others."""

    stage: Stage
    engine: str
    threads: int  # 0: as many as the engine takes by itself
    seconds: float | None  # of a window, of its prompt, of a token; None where it was not measured
    rate: float | None
    memory: int  # bytes that it was measured to take with its other stages, or is reckoned to
    possible: bool
    chosen: bool
    reason: str


@dataclass(frozen=True)
class PlanVerdict:
    """A plan for the whole; `seconds` of one window of audio, its prompt and an answer of 100 tokens."""

    plan: str
    threads: tuple[int, ...]  # of each of its engines
    seconds: float | None
    memory: int
    chosen: bool
    reason: str


@dataclass(frozen=True)
class Bench:
    """Everything that was weighed for a bundle on this device; `seconds` that measuring took."""

    bundle: str
    plan: str
    seconds: float
    stages: tuple[Verdict, ...]
    plans: tuple[PlanVerdict, ...]


def bench(
    bundle: str | Path,
    *,
    engine: str = "auto",
    budget: float | None = None,
    again: bool = False,
    context: int | None = None,
    compute: str = "",
) -> Bench:
    """What each engine takes for each stage of a bundle here, measured or as it was measured before, and what is chosen.

    Args:
        budget: seconds that measuring may take; None: 20, and 15 for each gigabyte that is loaded.
        again: measure although that was done before.
        compute: as for `ossicle.load`: what is measured is what sessions with it are opened by.

    Raises:
        BundleError: there is no bundle, or it is damaged.
        EngineError: no engine can run it here.
    """
    options = Options(compute=compute)
    refuse_unheard_of(options)
    if budget is not None and not 0 < budget <= LONGEST:
        raise EngineError(f"budget {budget:g} is not possible (it can be: above 0 s, to {LONGEST}).")
    if context is not None and context < 1:
        raise EngineError(f"context {context} is not possible (it can be: above 0, in tokens).")
    folder = Path(bundle)
    manifest = manifests.read(folder)
    manifests.check_files(folder, manifest)  # which also brings them into memory, as whoever loads does
    wanted = Wanted(context or CONTEXT, compute=compute, widened=widened_bytes(folder, manifest, compute))
    choices = consider(manifest, engine, "cpu", wanted)
    by_rank(choices)  # refuses where there is nothing to measure
    found = (
        measured(folder, choices, options, budget=budget, again=again) if choices.facts else None
    ) or Measurements()
    return explained(folder.name, choices, found)


def explained(name: str, choices: Choices, found: Measurements) -> Bench:
    """A verdict of every candidate and every plan that was tried."""
    ranked = by_measurement(choices, found)
    chosen = ranked[0].plan
    stages = tuple(_verdict(choices, found, chosen, one) for one in choices.candidates)
    return Bench(name, str(chosen), found.seconds, stages, tuple(_plans(found, ranked)))


def _verdict(choices: Choices, found: Measurements, chosen: Plan, one: Candidate) -> Verdict:
    placed: Placement | None = getattr(chosen, one.stage)
    taken = placed is not None and (placed.runtime, placed.provider) == (one.placement.runtime, one.placement.provider)
    rows = [row for row in found.rows if row.stages.get(one.stage) == one.placement]
    seconds = min((time for row in rows if (time := stage_seconds(row.times, one.stage)) is not None), default=None)
    failed = next((row.reason for row in rows if row.reason), None) if seconds is None else None
    return Verdict(
        one.stage,
        str(one.placement),
        placed.threads if taken and placed else 0,
        seconds,
        _rate(choices, one.stage, seconds),
        max((row.memory for row in rows), default=0) or one.need.total,
        one.reason is None,
        taken,
        _chosen_why(seconds, one) if taken else one.reason or failed or _behind(found, chosen, one, seconds),
    )


def stage_seconds(times: Times, stage: Stage) -> float | None:
    """Seconds of a window, of its prompt, or of a token."""
    return {"encoder": times.encoder, "prefill": times.prefill, "decoder": times.step}[stage]


def _rate(choices: Choices, stage: Stage, seconds: float | None) -> float | None:
    if not seconds:
        return None
    audio = choices.manifest.audio
    work = {
        "encoder": audio.window_frames * audio.hop / audio.sample_rate,
        "prefill": float(audio.tokens_per_window),
        "decoder": 1.0,
    }
    return work[stage] / seconds


def _chosen_why(seconds: float | None, one: Candidate) -> str:
    return f"chosen: {one.rank}" if seconds is None else "chosen by measurement"


def _behind(found: Measurements, chosen: Plan, one: Candidate, seconds: float | None) -> str:
    """Why a candidate that could run is not chosen."""
    taken: Placement | None = getattr(chosen, one.stage)
    times = [stage_seconds(row.times, one.stage) for row in found.rows if row.stages.get(one.stage) == taken]
    best = min((time for time in times if time is not None), default=None)
    if seconds is None:
        return f"was not measured, and ranks behind {taken}: it {one.rank}"
    if best is None:
        return f"{taken} was named, or ranks before it"
    if seconds >= best:
        return f"takes {seconds / best:.2f} times as long as {taken}"
    return f"takes {seconds / best:.2f} times as long as {taken}, and no plan with it is faster as a whole by more than noise"


def _plans(found: Measurements, ranked: Sequence[Ranked]) -> Iterator[PlanVerdict]:
    rows: dict[Plan, Row] = {row.plan: row for row in found.rows if row.plan}
    for place, one in enumerate(ranked):
        row = rows.get(one.plan)
        total = found.times(one.plan).total
        yield PlanVerdict(
            str(one.plan),
            tuple(placement.threads for placement in one.plan.stages),
            total,
            row.memory if row else 0,
            place == 0,
            one.why if total is not None or row is None else row.reason or one.why,
        )
