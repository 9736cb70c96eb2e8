"""What every artifact has to do on every runtime, against torch."""

import numpy as np
import pytest
import torch
from ossicle.compiler import plan
from ossicle.compiler.families import family
from ossicle.compiler.figures import divergence
from ossicle.runtimes.prefixes import with_prefixes
from ossicle.targets.contract import WeightFormat
from ossicle.targets.recipes import RECIPES
from ossicle.tests.conformance.conftest import Case

GENERATOR = np.random.default_rng(3)


def windows(case: Case, count: int) -> np.ndarray:
    audio = case.manifest.audio
    return GENERATOR.standard_normal((count, audio.mel_bins, audio.window_frames)).astype(np.float32)


def prompt(case: Case, length: int) -> np.ndarray:
    return (GENERATOR.standard_normal((length, case.manifest.text.hidden)) * 0.5).astype(np.float32)


def tokens(case: Case, *shape: int) -> np.ndarray:
    return GENERATOR.integers(0, case.manifest.text.vocabulary, shape)


@torch.no_grad()
def logits(model, prompts: list[np.ndarray]) -> list[np.ndarray]:
    return [model(inputs_embeds=torch.from_numpy(one)[None]).logits[0].numpy() for one in prompts]


@torch.no_grad()
def embed(model, ids: np.ndarray) -> np.ndarray:
    return model.get_input_embeddings()(torch.from_numpy(ids)).numpy()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_audio_embeddings(case: Case, count: int) -> None:
    mel = windows(case, count)
    with torch.no_grad():
        features = case.stored.model.get_audio_features(torch.from_numpy(mel)).pooler_output
    expected = features.reshape(count, case.manifest.audio.tokens_per_window, -1).numpy()
    ours = case.engine.encode(mel)
    assert ours.shape == expected.shape
    assert np.linalg.norm(ours - expected) <= (5e-3 if case.compute == "float16" else 1e-5) * np.linalg.norm(expected)


def test_token_embeddings(case: Case) -> None:
    ids = np.arange(case.manifest.text.vocabulary)
    assert np.array_equal(case.engine.embed(ids), embed(case.stored, ids))


def test_scores_at_every_position(case: Case) -> None:
    text = prompt(case, 70)
    assert np.abs(case.engine.score(text) - logits(case.stored, [text])[0]).max() <= case.tolerance


def test_prompts_of_unequal_length_step_together(case: Case) -> None:
    lengths = (1, 37, 400)
    prompts = [prompt(case, length) for length in lengths]
    ours, state = case.engine.prefill(prompts)
    steps = [ours]
    for _ in range(4):
        chosen = tokens(case, len(prompts))
        prompts = [np.concatenate([one, embed(case.stored, chosen[[row]])]) for row, one in enumerate(prompts)]
        ours, state = case.engine.step(state, chosen)
        steps.append(ours)
    assert list(state.lengths) == [5, 41, 404]
    for row, (length, whole) in enumerate(zip(lengths, logits(case.stored, prompts), strict=True)):
        expected = whole[length - 1 :]
        assert np.abs(np.stack([ours[row] for ours in steps]) - expected).max() <= case.tolerance


def test_a_batch_goes_on_with_some_of_its_rows(case: Case) -> None:
    prompts = [prompt(case, length) for length in (50, 9, 23)]
    _, state = case.engine.prefill(prompts)
    chosen = tokens(case, 2)
    ours, _ = case.engine.step(case.engine.keep(state, [0, 2]), chosen)
    for row, one in enumerate((prompts[0], prompts[2])):
        longer = np.concatenate([one, embed(case.stored, chosen[[row]])])
        assert np.abs(ours[row] - logits(case.stored, [longer])[0][-1]).max() <= case.tolerance


def test_a_conversation_goes_on_where_it_was(case: Case) -> None:
    first, second = prompt(case, 90), prompt(case, 31)
    _, state = case.engine.prefill([first])
    ours, state = case.engine.extend(state, second)
    expected = logits(case.stored, [np.concatenate([first, second])])[0][-1]
    assert np.abs(ours[0] - expected).max() <= case.tolerance
    assert list(state.lengths) == [121]


def test_a_prompt_goes_on_from_where_others_parted_from_it(case: Case) -> None:
    """The model is that of the numbers stored whether a prompt is read whole or behind what others have left."""
    prompts = [prompt(case, 90)]
    prompts += [np.concatenate([prompts[0], prompt(case, 20)]), np.concatenate([prompts[0][:70], prompt(case, 9)])]
    engine = with_prefixes(case.engine, 1)
    for one in [*prompts, *prompts]:
        read, state = engine.prefill([one])
        chosen = tokens(case, 1)
        stepped, _ = engine.step(state, chosen)
        expected = logits(case.stored, [np.concatenate([one, embed(case.stored, chosen)])])[0][-2:]
        assert np.abs(np.concatenate([read, stepped]) - expected).max() <= case.tolerance


def test_stored_weights_stand_for_the_original(case: Case) -> None:
    """What is stored is the original to the precision that the recipe names, in every tensor."""
    bounds = {32: 0.0, 16: 6e-4, 8: 8e-3, 6: 0.02, 5: 0.05, 4: 0.13, 3: 0.25, 2: 0.4}
    recipe, model = RECIPES[case.recipe], family(case.manifest.family)
    for (name, stored), original in zip(case.stored.named_parameters(), case.original.parameters(), strict=True):
        part = {"projector": "encoder"}.get(model.part(name), model.part(name))
        matrix = model.linear(name) or part == "embedding"
        form = getattr(recipe, part) if matrix else WeightFormat(int(case.compute.removeprefix("float")))
        bound = {"bfloat16": 2.5e-3, "float8_e4m3fn": 0.03}.get(form.kind, bounds[form.bits])
        assert (stored - original).norm() <= bound * original.norm(), name


def test_weights_are_as_large_as_a_plan_says(case: Case) -> None:
    """But for what lies between them: a page before each large one, and tables that a graph holds."""
    model = plan.described(case.folder.parent / "checkpoint")
    planned = plan.size(model, case.target, RECIPES[case.recipe], context=RECIPES[case.recipe].context).stored
    for artifact in case.manifest.artifacts:
        if artifact.target == case.target:
            held, names = planned[f"{case.target} {artifact.stage}"], model.stages[artifact.stage]
            pages = sum(8192 if np.prod(model.tensors[name].shape) >= 1024 else 400 for name in names)
            assert 0.99 * held <= artifact.memory.weights <= 1.01 * held + pages


def test_logits_stay_near_the_original(case: Case) -> None:
    """The whole of a recipe's rounding, as a divergence: a slip in one tensor would be far outside."""
    text = prompt(case, 200)
    divergences = divergence(logits(case.original, [text])[0], case.engine.score(text))
    limit = {"fp32": 1e-8, "fp16": 1e-4, "int8": 0.02}.get(case.recipe, 1.0)
    assert float(np.mean(divergences)) <= limit
