"""Adapters merged row by row against PEFT's own merge; those that cannot be merged are refused by name."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ossicle.compiler.checkpoint import Checkpoint, open_checkpoint
from ossicle.compiler.families import voxtral
from ossicle.compiler.lora import AdapterSpec, parse_adapter
from ossicle.compiler.peft_adapter import _PLAIN
from ossicle.targets.contract import AdapterError
from ossicle.tests import checkpoints
from safetensors.torch import load_file, save_file

pytestmark = [
    # said by PEFT on its way; what it does then is what is tested
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tied:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*alpha_pattern keys did not match:RuntimeWarning"),
]

ATTENTION = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def base() -> Any:
    return checkpoints.model()


@pytest.fixture(scope="module")
def hub(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_hub(tmp_path_factory.mktemp("base"), base)


def merged(wrapped: Any) -> dict[str, torch.Tensor]:
    return dict(wrapped.merge_and_unload().state_dict())


def assert_close(opened: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in opened.tensors.items():
        blocks = [tensor.rows(i, min(i + 7, tensor.shape[0])) for i in range(0, tensor.shape[0], 7)]
        got = torch.from_numpy(np.concatenate(blocks))
        torch.testing.assert_close(got, expected[name], atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ATTENTION},
        {"target_modules": ATTENTION, "use_rslora": True, "lora_alpha": 5},
        {"target_modules": ["fc1", "linear_1", "down_proj", "lm_head"], "lora_alpha": 3, "r": 2},
        {"target_modules": ["conv1", "conv2", "out_proj"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["k_proj"], "modules_to_save": ["linear_2", "lm_head", "norm", "layer_norm"]},
        {"target_modules": ATTENTION, "fan_in_fan_out": True},
        {
            "target_modules": ATTENTION,
            "rank_pattern": {"layers.1.self_attn.q_proj": 3, r"language_model\.layers\.0\..*": 5},
            "alpha_pattern": {
                "attn.v_proj": 99,
                "q": 77,
                "v_proj": 32,
                "^model.audio_tower.layers.0.self_attn.q_proj": 1,
            },
        },
        {"target_modules": r".*language_model.*\.(up|gate)_proj", "init_lora_weights": "gaussian"},
        {"target_modules": "all-linear", "lora_dropout": 0.1},
    ],
    ids=str,
)
def test_merged_as_peft_merges(base: Any, hub: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    wrapped = checkpoints.save_adapter(tmp_path, copy.deepcopy(base), **options)
    opened = open_checkpoint(hub, adapters=[AdapterSpec(tmp_path)])
    expected = merged(wrapped)
    assert any(not torch.equal(expected[name], tensor) for name, tensor in base.state_dict().items())
    assert_close(opened, expected)
    (described,) = opened.adapters
    assert (described.name, described.weight) == (tmp_path.name, 1.0)
    assert {file.path for file in described.files} == {"adapter_config.json", "adapter_model.safetensors"}


def test_into_bfloat16_in_float32(tmp_path: Path) -> None:
    base = checkpoints.model(dtype="bfloat16")
    folder = checkpoints.save_hub(tmp_path / "base", base)
    wrapped = checkpoints.save_adapter(tmp_path / "adapter", copy.deepcopy(base).float(), target_modules=ATTENTION)
    opened = open_checkpoint(folder, adapters=[AdapterSpec(tmp_path / "adapter")])
    assert opened.tensors["model.language_model.layers.0.self_attn.q_proj.weight"].dtype == "float32"
    assert_close(opened, merged(wrapped))


def test_into_mistrals_layout(base: Any, tmp_path: Path) -> None:
    folder = checkpoints.save_mistral(tmp_path / "base", base)
    wrapped = checkpoints.save_adapter(tmp_path / "adapter", copy.deepcopy(base), target_modules=["q_proj", "k_proj"])
    opened = open_checkpoint(folder, adapters=[AdapterSpec(tmp_path / "adapter")])
    expected = merged(wrapped)
    positions = opened.tensors[voxtral.POSITIONS]
    expected[voxtral.POSITIONS] = torch.from_numpy(positions.rows(0, positions.shape[0]))
    assert_close(opened, expected)


def test_several_with_weights(base: Any, hub: Path, tmp_path: Path) -> None:
    deltas = []
    for number, modules in enumerate((ATTENTION, ["q_proj", "embed_tokens"])):
        options: dict[str, Any] = {"target_modules": modules, "r": 2 + number, "seed": number}
        wrapped = checkpoints.save_adapter(tmp_path / str(number), copy.deepcopy(base), **options)
        deltas.append(merged(wrapped))
    specs = [AdapterSpec(tmp_path / "0", 0.5), AdapterSpec(tmp_path / "1", -2.0)]
    opened = open_checkpoint(hub, adapters=specs)
    plain = base.state_dict()
    weighted = {name: 0.5 * (deltas[0][name] - plain[name]) - 2 * (deltas[1][name] - plain[name]) for name in plain}
    assert_close(opened, {name: plain[name] + weighted[name] for name in plain})


def renamed(folder: Path, *pairs: tuple[str, str]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for before, after in pairs:
        tensors = {name.replace(before, after): tensor for name, tensor in tensors.items()}
    save_file(tensors, path)


@pytest.mark.parametrize(
    "pairs",
    [
        [
            ("model.model.language_model.", "model.language_model.model."),
            ("model.lm_head", "model.language_model.lm_head"),
        ],
        [("model.model.language_model.", "model.model.")],  # trained on the text model alone
        [("base_model.model.", "")],
    ],
    ids=str,
)
def test_names_of_other_versions(base: Any, hub: Path, tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    modules = r"(model\.language_model.*(q_proj|up_proj))|lm_head"
    wrapped = checkpoints.save_adapter(tmp_path, copy.deepcopy(base), target_modules=modules)
    renamed(tmp_path, *pairs)
    assert_close(open_checkpoint(hub, adapters=[AdapterSpec(tmp_path)]), merged(wrapped))


def test_an_adapter_on_the_head_unties_it(tmp_path: Path) -> None:
    folder = checkpoints.save_memory(tmp_path / "tied", checkpoints.model(tied=True))
    made = checkpoints.model()  # untied, to see what an adapter on the head alone does
    made.lm_head.weight.data = made.get_input_embeddings().weight.data.clone()
    wrapped = checkpoints.save_adapter(tmp_path / "adapter", made, target_modules=["lm_head"])
    opened = open_checkpoint(folder, adapters=[AdapterSpec(tmp_path / "adapter")])
    assert not opened.tied
    assert_close(opened, merged(wrapped))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("adapter", AdapterSpec("adapter")),
        ("some/adapter:0.5", AdapterSpec("some/adapter", 0.5)),
        ("org/name@v1:-2", AdapterSpec("org/name@v1", -2.0)),
        (r"C:\adapter", AdapterSpec(r"C:\adapter")),
        (r"C:\adapter:1e-1", AdapterSpec(r"C:\adapter", 0.1)),
    ],
)
def test_command_line_form(text: str, spec: AdapterSpec) -> None:
    assert parse_adapter(text) == spec


def test_command_line_form_of_a_folder_with_a_colon(tmp_path: Path) -> None:
    (tmp_path / "a:1").mkdir()
    assert parse_adapter(str(tmp_path / "a:1")) == AdapterSpec(str(tmp_path / "a:1"))
    for text in ("adapter:nan", "adapter:inf", ":1"):
        with pytest.raises(AdapterError, match="no adapter with a weight"):
            parse_adapter(text)


# what is refused


@pytest.fixture
def adapter(base: Any, tmp_path: Path) -> Path:
    """An adapter to break."""
    checkpoints.save_adapter(tmp_path, copy.deepcopy(base), target_modules=ATTENTION)
    return tmp_path


def configure(folder: Path, **change: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def refusal(hub: Path, *specs: AdapterSpec) -> str:
    with pytest.raises(AdapterError) as caught:
        open_checkpoint(hub, adapters=specs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is [[0, 1]]"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is [1]"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is [1]"),
        ({"target_parameters": ["x"]}, "target_parameters is ['x']"),
        ({"something_new": True}, "something_new is True"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"rank_pattern": {"q_proj": None}}, "rank_pattern is {'q_proj': None}"),
    ],
    ids=str,
)
def test_kinds_refused(hub: Path, adapter: Path, change: dict[str, Any], said: str) -> None:
    configure(adapter, **change)
    message = refusal(hub, AdapterSpec(adapter))
    assert f"adapter '{adapter}' cannot be merged: {said}" in message
    assert "merge_and_unload" in message


def test_all_kinds_are_refused_at_once(hub: Path, adapter: Path) -> None:
    configure(adapter, use_dora=True, bias="all", lora_bias=True)
    message = refusal(hub, AdapterSpec(adapter))
    assert all(part in message for part in ("use_dora", "bias is 'all'", "lora_bias"))


def test_every_option_of_peft_is_decided() -> None:
    """A plain adapter says nothing that is refused; an option that PEFT has dropped need not be listed."""
    from peft import LoraConfig

    options = LoraConfig().to_dict()
    assert options.keys() | {"runtime_config"} >= _PLAIN
    assert not [key for key in options.keys() - _PLAIN - {"bias"} if options[key]]


def test_an_adapter_of_another_model(hub: Path, tmp_path: Path) -> None:
    other = checkpoints.model(checkpoints.tiny_config(text={"num_hidden_layers": 3, "hidden_size": 64}))
    checkpoints.save_adapter(tmp_path, other, target_modules=["q_proj", "fc1"], r=4)
    message = refusal(hub, AdapterSpec(tmp_path))
    assert "module 'model.language_model.layers.2.self_attn.q_proj' is not in the model" in message
    assert "layers.0.self_attn.q_proj' has A (4, 64) and B (64, 4), the model has (64, 48)" in message
    assert "audio_tower" not in message


def test_encoder_alone_is_ambiguous(hub: Path, adapter: Path) -> None:
    renamed(adapter, ("base_model.model.model.audio_tower.", "base_model.model."))
    assert "module 'layers.0.self_attn.q_proj' is not in the model" in refusal(hub, AdapterSpec(adapter))


def test_tensors_refused(hub: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    prefix = "base_model.model.model.language_model.layers.0.self_attn."
    del tensors[prefix + "q_proj.lora_B.weight"]
    tensors[prefix + "v_proj.lora_magnitude_vector"] = torch.ones(3)
    tensors[prefix + "o_proj.weight"] = torch.ones(3, 3)
    tensors[prefix.replace("0", "1") + "q_proj.lora_A.weight"] = torch.ones(3, 48)
    save_file(tensors, path)
    message = refusal(hub, AdapterSpec(adapter))
    for part in (
        "layers.0.self_attn.q_proj' has A instead of lora_A and lora_B",
        f"tensor '{prefix}v_proj.lora_magnitude_vector' belongs to nothing in the model",
        f"'{prefix}o_proj.weight' is (3, 3), the model has (48, 64)",
        "layers.1.self_attn.q_proj' has rank 3, adapter_config.json says 8",
    ):
        assert part in message


def test_files_refused(hub: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"'{weights}' is not a whole safetensors file" in refusal(hub, AdapterSpec(adapter))
    weights.rename(adapter / "adapter_model.bin")
    assert "is pickled" in refusal(hub, AdapterSpec(adapter))
    empty = tmp_path_factory.mktemp("empty")
    assert "adapter_config.json' cannot be read" in refusal(hub, AdapterSpec(empty))
    assert "'/nowhere' does not exist" in refusal(hub, AdapterSpec("/nowhere"))


def test_two_that_replace_the_same(base: Any, hub: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        options: dict[str, Any] = {"target_modules": ATTENTION, "modules_to_save": ["linear_2"], "seed": number}
        checkpoints.save_adapter(tmp_path / str(number), copy.deepcopy(base), **options)
    message = refusal(hub, AdapterSpec(tmp_path / "1"), AdapterSpec(tmp_path / "2"))
    assert "'model.multi_modal_projector.linear_2.weight' ('1' and '2')" in message
    message = refusal(hub, AdapterSpec(tmp_path / "1", 0.5))
    assert "weight 0.5 cannot scale what it replaces whole (model.multi_modal_projector.linear_2.weight)" in message


def test_two_beside_the_same_base_copy(base: Any, hub: Path, tmp_path: Path) -> None:
    """PEFT saves the embedding beside an update of it; equal copies are no conflict, and no weight scales them."""
    for number in (1, 2):
        options: dict[str, Any] = {"target_modules": ["embed_tokens"], "seed": number}
        checkpoints.save_adapter(tmp_path / str(number), copy.deepcopy(base), **options)
    assert any("base_layer" in name for name in load_file(tmp_path / "1" / "adapter_model.safetensors"))
    opened = open_checkpoint(hub, adapters=[AdapterSpec(tmp_path / "1", 0.0), AdapterSpec(tmp_path / "2", 0.0)])
    assert_close(opened, base.state_dict())
