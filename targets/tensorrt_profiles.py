"""What TensorRT engines are prepared for: which are asked for, and the shapes that each of their inputs may have."""

from collections.abc import Mapping
from dataclasses import dataclass

from .contract import Artifact, Port

LOGITS = 64  # most positions that a run gives logits of: room is made for all of them


@dataclass(frozen=True)
class Engines:
    """Which engines are built, and what they are prepared for.

    With "auto", of TensorRT for RTX where it is installed and memory allows, else none; a kind named is built or refused.
    """

    kind: str = "auto"
    compute_capabilities: tuple[int, ...] = ()  # of "rtx", as 89; (): every RTX GPU from Ampere on
    context: int = 8192  # tokens that the cache of one sequence holds
    prompt: int = 512  # tokens that are read at a time
    batch: int = 8  # sequences that step together, windows that are encoded together

    @property
    def piece(self) -> int:
        """Tokens that are read at a time: no more than a cache holds."""
        return min(self.prompt, self.context)


def packed(precision: str) -> bool:
    """Whether a stage's weights are integers."""
    return precision.startswith("int")


def profiles(artifact: Artifact, engines: Engines) -> list[dict[str, list[list[int]]]]:
    """For each way in which a stage is run, the least, usual and greatest shape of every input; of a number, its values."""
    return [
        {port.name: [_shape(port, sizes, index) for index in range(3)] for port in artifact.inputs}
        for sizes in _sizes(artifact.stage, engines, packed=packed(artifact.precision))
    ]


def _sizes(stage: str, engines: Engines, *, packed: bool) -> list[dict[str, tuple[int, int, int]]]:
    """Dimensions and numbers by name. A decoder reads one prompt at a time, or steps with every sequence.

    With integers both ways are one profile, since TensorRT would keep the weights of each.
    """
    usual = min(512, engines.piece)
    slots = (1, min(1024, engines.context), engines.context)
    if stage == "audio_encoder":
        return [{"num_windows": (1, 1, engines.batch)}]
    if stage == "embed_tokens":
        return [{"batch_size": (1, 1, 1), "sequence_length": (1, usual, max(engines.piece, engines.batch))}]
    step = {
        "batch_size": (1, 1, engines.batch),
        "sequence_length": (1, 1, 1),
        "total_sequence_length": slots,
        "num_logits_to_keep": (1, 1, 1),
    }
    prompt = {
        "batch_size": (1, 1, 1),
        "sequence_length": (1, usual, engines.piece),
        "total_sequence_length": slots,
        "num_logits_to_keep": (1, 1, min(LOGITS, engines.piece)),
    }
    if packed:
        return [{name: (least, usual, max(most, prompt[name][2])) for name, (least, usual, most) in step.items()}]
    return [step, prompt]


def _shape(port: Port, sizes: Mapping[str, tuple[int, int, int]], index: int) -> list[int]:
    if not port.shape:
        return [sizes[port.name][index]]
    return [size if isinstance(size, int) else sizes[size][index] for size in port.shape]
