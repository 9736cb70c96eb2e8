"""Voxtral: a Whisper encoder, a projector over four frames at a time, and a Llama decoder."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...targets.contract import CheckpointError, TracedStage
from ...targets.manifest import AudioFormat, TextFormat
from ..folds import Fold
from . import Part
from ._mistral_tools import tool_format
from ._voxtral_layouts import (
    DECODER,
    ENCODER,
    MODEL_TYPE,
    POSITIONS,
    PROJECTOR,
    adapted,
    canonical,
    computed,
    huggingface_config,
    in_mistral_layout,
    mistral_config,
    permuted_heads,
)
from ._voxtral_sizes import EMBEDDING, LM_HEAD, audio_facts, parameters, text_facts, tied

__all__ = [
    "EMBEDDING",
    "LM_HEAD",
    "MODEL_TYPE",
    "POSITIONS",
    "STAGES",
    "adapted",
    "audio_facts",
    "audio_format",
    "canonical",
    "computed",
    "folds",
    "huggingface_config",
    "in_mistral_layout",
    "linear",
    "mistral_config",
    "parameters",
    "part",
    "permuted_heads",
    "stages",
    "text_facts",
    "text_format",
    "tied",
]

STAGES = ("audio_encoder", "embed_tokens", "decoder")


def part(name: str) -> Part | None:
    """What a tensor belongs to, by its canonical name."""
    named: dict[str, Part] = {EMBEDDING: "embedding", LM_HEAD: "lm_head"}
    prefixes: dict[str, Part] = {ENCODER: "encoder", PROJECTOR: "projector", DECODER: "decoder"}
    return named.get(name) or next((found for prefix, found in prefixes.items() if name.startswith(prefix)), None)


def linear(name: str) -> bool:
    """Whether a tensor is the matrix of a linear layer: q/k/v/o, the feed-forward, the projector, the head."""
    return name == LM_HEAD or re.search(r"(_proj|\.fc[12]|\.linear_[12])\.weight$", name) is not None


def folds(config: Mapping[str, Any]) -> tuple[Fold, ...]:
    """Norms into what they feed, values into the matrix behind attention, the gated half of the feed-forward into the other."""
    return (*_encoder_folds(config), *_decoder_folds(config))


def _ids(stop: Any) -> tuple[int, ...]:
    """What a configuration says under eos_token_id: an id, or a list of them."""
    ids = stop if isinstance(stop, list) else [stop]
    if not ids or not all(type(one) is int for one in ids):
        raise CheckpointError(
            f"eos_token_id is {stop!r:.60} (it can be: a token's id, or a list of them). Correct generation_config.json"
        )
    return tuple(ids)


def text_format(config: Mapping[str, Any], generation: Mapping[str, Any], tokenizer: int | None = None) -> TextFormat:
    """The decoder's sizes, and the prompts of mistral-common's instruct tokenizer for Voxtral.

    `tokenizer` is the version of the checkpoint's Tekken vocabulary; where none is known, Voxtral's own, 7.
    """
    facts, text = text_facts(config), config["text_config"]
    stop, pad = (
        next((one[key] for one in (generation, text) if one.get(key) is not None), otherwise)
        for key, otherwise in (("eos_token_id", 2), ("pad_token_id", 11))
    )
    return TextFormat(
        hidden=facts.hidden,
        layers=facts.layers,
        kv_heads=facts.kv_heads,
        head_dim=facts.head_dim,
        vocabulary=facts.vocabulary,
        context=facts.context,
        audio_token=facts.audio_token,
        stop_tokens=_ids(stop),
        pad_token=pad,
        begin="<s>",
        audio="[BEGIN_AUDIO]{audio}",
        transcribe="[INST]{audio}[/INST][TRANSCRIBE]",
        transcribe_language="[INST]{audio}[/INST]lang:{language}[TRANSCRIBE]",
        system="[SYSTEM_PROMPT]{content}[/SYSTEM_PROMPT]",
        user="[INST]{content}[/INST]",
        assistant="{content}</s>",
        tools=tool_format(7 if tokenizer is None else tokenizer),
    )


def audio_format(config: Mapping[str, Any]) -> AudioFormat:
    """Whisper's front end, as the model was trained on it."""
    facts = audio_facts(config)
    return AudioFormat(
        sample_rate=16000,
        mel_bins=facts.mel_bins,
        fft=400,
        hop=160,
        window_frames=facts.window_frames,
        tokens_per_window=facts.tokens_per_window,
    )


def stages(config: Mapping[str, Any], context: int) -> tuple[TracedStage, ...]:
    """Transformers' own modules over fake weights, traced stage by stage; positions up to `context` tokens."""
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from .. import stages as shared
    from ..trace import fake_weights, rotary_tables

    settings = VoxtralConfig.from_dict(dict(config))
    positions = min(context, settings.text_config.max_position_embeddings)
    tables = rotary_tables(LlamaRotaryEmbedding(settings.text_config), positions)
    with fake_weights():
        model = VoxtralForConditionalGeneration(settings).eval()
        decoder = model.model.language_model
        return (
            shared.audio_encoder(model.model),
            shared.embed_tokens(decoder),
            shared.decoder(decoder, model.lm_head, tables),
        )


def _encoder_folds(config: Mapping[str, Any]) -> Iterator[Fold]:
    for layer in range(audio_facts(config).layers):
        prefix = f"{ENCODER}layers.{layer}."
        attention = [f"{prefix}self_attn.{letter}_proj.weight" for letter in "qkv"]
        yield Fold(_both(prefix + "self_attn_layer_norm"), tuple(attention))
        yield Fold(_both(prefix + "self_attn.v_proj"), (prefix + "self_attn.out_proj.weight",))
        yield Fold(_both(prefix + "final_layer_norm"), (prefix + "fc1.weight",))


def _decoder_folds(config: Mapping[str, Any]) -> Iterator[Fold]:
    facts, text = text_facts(config), config["text_config"]
    for layer in range(facts.layers):
        prefix = f"{DECODER}layers.{layer}."
        attention = [f"{prefix}self_attn.{letter}_proj.weight" for letter in "qkv"]
        yield Fold((prefix + "input_layernorm.weight",), tuple(attention))
        value, up = prefix + "self_attn.v_proj", prefix + "mlp.up_proj"
        yield Fold(
            _both(value) if text["attention_bias"] else (value + ".weight",),
            (prefix + "self_attn.o_proj.weight",),
            facts.head_dim,
            facts.heads // facts.kv_heads,
        )
        feed = (prefix + "mlp.gate_proj.weight", prefix + "mlp.up_proj.weight")
        yield Fold((prefix + "post_attention_layernorm.weight",), feed)
        yield Fold(_both(up) if text["mlp_bias"] else (up + ".weight",), (prefix + "mlp.down_proj.weight",))
    if not tied(config):
        yield Fold((DECODER + "norm.weight",), (LM_HEAD,))


def _both(module: str) -> tuple[str, str]:
    return module + ".weight", module + ".bias"
