"""An adapter in PEFT's folder, opened and checked against the model that it is for."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..targets.contract import AdapterError, CheckpointError
from .families import Family
from .hub import fetch
from .lora import Adapter, AdapterSpec, LowRank
from .safetensors import StoredTensor, read_header

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PAIR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")

# What an adapter_config.json may say without changing the sum above: how it was trained, where it came from, what is read
# below, or what the stored names say already.
_PLAIN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# Initializations that leave the base weights alone; pissa, olora, corda and loftq take part of the base model away.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def open_adapter(spec: AdapterSpec, model: Family, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """The adapter at a location, checked against the model's parameters.

    Raises:
        AdapterError: it cannot be read, is of a kind that cannot be merged, or does not fit; every gap is named.
    """
    try:
        return _opened(spec, model, shapes)
    except AdapterError:
        raise
    except CheckpointError as reason:
        raise AdapterError(f"adapter '{spec.location}': {reason}") from reason


def _opened(spec: AdapterSpec, model: Family, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    folder, name = fetch(spec.location, lambda _: [_CONFIG, _WEIGHTS])
    config = _config(folder)
    stored = read_header(folder / _WEIGHTS)
    read = _Reading(config, model, shapes)
    for tensor in stored.values():
        read.add(tensor)
    updates = read.updates()
    if spec.weight != 1 and read.trained:
        listed = ", ".join(sorted(read.trained))
        read.faults.append(f"weight {spec.weight} cannot scale what it replaces whole ({listed}); possible: weight 1")
    if not stored:
        read.faults.append("it holds no tensors")
    if read.faults:
        listed = "; ".join(read.faults)
        raise AdapterError(
            f"adapter '{spec.location}' does not fit this {model.MODEL_TYPE}: {listed}. "
            "An adapter is merged into the model that it was trained on"
        )
    files = (folder / _CONFIG, folder / _WEIGHTS)
    return Adapter(name, folder, spec.weight, files, updates, read.replacements)


def _config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration, once all that it asks for can be merged."""
    if not (folder / _WEIGHTS).is_file() and (pickled := sorted(folder.glob("adapter_model.bin"))):
        raise AdapterError(
            f"'{pickled[0]}' is pickled, and loading it would run code (possible: {_WEIGHTS}). If you trust it, load it "
            "with PEFT and save it again: PeftModel.from_pretrained(model, folder).save_pretrained(folder)"
        )
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:
        raise AdapterError(f"'{path}' cannot be read: {reason}. Copy the adapter again") from reason
    if not isinstance(config, dict):
        raise AdapterError(f"'{path}' is not a JSON object. Copy the adapter again")
    if refused := _refused(config):
        raise AdapterError(
            f"adapter '{folder}' cannot be merged: {'; '.join(refused)} (possible: LoRA and rank-stabilized LoRA without "
            "bias, and modules_to_save). Merge it with PEFT's merge_and_unload and build from the result"
        )
    return config


def _refused(config: Mapping[str, Any]) -> list[str]:
    faults = []
    if config.get("peft_type") != "LORA":
        faults.append(f"peft_type is {config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        faults.append(f"bias is {config['bias']!r}")
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        faults.append(f"init_lora_weights is {start!r}, which changes the base model's weights")
    faults += [f"{key} is {config[key]!r:.60}" for key in sorted(config.keys() - _PLAIN - {"bias"}) if config[key]]
    faults += [f"{key} is {config.get(key)!r}" for key in ("r", "lora_alpha") if not _is_number(config.get(key))]
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict) or not all(map(_is_number, pattern.values())):
            faults.append(f"{key} is {pattern!r:.60}")
    return faults


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


class _Reading:
    """An adapter's stored tensors, sorted into low-rank pairs and replacements, and everything that is wrong with them."""

    def __init__(self, config: Mapping[str, Any], model: Family, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._config, self._model, self._shapes = config, model, shapes
        self._pairs: dict[str, dict[str, StoredTensor]] = {}  # module as stored -> "A", "B", "embedding_A", ...
        self.replacements: dict[str, StoredTensor] = {}
        self.trained: set[str] = set()  # replacements that are more than a copy of the base
        self.faults: list[str] = []

    def add(self, tensor: StoredTensor) -> None:
        """Sort in one stored tensor."""
        stored = tensor.name.removeprefix("base_model.model.")
        if tensor.refusal:
            self.faults.append(tensor.refusal)
        elif match := _PAIR.fullmatch(stored):
            self._pairs.setdefault(match[1], {})[(match[2] or "") + match[3]] = tensor
        else:
            self._replace(stored, tensor)

    def updates(self) -> dict[str, LowRank]:
        """The low-rank updates by canonical name."""
        found: dict[str, LowRank] = {}
        for module, pair in self._pairs.items():
            name = self._model.adapted(f"{module}.weight")
            update = self._update(module, pair)
            if name not in self._shapes:
                self.faults.append(f"module '{module}' is not in the model")
            elif update is None:
                self.faults.append(f"'{module}' has {' and '.join(sorted(pair))} instead of lora_A and lora_B")
            elif name in found:
                self.faults.append(f"module '{module}' is there twice under two names")
            elif fault := self._misfit(module, update, self._shapes[name]):
                self.faults.append(fault)
            else:
                found[name] = update
        return found

    def _replace(self, stored: str, tensor: StoredTensor) -> None:
        name = self._model.adapted(re.sub(r"\.(base_layer|modules_to_save)(?=\.\w+$)", "", stored))
        if name not in self._shapes:
            self.faults.append(f"tensor '{tensor.name}' belongs to nothing in the model, and is no LoRA pair")
        elif tensor.shape != self._shapes[name]:
            self.faults.append(f"'{tensor.name}' is {tensor.shape}, the model has {self._shapes[name]}")
        elif name in self.replacements:
            self.faults.append(f"'{tensor.name}' is there twice under two names")
        else:
            self.replacements[name] = tensor
            if ".base_layer." not in stored:
                self.trained.add(name)

    def _update(self, module: str, pair: Mapping[str, StoredTensor]) -> LowRank | None:
        for embedding, keys in ((False, ("A", "B")), (True, ("embedding_A", "embedding_B"))):
            if pair.keys() == set(keys) and all(len(pair[key].shape) >= 2 for key in keys):
                return LowRank(pair[keys[0]], pair[keys[1]], self._scale(module), embedding)
        return None

    def _misfit(self, module: str, update: LowRank, shape: tuple[int, ...]) -> str | None:
        rank = _pattern(self._config.get("rank_pattern"), module, self._config["r"])
        if update.rank != rank:
            return f"'{module}' has rank {update.rank}, {_CONFIG} says {rank}"
        if not update.fits(shape):
            return f"'{module}' has A {update.a.shape} and B {update.b.shape}, the model has {shape}"
        return None

    def _scale(self, module: str) -> float:
        rank = _pattern(self._config.get("rank_pattern"), module, self._config["r"])
        alpha = _pattern(self._config.get("alpha_pattern"), module, self._config["lora_alpha"])
        return alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank


def _pattern(patterns: Mapping[str, float] | None, module: str, otherwise: float) -> float:
    """What a rank or alpha pattern says of a module: the first key, a regular expression, that is the end of its name.

    Source: peft.utils.other.get_pattern_key.
    """
    for key, value in (patterns or {}).items():
        try:
            if re.fullmatch(rf"(.*\.)?({key})", module):
                return value
        except re.error as reason:
            raise AdapterError(f"'{key}' in a pattern of {_CONFIG} is no regular expression: {reason}") from reason
    return otherwise
