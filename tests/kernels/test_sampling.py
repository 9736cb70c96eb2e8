"""The filters against transformers' logits processors, and what a draw promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ossicle.kernels.sampling import Chooser, Sampling, filtered, keep_min_p, keep_top_k, keep_top_p, penalize

VOCABULARY = 64


def _logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)


@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.0, 0.7, 5.0]),
    top_k=st.integers(0, 5),
    top_p=st.floats(0.05, 1.0),
    penalty=st.sampled_from([1.0, 1.3]),
    allowed=st.sets(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9),
)
@settings(max_examples=60)
def test_only_what_is_allowed_is_chosen(
    seed: int, temperature: float, top_k: int, top_p: float, penalty: float, allowed: set[int]
) -> None:
    mask = np.zeros(VOCABULARY, bool)
    mask[list(allowed)] = True
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty=penalty, seed=seed)
    chooser, logits = Chooser(sampling, VOCABULARY, prompt=[0, 1, 2]), _logits(seed)
    chosen = [chooser.choose(logits, mask) for _ in range(8)]
    assert set(chosen) <= allowed
    if temperature == 0 and penalty == 1:
        assert chosen[0] == max(allowed, key=lambda token: logits[token])


@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.2, 3.0),
    top_k=st.integers(0, VOCABULARY + 5),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.5),
)
@settings(max_examples=60)
def test_filters_equal_transformers(seed: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    warpers += [TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)]
    logits = _logits(seed)
    reference = warpers(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(logits)[None])[0].numpy()
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    np.testing.assert_allclose(filtered(logits, sampling), reference, rtol=1e-6)


@given(seed=st.integers(0, 10**6), penalty=st.floats(0.5, 2.0), seen=st.lists(st.integers(0, VOCABULARY - 1)))
@settings(max_examples=40)
def test_penalty_equals_transformers(seed: int, penalty: float, seen: list[int]) -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = _logits(seed)
    ids = torch.tensor([seen], dtype=torch.long)
    reference = RepetitionPenaltyLogitsProcessor(penalty)(ids, torch.from_numpy(logits)[None])[0].numpy()
    mask = np.zeros(VOCABULARY, bool)
    mask[seen] = True
    np.testing.assert_allclose(penalize(logits, mask, penalty), reference, rtol=1e-6)


@pytest.mark.parametrize(
    "keep", [lambda x: keep_top_k(x, 1), lambda x: keep_top_p(x, 1e-9), lambda x: keep_min_p(x, 1.0)]
)
def test_the_most_likely_token_is_always_kept(keep: object) -> None:
    logits = _logits(1)
    kept = np.isfinite(keep(logits))  # type: ignore[operator]
    assert kept.sum() == 1
    assert kept[logits.argmax()]


def test_greedy_takes_the_most_likely_token() -> None:
    assert Chooser(Sampling(), VOCABULARY).choose(_logits(2)) == _logits(2).argmax()


def test_what_was_said_is_penalized() -> None:
    logits = np.array([1.0, 0.9, -5.0], np.float32)
    chooser = Chooser(Sampling(repetition_penalty=2.0), 3)
    assert [chooser.choose(logits), chooser.choose(logits)] == [0, 1]
    assert Chooser(Sampling(repetition_penalty=2.0), 3, prompt=[0]).choose(logits) == 1


def test_a_seed_gives_the_same_draws_and_rows_their_own() -> None:
    def draws(seed: int, row: int) -> list[int]:
        chooser = Chooser(Sampling(temperature=2.0, seed=seed), VOCABULARY, row=row)
        return [chooser.choose(_logits(i)) for i in range(20)]

    assert draws(7, 0) == draws(7, 0)
    assert draws(7, 0) != draws(7, 1)
    assert draws(7, 0) != draws(8, 0)


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    chooser = Chooser(Sampling(temperature=1.0), 3)
    counts = np.bincount([chooser.choose(logits) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.6, 0.3, 0.1], atol=0.03)


def test_every_impossible_setting_is_named() -> None:
    with pytest.raises(ValueError, match=r"temperature -1.*top_p 0.*seed -3"):
        Sampling(temperature=-1, top_p=0, seed=-3)
