"""LoRA adapters that llama.cpp adds as it runs, against PEFT's own merge in torch; and what is refused."""

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from ossicle.compiler.runtime_adapters import RuntimeAdapterSpec, open_all, parse_runtime_adapter
from ossicle.runtimes import llamacpp, onnxruntime
from ossicle.runtimes.adapters import adapted
from ossicle.runtimes.base import Options
from ossicle.runtimes.llamacpp_worker import ROOM
from ossicle.runtimes.prefixes import with_prefixes
from ossicle.runtimes.shared import shared
from ossicle.targets import manifest
from ossicle.targets.contract import AdapterError, BundleError, EngineError, Float32
from ossicle.tests import checkpoints
from ossicle.tests.runtimes.tiny_gguf import CONFIG, logits, prompt, write_bundle
from safetensors.torch import load_file, save_file

# PEFT saves the base of a head or an embedding beside an update of it, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")

DECODER = r"model\.language_model\..*\.({})|lm_head"
EVERY = DECODER.format("[qkvo]_proj|gate_proj|up_proj|down_proj")
ADAPTERS: Mapping[str, dict[str, Any]] = {
    "plain": {"target_modules": EVERY, "r": 4, "lora_alpha": 6},
    "stable": {"target_modules": EVERY, "r": 4, "lora_alpha": 3, "use_rslora": True, "seed": 2},
    "uneven": {
        "target_modules": EVERY, "r": 4, "lora_alpha": 3, "seed": 3,
        "rank_pattern": {"q_proj": 2, "down_proj": 8}, "alpha_pattern": {"q_proj": 5, "lm_head": 1},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A bundle that keeps every adapter, the model it was built from, and what each adapter adds to that in full."""

    folder: Path
    checkpoint: Path
    adapters: Path
    model: Any
    deltas: Mapping[str, Mapping[str, torch.Tensor]]

    def logits(self, values: Float32, scales: Mapping[str, float]) -> Float32:
        model, state = copy.deepcopy(self.model), self.model.state_dict()
        for name, scale in scales.items():
            state = {key: value + scale * self.deltas[name][key] for key, value in state.items()}
        model.load_state_dict(state)
        return logits(model, values)

    def embed(self, ids: Any) -> Float32:
        found: Float32 = self.model.get_input_embeddings().weight.detach().numpy()[ids]
        return found

    def open(self, scales: Mapping[str, float]) -> Any:
        return llamacpp.RUNTIME.open(self.folder, manifest.read(self.folder), Options(threads=1, adapters=scales))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    work = tmp_path_factory.mktemp("adapters")
    model = checkpoints.model(CONFIG)
    plain, deltas = model.state_dict(), {}
    for name, options in ADAPTERS.items():
        wrapped = checkpoints.save_adapter(work / name, copy.deepcopy(model), **options)
        merged = wrapped.merge_and_unload().state_dict()
        deltas[name] = {key: merged[key] - plain[key] for key in plain}
    specs = [RuntimeAdapterSpec(work / name) for name in ADAPTERS]
    folder = write_bundle(work, model, targets=("onnx", "gguf"), runtime_adapters=specs)
    return Built(folder, work / "checkpoint", work, model, deltas)


@pytest.mark.parametrize(
    "scales",
    [{"plain": 1.0}, {"stable": 1.0}, {"uneven": 1.0}, {"uneven": -0.3}, {"plain": 0.8, "uneven": 0.5, "stable": -1.5}],
    ids=str,
)
def test_adapters_add_what_peft_merges(built: Built, scales: dict[str, float]) -> None:
    engine = built.open(scales)
    ours, expected = engine.score(prompt(60)), built.logits(prompt(60), scales)
    engine.close()
    assert np.abs(expected - built.logits(prompt(60), {})).max() > 1
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_a_scale_of_nothing_is_the_base(built: Built) -> None:
    answers = []
    for scales in ({}, {"plain": 0.0, "stable": 0.0}):
        engine = built.open(scales)
        answers.append(engine.score(prompt(60)))
        engine.close()
    assert np.array_equal(*answers)


def test_adapters_outlive_a_cache_that_grows(built: Built) -> None:
    engine = built.open({"plain": 1.0})
    _, state = engine.prefill([prompt(ROOM - 5)])
    ours, _ = engine.extend(state, prompt(40))
    engine.close()
    values = np.concatenate([prompt(ROOM - 5), prompt(40)])
    np.testing.assert_allclose(ours[0], built.logits(values, {"plain": 1.0})[-1], atol=1e-4, rtol=0)


def test_choices_in_any_order_are_those_of_merged_models(built: Built) -> None:
    """Without a reload: one process, whose number stays."""
    engine = shared(built.open({"plain": 1.0}))
    process = engine.engine._process.pid  # type: ignore[attr-defined]
    choices: list[dict[str, float] | None] = [{"stable": 1.0}, {}, {"uneven": 0.5, "plain": -1}, None, {"stable": 0.2}]
    for choice in [*choices, *reversed(choices)]:
        expected = built.logits(prompt(40), {"plain": 1.0} if choice is None else choice)
        np.testing.assert_allclose(adapted(engine, choice).score(prompt(40)), expected, atol=1e-4, rtol=0)
    assert engine.engine._process.pid == process  # type: ignore[attr-defined]
    engine.close()


def test_sequences_of_several_callers_interleave_and_outgrow_the_cache(built: Built) -> None:
    """Prompts with a common beginning, read by one engine that keeps beginnings, then a step of each in turn."""
    owner = shared(with_prefixes(built.open({}), 1, 1 << 40))
    choices: list[dict[str, float]] = [{"plain": 1.0}, {"stable": 1.0}, {"uneven": 1.0}, {}]
    callers = [adapted(owner.another(), choice) for choice in choices]
    begun = prompt(ROOM // 4 + 40)
    logits, states = map(list, zip(*[caller.prefill([begun]) for caller in callers], strict=True))
    told = [begun] * len(callers)
    for step in range(3):
        for number, caller in enumerate(callers):
            token = np.array([7 * step + number])
            logits[number], states[number] = caller.step(states[number], token)
            told[number] = np.concatenate([told[number], built.embed(token)])
    logits.append(callers[1].prefill([begun])[0])
    for choice, values, found in zip([*choices, choices[1]], [*told, begun], logits, strict=True):
        np.testing.assert_allclose(found[0], built.logits(values, choice)[-1], atol=3e-4, rtol=0)
    owner.engine.close()


def test_the_file_holds_what_peft_saved(built: Built) -> None:
    """As gguf-py reads it: one alpha, and the rows of q in the order that llama.cpp rotates."""
    reader = gguf.GGUFReader(built.folder / "gguf" / "adapter-plain.gguf")
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF")}
    assert said["general.type"] == "adapter"
    assert (said["adapter.type"], said["adapter.lora.alpha"]) == ("lora", 6.0)
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    stored = load_file(built.adapters / "plain" / "adapter_model.safetensors")
    prefix = "base_model.model.model.language_model.layers.1."
    for ours, theirs in (("ffn_up", "mlp.up_proj"), ("attn_v", "self_attn.v_proj")):
        for suffix in ("a", "b"):
            expected = stored[f"{prefix}{theirs}.lora_{suffix.upper()}.weight"].numpy()
            assert np.array_equal(tensors[f"blk.1.{ours}.weight.lora_{suffix}"], expected)
    b = stored[prefix + "self_attn.q_proj.lora_B.weight"].numpy()
    assert np.array_equal(tensors["blk.1.attn_q.weight.lora_b"], b.reshape(4, 2, 16, 4).swapaxes(1, 2).reshape(b.shape))
    assert len(tensors) == 2 * (2 * 7 + 1)


def test_the_manifest_names_them_with_their_sources(built: Built) -> None:
    held = manifest.read(built.folder)
    assert [(one.name, one.target, one.file.path) for one in held.runtime_adapters] == [
        (name, "gguf", f"gguf/adapter-{name}.gguf") for name in ADAPTERS
    ]
    assert held.adapters == ()
    for one in held.runtime_adapters:
        files = [manifest.file_entry(built.adapters / one.name, built.adapters / one.name / f.path) for f in one.source]
        assert tuple(files) == one.source
    assert not [file for file in held.files if "adapter" in file.path]


def test_a_damaged_adapter_is_found(built: Built, tmp_path: Path) -> None:
    held = manifest.read(built.folder)
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
def test_what_the_bundle_lacks_is_refused(built: Built, scales: dict[str, float], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        built.open(scales)


def test_an_engine_without_adapters_says_so(built: Built) -> None:
    options = Options(adapters={"plain": 1.0}, kv_cache="int8", flash_attention=True)
    with pytest.raises(EngineError) as caught:
        onnxruntime.RUNTIME.open(built.folder, manifest.read(built.folder), options)
    for said in (
        "no adapters at run time (merge them instead: ossicle build CHECKPOINT --adapter PATH)",
        "no kv_cache 'int8' (it has: its own alone)",
        "no choice of flash_attention",
    ):
        assert said in str(caught.value)


def test_command_line_form(tmp_path: Path) -> None:
    assert parse_runtime_adapter("some/adapter") == RuntimeAdapterSpec("some/adapter")
    assert parse_runtime_adapter("legal=some/adapter") == RuntimeAdapterSpec("some/adapter", "legal")
    (tmp_path / "a=b").mkdir()
    assert parse_runtime_adapter(str(tmp_path / "a=b")) == RuntimeAdapterSpec(str(tmp_path / "a=b"))


# what is refused when it is built


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
def test_kinds_that_no_engine_adds(built: Built, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    checkpoints.save_adapter(tmp_path, copy.deepcopy(built.model), **options)
    message = refusal(built.checkpoint, RuntimeAdapterSpec(tmp_path, "it"))
    assert said in message
    assert "--adapter PATH" in message or "merge_and_unload" in message


def test_a_head_that_is_the_embedding_is_not_adapted(built: Built, tmp_path: Path) -> None:
    tied = checkpoints.save_memory(tmp_path / "tied", checkpoints.model(CONFIG, tied=True))
    message = refusal(tied, RuntimeAdapterSpec(built.adapters / "plain"))
    assert "it changes a head that is the embedding" in message


def test_an_adapter_of_nothing_but_a_replacement_is_refused(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.adapters / "plain", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "lora_" not in name}, path)
    assert "it changes no matrix" in refusal(built.checkpoint, RuntimeAdapterSpec(tmp_path, "it"))


def test_names_and_targets_refused(built: Built) -> None:
    plain = built.adapters / "plain"
    assert "'a/b' is no name for it" in refusal(built.checkpoint, RuntimeAdapterSpec(plain, "a/b"))
    twice = refusal(built.checkpoint, RuntimeAdapterSpec(plain), RuntimeAdapterSpec(plain, "plain"))
    assert "several adapters are called plain. Name them: --runtime-adapter NAME=PATH" in twice
    message = refusal(built.checkpoint, RuntimeAdapterSpec(plain), targets=("onnx", "openvino"))
    assert "no target of onnx, openvino keeps adapters for run time (possible: gguf)" in message
