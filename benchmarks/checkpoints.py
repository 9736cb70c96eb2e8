"""Random Voxtral checkpoints of any size and layout, written a row block at a time.

from ossicle.benchmarks.checkpoints import MINI_3B, write_random

write_random(folder, MINI_3B, tokenizer=tekken, shard_bytes=5_000_000_000)
"""

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from ..compiler.families import voxtral

Keys = Literal[
    "hub", "memory", "mistral"
]  # names of the files on the hub, of transformers 5 in memory, of Mistral's layout
DType = Literal["float32", "float16", "bfloat16"]

_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2}
_BLOCK = 1 << 22  # numbers drawn at a time

_WHISPER = "mm_whisper_embeddings.whisper_encoder."
_LETTERS = r"self_attn\.([qkv])_proj"
_MISTRAL_KEYS = (
    (r"lm_head\.", "output."),
    (r"model\.language_model\.norm\.", "norm."),
    (r"model\.language_model\.embed_tokens\.", "mm_whisper_embeddings.tok_embeddings."),
    (r"model\.language_model\.", ""),
    (r"model\.multi_modal_projector\.linear_1", "mm_whisper_embeddings.audio_language_projection.0"),
    (r"model\.multi_modal_projector\.linear_2", "mm_whisper_embeddings.audio_language_projection.2"),
    (r"model\.audio_tower\.conv1", _WHISPER + "conv_layers.0"),
    (r"model\.audio_tower\.conv2", _WHISPER + "conv_layers.1"),
    (r"model\.audio_tower\.layer_norm", _WHISPER + "transformer.norm"),
    (r"model\.audio_tower\.", _WHISPER + "transformer."),
    (_LETTERS, r"attention.w\1"),
    (r"self_attn\.(?:o|out)_proj", "attention.wo"),
    (r"input_layernorm|self_attn_layer_norm", "attention_norm"),
    (r"post_attention_layernorm|final_layer_norm", "ffn_norm"),
    (r"mlp\.gate_proj|fc1", "feed_forward.w1"),
    (r"mlp\.down_proj|fc2", "feed_forward.w2"),
    (r"mlp\.up_proj", "feed_forward.w3"),
)
_HUB_KEYS = (
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.", ""),
)


def configuration(*, audio: Mapping[str, Any] | None = None, text: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A config.json of these dimensions; what is left out is Voxtral-Mini-3B's."""
    document = {"architectures": ["VoxtralForConditionalGeneration"], "model_type": "voxtral", "audio_token_id": 24}
    return voxtral.huggingface_config(document | {"audio_config": audio or {}, "text_config": text or {}})


MINI_3B = configuration()
SMALL_24B = configuration(text={"hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40})


@dataclass(frozen=True)
class _Entry:
    """A tensor to write: its name in the file, its shape and dtype, and what it is."""

    key: str
    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def size(self) -> int:
        return math.prod(self.shape) * _WIDTH[self.dtype]


def write_random(
    folder: Path,
    config: Mapping[str, Any],
    *,
    tokenizer: Path,
    keys: Keys = "hub",
    dtype: DType = "bfloat16",
    shard_bytes: int | None = None,
    tied: bool = False,
    seed: int = 0,
) -> int:
    """Write a checkpoint of random weights and give back the bytes of its weights.

    The same arguments give the same files. `tied` leaves the head out. Shards, of at most `shard_bytes` where one tensor
    allows it, come with an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tokenizer, folder / "tekken.json")
    _write_config(folder, config, keys, tied)
    shards = _shards(_entries(config, keys, dtype, tied), shard_bytes)
    names = _shard_names("consolidated" if keys == "mistral" else "model", len(shards))
    rng = np.random.default_rng(seed)
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as stream:
            _write_shard(stream, shard, rng)
    if len(shards) > 1:
        _write_index(folder, names, shards)
    return sum(entry.size for shard in shards for entry in shard)


def _entries(config: Mapping[str, Any], keys: Keys, dtype: DType, tied: bool) -> list[_Entry]:
    left_out = {voxtral.LM_HEAD} if tied else set()
    if keys == "mistral":
        left_out.add(voxtral.POSITIONS)
    return [
        _Entry(_key(name, keys), name, shape, "float32" if name == voxtral.POSITIONS else dtype)
        for name, shape in voxtral.parameters(config).items()
        if name not in left_out
    ]


def _key(name: str, keys: Keys) -> str:
    for pattern, key in {"hub": _HUB_KEYS, "memory": (), "mistral": _MISTRAL_KEYS}[keys]:
        name = re.sub(pattern, key, name)
    return name


def _shards(entries: Sequence[_Entry], limit: int | None) -> list[list[_Entry]]:
    shards: list[list[_Entry]] = [[]]
    for entry in entries:
        if limit and shards[-1] and sum(one.size for one in shards[-1]) + entry.size > limit:
            shards.append([])
        shards[-1].append(entry)
    return shards


def _shard_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _write_shard(stream: BinaryIO, shard: Sequence[_Entry], rng: np.random.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in shard:
        span = [offset, offset + entry.size]
        header[entry.key] = {"dtype": _STORED[entry.dtype], "shape": list(entry.shape), "data_offsets": span}
        offset += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for entry in shard:
        for block in _random(entry, rng):
            stream.write(_encoded(block, entry.dtype))


def _random(entry: _Entry, rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Numbers that keep activations in the range of a trained model's: unit gains, small biases, matrices by fan-in."""
    gain = entry.name.endswith("norm.weight")
    scale = 0.05 if len(entry.shape) == 1 else math.prod(entry.shape[1:]) ** -0.5
    total = math.prod(entry.shape)
    for start in range(0, total, _BLOCK):
        block = rng.standard_normal(min(_BLOCK, total - start), dtype=np.float32)
        block *= np.float32(scale)
        yield block + np.float32(1) if gain else block


def _encoded(block: NDArray[np.float32], dtype: DType) -> bytes:
    if dtype == "bfloat16":
        bits = block.view(np.uint32)
        return (((bits >> 16 & 1) + 0x7FFF + bits) >> 16).astype("<u2").tobytes()  # round half to even
    return block.astype("<f4" if dtype == "float32" else "<f2").tobytes()


def _write_index(folder: Path, names: Sequence[str], shards: Sequence[Sequence[_Entry]]) -> None:
    places = {entry.key: name for name, shard in zip(names, shards, strict=True) for entry in shard}
    size = sum(entry.size for shard in shards for entry in shard)
    stem = names[0].split("-")[0]
    document = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(document, indent=1))


def _write_config(folder: Path, config: Mapping[str, Any], keys: Keys, tied: bool) -> None:
    if keys == "mistral":
        (folder / "params.json").write_text(json.dumps(mistral_params(config, tied=tied), indent=1))
        return
    document = dict(config) | {"text_config": dict(config["text_config"]) | {"tie_word_embeddings": tied}}
    (folder / "config.json").write_text(json.dumps(document, indent=1))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11}
    (folder / "generation_config.json").write_text(json.dumps(generation))


def mistral_params(config: Mapping[str, Any], *, tied: bool = False) -> dict[str, Any]:
    """The params.json of a configuration."""
    text, audio = config["text_config"], config["audio_config"]
    encoder = {
        "audio_encoding_args": {
            "sampling_rate": 16000,
            "num_mel_bins": audio["num_mel_bins"],
            "hop_length": 160,
            "window_size": 400,
        },
        "dim": audio["hidden_size"],
        "n_layers": audio["num_hidden_layers"],
        "head_dim": audio["hidden_size"] // audio["num_attention_heads"],
        "hidden_dim": audio["intermediate_size"],
        "n_heads": audio["num_attention_heads"],
        "vocab_size": audio["vocab_size"],
        "max_source_positions": audio["max_source_positions"],
    }
    return {
        "dim": text["hidden_size"],
        "n_layers": text["num_hidden_layers"],
        "head_dim": text["head_dim"],
        "hidden_dim": text["intermediate_size"],
        "n_heads": text["num_attention_heads"],
        "n_kv_heads": text["num_key_value_heads"],
        "rope_theta": text["rope_parameters"]["rope_theta"],
        "norm_eps": text["rms_norm_eps"],
        "vocab_size": text["vocab_size"],
        "max_seq_len": text["max_position_embeddings"],
        "tied_embeddings": tied,
        "multimodal": {
            "whisper_model_args": {"encoder_args": encoder, "downsample_args": {"downsample_factor": 4}},
        },
    }
