"""Voxtral: a Whisper encoder, a projector over four frames at a time, and a Llama decoder."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...targets.contract import TracedStage
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

EMBEDDING = DECODER + "embed_tokens.weight"
LM_HEAD = "lm_head.weight"
STAGES = ("audio_encoder", "embed_tokens", "decoder")


@dataclass(frozen=True)
class TextFacts:
    """Sizes of the decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int  # tokens
    audio_token: int


@dataclass(frozen=True)
class AudioFacts:
    """Sizes of the encoder. One audio token is `intermediate` numbers: so many frames side by side."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    mel_bins: int
    positions: int  # encoder frames in one window: half its log-mel frames

    @property
    def window_frames(self) -> int:
        return 2 * self.positions

    @property
    def tokens_per_window(self) -> int:
        return self.positions * self.hidden // self.intermediate


def text_facts(config: Mapping[str, Any]) -> TextFacts:
    """The decoder's sizes."""
    text = config["text_config"]
    return TextFacts(
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        vocabulary=text["vocab_size"],
        context=text["max_position_embeddings"],
        audio_token=config["audio_token_id"],
    )


def audio_facts(config: Mapping[str, Any]) -> AudioFacts:
    """The encoder's sizes."""
    audio = config["audio_config"]
    return AudioFacts(
        hidden=audio["hidden_size"],
        intermediate=audio["intermediate_size"],
        layers=audio["num_hidden_layers"],
        heads=audio["num_attention_heads"],
        mel_bins=audio["num_mel_bins"],
        positions=audio["max_source_positions"],
    )


def parameters(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical name and shape of every parameter, in the order that data flows."""
    return {
        name: shape
        for shapes in (_encoder_shapes(config), _projector_shapes(config), _decoder_shapes(config))
        for name, shape in shapes
    }


def tied(config: Mapping[str, Any]) -> bool:
    """Whether the configuration says that the head is the embedding."""
    return bool(config.get("tie_word_embeddings") or config["text_config"]["tie_word_embeddings"])


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
        stop_tokens=tuple(stop) if isinstance(stop, list) else (stop,),
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


_Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _encoder_shapes(config: Mapping[str, Any]) -> _Shapes:
    facts = audio_facts(config)
    hidden, inner = facts.hidden, facts.intermediate
    yield from _affine(ENCODER + "conv1", (hidden, facts.mel_bins, 3))
    yield from _affine(ENCODER + "conv2", (hidden, hidden, 3))
    yield POSITIONS, (facts.positions, hidden)
    for layer in range(facts.layers):
        prefix = f"{ENCODER}layers.{layer}."
        yield from _affine(prefix + "self_attn_layer_norm", (hidden,))
        yield from _affine(prefix + "self_attn.q_proj", (hidden, hidden))
        yield prefix + "self_attn.k_proj.weight", (hidden, hidden)
        yield from _affine(prefix + "self_attn.v_proj", (hidden, hidden))
        yield from _affine(prefix + "self_attn.out_proj", (hidden, hidden))
        yield from _affine(prefix + "final_layer_norm", (hidden,))
        yield from _affine(prefix + "fc1", (inner, hidden))
        yield from _affine(prefix + "fc2", (hidden, inner))
    yield from _affine(ENCODER + "layer_norm", (hidden,))


def _projector_shapes(config: Mapping[str, Any]) -> _Shapes:
    hidden = text_facts(config).hidden
    yield PROJECTOR + "linear_1.weight", (hidden, audio_facts(config).intermediate)
    yield PROJECTOR + "linear_2.weight", (hidden, hidden)


def _decoder_shapes(config: Mapping[str, Any]) -> _Shapes:
    facts, text = text_facts(config), config["text_config"]
    hidden, inner, width = facts.hidden, facts.intermediate, facts.kv_heads * facts.head_dim
    attention = _affine if text["attention_bias"] else _matrix
    mlp = _affine if text["mlp_bias"] else _matrix
    yield EMBEDDING, (facts.vocabulary, hidden)
    for layer in range(facts.layers):
        prefix = f"{DECODER}layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield from attention(prefix + "self_attn.q_proj", (facts.heads * facts.head_dim, hidden))
        yield from attention(prefix + "self_attn.k_proj", (width, hidden))
        yield from attention(prefix + "self_attn.v_proj", (width, hidden))
        yield from attention(prefix + "self_attn.o_proj", (hidden, facts.heads * facts.head_dim))
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield from mlp(prefix + "mlp.gate_proj", (inner, hidden))
        yield from mlp(prefix + "mlp.up_proj", (inner, hidden))
        yield from mlp(prefix + "mlp.down_proj", (hidden, inner))
    yield DECODER + "norm.weight", (hidden,)
    yield LM_HEAD, (facts.vocabulary, hidden)


def _matrix(module: str, shape: tuple[int, ...]) -> _Shapes:
    yield f"{module}.weight", shape


def _affine(module: str, shape: tuple[int, ...]) -> _Shapes:
    yield f"{module}.weight", shape
    yield f"{module}.bias", shape[:1]
