"""What a GGUF file says of its model: sizes, rotary base, vocabulary and chat template, from a bundle's own files.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and gguf-py's constants.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .contract import BuildError
from .gguf_file import Value

_QUANTIZATION_VERSION = 2
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type
_LAYER_NORM_EPSILON = 1e-5  # that of every Whisper encoder

# Mistral's instruct prompt, version 7; a part that is not text comes as the marker that llama.cpp puts in its place.
_CHAT = """\
{%- macro parts(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}{{ part.text }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{{ bos_token }}
{%- for message in messages -%}
{%- if message.role == 'system' -%}[SYSTEM_PROMPT]{{ parts(message.content) }}[/SYSTEM_PROMPT]
{%- elif message.role == 'user' -%}[INST]{{ parts(message.content) }}[/INST]
{%- elif message.role == 'assistant' -%}{{ parts(message.content) }}{{ eos_token }}
{%- else -%}{{ raise_exception('roles are system, user and assistant') }}
{%- endif -%}
{%- endfor -%}"""


@dataclass(frozen=True)
class FileType:
    """What the matrices of a file mostly are, by the name that its file bears and by number (general.file_type)."""

    name: str
    number: int


@dataclass(frozen=True)
class Model:
    """A model's configuration as transformers has it, and its tokenizer.json, as they lie in a bundle."""

    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]

    @property
    def text(self) -> Mapping[str, Any]:
        text: Mapping[str, Any] = self.config["text_config"]
        return text


def read_model(folder: Path) -> Model:
    """The model that a bundle in the making describes.

    Raises:
        BuildError: its config.json or tokenizer.json is not there.
    """
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        raise BuildError(
            f"a GGUF file holds its model's sizes and vocabulary, and '{folder}' has no {' and no '.join(missing)}. "
            "Build it as a bundle: ossicle build CHECKPOINT --target gguf"
        )
    config, tokenizer = (json.loads((folder / name).read_bytes()) for name in ("config.json", "tokenizer.json"))
    return Model(config, tokenizer)


def text_metadata(model: Model, kind: FileType) -> dict[str, Value]:
    """Metadata of the decoder's file, whose matrices are mostly of `kind`.

    Raises:
        BuildError: the model has rotary scaling, which is not written here, or an activation that llama.cpp does not compute.
    """
    text, prefix = model.text, "llama"
    _check_activation(text)
    sizes: dict[str, Value] = {
        "block_count": text["num_hidden_layers"],
        "context_length": text["max_position_embeddings"],
        "embedding_length": text["hidden_size"],
        "feed_forward_length": text["intermediate_size"],
        "vocab_size": text["vocab_size"],
        "attention.head_count": text["num_attention_heads"],
        "attention.head_count_kv": text["num_key_value_heads"],
        "attention.key_length": text["head_dim"],
        "attention.value_length": text["head_dim"],
        "attention.layer_norm_rms_epsilon": float(text["rms_norm_eps"]),
        "rope.dimension_count": text["head_dim"],
        "rope.freq_base": _rope_base(text),
    }
    general = _general("llama", "model", str(model.config["model_type"]), kind)
    return general | {f"{prefix}.{key}": value for key, value in sizes.items()} | _vocabulary(model)


def audio_metadata(model: Model, kind: FileType) -> dict[str, Value]:
    """Metadata of the audio encoder's file, whose matrices are mostly of `kind`."""
    audio = model.config["audio_config"]
    sizes: dict[str, Value] = {
        "projection_dim": model.text["hidden_size"],
        "embedding_length": audio["hidden_size"],
        "feed_forward_length": audio["intermediate_size"],
        "block_count": audio["num_hidden_layers"],
        "attention.head_count": audio["num_attention_heads"],
        "attention.layer_norm_epsilon": _LAYER_NORM_EPSILON,
        "num_mel_bins": audio["num_mel_bins"],
        "projector.stack_factor": audio["intermediate_size"] // audio["hidden_size"],
    }
    named: dict[str, Value] = {"clip.has_audio_encoder": True, "clip.projector_type": "voxtral"}
    general = _general("clip", "mmproj", f"{model.config['model_type']} audio encoder", kind)
    return general | named | {f"clip.audio.{key}": value for key, value in sizes.items()}


def split_metadata(number: int, count: int, tensors: int) -> dict[str, Value]:
    """What each of `count` files says of its place among them, as llama.cpp's gguf-split does; `tensors` are in all."""
    return {
        "split.no": np.uint16(number),
        "split.count": np.uint16(count),
        "split.tensors.count": np.int32(tensors),
    }


def _general(architecture: str, type_: str, name: str, kind: FileType) -> dict[str, Value]:
    return {
        "general.architecture": architecture,
        "general.type": type_,
        "general.name": name,
        "general.file_type": kind.number,
        "general.quantization_version": _QUANTIZATION_VERSION,
    }


def _check_activation(text: Mapping[str, Any]) -> None:
    """A file has no key for it: llama.cpp takes SiLU for every model of this architecture."""
    if text["hidden_act"] not in ("silu", "swish"):
        raise BuildError(
            f"activation '{text['hidden_act']}' of the decoder is not llama.cpp's (it can be: silu). "
            "Build it for another target: ossicle targets"
        )


def _rope_base(text: Mapping[str, Any]) -> float:
    rope = text.get("rope_parameters") or {}
    scaling = rope.get("rope_type", "default")
    if scaling != "default":
        raise BuildError(
            f"rotary scaling '{scaling}' is not written into GGUF (it can be: default). "
            "Build it for another target: ossicle targets"
        )
    return float(rope.get("rope_theta") or text["rope_theta"])


def _vocabulary(model: Model) -> dict[str, Value]:
    tokens, kinds = _tokens(model)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.tokenizer["model"]["merges"]]
    ids = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    held: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "tekken",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
    }
    for name, key in ids.items():
        if (id := _first(model.text.get(key))) is not None:
            held[f"tokenizer.ggml.{name}_token_id"] = id
    for name, token in (("unknown", "<unk>"), ("padding", "<pad>")):
        if token in tokens:
            held.setdefault(f"tokenizer.ggml.{name}_token_id", tokens.index(token))
    flags: dict[str, Value] = {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": False}
    return (
        held | {f"tokenizer.ggml.{name}": value for name, value in flags.items()} | {"tokenizer.chat_template": _CHAT}
    )


def _tokens(model: Model) -> tuple[list[str], list[int]]:
    """Text and kind of every id that the embedding has a row for; ids without a token are unused."""
    size = model.text["vocab_size"]
    tokens = [f"[PAD{id}]" for id in range(size)]
    kinds = [_UNUSED] * size
    for token, id in model.tokenizer["model"]["vocab"].items():
        tokens[id], kinds[id] = token, _NORMAL
    for entry in model.tokenizer.get("added_tokens") or ():
        tokens[entry["id"]], kinds[entry["id"]] = entry["content"], _CONTROL if entry["special"] else _USER_DEFINED
    return tokens, kinds


def _first(id: Any) -> int | None:
    first: int | None = id[0] if isinstance(id, list) else id
    return first
