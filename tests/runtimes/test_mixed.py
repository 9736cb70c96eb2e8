"""Engines made of engines: nothing is opened where it does not run, and what comes out is what one engine gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ossicle.runtimes.base import BoundedEngine, Encoder, Engine, HandingEngine, Runtime, Sequences
from ossicle.runtimes.handing import KeyValues
from ossicle.runtimes.mixed import LONG, open_plan
from ossicle.runtimes.options import Options
from ossicle.runtimes.plans import Placement, Plan, one
from ossicle.targets.contract import EngineError, Float32
from ossicle.tests.fakes import HIDDEN, FakeEngine, FakeRuntime, write_bundle


class PartEngine(FakeEngine):
    """A fake engine that says what it was asked, and hands its state over as keys and values."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.asked: list[str] = []

    def encode(self, mel: Float32) -> Float32:
        self.asked.append("encode")
        return super().encode(mel)

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        self.asked.append("prefill")
        return super().prefill(prompts)

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        self.asked.append("extend")
        return super().extend(state, prompt)

    def give(self, state: Sequences) -> list[KeyValues]:
        rows = (
            np.broadcast_to(row, (1, 1, length, HIDDEN)) for length, row in zip(state.lengths, state.cache, strict=True)
        )
        return [KeyValues(row, row) for row in rows]

    def take(self, rows: Sequence[KeyValues]) -> Sequences:
        return Sequences([row.tokens for row in rows], np.stack([row.keys[0, 0, 0] for row in rows]))


class PartRuntime(FakeRuntime):
    """A fake runtime whose stages open apart."""

    def __init__(self, name: str, fault: str = "") -> None:
        super().__init__()
        self.name = name
        self.fault = fault
        self.parts: dict[str, PartEngine] = {}

    def open(self, *_: Any, **__: Any) -> Engine:
        return self._part("whole")

    def open_encoder(self, *_: Any, **__: Any) -> Encoder:
        return self._part("encoder")

    def open_decoder(self, *_: Any, **__: Any) -> Engine:
        return self._part("decoder")

    def _part(self, which: str) -> PartEngine:
        if self.fault:
            raise EngineError(self.fault)
        self.parts[which] = PartEngine(f"{self.name}-cpu")
        return self.parts[which]


class Bounded(PartEngine):
    context = 100


A, B, C = Placement("a"), Placement("b"), Placement("c")
LOG_MEL = np.random.default_rng(0).normal(0, 1, (1, 128, 3000)).astype(np.float32)
PROMPT = np.random.default_rng(1).normal(0, 1, (20, HIDDEN)).astype(np.float32)
MORE = np.random.default_rng(2).normal(0, 1, (LONG, HIDDEN)).astype(np.float32)


@pytest.fixture
def known() -> dict[str, PartRuntime]:
    return {name: PartRuntime(name) for name in "abc"}


def opened(folder: Path, plan: Plan, known: dict[str, PartRuntime]) -> Engine:
    return open_plan(folder, write_bundle(folder), plan, Options(), known.__getitem__)


@pytest.mark.parametrize(
    ("plan", "parts", "name"),
    [
        (one(A), {"a": ["whole"]}, "a-cpu"),
        (Plan(A, B, B), {"a": ["encoder"], "b": ["decoder"]}, "a-cpu+b-cpu"),
        (Plan(A, A, B), {"a": ["whole"], "b": ["decoder"]}, "a-cpu+b-cpu"),
        (Plan(A, B, A), {"a": ["whole"], "b": ["decoder"]}, "a-cpu+b-cpu"),
        (Plan(A, B, C), {"a": ["encoder"], "b": ["decoder"], "c": ["decoder"]}, "a-cpu+b-cpu+c-cpu"),
        (Plan(None, B, B), {"b": ["decoder"]}, "b-cpu"),
    ],
    ids=str,
)
def test_a_plan_opens_what_it_runs_and_answers_as_one_engine(
    tmp_path: Path, known: dict[str, PartRuntime], plan: Plan, parts: dict[str, list[str]], name: str
) -> None:
    engine, alone = opened(tmp_path, plan, known), FakeEngine()
    assert engine.name == name
    assert {one.name: list(one.parts) for one in known.values() if one.parts} == parts
    np.testing.assert_array_equal(engine.encode(LOG_MEL), alone.encode(LOG_MEL))
    ours, state = engine.prefill([PROMPT, PROMPT[:7]])
    expected, whole = alone.prefill([PROMPT, PROMPT[:7]])
    np.testing.assert_array_equal(ours, expected)
    for advance in (lambda e, s: e.step(s, np.array([5, 6])), lambda e, s: e.extend(e.keep(s, [1]), MORE)):
        (ours, state), (expected, whole) = advance(engine, state), advance(alone, whole)
        np.testing.assert_array_equal(ours, expected)
    assert state.lengths == whole.lengths == [8 + LONG]
    np.testing.assert_array_equal(engine.score(PROMPT, 2), alone.score(PROMPT, 2))
    engine.close()
    assert all(part.closed for runtime in known.values() for part in runtime.parts.values())


def test_long_extensions_are_the_readers_and_short_ones_the_decoders(
    tmp_path: Path, known: dict[str, PartRuntime]
) -> None:
    engine = opened(tmp_path, Plan(C, A, B), known)
    _, state = engine.prefill([PROMPT])
    _, state = engine.extend(state, MORE)
    engine.extend(state, MORE[:3])
    assert known["a"].parts["decoder"].asked == ["prefill", "extend"]
    assert known["b"].parts["decoder"].asked == ["extend"]


def test_a_mix_hands_states_over_where_its_decoder_does(tmp_path: Path, known: dict[str, PartRuntime]) -> None:
    for plan in (Plan(A, B, B), Plan(A, B, C)):
        engine = opened(tmp_path, plan, known)
        assert isinstance(engine, HandingEngine)
        _, state = engine.prefill([PROMPT])
        again = engine.take(engine.give(state))
        np.testing.assert_array_equal(engine.step(state, np.array([4]))[0], engine.step(again, np.array([4]))[0])
    known["b"]._part = lambda _: FakeEngine()  # type: ignore[method-assign]
    assert not isinstance(opened(tmp_path, Plan(A, B, B), known), HandingEngine)


def test_what_was_opened_is_closed_where_another_part_fails(tmp_path: Path, known: dict[str, PartRuntime]) -> None:
    known["b"].fault = "b refuses"
    with pytest.raises(EngineError, match="b refuses"):
        opened(tmp_path, Plan(A, B, B), known)
    assert known["a"].parts["encoder"].closed


def test_the_tightest_context_bounds_the_whole(tmp_path: Path, known: dict[str, PartRuntime]) -> None:
    known["b"]._part = lambda _: Bounded("b-cpu")  # type: ignore[method-assign]
    engine = opened(tmp_path, Plan(A, B, C), known)
    assert isinstance(engine, BoundedEngine)
    assert engine.context == 100
    assert not isinstance(opened(tmp_path, Plan(A, C, C), known), BoundedEngine)


def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path, known: dict[str, PartRuntime]) -> None:
    manifest, whole = write_bundle(tmp_path), FakeRuntime()

    def find(name: str) -> Runtime:
        return whole if name == "fake" else known[name]

    for plan, fault in (
        (
            Plan(Placement("fake"), A, A),
            "'fake' cannot be the audio encoder beside another: it opens whole bundles alone",
        ),
        (Plan(A, Placement("fake"), Placement("fake")), "'fake' cannot be the decoder beside another's"),
    ):
        with pytest.raises(EngineError, match=fault):
            open_plan(tmp_path, manifest, plan, Options(), find)
    known["a"]._part = lambda _: FakeEngine()  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="does not hand keys and values over"):
        open_plan(tmp_path, manifest, Plan(B, A, B), Options(), find)
