"""Keys and values handed from one engine to another: what the second says is what it says of its own."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from ossicle.compiler.pipeline import build
from ossicle.runtimes import onnxruntime
from ossicle.runtimes.base import HandingEngine
from ossicle.runtimes.handing import KeyValues
from ossicle.runtimes.openvino import OpenVino
from ossicle.runtimes.options import Options
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import EngineError, Float32
from ossicle.targets.recipes import RECIPES
from ossicle.tests import checkpoints

Engines = Mapping[str, HandingEngine]

KINDS = ("fused", "standard", "stateful", "static")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """The same tiny model in every form of decoder that hands over."""
    work = tmp_path_factory.mktemp("handing")
    checkpoint = checkpoints.save_hub(work / "checkpoint", checkpoints.model())
    opened: dict[str, HandingEngine] = {}
    for form, targets in (("fused", ("onnx", "openvino")), ("standard", ("onnx",))):
        recipe = replace(RECIPES["fp32"], attention=form)
        folder = build(checkpoint, work / form, targets=targets, recipe=recipe, verify=False).folder
        opened[form] = _open(onnxruntime.RUNTIME, folder)
    opened["stateful"] = _open(OpenVino(), work / "fused")
    opened["static"] = _open(OpenVino(static=("cpu",)), work / "fused")
    yield opened
    for engine in opened.values():
        engine.close()


def _open(runtime: onnxruntime.OnnxRuntime | OpenVino, folder: Path) -> HandingEngine:
    engine = runtime.open(folder, manifests.read(folder), Options(threads=1))
    assert isinstance(engine, HandingEngine)
    return engine


def prompt(length: int) -> Float32:
    return (np.random.default_rng(length).standard_normal((length, 48)) * 0.5).astype(np.float32)


@pytest.mark.parametrize(("giver", "taker"), list(product(KINDS, KINDS)), ids="-".join)
def test_what_is_handed_over_goes_on_as_if_it_had_begun_there(engines: Engines, giver: str, taker: str) -> None:
    first, second, prompts = engines[giver], engines[taker], [prompt(length) for length in (20, 3, 33)]
    _, given = first.prefill(prompts)
    taken = second.take(first.give(given))
    assert taken.lengths == [20, 3, 33]
    _, own = second.prefill(prompts)
    for tokens in ([5, 6, 7], [1, 2, 3]):
        ids = np.array(tokens, np.int64)
        logits, taken = second.step(taken, ids)
        expected, own = second.step(own, ids)
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    logits, _ = second.extend(second.keep(taken, [2]), prompt(9))
    expected, _ = second.extend(second.keep(own, [2]), prompt(9))
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_is_what_was_taken_and_the_giver_goes_on(engines: Engines, kind: str) -> None:
    engine = engines[kind]
    _, state = engine.prefill([prompt(20), prompt(33)])
    _, state = engine.step(engine.keep(state, [1, 0]), np.array([3, 4], np.int64))
    given = engine.give(state)
    assert [row.tokens for row in given] == [34, 21]
    before = [row.keys.copy() for row in given]
    for row, again in zip(given, engine.give(engine.take(given)), strict=True):
        np.testing.assert_array_equal(row.keys, again.keys)
        np.testing.assert_array_equal(row.values, again.values)
    engine.step(state, np.array([1, 2], np.int64))
    for row, keys in zip(given, before, strict=True):
        np.testing.assert_array_equal(row.keys, keys)


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_model_remembers_is_refused(engines: Engines, kind: str) -> None:
    (row,) = engines[kind].give(engines[kind].prefill([prompt(4)])[1])
    with pytest.raises(EngineError, match=r"takes keys and values \[2, .*engines of one bundle"):
        engines[kind].take([KeyValues(row.keys[:1], row.values[:1])])
    with pytest.raises(EngineError, match="no rows"):
        engines[kind].take([])


def test_a_row_longer_than_the_fixed_columns_is_refused(engines: Engines) -> None:
    (row,) = engines["fused"].give(engines["fused"].prefill([prompt(4)])[1])
    long = KeyValues(np.repeat(row.keys, 1000, axis=2), np.repeat(row.values, 1000, axis=2))
    with pytest.raises(EngineError, match="4000"):
        engines["static"].take([long])
