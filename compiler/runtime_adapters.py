"""LoRA adapters that are not merged: kept beside a bundle's artifacts, for an engine to add as it runs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ..targets import registry
from ..targets.contract import AdapterError, AdapterTarget, BundleFile, Recipe
from ..targets.manifest import RuntimeAdapter, file_entry
from .checkpoint import Checkpoint
from .families import Family, family
from .lora import Adapter, AdapterSpec, LowRank, equal
from .peft_adapter import open_adapter

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a part of a file's name, and a word on the command line
_AUDIO = {"encoder": "the audio encoder", "projector": "the projector"}


@dataclass(frozen=True)
class RuntimeAdapterSpec:
    """An adapter to keep: a folder or a hub id, and what it is called at run time ("": as its folder)."""

    location: str | Path
    name: str = ""


@dataclass(frozen=True)
class Kept:
    """An opened adapter that changes nothing but the decoder's matrices."""

    name: str
    source: tuple[BundleFile, ...]
    updates: Mapping[str, LowRank] = field(repr=False)


def parse_runtime_adapter(text: str) -> RuntimeAdapterSpec:
    """The adapter that `[name=]path` names."""
    name, equals, location = text.partition("=")
    if not equals or Path(text).exists():
        return RuntimeAdapterSpec(text)
    return RuntimeAdapterSpec(location, name)


def open_all(specs: Sequence[RuntimeAdapterSpec], checkpoint: Checkpoint, targets: Sequence[str]) -> tuple[Kept, ...]:
    """The adapters, checked against the checkpoint and what is built for.

    Raises:
        AdapterError: one cannot be read, does not fit, or is of a kind that no engine adds; or two are called the same.
    """
    if specs and not _holding(targets):
        possible = [name for name in registry.names() if _holding([name])]
        raise AdapterError(
            f"no target of {', '.join(targets)} keeps adapters for run time (possible: {', '.join(possible)}). "
            "Add one with --target, or merge the adapter with --adapter"
        )
    kept = tuple(_open(spec, checkpoint) for spec in specs)
    names = [one.name for one in kept]
    folded = [name.casefold() for name in names]  # Windows and macOS hold a.gguf and A.gguf for one file
    if twice := sorted({name for name in names if folded.count(name.casefold()) > 1}):
        raise AdapterError(f"several adapters are called {', '.join(twice)}. Name them: --runtime-adapter NAME=PATH")
    return kept


def numbers(specs: Sequence[RuntimeAdapterSpec], model: Family, config: Mapping[str, Any], *, tied: bool) -> int:
    """How many numbers the adapters have for a model whose weights need not be there.

    Raises:
        AdapterError: one cannot be read, does not fit, or changes what no engine adds to as it runs.
    """
    count = 0
    for spec in specs:
        opened = open_adapter(AdapterSpec(spec.location), model, model.parameters(config))
        if faults := _misplaced(opened, model, tied):
            raise _refusal(spec, faults)
        count += _numbers(opened.updates)
    return count


def size(kept: Sequence[Kept]) -> int:
    """How many numbers opened adapters have."""
    return sum(_numbers(one.updates) for one in kept)


def changed(kept: Sequence[Kept]) -> tuple[str, ...]:
    """The canonical names of all that some adapter changes."""
    return tuple(sorted({name for one in kept for name in one.updates}))


def lower(kept: Sequence[Kept], targets: Sequence[str], recipe: Recipe, folder: Path) -> tuple[RuntimeAdapter, ...]:
    """The adapters written under `folder` in the format of every target that keeps them."""
    return tuple(
        RuntimeAdapter(one.name, target.name, target.lower_adapter(one.name, one.updates, recipe, folder), one.source)
        for target in _holding(targets)
        for one in kept
    )


def _numbers(updates: Mapping[str, LowRank]) -> int:
    return sum(prod(one.a.shape) + prod(one.b.shape) for one in updates.values())


def _holding(targets: Sequence[str]) -> list[AdapterTarget]:
    return [found for found in map(registry.target, targets) if isinstance(found, AdapterTarget)]


def _open(spec: RuntimeAdapterSpec, checkpoint: Checkpoint) -> Kept:
    model = family(checkpoint.family)
    opened = open_adapter(AdapterSpec(spec.location), model, model.parameters(checkpoint.config))
    name = spec.name or opened.name.rpartition("/")[2]
    faults = _misplaced(opened, model, checkpoint.tied) + _replaced(opened, checkpoint)
    if not _NAME.fullmatch(name):
        faults.append(
            f"'{name}' is no name for it (possible: letters, digits, '.', '_' and '-'; give one with NAME=PATH)"
        )
    if faults:
        raise _refusal(spec, faults)
    return Kept(name, tuple(file_entry(opened.location, path) for path in opened.files), opened.updates)


def _refusal(spec: RuntimeAdapterSpec, faults: Sequence[str]) -> AdapterError:
    return AdapterError(
        f"adapter '{spec.location}' cannot be kept for run time: {'; '.join(faults)} (possible: LoRA on matrices of "
        "the decoder, and on a head of its own). Merge it instead: ossicle build CHECKPOINT --adapter PATH"
    )


def _misplaced(adapter: Adapter, model: Family, tied: bool) -> list[str]:
    """Every part that an adapter changes and no engine adds to as it runs."""
    parts = [model.part(name) for name in adapter.updates]
    faults = [f"it changes {said} in {parts.count(part)} places" for part, said in _AUDIO.items() if part in parts]
    if not parts:
        faults.append("it changes no matrix")
    if "embedding" in parts:
        faults.append("it changes the embedding")
    if "lm_head" in parts and tied:
        faults.append("it changes a head that is the embedding")
    return faults


def _replaced(adapter: Adapter, checkpoint: Checkpoint) -> list[str]:
    replaced = [name for name, tensor in adapter.replacements.items() if not equal(tensor, checkpoint.tensors[name])]
    return [f"it replaces '{name}' whole" for name in sorted(replaced)]
