"""Tiny Voxtral checkpoints and adapters, made by torch, transformers and PEFT in every layout that they come in."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..benchmarks.checkpoints import configuration, mistral_params

TEKKEN = Path(__file__).parents[1] / "demo" / "model" / "tekken.json"

_AUDIO = {
    "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_mel_bins": 16,
    "max_source_positions": 40, "vocab_size": 512,
}  # fmt: skip
# head_dim * heads is not the hidden size, as in Voxtral-Mini
_TEXT = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "max_position_embeddings": 4096, "rope_theta": 1e4,
}  # fmt: skip


def tiny_config(*, audio: Mapping[str, Any] | None = None, text: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A configuration of a few thousand parameters, and any dimension of it otherwise."""
    return configuration(audio=_AUDIO | dict(audio or {}), text=_TEXT | dict(text or {}))


def model(config: Mapping[str, Any] | None = None, *, seed: int = 0, dtype: str = "float32", tied: bool = False) -> Any:
    """A transformers model with random weights, every parameter different from what it is initialized to."""
    import torch
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration

    document = dict(config or tiny_config())
    document["text_config"] = dict(document["text_config"]) | {"tie_word_embeddings": tied}
    made = VoxtralForConditionalGeneration(VoxtralConfig.from_dict(document)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + 1 if name.endswith("norm.weight") else noise)
            parameter.data = parameter.data.to(getattr(torch, dtype))
        if tied:  # transformers does not tie Voxtral's head by itself
            made.lm_head.weight = made.get_input_embeddings().weight
    return made


def save_hub(folder: Path, made: Any, *, shard: str = "50GB") -> Path:
    """The model as transformers saves it, with the names of the files on the hub; `shard` as in max_shard_size."""
    made.save_pretrained(folder, max_shard_size=shard)
    shutil.copyfile(TEKKEN, folder / "tekken.json")
    return folder


def save_memory(folder: Path, made: Any) -> Path:
    """The model with transformers' names in memory, in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    made.config.save_pretrained(folder)
    shutil.copyfile(TEKKEN, folder / "tekken.json")
    _save(folder / "model.safetensors", _state(made))
    return folder


def save_mistral(folder: Path, made: Any, *, shards: int = 1) -> Path:
    """The model in Mistral's own layout: its names, interleaved q/k rows, no encoder positions."""
    folder.mkdir(parents=True, exist_ok=True)
    tied = made.config.text_config.tie_word_embeddings
    (folder / "params.json").write_text(json.dumps(mistral_params(made.config.to_dict(), tied=tied)))
    shutil.copyfile(TEKKEN, folder / "tekken.json")
    tensors = list(_mistral_state(made).items())
    for number in range(shards):
        name = f"consolidated-{number + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "consolidated.safetensors"
        _save(folder / name, dict(tensors[number::shards]))
    return folder


def save_adapter(folder: Path, made: Any, *, seed: int = 1, **options: Any) -> Any:
    """The PEFT model of a random LoRA adapter on `made` (which it changes), saved; `options` are LoraConfig's."""
    import torch
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(made, LoraConfig(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    wrapped.save_pretrained(folder)
    return wrapped


def _state(made: Any) -> dict[str, Any]:
    state = made.state_dict()
    if made.lm_head.weight is made.get_input_embeddings().weight:
        del state["lm_head.weight"]
    return dict(state)


def _mistral_state(made: Any) -> dict[str, Any]:
    """Written out from transformers' convert_voxtral_weights_to_hf.py, backwards."""
    text = made.config.text_config
    state = {}
    for name, tensor in _state(made).items():
        if name.endswith("embed_positions.weight"):
            continue
        heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}.get(name.split(".")[-2])
        if heads and "language_model" in name:
            tensor = tensor.view(heads, 2, text.head_dim // 2, -1).transpose(1, 2).reshape(tensor.shape)
        state[_mistral_name(name)] = tensor.contiguous()
    return state


def _mistral_name(name: str) -> str:
    audio = "audio_tower" in name
    encoder = "mm_whisper_embeddings.whisper_encoder."
    pairs = [
        ("model.audio_tower.conv1.", encoder + "conv_layers.0."),
        ("model.audio_tower.conv2.", encoder + "conv_layers.1."),
        ("model.audio_tower.layer_norm.", encoder + "transformer.norm."),
        ("model.audio_tower.layers.", encoder + "transformer.layers."),
        ("model.multi_modal_projector.linear_1.", "mm_whisper_embeddings.audio_language_projection.0."),
        ("model.multi_modal_projector.linear_2.", "mm_whisper_embeddings.audio_language_projection.2."),
        ("model.language_model.embed_tokens.", "mm_whisper_embeddings.tok_embeddings."),
        ("model.language_model.norm.", "norm."),
        ("model.language_model.layers.", "layers."),
        ("lm_head.", "output."),
        ("self_attn.q_proj.", "attention.wq."),
        ("self_attn.k_proj.", "attention.wk."),
        ("self_attn.v_proj.", "attention.wv."),
        ("self_attn.out_proj." if audio else "self_attn.o_proj.", "attention.wo."),
        ("self_attn_layer_norm." if audio else "input_layernorm.", "attention_norm."),
        ("final_layer_norm." if audio else "post_attention_layernorm.", "ffn_norm."),
        ("fc1." if audio else "mlp.gate_proj.", "feed_forward.w1."),
        ("fc2." if audio else "mlp.down_proj.", "feed_forward.w2."),
        ("mlp.up_proj.", "feed_forward.w3."),
    ]
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return name


def _save(path: Path, tensors: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata={"format": "pt"})
