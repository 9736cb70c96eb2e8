"""LoRA adapters that ONNX Runtime adds as it runs, against PEFT's own merge in torch."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ossicle.compiler import runtime_adapters
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.pipeline import Silent
from ossicle.compiler.quantize import weights_of
from ossicle.compiler.runtime_adapters import RuntimeAdapterSpec
from ossicle.compiler.stored import rounded
from ossicle.compiler.trace import trace
from ossicle.runtimes import onnxruntime
from ossicle.runtimes.adapters import adapted
from ossicle.runtimes.options import Options
from ossicle.runtimes.prefixes import with_prefixes
from ossicle.runtimes.shared import shared
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import Recipe, Traced
from ossicle.targets.manifest import Manifest
from ossicle.targets.onnx import Onnx
from ossicle.targets.recipes import RECIPES
from ossicle.tests.runtimes.tiny_adapters import ADAPTERS, AdaptedBundle
from ossicle.tests.runtimes.tiny_gguf import prompt

CHOICES: list[dict[str, float]] = [
    {"plain": 1.0},
    {"stable": 1.0},
    {},
    {"uneven": 1.0},
    {"plain": 0.8, "uneven": 0.5, "stable": -1.5},
]


def test_choices_in_any_order_are_those_of_merged_models(adapted_bundle: AdaptedBundle) -> None:
    """Without a reload: one session of ONNX Runtime under all views."""
    engine = shared(adapted_bundle.open(onnxruntime.RUNTIME, {"uneven": -0.3}))
    choices: list[dict[str, float] | None] = [*CHOICES, None]
    expected = [adapted_bundle.logits(prompt(40), {"uneven": -0.3} if one is None else one) for one in choices]
    for number in (0, 1, 2, 3, 4, 5, 4, 2, 0, 5, 1):
        ours = adapted(engine, choices[number]).score(prompt(40))
        np.testing.assert_allclose(ours, expected[number], atol=1e-4, rtol=0)
    engine.close()


def test_batches_of_several_callers_interleave(adapted_bundle: AdaptedBundle) -> None:
    owner = shared(with_prefixes(adapted_bundle.open(onnxruntime.RUNTIME, {}), 1, 1 << 40))
    choices = CHOICES[2:]
    callers = [adapted(owner.another(), choice) for choice in choices]
    prompts = [prompt(80), prompt(30)]
    states: list[Any] = [caller.prefill(prompts)[1] for caller in callers]
    for step in range(4):
        for number, caller in enumerate(callers):
            logits, states[number] = caller.step(states[number], np.array([step, number]))
            if step == 3:
                for row, begun in enumerate(prompts):
                    ids = np.arange(4) if row == 0 else np.full(4, number)
                    values = np.concatenate([begun, adapted_bundle.embed(ids)])
                    expected = adapted_bundle.logits(values, choices[number])[-1]
                    np.testing.assert_allclose(logits[row], expected, atol=1e-4, rtol=0)


def test_the_graph_is_the_bundle_without_them_for_whoever_gives_it_none(adapted_bundle: AdaptedBundle) -> None:
    graph = onnx.load(adapted_bundle.folder / "onnx" / "decoder_model_merged.onnx", load_external_data=False).graph
    defaults = {one.name: tuple(one.dims) for one in graph.initializer if ".lora_" in one.name}
    assert len(defaults) == 2 * (2 * 7 + 1)
    assert all(0 in dims for dims in defaults.values())
    assert defaults.keys() <= {one.name for one in graph.input}
    assert graph.output[0].name == "logits"


def test_a_file_is_one_that_onnx_runtime_adds_by_itself(adapted_bundle: AdaptedBundle) -> None:
    """As anybody would without ossicle: `add_active_adapter`, on the graph as it is."""
    import onnxruntime as ort

    folder = adapted_bundle.folder / "onnx"
    session = ort.InferenceSession(folder / "decoder_model_merged.onnx", _quiet(ort))
    adapter, options = ort.LoraAdapter(), ort.RunOptions()
    adapter.Load(str(folder / "adapter-uneven.onnx_adapter"))
    options.add_active_adapter(adapter)
    values = prompt(20)
    feed = {
        "inputs_embeds": values[None],
        "attention_mask": np.ones((1, 20), np.int64),
        "num_logits_to_keep": np.array(0),
    }
    feed |= {
        port.name: np.zeros((1, port.shape[1], 0, port.shape[3]), np.float32)
        for port in session.get_inputs()
        if port.name.startswith("past_key_values.")
    }
    (found,) = session.run(["logits"], feed, options)
    np.testing.assert_allclose(found[0], adapted_bundle.logits(values, {"uneven": 1.0}), atol=1e-4, rtol=0)


def _quiet(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options


RECIPES_WITH_ADAPTERS = (
    (replace(RECIPES["int4"], integer_activations=False), 1e-3),
    (replace(RECIPES["fp16"], attention="standard"), 0.05),
)


@pytest.fixture(scope="module")
def traced(adapted_bundle: AdaptedBundle) -> Traced:
    checkpoint = open_checkpoint(adapted_bundle.checkpoint)
    return trace(checkpoint.family, checkpoint.config, 4096)


@pytest.mark.parametrize(("recipe", "near"), RECIPES_WITH_ADAPTERS, ids=lambda one: getattr(one, "name", ""))
def test_they_are_added_to_integers_and_halves_too(
    adapted_bundle: AdaptedBundle, traced: Traced, tmp_path: Path, recipe: Recipe, near: float
) -> None:
    """Against the weights as the recipe stores them, with the adapter added in float32."""
    original, choice = stored_as(adapted_bundle, recipe), {"plain": 1.0, "uneven": 0.5}
    manifest = lowered(adapted_bundle, traced, recipe, tmp_path)
    engine = onnxruntime.RUNTIME.open_decoder(tmp_path, manifest, Options(threads=1))
    view = adapted(engine, choice)
    _, state = view.prefill([prompt(50), prompt(20)])
    found, _ = view.step(state, np.array([3, 4]))
    for row, (length, token) in enumerate(((50, 3), (20, 4))):
        values = np.concatenate([prompt(length), engine.embed(np.array([token]))])
        np.testing.assert_allclose(found[row], original.logits(values, choice)[-1], atol=near, rtol=0)


def stored_as(bundle: AdaptedBundle, recipe: Recipe) -> AdaptedBundle:
    """The bundle with its original's weights rounded as a recipe stores them."""
    tensors = rounded(open_checkpoint(bundle.checkpoint), recipe).tensors
    model = copy.deepcopy(bundle.model)
    state = {name: torch.from_numpy(one.rows(0, one.shape[0])) for name, one in tensors.items()}
    model.load_state_dict(state, strict=False)
    return replace(bundle, model=model)


def lowered(bundle: AdaptedBundle, traced: Traced, recipe: Recipe, folder: Path) -> Manifest:
    """All but the audio encoder in a recipe, with the bundle's adapters, written under `folder`."""
    checkpoint = open_checkpoint(bundle.checkpoint)
    specs = [RuntimeAdapterSpec(bundle.adapters / name) for name in ADAPTERS]
    kept = runtime_adapters.open_all(specs, checkpoint, ("onnx",))
    target, weights = Onnx(runtime_adapters.changed(kept)), weights_of(checkpoint, recipe)
    stages = (traced.stage(name) for name in ("embed_tokens", "decoder"))
    return replace(
        manifests.read(bundle.folder),
        artifacts=tuple(target.lower(stage, recipe, weights, folder, Silent()) for stage in stages),
        runtime_adapters=runtime_adapters.lower(kept, ("onnx",), recipe, folder),
    )
