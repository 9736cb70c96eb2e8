"""The memory that running an artifact takes, reckoned from its stage by one rule for every target."""

from collections.abc import Mapping

from .contract import Memory, TracedStage, WeightStore

_WINDOW, _PROMPT = 1500, 1024  # positions of a window's encoder, and of a prompt's piece
_ALIVE = 4  # activations of the widest layer that are held at a time


def needs(stage: TracedStage, weights: WeightStore, stored: int, width: int) -> Memory:
    """`stored` bytes of weights, the cache of one token, and the largest activations of a window or of a prompt of 1024 tokens.

    `width` is the bytes of a number that the engine computes with and keeps in its cache.
    """
    caches = [port.shape for port in stage.inputs if port.name.startswith("past_key_values.")]
    per_token = width * sum(int(shape[1]) * int(shape[3]) for shape in caches)
    shapes = {name: weights.source(name).shape for name in stage.weights.values()}
    return Memory(stored, per_token, working(stage.name, tallest(shapes), width))


def working(stage: str, rows: int, width: int) -> int:
    """Bytes of activations that a stage holds at a time, whose tallest matrix has so many rows."""
    positions = {"audio_encoder": _WINDOW, "decoder": _PROMPT}.get(stage, 0)
    return _ALIVE * width * positions * rows


def tallest(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Rows of the tallest matrix, by canonical name, that something is multiplied with; tables are looked up."""
    return max((shape[0] for name, shape in shapes.items() if len(shape) == 2 and "embed_" not in name), default=0)
