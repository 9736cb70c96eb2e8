"""What adapters at run time cost on ONNX Runtime: a decoder without inputs for them, with none given, and with some added.

    python benchmarks/adapters.py [--layers 4] [--prompt 384] [--steps 48] [--rank 16] [--recipe int4]

Voxtral-Mini's own widths with random weights, cut to a few layers; every matrix of a layer is adapted. All are opened at once
and measured in turns of several steps, so that whatever else the machine does falls on all. The first steps of a turn do not
count: threads of the engine before still wait for more work then, and take time from this one.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ossicle.benchmarks.checkpoints import configuration
from ossicle.benchmarks.decode import Random, manifest_of, seconds
from ossicle.compiler.families import family, voxtral
from ossicle.compiler.pipeline import Silent
from ossicle.compiler.quantize import Weights
from ossicle.runtimes.onnxruntime import RUNTIME
from ossicle.runtimes.options import Options
from ossicle.targets.contract import Float32
from ossicle.targets.manifest import RuntimeAdapter
from ossicle.targets.onnx import Onnx
from ossicle.targets.recipes import RECIPES

TURN, SETTLING = 8, 3  # steps of an engine in succession, and how many of them do not count
_STAGES = ("embed_tokens", "decoder")


@dataclass(frozen=True)
class Noise:
    """A low-rank update of noise."""

    a: Random
    b: Random
    scale: float = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=384)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--recipe", default="int4")
    options = parser.parse_args()
    config = configuration(audio={"num_hidden_layers": 1}, text={"num_hidden_layers": options.layers})
    with tempfile.TemporaryDirectory() as scratch:
        plain = build(config, Path(scratch) / "plain", options.recipe, 0)
        open_ = build(config, Path(scratch) / "open", options.recipe, options.rank)
        engines = {
            "no inputs for adapters": plain,
            "none added": open_,
            f"one added, rank {options.rank}": open_.adapted({"one": 1.0}),
            f"two added, rank {options.rank} each": open_.adapted({"one": 1.0, "two": 0.5}),
        }
        prompt = np.random.default_rng(0).standard_normal((options.prompt, voxtral.text_facts(config).hidden))
        report(engines, prompt.astype(np.float32), options.steps)


def build(config: dict[str, Any], folder: Path, recipe: str, rank: int) -> Any:
    """An engine over random weights, with two adapters of this rank; 0: with none."""
    chosen = replace(RECIPES[recipe], context=8192)
    shapes = voxtral.parameters(config)
    weights = Weights({name: Random(name, shape) for name, shape in shapes.items()}, chosen, family("voxtral"))
    updates = {
        name: Noise(Random(name, (rank, shape[1])), Random(name, (shape[0], rank)))
        for name, shape in shapes.items()
        if rank and "language_model.layers" in name and len(shape) == 2
    }
    target = Onnx(updates)
    stages = [stage for stage in voxtral.stages(config, chosen.context) if stage.name in _STAGES]
    artifacts = tuple(target.lower(stage, chosen, weights, folder, Silent()) for stage in stages)
    kept = tuple(
        RuntimeAdapter(name, "onnx", target.lower_adapter(name, updates, chosen, folder), ())
        for name in (("one", "two") if rank else ())
    )
    return RUNTIME.open_decoder(folder, replace(manifest_of(config, artifacts), runtime_adapters=kept), Options())


def report(engines: dict[str, Any], prompt: Float32, steps: int) -> None:
    """Measure prefill and steps in turns; print times and how they compare with the first."""
    prefill: dict[str, list[float]] = {name: [] for name in engines}
    step: dict[str, list[float]] = {name: [] for name in engines}
    states = {name: engine.prefill([prompt])[1] for name, engine in engines.items()}
    for turn in range(4):
        for name in _turned(engines, turn):
            prefill[name].append(seconds(engines[name].prefill, [prompt])[0])
    for turn in range(-(-steps // (TURN - SETTLING))):
        for name in _turned(engines, turn):
            for number in range(TURN):
                taken, (_, states[name]) = seconds(engines[name].step, states[name], np.array([1], np.int64))
                step[name] += [taken] if number >= SETTLING else []
    first = next(iter(engines))
    print(f"{'':28} {'prefill s, least':>17} {'step ms, median':>16} {'least':>8} {'of the first':>24}")
    for name in engines:
        middle = statistics.median(step[name])
        ratio = f"prefill {min(prefill[name]) / min(prefill[first]):.3f}, step {middle / statistics.median(step[first]):.3f}"
        print(f"{name:28} {min(prefill[name]):17.2f} {middle * 1e3:16.2f} {min(step[name]) * 1e3:8.2f} {ratio:>24}")


def _turned(engines: dict[str, Any], turn: int) -> list[str]:
    """The engines' names, another of them first at each turn."""
    names, first = list(engines), turn % len(engines)
    return names[first:] + names[:first]


if __name__ == "__main__":
    main()
