"""Measuring: turns, budget, failures, the plans that engines promise; and what is kept of it, whatever happens to the file."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from ossicle.runtimes import measured as cache
from ossicle.runtimes.choose import Choices, by_measurement
from ossicle.runtimes.measure import ROUNDS, Child, default_budget, measure, promising, thread_counts
from ossicle.runtimes.measurements import ANSWER, Measurements, Row, Stages, Times, decode, encode, of_plan
from ossicle.runtimes.options import Options
from ossicle.runtimes.plans import Placement, Plan, asked, one
from ossicle.runtimes.select import Candidate
from ossicle.targets import manifest as manifests
from ossicle.tests.fakes import write_bundle
from ossicle.tests.runtimes.test_candidates import RTX_PC, choices, manifest  # noqa: F401 - a fixture

FAST, SLOW, DEAF = Placement("fast"), Placement("slow"), Placement("deaf")
# Seconds of a window, of its prompt, of a token: each engine is best at something.
SECONDS = {"fast": (4.0, 3.0, 0.01), "slow": (1.0, 1.0, 0.05), "deaf": (None, 2.0, 0.02)}


class ScriptedTrial:
    """A trial whose times are known, and get a little better with every turn."""

    log: list[str] = []  # noqa: RUF012 - of all trials, in order
    handover = 0.0  # seconds more where prefill and steps are on different engines
    refusing = ""
    slow_threads = 1.5  # times as long with threads that are set

    def __init__(self, stages: Stages) -> None:
        self.row = Row(stages)
        self.turns = 0
        self.closed = False

    @property
    def name(self) -> str:
        return "+".join(dict.fromkeys(placement.runtime for placement in self.row.stages.values()))

    def open(self, _: float) -> None:
        reason = "cannot be opened" if self.refusing in {one.runtime for one in self.row.stages.values()} else None
        self.row = replace(self.row, hands=True, load=0.5, reason=reason)

    def run(self, _: float) -> None:
        self.turns += 1
        self.log.append(self.name)
        stages = self.row.stages
        share = (1 + 1 / self.turns) * (self.slow_threads if any(one.threads for one in stages.values()) else 1)
        given = [
            SECONDS[stages[stage].runtime][place] if stage in stages else None
            for place, stage in enumerate(("encoder", "prefill", "decoder"))
        ]
        if given[1] is not None and stages.get("prefill") != stages.get("decoder"):
            given[1] += self.handover
        times = Times(*(None if time is None else time * share for time in given))
        self.row = replace(self.row, times=self.row.times.least(times))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedTrial]:
    monkeypatch.setattr(ScriptedTrial, "log", [])
    return ScriptedTrial


@pytest.fixture
def three(manifest: manifests.Manifest) -> Choices:  # noqa: F811 - the fixture
    """A bundle that three engines could run, of which one has no audio encoder."""
    (like, *_) = choices(RTX_PC, manifest).candidates
    held: tuple[tuple[Any, Placement], ...] = tuple(
        (stage, placement)
        for stage in ("encoder", "prefill", "decoder")
        for placement in (FAST, SLOW, DEAF)
        if (stage, placement) != ("encoder", DEAF)
    )
    found = tuple(Candidate(stage, placement, None, "", like.need) for stage, placement in held)
    return Choices(manifest, asked("auto"), (), RTX_PC, found, may_measure=True)


def totals(found: Measurements) -> dict[str, float]:
    return {str(row.plan): found.times(row.plan).total or 0 for row in found.rows if row.plan}


def test_engines_are_tried_alone_and_what_they_promise_as_a_whole(three: Choices, trials: type[ScriptedTrial]) -> None:
    found = measure(three, trials, budget=60)
    alone, whole = found.rows[:3], found.rows[3:]
    assert [set(row.stages) for row in alone] == [{"encoder", "prefill", "decoder"}] * 2 + [{"prefill", "decoder"}]
    mixes = ["slow", "encoder=slow,decoder=fast", "encoder=slow,prefill=slow,decoder=fast"]
    assert [str(row.plan) for row in whole] == mixes
    best = by_measurement(three, found)
    assert str(best[0].plan) == mixes[2]
    assert found.times(best[0].plan).total == pytest.approx((1 + 1 / ROUNDS) * (1 + 1 + ANSWER * 0.01))


def test_trials_take_turns(three: Choices, trials: type[ScriptedTrial]) -> None:
    measure(three, trials, budget=60)
    first = trials.log[: 3 * ROUNDS]
    assert first[:6] == ["fast", "slow", "deaf", "slow", "deaf", "fast"]
    assert all(first.count(name) == ROUNDS for name in ("fast", "slow", "deaf"))


def test_a_turn_is_for_all_or_for_none(
    three: Choices, trials: type[ScriptedTrial], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trials.run
    monkeypatch.setattr(trials, "run", lambda trial, deadline: (sleep(0.03), run(trial, deadline)))
    measure(three, trials, budget=0.35)
    alone = [name for name in trials.log if "+" not in name]
    first = [alone.count(name) for name in ("fast", "deaf")]
    assert first[0] == first[1] < ROUNDS


def test_larger_models_have_longer(three: Choices) -> None:
    (like, *_) = three.candidates
    weights = like.need.weights
    assert default_budget(three) == pytest.approx(20 + 15 * 2 * weights / 1e9)
    assert default_budget(replace(three, candidates=())) == 20


def test_a_handover_that_costs_more_than_it_brings_is_not_taken(
    three: Choices, trials: type[ScriptedTrial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "handover", 3.0)
    found = measure(three, trials, budget=60)
    assert str(by_measurement(three, found)[0].plan) == "encoder=slow,decoder=fast"
    assert totals(found)["encoder=slow,prefill=slow,decoder=fast"] > totals(found)["encoder=slow,decoder=fast"]


def test_threads_are_taken_where_they_measure_as_a_win(
    three: Choices, trials: type[ScriptedTrial], monkeypatch: pytest.MonkeyPatch
) -> None:
    for share, threads in ((1.5, 0), (0.5, 4)):
        monkeypatch.setattr(trials, "slow_threads", share)
        found = measure(three, trials, threads=(4,), budget=60)
        plan = by_measurement(three, found)[0].plan
        assert {placement.threads for placement in plan.stages} <= {0, threads}
        assert any(placement.threads for placement in plan.stages) == bool(threads)
    assert thread_counts(RTX_PC) == (4,)


def test_a_failure_is_a_reason(three: Choices, trials: type[ScriptedTrial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "refusing", "slow")
    found = measure(three, trials, budget=60)
    assert [row.reason for row in found.rows[:3]] == [None, "cannot be opened", None]
    assert str(by_measurement(three, found)[0].plan) == "encoder=fast,prefill=deaf,decoder=fast"
    assert str(by_measurement(three, found)[-1].plan) == "slow"


def test_where_memory_is_short_trials_stand_alone(three: Choices, trials: type[ScriptedTrial]) -> None:
    tight = replace(three, facts=replace(RTX_PC, memory_available=3_000_000_000))
    measure(tight, trials, budget=60)
    assert trials.log[: 3 * ROUNDS] == ["fast"] * ROUNDS + ["slow"] * ROUNDS + ["deaf"] * ROUNDS


def test_a_row_without_times_promises_nothing(three: Choices) -> None:
    assert promising(three, []) == []
    assert promising(three, [Row(of_plan(one(FAST)), reason="the budget was spent before its turn came")]) == []


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def opened(folder: Path, name: str) -> Child:
    return Child(folder, Options(), of_plan(one(Placement(name))))


def test_a_child_says_why_it_cannot(bundle: Path) -> None:
    child = opened(bundle, "onnxruntime")
    try:
        child.open(monotonic() + 60)
        assert child.row.reason
        assert "needs 'audio_encoder' for target onnx" in child.row.reason
    finally:
        child.close()


def test_a_child_that_takes_too_long_is_ended(bundle: Path) -> None:
    child = opened(bundle, "onnxruntime")
    child._child.ask = lambda _: child._child._process.wait() and None  # type: ignore[method-assign,func-returns-value]
    started = monotonic()
    child.open(monotonic() + 0.2)
    assert child.row.reason == "it did not come to its end within the budget"
    child.open(monotonic() - 1)
    assert child.row.reason == "the budget was spent before its turn came"
    assert monotonic() - started < 60
    child.close()
    assert child._child._process.returncode is not None


def test_a_child_that_dies_says_how(bundle: Path) -> None:
    child = opened(bundle, "onnxruntime")
    child._child.kill()
    child._child._process.wait()
    child.open(monotonic() + 60)
    assert child.row.reason == "its process ended (signal SIGKILL, as systems end what takes more memory than there is)"
    child.close()


MIX = Plan(FAST, SLOW, SLOW)
KEPT = Measurements(
    (Row(of_plan(one(FAST)), Times(0.5, None, 0.25), 1.5, 1000, True), Row(of_plan(MIX), reason="no memory")), 12.5
)


def test_measurements_are_read_as_they_were_written() -> None:
    assert decode(encode(KEPT)) == KEPT


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "kept"))
    cache._say.cache_clear()
    return tmp_path / "kept"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Budgets of the measurements that were made."""
    made: list[float] = []

    def measure(_: Choices, __: Any, ___: Any, budget: float) -> Measurements:
        made.append(budget)
        return KEPT

    monkeypatch.setattr(cache, "measure", measure)
    return made


def test_a_measurement_is_made_once(bundle: Path, kept: Path, counted: list[float], three: Choices) -> None:
    for _ in range(2):
        assert cache.measured(bundle, three, Options()) == KEPT
    assert len(counted) == 1
    assert [path.suffix for path in sorted(kept.glob("measurements/*"))] == [".json", ".lock"]
    cache.measured(bundle, three, Options(), again=True, budget=3)
    assert counted[1:] == [3]


@pytest.mark.usefixtures("kept")
def test_threads_that_are_named_are_the_only_ones_that_are_tried(
    bundle: Path, three: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(cache, "measure", lambda _, __, threads, ___: tried.append(threads) or KEPT)
    monkeypatch.setattr(cache, "thread_counts", lambda _: (1, 2))
    for threads in (0, 2):
        cache.measured(bundle, three, Options(threads=threads))
    assert tried == [(1, 2), ()]


@pytest.mark.usefixtures("kept")
def test_other_facts_or_another_bundle_or_other_options_are_measured_anew(
    bundle: Path, counted: list[float], three: Choices
) -> None:
    assert three.facts
    newer = tuple(replace(one, version="2027.0") for one in three.facts.runtimes)
    less = replace(three.facts, memory_available=1)
    cases: list[tuple[Choices, Options, int]] = [
        (three, Options(), 1),
        (replace(three, facts=replace(three.facts, runtimes=newer)), Options(), 2),
        (replace(three, facts=less), Options(), 2),  # free memory changes by itself
        (three, Options(kv_cache="int8"), 3),
        (replace(three, words=asked("decoder=slow")), Options(), 4),
    ]
    for asking, options, count in cases:
        cache.measured(bundle, asking, options)
        assert len(counted) == count
    (bundle / manifests.NAME).write_text((bundle / manifests.NAME).read_text() + " ")
    cache.measured(bundle, three, Options())
    assert len(counted) == 5


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"version": 1}', '{"version": 99, "rows": [], "seconds": 0}', "\udc80",
     '{"version": 1, "rows": [{"stages": {"encoder": {"engine": 1}}}], "seconds": 0}'],
)  # fmt: skip
def test_a_damaged_file_is_made_again(
    text: str, bundle: Path, counted: list[float], three: Choices, caplog: pytest.LogCaptureFixture
) -> None:
    path = cache.file(bundle, three, Options())
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert cache.measured(bundle, three, Options()) == KEPT
    assert (len(counted), cache.read(path)) == (1, KEPT)
    assert "cannot be read, and are made again" in caplog.text


def test_where_nothing_can_be_kept_rank_decides(
    bundle: Path, kept: Path, counted: list[float], three: Choices, caplog: pytest.LogCaptureFixture
) -> None:
    kept.write_text("a file in the folder's place")
    for _ in range(2):
        assert cache.measured(bundle, three, Options()) is None
    assert counted == []
    (told,) = caplog.records
    assert "by rank, not by measurement: nothing can be kept" in told.getMessage()
    assert "OSSICLE_CACHE" in told.getMessage()


@pytest.mark.usefixtures("counted")
def test_a_file_that_cannot_be_replaced_costs_the_keeping_alone(
    bundle: Path, kept: Path, three: Choices, caplog: pytest.LogCaptureFixture
) -> None:
    cache.file(bundle, three, Options()).mkdir(parents=True)
    assert cache.measured(bundle, three, Options()) == KEPT
    assert "cannot be kept" in caplog.text
    assert list(kept.glob("measurements/*.part")) == []


HOLD = """
import sys, time
from pathlib import Path
from ossicle.runtimes.measured import _turn
with _turn(Path(sys.argv[1]), 0.0) as reason:
    print(reason, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(path: Path, seconds: float) -> "subprocess.Popen[str]":
    """Another process that is measuring, for so many seconds."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "None\n"
    return process


@pytest.mark.usefixtures("kept")
def test_two_processes_do_not_measure_at_once(
    bundle: Path,
    counted: list[float],
    three: Choices,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "_SLACK", 0.0)
    path = cache.file(bundle, three, Options())
    with holder(path, 60) as other:
        started = monotonic()
        assert cache.measured(bundle, three, Options(), budget=0.5) is None
        assert 0.5 <= monotonic() - started < 60
        assert (counted, "another process is still measuring" in caplog.text) == ([], True)
        other.kill()  # a process that dies gives its turn back
    assert cache.measured(bundle, three, Options()) == KEPT


@pytest.mark.usefixtures("kept")
def test_who_waited_takes_what_the_other_has_measured(
    bundle: Path, counted: list[float], three: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cache.file(bundle, three, Options())
    with holder(path, 1):
        waits: list[Callable[[], None]] = [lambda: cache.write(path, KEPT)]
        monkeypatch.setattr(cache, "sleep", lambda seconds: (waits and waits.pop()(), sleep(seconds)))
        assert cache.measured(bundle, three, Options()) == KEPT
    assert (counted, waits) == ([], [])


def test_measuring_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("0", False), ("1", True), (None, True)):
        if value is None:
            monkeypatch.delenv(cache.SWITCH)
        else:
            monkeypatch.setenv(cache.SWITCH, value)
        assert cache.wanted(None) is expected
        assert (cache.wanted(True), cache.wanted(False)) == (True, False)


def test_the_users_own_cache_folder_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(cache.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert cache._cache() == tmp_path / "ossicle"
    assert json.loads(encode(KEPT))["version"] == 1
    assert os.environ[cache.SWITCH] == "0"
