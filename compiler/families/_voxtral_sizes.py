"""How large a Voxtral is: its facts by its configuration, and the name and shape of each of its parameters."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ._voxtral_layouts import DECODER, ENCODER, POSITIONS, PROJECTOR

EMBEDDING = DECODER + "embed_tokens.weight"


LM_HEAD = "lm_head.weight"


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
