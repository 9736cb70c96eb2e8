"""The memory that a stage of a bundle takes where it runs, and the memory that is there."""

from dataclasses import dataclass

from ..targets.manifest import Manifest
from .device import DeviceFacts
from .plans import Stage

_BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0625, "int4": 0.5625}  # of a key or value, scales of 32 included


@dataclass(frozen=True)
class Need:
    """Bytes that a stage takes on a kind of device: weights, keys and values of the context, working space."""

    kind: str
    weights: int
    cache: int
    working: int
    context: int  # tokens

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.working

    def __str__(self) -> str:
        cache = f", keys and values of {self.context} tokens {size(self.cache)}" if self.cache else ""
        return f"{size(self.total)} (weights {size(self.weights)}{cache}, working space {size(self.working)})"


def need(
    manifest: Manifest, target: str, stage: Stage, kind: str, context: int, kv_cache: str = "", widened: int = 0
) -> Need:
    """What a stage takes by the manifest of its bundle, zero where the bundle has nothing of it for a target.

    Among the weights of a decoder is each adapter that the bundle keeps for it, once. `widened` is what the numbers of a GGUF
    decoder take where they are held as float32; 0: as they are stored.
    """
    names = ("audio_encoder",) if stage == "encoder" else ("embed_tokens", "decoder")
    held = [one.memory for one in manifest.artifacts if one.target == target and one.stage in names]
    adapters = [one.file.size for one in manifest.runtime_adapters if one.target == target and stage != "encoder"]
    width = 2.0 if manifest.recipe.get("compute") == "float16" else 4.0
    share = _BYTES[kv_cache] / width if kv_cache in _BYTES else 1.0
    stored = sum(memory.weights for memory in held)
    return Need(
        kind,
        (widened if widened and target == "gguf" and stage != "encoder" else stored) + sum(adapters),
        int(sum(memory.kv_per_token for memory in held) * context * share),
        sum(memory.working for memory in held),
        context,
    )


def room(facts: DeviceFacts, kind: str) -> int | None:
    """Bytes that a kind of device has for a model: a GPU's own, or what the machine has free; None where nothing tells."""
    if kind in ("nvidia", "gpu"):
        found = [one.memory for one in facts.accelerators if one.kind == "gpu" and kind in ("gpu", one.vendor)]
        own = [memory for memory in found if memory is not None]
        if own or kind == "nvidia":
            return max(own, default=None)
    return facts.memory if facts.memory_available is None else facts.memory_available


def size(count: int) -> str:
    """A number of bytes as people read it."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
