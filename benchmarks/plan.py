"""What `ossicle plan --device here` foretells of bundles beside what measuring them gives, in one run, as ratios.

    python benchmarks/plan.py CHECKPOINT BUNDLE [BUNDLE ...] [--turns 4]

Every target of every bundle is a configuration: opened in a process of its own, as `ossicle bench` opens it, and given a window
of noise, a prompt and 16 tokens in each turn. A turn is beside the forecast from what memory gives just before and after it,
since that changes on a virtual machine; printed is the turn of the median ratio. A bundle may be of another checkpoint:
CHECKPOINT=BUNDLE. The exit code says whether all tokens per second are within 25 %.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

from ossicle.benchmarks.process import machine
from ossicle.cli.here import here
from ossicle.compiler.forecast import PROMPT, Forecast, forecast
from ossicle.compiler.plan import described, size
from ossicle.compiler.stored import recipe_of
from ossicle.runtimes.bandwidth import read_bandwidth
from ossicle.runtimes.measure import Child
from ossicle.runtimes.measurements import Times, of_plan
from ossicle.runtimes.options import Options
from ossicle.runtimes.plans import Placement, Plan
from ossicle.runtimes.processor import processor
from ossicle.targets import manifest as manifests
from ossicle.targets import registry
from ossicle.targets.devices import Device
from ossicle.targets.manifest import Manifest

WITHIN = 0.25
CONTEXT = 8192


@dataclass(frozen=True)
class Line:
    """A configuration: what was foretold and what was measured, in tokens a second and seconds of a window."""

    name: str
    bandwidth: float  # bytes a second, as the turn had it
    forecast: Forecast
    times: Times
    tokens: int  # of a window

    @property
    def ratios(self) -> tuple[float, float, float]:
        """Foretold over measured: tokens a second of steps, tokens a second of prompts, windows a second."""
        assert self.times.step
        assert self.times.prefill
        assert self.times.encoder
        steps = self.forecast.tokens_per_second * self.times.step
        prompts = self.prompt * self.times.prefill / self.tokens
        return steps, prompts, self.times.encoder / self.forecast.encoder

    @property
    def prompt(self) -> float:
        """Tokens a second of prompts that were foretold."""
        return (self.tokens + PROMPT) / self.forecast.prefill


def main() -> int:
    options = _options()
    device = here()
    print(f"{machine()}; {device.bandwidth / 1e9:.1f} GB/s, {device.operations / 1e9:.0f} GFLOP/s\n", flush=True)
    lines = [line for given in options.bundle for line in _lines(given, options, device)]
    print(
        "| | GB/s | tokens/s | measured | ratio | prompt, tokens/s | measured | ratio | encoder, s | measured | ratio |"
    )
    print("|---" * 11 + "|")
    for line in lines:
        print(_row(line))
    off = [line.name for line in lines if abs(line.ratios[0] - 1) > WITHIN]
    print(
        f"\n{len(lines) - len(off)} of {len(lines)} within {WITHIN:.0%} of the measured tokens/s; beyond: {off or 'none'}"
    )
    return int(bool(off))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="what the bundles were built of; its configuration is enough")
    parser.add_argument("bundle", nargs="+", help="a bundle, or CHECKPOINT=BUNDLE")
    parser.add_argument("--turns", type=int, default=5)
    return parser.parse_args()


def _lines(given: str, options: argparse.Namespace, device: Device) -> Iterator[Line]:
    """The median turn of every target of a bundle."""
    checkpoint, _, folder = given.rpartition("=")
    manifest, model = manifests.read(Path(folder)), described(checkpoint or options.checkpoint)
    recipe, tokens = recipe_of(manifest.recipe), manifest.audio.tokens_per_window
    for target in dict.fromkeys(one.target for one in manifest.artifacts if one.stage == "decoder"):
        name, one = f"{Path(folder).name}, {target}", size(model, target, recipe, CONTEXT)
        turns = [
            Line(name, bandwidth, forecast(model, one, replace(device, bandwidth=bandwidth), CONTEXT), times, tokens)
            for bandwidth, times in measured(Path(folder), manifest, target, options.turns)
        ]
        yield sorted(turns, key=lambda line: line.ratios[0])[len(turns) // 2]


def measured(folder: Path, manifest: Manifest, target: str, turns: int) -> Iterator[tuple[float, Times]]:
    """Turns of a target's engine, each with the bandwidth around it.

    llama.cpp hears by the exact encoder that its bundle has beside it.
    """
    hearing = [one.target for one in manifest.artifacts if one.stage == "audio_encoder"]
    encoder = target if target in hearing and target != "gguf" else next(one for one in hearing if one != "gguf")
    decoder = Placement(registry.ENGINES[target])
    child = Child(folder, Options(), of_plan(Plan(Placement(registry.ENGINES[encoder]), decoder, decoder)))
    try:
        child.open(monotonic() + 300)
        for _ in range(turns):
            child.row, before = replace(child.row, times=Times()), _bandwidth()
            child.run(monotonic() + 300)
            if child.row.reason:
                raise SystemExit(f"{folder}, {target}: {child.row.reason}")
            yield (before + _bandwidth()) / 2, child.row.times
    finally:
        child.close()


def _bandwidth() -> float:
    found = read_bandwidth(processor())
    if found is None:
        raise SystemExit("too little memory is free to measure how fast it is read")
    return found


def _row(line: Line) -> str:
    assert line.times.step
    assert line.times.prefill
    steps, prompts, windows = line.ratios
    cells = (
        line.name,
        f"{line.bandwidth / 1e9:.0f}",
        f"{line.forecast.tokens_per_second:.1f}",
        f"{1 / line.times.step:.1f}",
        f"{steps:.2f}",
        f"{line.prompt:.0f}",
        f"{line.tokens / line.times.prefill:.0f}",
        f"{prompts:.2f}",
        f"{line.forecast.encoder:.2f}",
        f"{line.times.encoder:.2f}",
        f"{windows:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
