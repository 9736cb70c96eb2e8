"""Speed of the ONNX decoder's two forms of attention, in one run, as a ratio.

    python benchmarks/decode.py [--layers 4] [--prompt 384] [--steps 32] [--recipe int4]

Voxtral-Mini's own widths with random weights, cut to a few layers. Both artifacts are opened at once and measured in turns,
so that whatever else the machine does falls on both.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ossicle.benchmarks.checkpoints import configuration
from ossicle.compiler.families import family, voxtral
from ossicle.compiler.pipeline import Silent
from ossicle.compiler.quantize import Weights
from ossicle.runtimes.onnxruntime import RUNTIME
from ossicle.runtimes.options import Options
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import Artifact, Float32
from ossicle.targets.onnx import Onnx
from ossicle.targets.recipes import RECIPES

Form = Literal["fused", "standard"]
_FORMS: tuple[Form, ...] = ("fused", "standard")


@dataclass(frozen=True)
class Random:
    """A tensor of noise that is never whole in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def rows(self, start: int, stop: int) -> Float32:
        """Noise, the same for the same rows."""
        drawn = np.random.default_rng(start).random((stop - start, *self.shape[1:]), dtype=np.float32)
        return (drawn - np.float32(0.5)) * np.float32(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=384)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--recipe", default="int4")
    options = parser.parse_args()
    config = configuration(audio={"num_hidden_layers": 1}, text={"num_hidden_layers": options.layers})
    with tempfile.TemporaryDirectory() as scratch:
        engines = {form: build(config, Path(scratch) / form, options.recipe, form) for form in _FORMS}
        prompt = np.random.default_rng(0).standard_normal((options.prompt, voxtral.text_facts(config).hidden))
        report(engines, prompt.astype(np.float32), options.steps)


def build(config: dict[str, Any], folder: Path, recipe: str, form: Form) -> Any:
    """An engine over random weights, attention in one of its forms."""
    chosen = replace(RECIPES[recipe], attention=form, context=8192)
    sources = {name: Random(name, shape) for name, shape in voxtral.parameters(config).items()}
    weights = Weights(sources, chosen, family("voxtral"))
    stages = voxtral.stages(config, chosen.context)
    artifacts = tuple(Onnx().lower(stage, chosen, weights, folder, Silent()) for stage in stages)
    return RUNTIME.open(folder, manifest_of(config, artifacts), Options())


def manifest_of(config: dict[str, Any], artifacts: tuple[Artifact, ...]) -> manifests.Manifest:
    """The manifest of random weights."""
    return manifests.Manifest(
        family="voxtral",
        name="random",
        recipe={},
        source=manifests.Source("random", ()),
        adapters=(),
        audio=voxtral.audio_format(config),
        text=voxtral.text_format(config, {}),
        artifacts=artifacts,
        files=(),
        tools={},
    )


def report(engines: dict[Form, Any], prompt: Float32, steps: int) -> None:
    """Measure prefill and steps in turns; print tokens per second and the ratio."""
    prefill: dict[Form, list[float]] = {form: [] for form in engines}
    step: dict[Form, list[float]] = {form: [] for form in engines}
    states = {form: engine.prefill([prompt])[1] for form, engine in engines.items()}
    for _ in range(3):
        for form, engine in engines.items():
            prefill[form].append(seconds(engine.prefill, [prompt])[0])
    for _ in range(steps):
        for form, engine in engines.items():
            taken, (_, states[form]) = seconds(engine.step, states[form], np.array([1], np.int64))
            step[form].append(taken)
    print(f"{'attention':10} {'prefill tok/s':>14} {'step ms, median':>16} {'least':>8}")
    for form in engines:
        rate = len(prompt) / min(prefill[form])
        print(f"{form:10} {rate:14.1f} {statistics.median(step[form]) * 1e3:16.1f} {min(step[form]) * 1e3:8.1f}")
    fused, standard = (statistics.median(step[form]) for form in _FORMS)
    print(
        f"fused over standard: prefill {min(prefill['standard']) / min(prefill['fused']):.2f}x, step {standard / fused:.2f}x"
    )


def seconds(action: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """How long an action takes, and what it gives."""
    begun = time.perf_counter()
    result = action(*arguments)
    return time.perf_counter() - begun, result


if __name__ == "__main__":
    main()
