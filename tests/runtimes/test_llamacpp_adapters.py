"""LoRA adapters that llama.cpp adds as it runs, against PEFT's own merge in torch; and what is refused."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ossicle.cli.main import app
from ossicle.compiler.plan import described, plan
from ossicle.compiler.runtime_adapters import RuntimeAdapterSpec, numbers, open_all, parse_runtime_adapter
from ossicle.runtimes import llamacpp
from ossicle.runtimes.adapters import adapted
from ossicle.runtimes.llamacpp_worker import ROOM
from ossicle.runtimes.needs import need
from ossicle.runtimes.options import Options, check_options
from ossicle.runtimes.prefixes import with_prefixes
from ossicle.runtimes.shared import shared
from ossicle.targets import manifest
from ossicle.targets.contract import AdapterError, BundleError, EngineError
from ossicle.targets.recipes import RECIPES
from ossicle.tests import checkpoints
from ossicle.tests.runtimes.tiny_adapters import ADAPTERS, EVERY, AdaptedBundle
from ossicle.tests.runtimes.tiny_gguf import CONFIG, prompt
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

# PEFT saves the base of a head or an embedding beside an update of it, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")


@pytest.mark.parametrize(
    "scales",
    [{"plain": 1.0}, {"stable": 1.0}, {"uneven": 1.0}, {"uneven": -0.3}, {"plain": 0.8, "uneven": 0.5, "stable": -1.5}],
    ids=str,
)
def test_adapters_add_what_peft_merges(adapted_bundle: AdaptedBundle, scales: dict[str, float]) -> None:
    engine = adapted_bundle.open(llamacpp.RUNTIME, scales)
    ours, expected = engine.score(prompt(60)), adapted_bundle.logits(prompt(60), scales)
    engine.close()
    assert np.abs(expected - adapted_bundle.logits(prompt(60), {})).max() > 1
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", ["onnx", "gguf"])
def test_the_memory_of_adapters_is_foretold_and_counted(adapted_bundle: AdaptedBundle, target: str) -> None:
    held, model = manifest.read(adapted_bundle.folder), described(adapted_bundle.checkpoint)
    specs = [RuntimeAdapterSpec(adapted_bundle.adapters / name) for name in ADAPTERS]
    count = numbers(specs, model.family, model.config, tied=model.tied)
    (planned,) = plan(model, [target], [RECIPES[held.recipe["name"]]], count)
    files = [one.file.size for one in held.runtime_adapters if one.target == target]
    names = len(files) * len(load_file(adapted_bundle.adapters / "plain" / "adapter_model.safetensors"))
    assert 0 < sum(files) - planned.adapters < 200 * names  # a name, a shape and a gap for each
    assert planned.total - replace(planned, adapters=0).total == planned.adapters
    asked = [
        "--target",
        target,
        "--quant",
        held.recipe["name"],
        *(f"--runtime-adapter={one.location}" for one in specs),
    ]
    told = CliRunner().invoke(app, ["plan", str(adapted_bundle.checkpoint), "--json", *asked])
    assert json.loads(told.stdout)[0]["adapters"] == planned.adapters
    for stage, added in (("encoder", 0), ("prefill", sum(files)), ("decoder", sum(files))):
        taken = [need(one, target, stage, "cpu", 4096).total for one in (held, replace(held, runtime_adapters=()))]
        assert taken[0] - taken[1] == added


def test_a_scale_of_nothing_is_the_base(adapted_bundle: AdaptedBundle) -> None:
    answers = []
    for scales in ({}, {"plain": 0.0, "stable": 0.0}):
        engine = adapted_bundle.open(llamacpp.RUNTIME, scales)
        answers.append(engine.score(prompt(60)))
        engine.close()
    assert np.array_equal(*answers)


def test_adapters_outlive_a_cache_that_grows(adapted_bundle: AdaptedBundle) -> None:
    engine = adapted_bundle.open(llamacpp.RUNTIME, {"plain": 1.0})
    _, state = engine.prefill([prompt(ROOM - 5)])
    ours, _ = engine.extend(state, prompt(40))
    engine.close()
    values = np.concatenate([prompt(ROOM - 5), prompt(40)])
    np.testing.assert_allclose(ours[0], adapted_bundle.logits(values, {"plain": 1.0})[-1], atol=1e-4, rtol=0)


def test_choices_in_any_order_are_those_of_merged_models(adapted_bundle: AdaptedBundle) -> None:
    """Without a reload: one process, whose number stays."""
    engine = shared(adapted_bundle.open(llamacpp.RUNTIME, {"plain": 1.0}))
    process = engine.engine._process.pid  # type: ignore[attr-defined]
    choices: list[dict[str, float] | None] = [{"stable": 1.0}, {}, {"uneven": 0.5, "plain": -1}, None, {"stable": 0.2}]
    expected = [adapted_bundle.logits(prompt(40), {"plain": 1.0} if one is None else one) for one in choices]
    for number in (0, 1, 2, 3, 4, 3, 1, 0, 2, 4):
        ours = adapted(engine, choices[number]).score(prompt(40))
        np.testing.assert_allclose(ours, expected[number], atol=1e-4, rtol=0)
    assert engine.engine._process.pid == process  # type: ignore[attr-defined]
    engine.close()


def test_sequences_of_several_callers_interleave_and_outgrow_the_cache(adapted_bundle: AdaptedBundle) -> None:
    """Prompts with a common beginning, read by one engine that keeps beginnings, then a step of each in turn."""
    owner = shared(with_prefixes(adapted_bundle.open(llamacpp.RUNTIME, {}), 1, 1 << 40))
    choices: list[dict[str, float]] = [{"plain": 1.0}, {"stable": 1.0}, {"uneven": 1.0}, {}]
    callers = [adapted(owner.another(), choice) for choice in choices]
    begun = prompt(ROOM // 4 + 40)
    logits, states = map(list, zip(*[caller.prefill([begun]) for caller in callers], strict=True))
    told = [begun] * len(callers)
    for step in range(3):
        for number, caller in enumerate(callers):
            token = np.array([7 * step + number])
            logits[number], states[number] = caller.step(states[number], token)
            told[number] = np.concatenate([told[number], adapted_bundle.embed(token)])
    logits.append(callers[1].prefill([begun])[0])
    for choice, values, found in zip([*choices, choices[1]], [*told, begun], logits, strict=True):
        np.testing.assert_allclose(found[0], adapted_bundle.logits(values, choice)[-1], atol=3e-4, rtol=0)
    owner.engine.close()


def test_the_file_holds_what_peft_saved(adapted_bundle: AdaptedBundle) -> None:
    """As gguf-py reads it: one alpha, and the rows of q in the order that llama.cpp rotates."""
    reader = gguf.GGUFReader(adapted_bundle.folder / "gguf" / "adapter-plain.gguf")
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF")}
    assert said["general.type"] == "adapter"
    assert (said["adapter.type"], said["adapter.lora.alpha"]) == ("lora", 6.0)
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    stored = load_file(adapted_bundle.adapters / "plain" / "adapter_model.safetensors")
    prefix = "base_model.model.model.language_model.layers.1."
    for ours, theirs in (("ffn_up", "mlp.up_proj"), ("attn_v", "self_attn.v_proj")):
        for suffix in ("a", "b"):
            expected = stored[f"{prefix}{theirs}.lora_{suffix.upper()}.weight"].numpy()
            assert np.array_equal(tensors[f"blk.1.{ours}.weight.lora_{suffix}"], expected)
    b = stored[prefix + "self_attn.q_proj.lora_B.weight"].numpy()
    assert np.array_equal(tensors["blk.1.attn_q.weight.lora_b"], b.reshape(4, 2, 16, 4).swapaxes(1, 2).reshape(b.shape))
    assert len(tensors) == 2 * (2 * 7 + 1)


def test_the_manifest_names_them_with_their_sources(adapted_bundle: AdaptedBundle) -> None:
    held = manifest.read(adapted_bundle.folder)
    assert [(one.name, one.target, one.file.path) for one in held.runtime_adapters] == [
        *((name, "onnx", f"onnx/adapter-{name}.onnx_adapter") for name in ADAPTERS),
        *((name, "gguf", f"gguf/adapter-{name}.gguf") for name in ADAPTERS),
    ]
    assert held.adapters == ()
    for one in held.runtime_adapters:
        files = [
            manifest.file_entry(adapted_bundle.adapters / one.name, adapted_bundle.adapters / one.name / f.path)
            for f in one.source
        ]
        assert tuple(files) == one.source
    assert not [file for file in held.files if "adapter" in file.path]


def test_a_damaged_adapter_is_found(adapted_bundle: AdaptedBundle, tmp_path: Path) -> None:
    held = manifest.read(adapted_bundle.folder)
    (tmp_path / "gguf").mkdir()
    with pytest.raises(BundleError, match=r"gguf/adapter-plain\.gguf is missing"):
        manifest.check_files(tmp_path, held)


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        (
            {"other": 1.0},
            r"no adapter 'other' in this bundle \(it has: plain, stable, uneven; .*--runtime-adapter PATH",
        ),
        ({"plain": float("nan")}, "no scale nan for adapter 'plain'"),
    ],
)
def test_what_the_bundle_lacks_is_refused(adapted_bundle: AdaptedBundle, scales: dict[str, float], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        adapted_bundle.open(llamacpp.RUNTIME, scales)


def test_an_engine_without_adapters_says_so() -> None:
    options = Options(adapters={"plain": 1.0}, kv_cache="int8", flash_attention=True)
    with pytest.raises(EngineError) as caught:
        check_options("openvino", options)
    for said in (
        "no adapters at run time (these have: onnxruntime, llamacpp; or merge them: ossicle build CHECKPOINT --adapter PATH)",
        "no kv_cache 'int8' (it has: its own alone)",
        "no choice of flash_attention",
    ):
        assert said in str(caught.value)


def test_command_line_form(tmp_path: Path) -> None:
    assert parse_runtime_adapter("some/adapter") == RuntimeAdapterSpec("some/adapter")
    assert parse_runtime_adapter("legal=some/adapter") == RuntimeAdapterSpec("some/adapter", "legal")
    (tmp_path / "a=b").mkdir()
    assert parse_runtime_adapter(str(tmp_path / "a=b")) == RuntimeAdapterSpec(str(tmp_path / "a=b"))


# what is refused when it is adapted_bundle


def refusal(checkpoint: Path, *specs: RuntimeAdapterSpec, targets: tuple[str, ...] = ("gguf",)) -> str:
    from ossicle.compiler.checkpoint import open_checkpoint

    with pytest.raises(AdapterError) as caught:
        open_all(specs, open_checkpoint(checkpoint), targets)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ["fc1", "v_proj"]}, "it changes the audio encoder in 4 places"),
        ({"target_modules": ["linear_1"]}, "it changes the projector in 1 places"),
        ({"target_modules": ["embed_tokens"]}, "it changes the embedding"),
        ({"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}, "it replaces 'lm_head.weight' whole"),
        ({"target_modules": ["o_proj"], "use_dora": True}, "use_dora is True"),
        ({"target_modules": EVERY, "bias": "lora_only"}, "bias is 'lora_only'"),
    ],
    ids=str,
)
def test_kinds_that_no_engine_adds(
    adapted_bundle: AdaptedBundle, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    checkpoints.save_adapter(tmp_path, copy.deepcopy(adapted_bundle.model), **options)
    message = refusal(adapted_bundle.checkpoint, RuntimeAdapterSpec(tmp_path, "it"))
    assert said in message
    assert "--adapter PATH" in message or "merge_and_unload" in message


def test_a_head_that_is_the_embedding_is_not_adapted(adapted_bundle: AdaptedBundle, tmp_path: Path) -> None:
    tied = checkpoints.save_memory(tmp_path / "tied", checkpoints.model(CONFIG, tied=True))
    message = refusal(tied, RuntimeAdapterSpec(adapted_bundle.adapters / "plain"))
    assert "it changes a head that is the embedding" in message


def test_an_adapter_of_nothing_but_a_replacement_is_refused(adapted_bundle: AdaptedBundle, tmp_path: Path) -> None:
    shutil.copytree(adapted_bundle.adapters / "plain", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "lora_" not in name}, path)
    assert "it changes no matrix" in refusal(adapted_bundle.checkpoint, RuntimeAdapterSpec(tmp_path, "it"))


def test_names_and_targets_refused(adapted_bundle: AdaptedBundle) -> None:
    plain = adapted_bundle.adapters / "plain"
    assert "'a/b' is no name for it" in refusal(adapted_bundle.checkpoint, RuntimeAdapterSpec(plain, "a/b"))
    twice = refusal(adapted_bundle.checkpoint, RuntimeAdapterSpec(plain), RuntimeAdapterSpec(plain, "plain"))
    assert "several adapters are called plain. Name them: --runtime-adapter NAME=PATH" in twice
    folded = refusal(adapted_bundle.checkpoint, RuntimeAdapterSpec(plain), RuntimeAdapterSpec(plain, "Plain"))
    assert "several adapters are called Plain, plain. Name them" in folded  # one file on Windows and macOS
    message = refusal(adapted_bundle.checkpoint, RuntimeAdapterSpec(plain), targets=("coreml", "openvino"))
    assert "no target of coreml, openvino keeps adapters for run time (possible: onnx, gguf)" in message
