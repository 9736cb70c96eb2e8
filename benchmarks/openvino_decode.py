"""Speed and memory of OpenVINO's decoder with keys and values as its state, and of the alternatives, in one run as ratios.

    python benchmarks/openvino_decode.py [--layers 4] [--prompt 384] [--steps 32] [--recipe int4]

Voxtral-Mini's own widths with random weights, cut to a few layers; every form computes with the same `.bin`. "stateful" is what
a bundle runs on, "stateful int8" the same with its cache in eight bits, "handed over" the stateless form, whose cache goes in
and out at every step, and "transformed" the stateless form made stateful by OpenVINO's own transformation, without `beam_idx`.
All are open at once and measured in turns. Memory is that of a process for each, which opens one form and takes as many steps.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from ossicle.benchmarks.checkpoints import configuration
from ossicle.benchmarks.decode import Random, seconds
from ossicle.benchmarks.process import machine
from ossicle.compiler.families import family, voxtral
from ossicle.compiler.pipeline import Silent
from ossicle.compiler.quantize import Weights
from ossicle.runtimes.base import Sequences
from ossicle.runtimes.openvino_models import keep_last
from ossicle.runtimes.openvino_settings import settings
from ossicle.runtimes.openvino_stateful import StatefulDecoder
from ossicle.runtimes.options import Options
from ossicle.targets.contract import Float32
from ossicle.targets.openvino import FOLDER, STATELESS, STEMS, Openvino
from ossicle.targets.recipes import RECIPES

FORMS = ("stateful", "stateful int8", "handed over", "transformed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=384)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--recipe", default="int4")
    parser.add_argument("--memory", nargs=2, metavar=("FORM", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        form, folder = options.memory
        print(memory(form, Path(folder), options))
        return
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        build(Path(scratch), options.recipe, options.layers)
        taken = {form: _in_a_process(form, scratch, options) for form in FORMS}
        report(Path(scratch) / FOLDER, options, taken)


def build(folder: Path, recipe: str, layers: int) -> None:
    """Write a decoder of random weights."""
    config = configuration(text={"num_hidden_layers": layers})
    chosen = replace(RECIPES[recipe], context=8192)
    sources = {name: Random(name, shape) for name, shape in voxtral.parameters(config).items()}
    stages = voxtral.stages(config, chosen.context)
    decoder = next(stage for stage in stages if stage.name == "decoder")
    Openvino().lower(decoder, chosen, Weights(sources, chosen, family("voxtral")), folder, Silent())


class HandedOver:
    """A decoder whose cache, of one row, its caller holds."""

    def __init__(self, model: Any) -> None:
        self._request = model.create_infer_request()
        self._past = [name for port in model.inputs if (name := port.get_any_name()).startswith("past_key_values.")]
        self._empty = {
            name: np.zeros([1, *[size.get_length() if size.is_static else 0 for size in list(shape)[1:]]], np.float32)
            for name in self._past
            for shape in [model.input(name).get_partial_shape()]
        }

    def prefill(self, prompts: list[Float32]) -> tuple[Float32, Sequences]:
        """Logits after one prompt, and the state."""
        self._request.reset_state()
        return self.advance(Sequences([0], self._empty), prompts[0][None])

    def advance(self, state: Sequences, embeddings: Float32) -> tuple[Float32, Sequences]:
        """Logits after more of it, and the state."""
        length, new = state.lengths[0], embeddings.shape[1]
        inputs = {
            "inputs_embeds": embeddings,
            "attention_mask": np.ones((1, length + new), np.int64),
            "position_ids": np.arange(length, length + new)[None],
            "num_logits_to_keep": np.array(1),
        }
        results = self._request.infer(inputs | state.cache, share_inputs=True)
        grown = {name: results[name.replace("past_key_values", "present")] for name in self._past}
        return results["logits"][:, -1], Sequences([length + new], grown)


def opened(form: str, root: Path, recipe: str) -> Any:
    """The decoder in one of FORMS."""
    import openvino

    core = openvino.Core()
    data = root / f"{STEMS['decoder']}.bin"
    stateful = form.startswith("stateful")
    model = core.read_model(root / f"{STEMS['decoder'] if stateful else STATELESS}.xml", data)
    if form == "transformed":
        _make_stateful(model)
    keep_last(model)
    facts = asdict(RECIPES[recipe])
    told = settings(facts, Options(kv_cache="int8" if form == "stateful int8" else ""))
    return (StatefulDecoder if stateful else HandedOver)(core.compile_model(model, "CPU", told))


def _make_stateful(model: Any) -> None:
    from openvino._offline_transformations import apply_make_stateful_transformation

    names = [name for port in model.inputs if (name := port.get_any_name()).startswith("past_key_values.")]
    model.reshape({name: [1, *list(model.input(name).get_partial_shape())[1:]] for name in names})
    apply_make_stateful_transformation(model, {name: name.replace("past_key_values", "present") for name in names})


def report(root: Path, options: argparse.Namespace, memory: dict[str, float]) -> None:
    """Measure prefill and steps in turns; print tokens per second, memory and ratios to "stateful"."""
    decoders = {form: opened(form, root, options.recipe) for form in FORMS}
    prompt, token = _inputs(options.prompt)
    runs = {form: [_steps(decoder, prompt, token, options.steps)] for form, decoder in decoders.items()}
    for _ in range(2):
        for form, decoder in decoders.items():
            runs[form].append(_steps(decoder, prompt, token, options.steps))
    prefill = {form: min(first for first, _ in one) for form, one in runs.items()}
    step = {form: statistics.median([taken for _, steps in one for taken in steps]) for form, one in runs.items()}
    print(f"{'form':14} {'prefill tok/s':>14} {'step ms':>8} {'steps, x':>9} {'memory MiB':>11} {'memory, x':>10}")
    for form in FORMS:
        print(
            f"{form:14} {len(prompt) / prefill[form]:14.1f} {step[form] * 1e3:8.1f} "
            f"{step['stateful'] / step[form]:9.2f} {memory[form]:11.0f} {memory[form] / memory['stateful']:10.2f}"
        )


def memory(form: str, folder: Path, options: argparse.Namespace) -> float:
    """MiB that opening a form and running it takes."""
    import psutil

    before = psutil.Process().memory_info().rss
    decoder = opened(form, folder / FOLDER, options.recipe)
    _steps(decoder, *_inputs(options.prompt), options.steps)
    return float(psutil.Process().memory_info().rss - before) / 2**20


def _in_a_process(form: str, folder: str, options: argparse.Namespace) -> float:
    told = ["--prompt", str(options.prompt), "--steps", str(options.steps), "--recipe", options.recipe]
    command = [sys.executable, __file__, "--memory", form, folder, *told]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _inputs(length: int) -> tuple[Float32, Float32]:
    random = np.random.default_rng(0)
    hidden = voxtral.text_facts(configuration()).hidden
    prompt, token = (random.standard_normal(shape).astype(np.float32) for shape in ((length, hidden), (1, 1, hidden)))
    return prompt, token


def _steps(decoder: Any, prompt: Float32, token: Float32, count: int) -> tuple[float, list[float]]:
    """Seconds of a prefill, and of each step after it."""
    advance: Callable[..., Any] = decoder.advance
    first, (_, state) = seconds(decoder.prefill, [prompt])
    taken = []
    for _ in range(count):
        one, (_, state) = seconds(advance, state, token)
        taken.append(one)
    return first, taken


if __name__ == "__main__":
    main()
