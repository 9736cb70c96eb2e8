"""The transformers model of a checkpoint in torch float32: whole, or empty and filled tensor by tensor."""

import math
from typing import Any

import numpy as np

from ..targets import memory
from ..targets.contract import CheckpointError, TensorSource, VerificationError
from .checkpoint import Checkpoint

_BLOCK = 1 << 26  # elements of a tensor that are converted at a time
_HEADROOM = 1.2  # activations, the KV cache and torch itself, on top of the weights


def load_model(checkpoint: Checkpoint) -> Any:
    """The transformers model of a checkpoint in float32, filled tensor by tensor.

    Raises:
        CheckpointError: naming every parameter that the checkpoint does not hold.
    """
    model = empty_model(checkpoint)
    for name, _ in list(model.named_parameters()):
        fill(model, name, checkpoint.tensors[name])
    return model


def empty_model(checkpoint: Checkpoint) -> Any:
    """The transformers model of a checkpoint in float32 without its weights, which are on torch's meta device.

    Raises:
        CheckpointError: naming every parameter that the checkpoint does not hold.
    """
    import torch
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration

    config = VoxtralConfig.from_dict(dict(checkpoint.config))
    config.dtype = "float32"
    with torch.device("meta"):
        model = VoxtralForConditionalGeneration(config)
    absent = sorted({name for name, _ in model.named_parameters()} - set(checkpoint.tensors))
    if absent:
        raise CheckpointError(f"the checkpoint does not hold {', '.join(absent)}. See: ossicle inspect CHECKPOINT")
    _compute_buffers(model)
    return model.eval()


def fill(model: Any, name: str, source: TensorSource) -> None:
    """Give a parameter its numbers."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, _parameter(source))


def empty(model: Any, name: str) -> None:
    """Take a parameter's numbers away."""
    import torch

    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    nothing = torch.empty_like(getattr(module, leaf), device="meta")
    setattr(module, leaf, torch.nn.Parameter(nothing, requires_grad=False))


def memory_needed(checkpoint: Checkpoint) -> int:
    """Bytes that the original takes in float32, estimated from its tensors' shapes."""
    return int(_HEADROOM * 4 * sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()))


def check_memory(checkpoint: Checkpoint) -> None:
    """Refuse an original that this machine cannot hold.

    Raises:
        VerificationError: saying what it takes, what there is, and how to build without.
    """
    needed, available = memory_needed(checkpoint), memory.available()
    if available is not None and needed > available:
        raise VerificationError(
            f"verifying takes the original in float32, about {needed / 2**30:.1f} GiB of memory, and this machine has "
            f"{available / 2**30:.1f} GiB free. Build with --no-verify, then on a larger machine: "
            "ossicle verify BUNDLE --checkpoint CHECKPOINT"
        )


def _parameter(source: TensorSource) -> Any:
    import torch

    filled = torch.empty(source.shape, dtype=torch.float32)
    count = source.shape[0] if source.shape else 1
    step = max(1, _BLOCK // max(1, math.prod(source.shape[1:])))
    for start in range(0, count, step):
        stop = min(start + step, count)
        filled[start:stop] = torch.from_numpy(np.ascontiguousarray(source.rows(start, stop)))
    return torch.nn.Parameter(filled, requires_grad=False)


def _compute_buffers(model: Any) -> None:
    """Rotary tables are in no checkpoint: a module that has buffers is made again, off the meta device."""
    owners = {name.rpartition(".")[0] for name, _ in model.named_buffers()}
    for name in owners:
        module = model.get_submodule(name)
        model.set_submodule(name, type(module)(config=module.config))
