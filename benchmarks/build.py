"""How fast a checkpoint becomes a bundle, and in how much memory, next to the tools that others build with.

    pip install -e '.[bench]'
    python benchmarks/build.py                     Voxtral-Mini-3B's shape, 9 GB, and the plan of Voxtral-Small-24B's
    python benchmarks/build.py --quick             the same on toys, in minutes
    python benchmarks/build.py --llama-cpp DIR     with llama.cpp's converter from a checkout of it

Every format has its peers (benchmarks/peers.py). The two build the same checkpoint, one after the other, each step a process
of its own. transformers' exporters hold the whole model, and more: `--peer-layers` of each tower is what they are given.
"""

import argparse
import importlib.util
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossicle.benchmarks import peers
from ossicle.benchmarks.checkpoints import MINI_3B, SMALL_24B, configuration, write_random
from ossicle.benchmarks.process import Measured, machine, measure

_ROOT = Path(__file__).parents[1]
_SHARD_BYTES = 5_000_000_000
_TOY_AUDIO = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
_TOY_TEXT = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
_TOY = configuration(audio=_TOY_AUDIO, text=_TOY_TEXT)
_QUANT = {"onnx": "int4", "openvino": "int4", "gguf": "q4_k_m", "coreml": "int4"}
_STREAMING = ("gguf",)  # formats whose peer holds less than the model, and is given all of it


@dataclass(frozen=True)
class Taken:
    """What a builder's processes took together, one after the other."""

    seconds: float
    cpu: float
    peak: int  # bytes, of the largest

    @property
    def gibibytes(self) -> float:
        return self.peak / 2**30


def main() -> None:
    """Run what the command line asks for and print a table; `plan` is one of the processes that it measures."""
    options = _options()
    {"run": run, "plan": plan}[options.command](options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", default="run", choices=("run", "plan"), help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="toys of the same architecture")
    parser.add_argument("--formats", default=",".join(_QUANT), help="which to build, of: %(default)s")
    parser.add_argument("--layers", type=int, help="layers of each tower, instead of all")
    parser.add_argument("--peer-layers", type=int, default=4, help="the same for a peer that holds the whole model")
    parser.add_argument("--llama-cpp", type=Path, help="a checkout of llama.cpp, for its converter")
    parser.add_argument("--no-plan", action="store_true", help="leave the 24B shape out")
    parser.add_argument("--folder", type=Path, default=_ROOT / "build" / "bench", help="where checkpoints are written")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints for the next run")
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """Build with ossicle and with the peers, plan the large shape, and print what each took."""
    print(f"{machine()}\n", flush=True)
    print("| built by | shape | checkpoint | time | CPU | speed | peak memory | GiB per GB | written |")
    print("|---" * 9 + "|", flush=True)
    formats = options.formats.split(",")
    whole, part = (_cut(_TOY if options.quick else MINI_3B, layers) for layers in (options.layers, options.peer_layers))
    _build_all(options, whole, formats, [name for name in formats if whole == part or name in _STREAMING])
    if whole != part:
        beside = [name for name in formats if name not in _STREAMING]
        _build_all(options, part, beside, beside)
    if not options.no_plan:
        taken = measure([sys.executable, __file__, "plan", *(["--quick"] if options.quick else [])])
        print(f"\nplan alone: {taken.seconds:.0f} s, {taken.gibibytes:.2f} GiB\n{taken.output}")


def _build_all(
    options: argparse.Namespace, config: Mapping[str, Any], formats: Sequence[str], with_peer: Sequence[str]
) -> None:
    """A line for ossicle's build of a checkpoint in each format, and behind it those of its peer."""
    shape = f"{config['audio_config']['num_hidden_layers']} + {config['text_config']['num_hidden_layers']} layers"
    folder = options.folder / f"{'toy' if options.quick else 'mini-3b'}-{shape.replace(' ', '')}"
    checkpoint, size = _checkpoint(folder, config, keep=options.keep)
    try:
        for name in formats:
            ours = _print_ours(name, checkpoint, folder / "bundle", shape, size)
            steps = _peer(options, name, checkpoint, folder / "peer") if name in with_peer else []
            if steps:
                _print_peer(steps, ours, shape, size)
            shutil.rmtree(folder / "peer", ignore_errors=True)
    finally:
        shutil.rmtree(folder / "bundle", ignore_errors=True)
        shutil.rmtree(folder / "peer", ignore_errors=True)
        if not options.keep:
            shutil.rmtree(folder)


def _print_ours(name: str, checkpoint: Path, bundle: Path, shape: str, size: int) -> Taken:
    ossicle = str(Path(sys.executable).with_name("ossicle"))
    command = [ossicle, "build", str(checkpoint), "--out", str(bundle), "--target", name, "--quant", _QUANT[name]]
    ours = _sum([measure([*command, "--no-verify", "--force"])])
    print(_line(f"ossicle {name} {_QUANT[name]}", shape, size, ours, bundle / name), flush=True)
    return ours


def _peer(options: argparse.Namespace, name: str, checkpoint: Path, folder: Path) -> list[peers.Step]:
    if name == "gguf":
        sources = options.llama_cpp
        return peers.gguf_steps(checkpoint, folder, sources, _QUANT[name]) if sources else []
    return {"onnx": peers.onnx_steps, "openvino": peers.openvino_steps, "coreml": peers.coreml_steps}[name](
        checkpoint, folder
    )


def _print_peer(steps: Sequence[peers.Step], ours: Taken, shape: str, size: int) -> None:
    taken = []
    for step in steps:
        taken.append(measure(step.command, environment=step.environment))
        print(_line(step.title, shape, size, _sum(taken[-1:])), flush=True)
    theirs = _sum(taken)
    print(_line("the peer altogether", shape, size, theirs, steps[-1].writes))
    print(f"| ossicle / peer | | | {ours.seconds / theirs.seconds:.2f} | {ours.cpu / theirs.cpu:.2f} "
          f"| | {ours.peak / theirs.peak:.2f} | | |", flush=True)  # fmt: skip


def _sum(taken: Sequence[Measured]) -> Taken:
    return Taken(sum(one.seconds for one in taken), sum(one.cpu for one in taken), max(one.peak for one in taken))


def _line(builder: str, shape: str, size: int, taken: Taken, written: Path | None = None) -> str:
    gigabytes = size / 1e9
    out = f"{_bytes(written) / 1e9:.2f} GB" if written else ""
    return (
        f"| {builder} | {shape} | {gigabytes:.2f} GB | {taken.seconds:.0f} s | {taken.cpu:.0f} s "
        f"| {size / 1e6 / taken.seconds:.0f} MB/s | {taken.gibibytes:.2f} GiB | {taken.gibibytes / gigabytes:.2f} | {out} |"
    )


def _bytes(path: Path) -> int:
    """The bytes of a file, or of all files of a folder."""
    return (
        path.stat().st_size if path.is_file() else sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    )


def _checkpoint(folder: Path, config: Mapping[str, Any], *, keep: bool) -> tuple[Path, int]:
    """A checkpoint of random bfloat16 numbers, as large as the configuration says, and the bytes of its weights."""
    checkpoint = folder / "checkpoint"
    done = folder / "bytes"
    if not (keep and done.is_file()):
        size = write_random(checkpoint, config, tokenizer=tokenizer(), shard_bytes=_SHARD_BYTES)
        done.write_text(str(size))
    return checkpoint, int(done.read_text())


def tokenizer() -> Path:
    """The tekken.json of 131072 tokens that comes with mistral-common."""
    package = importlib.util.find_spec("mistral_common")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "data" / "tekken_240911.json"


def _cut(config: Mapping[str, Any], layers: int | None) -> dict[str, Any]:
    if layers is None:
        return dict(config)
    cut = {name: {**config[name], "num_hidden_layers": layers} for name in ("audio_config", "text_config")}
    return {**config, **cut}


@dataclass(frozen=True)
class Shape:
    """A tensor of which only the shape is there."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "bfloat16"

    def rows(self, start: int, stop: int) -> Any:
        raise AssertionError(f"rows {start}:{stop} of '{self.name}' were asked for while planning")


def plan(options: argparse.Namespace) -> None:
    """Trace the 24B shape, place every weight, and print the files that its build would write."""
    from ossicle.compiler.families import family
    from ossicle.compiler.quantize import Weights
    from ossicle.compiler.trace import trace
    from ossicle.targets import onnx
    from ossicle.targets.recipes import recipe as named

    config = _cut(_TOY if options.quick else SMALL_24B, options.layers)
    model, recipe = family("voxtral"), named(_QUANT["onnx"])
    tensors = {name: Shape(name, shape) for name, shape in model.parameters(config).items()}
    weights = Weights(tensors, recipe, model)
    for stage in trace("voxtral", config, recipe.context).stages:
        planned = onnx.place(stage, recipe, weights)
        for path, size in zip(planned.data, planned.layout.sizes(), strict=True):
            print(f"{path}  {size / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
