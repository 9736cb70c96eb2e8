"""How fast a checkpoint becomes a bundle, and in how much memory, next to the tools that others build with.

    python benchmarks/build.py            Voxtral-Mini-3B's shape, 9 GB, and the plan of Voxtral-Small-24B's
    python benchmarks/build.py --quick    the same on toys, in a minute

Each build runs in a process of its own, in the same run. The peer is transformers' exporter to ONNX with ONNX Runtime's
4-bit quantizer behind it, on the largest checkpoint that it can hold: `--peer-layers` of each tower.
"""

import argparse
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ossicle.benchmarks.checkpoints import MINI_3B, SMALL_24B, configuration, write_random
from ossicle.benchmarks.process import Measured, machine, measure

_ROOT = Path(__file__).parents[1]
_SHARD_BYTES = 5_000_000_000
_TOY_AUDIO = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
_TOY_TEXT = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512,
}  # fmt: skip
_TOY = configuration(audio=_TOY_AUDIO, text=_TOY_TEXT)


@dataclass(frozen=True)
class Row:
    """One line of the table: what was built, from how many bytes, and what that took."""

    builder: str
    model: str
    size: int  # bytes of weights in the checkpoint
    taken: Measured

    def line(self) -> str:
        gigabytes, peak = self.size / 1e9, self.taken.gibibytes
        return (
            f"| {self.builder} | {self.model} | {gigabytes:.2f} GB | {self.taken.seconds:.0f} s | {self.taken.cpu:.0f} s "
            f"| {self.size / 1e6 / self.taken.seconds:.0f} MB/s | {peak:.2f} GiB | {peak / gigabytes:.2f} |"
        )


def main() -> None:
    """Run what the command line asks for and print a table; the other commands are the processes that it measures."""
    options = _options()
    commands: Mapping[str, Callable[[argparse.Namespace], None]] = {"run": run, "plan": plan, "peer": peer}
    commands[options.command](options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", default="run", choices=("run", "plan", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="toys of the same architecture")
    parser.add_argument("--layers", type=int, help="layers of the encoder and of the decoder, instead of all")
    parser.add_argument("--peer-layers", type=int, default=4, help="the same of the peer's checkpoint; 0: no peer")
    parser.add_argument("--no-plan", action="store_true", help="leave the 24B shape out")
    parser.add_argument("--quant", default="int4", help="recipe of ossicle's builds")
    parser.add_argument("--folder", type=Path, default=_ROOT / "build" / "bench", help="where checkpoints are written")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints for the next run")
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """Build with ossicle and with the peer, plan the large shape, and print what each took."""
    print(f"{machine()}\n", flush=True)
    print("| built by | shape | checkpoint | time | CPU | speed | peak memory | GiB per GB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    whole = _TOY if options.quick else MINI_3B
    if options.layers is None or options.layers != options.peer_layers:
        _build(options, _cut(whole, options.layers), with_peer=False)
    if options.peer_layers:
        _build(options, _cut(whole, options.peer_layers), with_peer=True)
    if not options.no_plan:
        taken = measure([sys.executable, __file__, "plan", "--quant", options.quant, *_quick(options)])
        print(f"\nplan alone: {taken.seconds:.0f} s, {taken.gibibytes:.2f} GiB\n{taken.output}")


def _build(options: argparse.Namespace, config: Mapping[str, Any], *, with_peer: bool) -> None:
    name = f"{_layers(config, 'audio')} + {_layers(config, 'text')} layers"
    folder = options.folder / f"{'toy' if options.quick else 'mini-3b'}-{name.replace(' ', '')}"
    checkpoint, size = _checkpoint(folder, config, keep=options.keep)
    bundle = folder / "bundle"
    ossicle = [Path(sys.executable).with_name("ossicle"), "build", checkpoint, "--out", bundle]
    try:
        taken = measure([*ossicle, "--quant", options.quant, "--no-verify", "--force"])
        print(Row(f"ossicle {options.quant}", name, size, taken).line(), flush=True)
        if with_peer:
            _print_peer(folder, checkpoint, size, name)
    finally:
        shutil.rmtree(bundle, ignore_errors=True)
        if not options.keep:
            shutil.rmtree(folder)


def _print_peer(folder: Path, checkpoint: Path, size: int, name: str) -> None:
    made = folder / "peer"
    try:
        taken = measure([sys.executable, __file__, "peer", "--checkpoint", checkpoint, "--folder", made])
        steps = json.loads(taken.output.splitlines()[-1])
    finally:
        shutil.rmtree(made, ignore_errors=True)
    exported = replace(taken, seconds=steps["seconds"], cpu=steps["cpu"], peak=steps["peak"])
    print(Row("transformers OnnxExporter, float32", name, size, exported).line())
    print(Row("... and ONNX Runtime MatMulNBitsQuantizer", name, size, taken).line(), flush=True)


def _checkpoint(folder: Path, config: Mapping[str, Any], *, keep: bool) -> tuple[Path, int]:
    """A checkpoint of random bfloat16 numbers, as large as the configuration says, and the bytes of its weights."""
    checkpoint = folder / "checkpoint"
    done = folder / "bytes"
    if not (keep and done.is_file()):
        tokenizer = _tokenizer(config["text_config"]["vocab_size"])
        size = write_random(checkpoint, config, tokenizer=tokenizer, shard_bytes=_SHARD_BYTES)
        done.write_text(str(size))
    return checkpoint, int(done.read_text())


def _tokenizer(vocabulary: int) -> Path:
    """A tekken.json of that many tokens: the demo's, or the one that comes with mistral-common."""
    if vocabulary == 512:
        return _ROOT / "demo" / "model" / "tekken.json"
    package = importlib.util.find_spec("mistral_common")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "data" / "tekken_240911.json"


def _cut(config: Mapping[str, Any], layers: int | None) -> dict[str, Any]:
    if layers is None:
        return dict(config)
    cut = {name: {**config[name], "num_hidden_layers": layers} for name in ("audio_config", "text_config")}
    return {**config, **cut}


def _layers(config: Mapping[str, Any], tower: str) -> int:
    return int(config[f"{tower}_config"]["num_hidden_layers"])


def _quick(options: argparse.Namespace) -> list[str]:
    return ["--quick"] if options.quick else []


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
    model, recipe = family("voxtral"), named(options.quant)
    tensors = {name: Shape(name, shape) for name, shape in model.parameters(config).items()}
    weights = Weights(tensors, recipe, model)
    for stage in trace("voxtral", config, recipe.context).stages:
        planned = onnx.place(stage, recipe, weights)
        for path, size in zip(planned.data, planned.layout.sizes(), strict=True):
            print(f"{path}  {size / 1e9:.3f} GB")


def peer(options: argparse.Namespace) -> None:
    """Export with transformers, then quantize with ONNX Runtime; print what the first half took as JSON."""
    import resource
    import time

    started = time.perf_counter()
    _export(options.checkpoint, options.folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    half = {
        "seconds": time.perf_counter() - started,
        "cpu": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss * 1024,
    }
    for graph in sorted(options.folder.glob("*.onnx")):
        _quantize(graph, options.folder / "int4" / graph.name)
    print(f"\n{json.dumps(half)}")


def _export(checkpoint: Path, out: Path) -> None:
    import torch
    from transformers import VoxtralForConditionalGeneration
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = VoxtralForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    positions = model.config.audio_config.max_source_positions
    ids = torch.full((1, positions // 4 + 3), model.config.audio_token_id)
    ids[0, 0] = ids[0, -1] = ids[0, -2] = 3
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_features": torch.zeros(1, model.config.audio_config.num_mel_bins, 2 * positions),
    }
    exporter, form = OnnxExporter(), OnnxConfig(dynamic=True, ort_fusions="cpu")
    exporter.export_for_generation(model, inputs, form, multi_token_decode=True).save_pretrained(out)


def _quantize(source: Path, out: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    out.parent.mkdir(exist_ok=True)
    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), use_external_data_format=True)


if __name__ == "__main__":
    main()
