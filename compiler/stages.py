"""The stages that audio-language models share: a Whisper-like encoder with a projector, an embedding, a Llama-like decoder.

Each takes transformers' own modules, made over fake weights, and gives back a traced graph whose parameters keep the names
they have in memory. Names of inputs and outputs are those of transformers.js (docs/interop.md).
"""

from collections.abc import Callable
from typing import Any

from ..targets.contract import Float32, Port, TracedStage
from .trace import stage

_BATCH, _SEQUENCE, _PAST, _TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"


def audio_encoder(model: Any) -> TracedStage:
    """Log-mel windows [windows, mel bins, frames] to audio embeddings [windows, tokens, hidden].

    `model` has `audio_tower`, `multi_modal_projector` and `config` as VoxtralModel has them: the projector takes as many
    neighbouring encoder frames as fill its input.
    """
    import torch

    class AudioEncoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = _shell(audio_tower=model.audio_tower, multi_modal_projector=model.multi_modal_projector)

        def forward(self, audio_values: Any) -> Any:
            frames = self.model.audio_tower(audio_values).last_hidden_state
            stacked = frames.reshape(frames.shape[0], -1, config.intermediate_size)
            return self.model.multi_modal_projector(stacked)

    config = model.config.audio_config
    for layer in model.audio_tower.layers:
        layer.self_attn.forward = _encoder_attention(layer.self_attn)
    frames = 2 * config.max_source_positions
    tokens = config.max_source_positions * config.hidden_size // config.intermediate_size
    ports = (
        (Port("audio_values", "float32", ("num_windows", config.num_mel_bins, frames)),),
        (Port("audio_features", "float32", ("num_windows", tokens, model.config.text_config.hidden_size)),),
    )
    example = {"audio_values": torch.empty(3, config.num_mel_bins, frames)}
    return stage("audio_encoder", AudioEncoder(), example, ports, {})


def embed_tokens(language_model: Any) -> TracedStage:
    """Token ids [batch, sequence] to embeddings [batch, sequence, hidden]."""
    import torch

    class EmbedTokens(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = _shell(language_model=_shell(embed_tokens=language_model.embed_tokens))

        def forward(self, input_ids: Any) -> Any:
            return self.model.language_model.embed_tokens(input_ids)

    ports = (
        (Port("input_ids", "int64", (_BATCH, _SEQUENCE)),),
        (Port("inputs_embeds", "float32", (_BATCH, _SEQUENCE, language_model.config.hidden_size)),),
    )
    return stage("embed_tokens", EmbedTokens(), {"input_ids": torch.zeros(2, 3, dtype=torch.int64)}, ports, {})


def decoder(language_model: Any, lm_head: Any, rotary: dict[str, Float32]) -> TracedStage:
    """Embeddings and the KV cache to logits and the grown cache; prefill and step are one graph.

    `num_logits_to_keep`: logits of that many last positions, of all where it is 0. `rotary`: tables `cos` and `sin`.
    """
    import torch

    class Decoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = _shell(language_model=_shell(layers=language_model.layers, norm=language_model.norm))
            self.lm_head = lm_head
            for name, table in rotary.items():
                self.register_buffer(name, torch.empty(table.shape))

        def forward(
            self, inputs_embeds: Any, attention_mask: Any, position_ids: Any, num_logits_to_keep: Any, past: Any
        ) -> Any:
            hidden, present = inputs_embeds, []
            for index, layer in enumerate(self.model.language_model.layers):
                cache = (past[2 * index], past[2 * index + 1])
                mixed, key, value = _decoder_attention(
                    layer.self_attn, layer.input_layernorm(hidden), cache, (attention_mask, position_ids), self
                )
                hidden = hidden + mixed
                hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
                present += [key, value]
            kept = torch.ops.ossicle.last(self.model.language_model.norm(hidden), num_logits_to_keep)
            return (self.lm_head(kept), *present)

    config = language_model.config
    return stage("decoder", Decoder(), _decoder_example(config), _decoder_ports(config), rotary)


def _decoder_ports(config: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    def cache(prefix: str, length: str) -> list[Port]:
        shape = (_BATCH, config.num_key_value_heads, length, config.head_dim)
        parts = [(layer, part) for layer in range(config.num_hidden_layers) for part in ("key", "value")]
        return [Port(f"{prefix}.{layer}.{part}", "float32", shape) for layer, part in parts]

    inputs = [
        Port("inputs_embeds", "float32", (_BATCH, _SEQUENCE, config.hidden_size)),
        Port("attention_mask", "int64", (_BATCH, _TOTAL)),
        Port("position_ids", "int64", (_BATCH, _SEQUENCE)),
        Port("num_logits_to_keep", "int64", ()),
        *cache("past_key_values", _PAST),
    ]
    logits = Port("logits", "float32", (_BATCH, "num_logits", config.vocab_size))
    return tuple(inputs), (logits, *cache("present", _TOTAL))


def _decoder_example(config: Any) -> dict[str, Any]:
    import torch

    batch, sequence, past = 2, 3, 5  # a size of 0 or 1 would be taken for a constant
    cache = (batch, config.num_key_value_heads, past, config.head_dim)
    return {
        "inputs_embeds": torch.empty(batch, sequence, config.hidden_size),
        "attention_mask": torch.ones(batch, past + sequence, dtype=torch.int64),
        "position_ids": torch.zeros(batch, sequence, dtype=torch.int64),
        "num_logits_to_keep": torch.tensor(1),
        "past": [torch.empty(cache) for _ in range(2 * config.num_hidden_layers)],
    }


def _decoder_attention(module: Any, hidden: Any, past: Any, places: Any, tables: Any) -> tuple[Any, Any, Any]:
    import torch

    config = module.config
    mixed, key, value = torch.ops.ossicle.cached_attention(
        module.q_proj(hidden),
        module.k_proj(hidden),
        module.v_proj(hidden),
        *past,
        *places,
        tables.cos,
        tables.sin,
        config.num_attention_heads,
        config.num_key_value_heads,
        module.scaling,
    )
    return module.o_proj(mixed), key, value


def _encoder_attention(module: Any) -> Callable[..., Any]:
    """A forward for an encoder layer's self-attention that keeps the attention itself one operator."""
    import torch

    def forward(hidden_states: Any, **_: Any) -> tuple[Any, None]:
        mixed = torch.ops.ossicle.attention(
            module.q_proj(hidden_states),
            module.k_proj(hidden_states),
            module.v_proj(hidden_states),
            module.num_heads,
            module.scaling,
        )
        return module.out_proj(mixed), None

    return forward


def _shell(**children: Any) -> Any:
    """A module that only names others, so that a parameter's path is the one it has in the whole model."""
    import torch

    shell = torch.nn.Module()
    for name, child in children.items():
        shell.add_module(name, child)
    return shell
