"""A tiny model with LoRA adapters that PEFT made, a bundle that keeps them, and what torch makes of PEFT's own merge."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ossicle.compiler.runtime_adapters import RuntimeAdapterSpec
from ossicle.runtimes.base import DecoderRuntime
from ossicle.runtimes.options import Options
from ossicle.targets import manifest
from ossicle.targets.contract import Float32
from ossicle.tests import checkpoints
from ossicle.tests.runtimes.tiny_gguf import CONFIG, logits, write_bundle

DECODER = r"model\.language_model\..*\.({})|lm_head"
EVERY = DECODER.format("[qkvo]_proj|gate_proj|up_proj|down_proj")
ADAPTERS: Mapping[str, dict[str, Any]] = {
    "plain": {"target_modules": EVERY, "r": 4, "lora_alpha": 6},
    "stable": {"target_modules": EVERY, "r": 4, "lora_alpha": 3, "use_rslora": True, "seed": 2},
    "uneven": {
        "target_modules": EVERY, "r": 4, "lora_alpha": 3, "seed": 3,
        "rank_pattern": {"q_proj": 2, "down_proj": 8}, "alpha_pattern": {"q_proj": 5, "lm_head": 1},
    },
}  # fmt: skip


@dataclass(frozen=True)
class AdaptedBundle:
    """A bundle that keeps every adapter, the model it was built from, and what each adapter adds to that in full."""

    folder: Path
    checkpoint: Path
    adapters: Path
    model: Any
    deltas: Mapping[str, Mapping[str, torch.Tensor]]

    def logits(self, values: Float32, scales: Mapping[str, float]) -> Float32:
        model, state = copy.deepcopy(self.model), self.model.state_dict()
        for name, scale in scales.items():
            state = {key: value + scale * self.deltas[name][key] for key, value in state.items()}
        model.load_state_dict(state)
        return logits(model, values)

    def embed(self, ids: Any) -> Float32:
        found: Float32 = self.model.get_input_embeddings().weight.detach().numpy()[ids]
        return found

    def open(self, runtime: DecoderRuntime, scales: Mapping[str, float]) -> Any:
        return runtime.open_decoder(self.folder, manifest.read(self.folder), Options(threads=1, adapters=scales))


def build(work: Path, **options: Any) -> AdaptedBundle:
    """A tiny bundle that keeps every adapter for every target that can, in `work`."""
    model = checkpoints.model(CONFIG)
    plain, deltas = model.state_dict(), {}
    for name, said in ADAPTERS.items():
        with warnings.catch_warnings():
            # PEFT saves the base of a head beside an update of it, and says so.
            warnings.filterwarnings("ignore", "Setting `save_embedding_layers`")
            wrapped = checkpoints.save_adapter(work / name, copy.deepcopy(model), **said)
        merged = wrapped.merge_and_unload().state_dict()
        deltas[name] = {key: merged[key] - plain[key] for key in plain}
    specs = [RuntimeAdapterSpec(work / name) for name in ADAPTERS]
    folder = write_bundle(work, model, runtime_adapters=specs, **{"targets": ("onnx", "gguf")} | options)
    return AdaptedBundle(folder, work / "checkpoint", work, model, deltas)
