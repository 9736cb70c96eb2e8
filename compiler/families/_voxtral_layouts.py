"""How Voxtral checkpoints are stored: names and configurations, in Hugging Face's layout and in Mistral's own.

Canonical names are the parameter names of transformers' VoxtralForConditionalGeneration in memory. The files on the hub
say `language_model.model.` and `language_model.lm_head.`; Mistral's layout has names of its own, the decoder's q/k rows
ordered for interleaved RoPE, and no encoder positions.
"""

import re
from collections.abc import Mapping
from typing import Any

from ...targets.contract import CheckpointError
from . import Layout

MODEL_TYPE = "voxtral"
ENCODER = "model.audio_tower."
PROJECTOR = "model.multi_modal_projector."
DECODER = "model.language_model."
POSITIONS = ENCODER + "embed_positions.weight"

# What transformers fills in where a config.json is silent (configuration_voxtral.py, configuration_llama.py).
_TOP = {"model_type": MODEL_TYPE, "projector_hidden_act": "gelu"}
_TEXT = {
    "model_type": "llama", "vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 30, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "hidden_act": "silu", "attention_bias": False,
    "mlp_bias": False, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_AUDIO = {
    "model_type": "voxtral_encoder", "vocab_size": 51866, "hidden_size": 1280, "intermediate_size": 5120,
    "num_hidden_layers": 32, "num_attention_heads": 20, "num_mel_bins": 128, "max_source_positions": 1500,
    "activation_function": "gelu", "scale_embedding": False,
}  # fmt: skip
_AUDIO_ALIASES = {
    "d_model": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_dim": "intermediate_size",
}

_HUGGINGFACE_NAMES = (
    (r"language_model\.lm_head\.", "lm_head."),
    (r"language_model\.model\.", DECODER),
    (r"language_model\.", DECODER),
    (r"audio_tower\.", ENCODER),
    (r"multi_modal_projector\.", PROJECTOR),
)
# A text model on its own. `layers.0.` alone could be the encoder's as well and stays unknown.
_TEXT_MODEL_NAMES = ((r"model\.(?=layers\.|embed_tokens\b|norm\b)", DECODER),)

# Mistral's layout, after transformers' convert_voxtral_weights_to_hf.py and vLLM's models/voxtral.py: modules by name,
# and modules within a layer of the decoder or the encoder.
_WHISPER = "mm_whisper_embeddings."
_MISTRAL = {
    "output": "lm_head",
    "norm": DECODER + "norm",
    "tok_embeddings": DECODER + "embed_tokens",
    _WHISPER + "tok_embeddings": DECODER + "embed_tokens",
    _WHISPER + "whisper_encoder.conv_layers.0": ENCODER + "conv1",
    _WHISPER + "whisper_encoder.conv_layers.1": ENCODER + "conv2",
    _WHISPER + "whisper_encoder.transformer.norm": ENCODER + "layer_norm",
    _WHISPER + "audio_language_projection.0": PROJECTOR + "linear_1",
    _WHISPER + "audio_language_projection.2": PROJECTOR + "linear_2",
}
_MISTRAL_ATTENTION = {f"attention.w{letter}": f"self_attn.{letter}_proj" for letter in "qkv"}
_MISTRAL_LAYER = {
    DECODER: _MISTRAL_ATTENTION
    | {
        "attention.wo": "self_attn.o_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
    },
    ENCODER: _MISTRAL_ATTENTION
    | {
        "attention.wo": "self_attn.out_proj",
        "attention_norm": "self_attn_layer_norm",
        "ffn_norm": "final_layer_norm",
        "feed_forward.w1": "fc1",
        "feed_forward.w2": "fc2",
    },
}
_IN_LAYER = re.compile(r"(mm_whisper_embeddings\.whisper_encoder\.transformer\.)?layers\.(\d+)\.(.+)")
_NO_WEIGHT = re.compile(r"(.+\.)?rotary_emb\.(original_)?inv_freq")  # recomputed from the configuration


def huggingface_config(document: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json made whole. `rope_theta` may stand by itself (before transformers 5) or in `rope_parameters`."""
    text = {**_TEXT, **_section(document, "text_config")}
    audio = {_AUDIO_ALIASES.get(key, key): value for key, value in _section(document, "audio_config").items()}
    text["rope_parameters"] = _rope(text.pop("rope_theta", None), text.pop("rope_scaling", None), text)
    if text["num_key_value_heads"] is None:
        text["num_key_value_heads"] = text["num_attention_heads"]
    if text["head_dim"] is None:
        text["head_dim"] = _per_head(text["hidden_size"], text["num_attention_heads"])
    config = {**_TOP, **document, "audio_config": {**_AUDIO, **audio}, "text_config": text}
    _check(config)
    return config


def in_mistral_layout(params: Mapping[str, Any]) -> bool:
    """Whether a params.json is a Voxtral's: a Whisper encoder that sees its whole window (Voxtral Realtime's does not)."""
    match params:
        case {"multimodal": {"whisper_model_args": {"encoder_args": Mapping() as encoder}}}:
            return not encoder.get("causal") and encoder.get("pos_embed") in (None, "sinusoidal")
    return False


def mistral_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a params.json.

    Raises:
        CheckpointError: it lacks sizes, or its weights are quantized.
    """
    try:
        return _translated(params)
    except (KeyError, TypeError, AttributeError) as reason:
        raise CheckpointError(
            f"params.json does not describe a Voxtral: {type(reason).__name__} {reason}. "
            "Needed: the decoder's sizes and multimodal.whisper_model_args.encoder_args"
        ) from reason


def canonical(name: str, layout: Layout) -> str | None:
    """The canonical name of a stored tensor; None for rotary tables, `name` where nothing fits."""
    if _NO_WEIGHT.fullmatch(name):
        return None
    return _replaced(name, _HUGGINGFACE_NAMES) if layout == "huggingface" else _mistral_name(name)


def adapted(name: str) -> str:
    """The canonical name of an adapter's parameter: either key style, or trained on the text model alone."""
    return _replaced(name, _HUGGINGFACE_NAMES + _TEXT_MODEL_NAMES)


def permuted_heads(name: str, config: Mapping[str, Any]) -> int | None:
    """Heads of a decoder's q or k matrix. The encoder has no RoPE."""
    if not name.startswith(DECODER):
        return None
    text = config["text_config"]
    heads = {"q_proj": text["num_attention_heads"], "k_proj": text["num_key_value_heads"]}
    return heads.get(name.split(".")[-2])


def computed(name: str, layout: Layout) -> bool:
    """Whether this is the encoder's positions in Mistral's layout, which leaves them out."""
    return name == POSITIONS and layout == "mistral"


def _replaced(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, prefix in rules:
        if match := re.match(pattern, name):
            return prefix + name[match.end() :]
    return name


def _mistral_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if module in _MISTRAL:
        return f"{_MISTRAL[module]}.{leaf}"
    match = _IN_LAYER.fullmatch(module)
    if match is None:
        return name
    prefix = ENCODER if match[1] else DECODER
    inside = _MISTRAL_LAYER[prefix].get(match[3])
    return f"{prefix}layers.{match[2]}.{inside}.{leaf}" if inside else name


def _translated(params: Mapping[str, Any]) -> dict[str, Any]:
    if params.get("quantization"):
        raise CheckpointError("params.json says that the weights are quantized (possible: float32, float16, bfloat16)")
    encoder = params["multimodal"]["whisper_model_args"]["encoder_args"]
    text = {
        "hidden_size": params["dim"],
        "num_hidden_layers": params["n_layers"],
        "intermediate_size": params["hidden_dim"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params["n_kv_heads"],
        "head_dim": params["head_dim"],
        "vocab_size": params["vocab_size"],
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": params["rope_theta"],
        "max_position_embeddings": params.get("max_seq_len") or params.get("max_position_embeddings") or 131072,
        "tie_word_embeddings": bool(params.get("tied_embeddings", False)),
    }
    audio = {
        "hidden_size": encoder["dim"],
        "num_hidden_layers": encoder["n_layers"],
        "intermediate_size": encoder["hidden_dim"],
        "num_attention_heads": encoder["n_heads"],
        "vocab_size": encoder["vocab_size"],
        "num_mel_bins": encoder["audio_encoding_args"]["num_mel_bins"],
        "max_source_positions": encoder.get("max_source_positions") or 1500,
    }
    return huggingface_config({"text_config": text, "audio_config": audio, "audio_token_id": 24})


def _section(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = document.get(key, {})
    if not isinstance(section, dict):
        raise CheckpointError(f"the configuration is not a Voxtral's: {key} is {section!r:.60}")
    return section


def _per_head(hidden: object, heads: object) -> int | None:
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None


def _rope(theta: float | None, scaling: Mapping[str, Any] | None, text: Mapping[str, Any]) -> dict[str, Any]:
    given = text.get("rope_parameters") or scaling or {}
    return {"rope_type": given.get("type", "default"), "rope_theta": theta or 1e8, **given}


def _check(config: Mapping[str, Any]) -> None:
    """Refuse what the shapes below would not describe."""
    text, audio = config["text_config"], config["audio_config"]
    sizes = {f"text_config.{key}": text[key] for key in _TEXT if key.endswith(("_size", "_heads", "_layers", "_dim"))}
    sizes |= {f"audio_config.{key}": audio[key] for key in _AUDIO if type(_AUDIO[key]) is int}
    faults = [f"{key} is {value!r}" for key, value in sizes.items() if type(value) is not int or value < 1]
    if type(config.get("audio_token_id")) is not int:
        faults.append(f"audio_token_id is {config.get('audio_token_id')!r}")
    if text["model_type"] not in ("llama", "mistral"):
        faults.append(f"text_config.model_type is {text['model_type']!r} (possible: llama, mistral)")
    if config.get("quantization_config"):
        faults.append("its weights are quantized (possible: float32, float16, bfloat16)")
    if not faults and audio["max_source_positions"] * audio["hidden_size"] % audio["intermediate_size"]:
        faults.append("a window of audio does not make a whole number of audio tokens")
    if faults:
        raise CheckpointError(f"the configuration is not a Voxtral's: {'; '.join(faults)}")
