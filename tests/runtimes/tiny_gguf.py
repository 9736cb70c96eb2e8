"""A tiny decoder as GGUF, what it is asked, and what torch answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ossicle.compiler.pipeline import build
from ossicle.targets.contract import Float32
from ossicle.tests import checkpoints

HIDDEN = 64
# Rows are whole blocks of ggml's integers; so are the heads, for a cache in integers.
CONFIG: Mapping[str, Any] = checkpoints.tiny_config(
    text={"hidden_size": HIDDEN, "intermediate_size": 96, "head_dim": 32}
)


def write_bundle(folder: Path, model: Any, **options: Any) -> Path:
    """A bundle of nothing but GGUF, and the checkpoint beside it in `folder`; `options` are those of a build."""
    checkpoint = checkpoints.save_hub(folder / "checkpoint", model)
    asked = {"targets": ("gguf",), "recipe": "fp32", "verify": False} | options
    return build(checkpoint, folder / "bundle", **asked).folder


def prompt(length: int) -> Float32:
    """Embeddings [length, hidden], the same for the same length."""
    return np.random.default_rng(length).normal(0, 0.5, (length, HIDDEN)).astype(np.float32)


def logits(model: Any, values: Float32) -> Float32:
    """What torch makes of embeddings: logits [length, vocabulary]."""
    import torch

    with torch.no_grad():
        found: Float32 = model(inputs_embeds=torch.from_numpy(values)[None]).logits[0].numpy()
    return found
