"""What llama.cpp calls the tensors of a Voxtral, by their canonical names.

Source: gguf-py's tensor_mapping.py and llama.cpp's clip-impl.h, https://github.com/ggml-org/llama.cpp.
"""

import re
from collections.abc import Mapping

from .contract import BuildError

EMBEDDING = "model.language_model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
POSITIONS = "a.position_embd.weight"

_TEXT_LAYER = r"model\.language_model\.layers\.(\d+)\.(.+)\.(weight|bias)"
_AUDIO_LAYER = r"model\.audio_tower\.layers\.(\d+)\.(.+)\.(weight|bias)"
_TEXT = {
    EMBEDDING: "token_embd.weight",
    "model.language_model.norm.weight": "output_norm.weight",
    LM_HEAD: "output.weight",
}
_AUDIO = {
    "model.audio_tower.conv1.weight": "a.conv1d.1.weight",
    "model.audio_tower.conv1.bias": "a.conv1d.1.bias",
    "model.audio_tower.conv2.weight": "a.conv1d.2.weight",
    "model.audio_tower.conv2.bias": "a.conv1d.2.bias",
    "model.audio_tower.embed_positions.weight": POSITIONS,
    "model.audio_tower.layer_norm.weight": "a.post_ln.weight",
    "model.audio_tower.layer_norm.bias": "a.post_ln.bias",
    "model.multi_modal_projector.linear_1.weight": "mm.a.mlp.1.weight",
    "model.multi_modal_projector.linear_2.weight": "mm.a.mlp.2.weight",
}
_TEXT_MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_AUDIO_MODULES = {
    "self_attn_layer_norm": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "final_layer_norm": "ln2",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
}


def text_name(canonical: str) -> str:
    """The name of a tensor of the decoder, its embedding or its head in a file of architecture `llama`.

    Raises:
        BuildError: there is none.
    """
    return _name(canonical, _TEXT, _TEXT_LAYER, "blk", _TEXT_MODULES)


def audio_name(canonical: str) -> str:
    """The name of a tensor of the audio encoder or the projector in an `mmproj` file.

    Raises:
        BuildError: there is none.
    """
    return _name(canonical, _AUDIO, _AUDIO_LAYER, "a.blk", _AUDIO_MODULES)


def permuted_row(row: int, width: int) -> int:
    """Where a row of q or k goes among its kind: llama.cpp rotates neighbours, transformers the halves of a head.

    `width` is the size of a head; rows of a head stay within it.
    """
    head, within = divmod(row, width)
    half, place = divmod(within, width // 2)
    return head * width + 2 * place + half


def rotated(name: str) -> bool:
    """Whether the rows of a tensor of the decoder are rotated with the positions."""
    return re.fullmatch(r"blk\.\d+\.attn_[qk]\.(weight|bias)", name) is not None


def _name(canonical: str, whole: Mapping[str, str], layer: str, prefix: str, modules: Mapping[str, str]) -> str:
    if canonical in whole:
        return whole[canonical]
    found = re.fullmatch(layer, canonical)
    if found is None or found[2] not in modules:
        raise BuildError(
            f"tensor '{canonical}' has no name in GGUF, which llama.cpp reads by fixed names. "
            "Build it for another target: ossicle targets"
        )
    return f"{prefix}.{found[1]}.{modules[found[2]]}.{found[3]}"
