"""A model with a wider audio encoder that computes the same, for an engine that cannot take the width it has.

llama.cpp's `mtmd` pads what it stacks by a rule that holds for some widths alone: of the shipped model's 192 it makes one token
too many and ends its process. Five times as wide it does not.
"""

from pathlib import Path
from shutil import copyfile
from typing import Any

TIMES = 5


def write_widened(folder: Path, checkpoint: Path, times: int = TIMES) -> Path:
    """The checkpoint at a path, in Hugging Face's layout, written to `folder` with its encoder widened."""
    import torch
    from transformers import VoxtralForConditionalGeneration

    made = VoxtralForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    widened(made.eval(), times).save_pretrained(folder)
    copyfile(checkpoint / "tekken.json", folder / "tekken.json")
    return folder


def widened(made: Any, times: int = TIMES) -> Any:
    """The same function with an audio encoder of so many times the width: every channel and head is there that often.

    A layer norm of repeated channels is the repeated layer norm; whatever reads them reads the first ones alone.
    """
    import torch
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration

    document = made.config.to_dict()
    wide = ("hidden_size", "intermediate_size", "num_attention_heads")
    document["audio_config"] |= {name: times * document["audio_config"][name] for name in wide}
    document["audio_config"].pop("head_dim", None)
    wider = VoxtralForConditionalGeneration(VoxtralConfig.from_dict(document)).eval()
    state = made.state_dict()
    with torch.no_grad():
        for name, parameter in wider.named_parameters():
            parameter.copy_(_repeated(state[name].float(), tuple(parameter.shape), name))
    return wider


def _repeated(tensor: Any, shape: tuple[int, ...], name: str) -> Any:
    """A tensor with its outputs repeated and its inputs filled up with zeros, to a shape."""
    import torch

    if "audio_tower" in name:
        if name.endswith("embed_positions.weight"):
            return tensor.repeat(1, shape[1] // tensor.shape[1])
        tensor = tensor.repeat(shape[0] // tensor.shape[0], *[1] * (tensor.ndim - 1))
    if tensor.shape == shape:
        return tensor
    frames = 4 if name.endswith("linear_1.weight") else 1  # the projector reads so many side by side
    parts = tensor.reshape(len(tensor), frames, tensor.shape[1] // frames, *tensor.shape[2:])
    filled = torch.zeros(len(tensor), frames, shape[1] // frames, *tensor.shape[2:])
    filled[:, :, : parts.shape[2]] = parts
    return filled.reshape(shape)
