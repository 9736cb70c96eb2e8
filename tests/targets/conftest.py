"""A decoder long enough to ask at which positions an artifact goes wrong."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ossicle.compiler.checkpoint import Checkpoint, open_checkpoint
from ossicle.compiler.families import family
from ossicle.compiler.quantize import Weights
from ossicle.compiler.trace import trace
from ossicle.targets.contract import TracedStage
from ossicle.targets.recipes import RECIPES
from ossicle.tests import checkpoints

_LENGTH, _WIDTH = 8004, 32


@dataclass(frozen=True)
class LongModel:
    """A model traced for 8192 tokens, a prompt [8004, hidden] for it, and torch's logits [8004, vocabulary]."""

    decoder: TracedStage
    checkpoint: Checkpoint
    embeddings: NDArray[np.float32]
    logits: NDArray[np.float32]
    width: int  # of a head

    def weights(self, recipe: str) -> Weights:
        return Weights(self.checkpoint.tensors, RECIPES[recipe], family("voxtral"))


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> LongModel:
    text = {"hidden_size": 128, "intermediate_size": 256, "head_dim": _WIDTH, "max_position_embeddings": 16384}
    made = checkpoints.model(checkpoints.tiny_config(text=text))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 2 and not name.startswith("model.audio"):
                parameter.mul_(5 / parameter.shape[1] ** 0.5)  # as large as trained ones
        embeddings = torch.randn(1, _LENGTH, 128, generator=torch.Generator().manual_seed(0))
        logits = made(inputs_embeds=embeddings).logits[0].numpy()
    opened = open_checkpoint(checkpoints.save_hub(tmp_path_factory.mktemp("long") / "checkpoint", made))
    decoder = trace("voxtral", opened.config, 8192).stage("decoder")
    return LongModel(decoder, opened, embeddings[0].numpy(), logits, _WIDTH)
