"""From a recording to an answer: a window of audio and a hundred tokens, on ossicle and on its peers, in one run as ratios.

    python benchmarks/end_to_end.py                              ossicle, stock llama.cpp, transformers
    python benchmarks/end_to_end.py --ours int4-g128,int4 --rounds 3
    python benchmarks/end_to_end.py --genai DIR --python PYTHON    with onnxruntime-genai's build of the text part
    python benchmarks/end_to_end.py --exports DIR                  with transformers' exports in its onnx/int4 and openvino/int4

Random weights in Voxtral-Mini-3B's shape, cut to 8 encoder and 6 decoder layers. Every contestant (benchmarks/contestants.py)
runs in a process of its own and they take turns, so that whatever else the machine does falls on all of them. A figure is the
median of all passes. Stock llama.cpp reads what its own quantizer makes of the text in bfloat16 (Q4_0, the head Q6_K; package
cyllama, of `--python`), and audio in Q8_0. It averages pairs of audio frames, so that its prompt has half the audio tokens:
prefill is compared by tokens a second, the total by seconds.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossicle.benchmarks.build import tokenizer
from ossicle.benchmarks.checkpoints import configuration, write_random
from ossicle.benchmarks.process import machine, measure
from ossicle.targets import manifest as manifests

_ROOT = Path(__file__).parents[1]
_LAYERS = {"audio": 8, "text": 6}
_STOCK = "llama.cpp"
GOALS = {"encode": 4.0, "prefill": 3.0, "decode": 0.95, "total": 2.0, "peak": 1.0}  # times as good as stock llama.cpp


@dataclass(frozen=True)
class Entry:
    """A line of the table: what runs, and the arguments of benchmarks/contestants.py."""

    title: str
    arguments: Sequence[str]
    python: str = sys.executable
    may_fail: bool = False  # why is then said in its line


@dataclass(frozen=True)
class Figures:
    """Seconds to hear a window, tokens a second of prompt and answer, seconds of the whole, peak in GiB."""

    encode: float
    prefill: float
    decode: float
    total: float
    peak: float

    def times(self, other: "Figures") -> dict[str, float]:
        """How many times as good as another these are; who hears nothing has no time of hearing, and none of the whole."""
        if not self.encode:
            return {"prefill": self.prefill / other.prefill, "decode": self.decode / other.decode}
        return {
            "encode": other.encode / self.encode,
            "prefill": self.prefill / other.prefill,
            "decode": self.decode / other.decode,
            "total": other.total / self.total,
            "peak": other.peak / self.peak,
        }


def main() -> None:
    options = _options()
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = _checkpoint(options.folder / "checkpoint")
    bundles = {name: _bundle(checkpoint, options.folder / name, name) for name in options.ours.split(",")}
    entries = _entries(options, checkpoint, bundles, _stock(options, checkpoint))
    print(f"{machine()}\n", flush=True)
    told, failed = _take_turns(entries, options)
    report({title: figures(one) for title, one in told.items()}, {title: one[0] for title, one in told.items()}, failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", default="int4-g128,int4", help="recipes of ossicle's bundles (default: %(default)s)")
    parser.add_argument("--engines", default="auto", help="engines that ossicle is asked for, a line for each")
    parser.add_argument(
        "--peers",
        default=f"{_STOCK} -fa off,transformers",
        help="beside stock llama.cpp (default: %(default)s; '': none)",
    )
    parser.add_argument(
        "--genai", type=Path, help="onnxruntime-genai's model of the text part (benchmarks/peers.py build-genai)"
    )
    parser.add_argument(
        "--exports", type=Path, help="transformers' exports under onnx and openvino (benchmarks/peers.py, exported.py)"
    )
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the peers")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--passes", type=int, default=2, help="of each process")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=_ROOT / "build" / "end-to-end", help="where all of it is kept")
    return parser.parse_args()


def _checkpoint(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        layers = {part: {"num_hidden_layers": count} for part, count in _LAYERS.items()}
        write_random(folder, configuration(**layers), tokenizer=tokenizer())
    return folder


def _bundle(checkpoint: Path, folder: Path, recipe: str, targets: str = "") -> Path:
    """ossicle's bundle; with GGUF where that holds the recipe. Nobody verifies random weights."""
    if not (folder / "manifest.json").is_file():
        targets = targets or ("onnx,openvino" if recipe == "int4-g128" else "onnx,openvino,gguf")
        ossicle = str(Path(sys.executable).with_name("ossicle"))
        command = [ossicle, "build", str(checkpoint), "--out", str(folder), "--target", targets, "--quant", recipe]
        measure([*command, "--no-verify"])
    return folder


def _stock(options: argparse.Namespace, checkpoint: Path) -> Path:
    """llama.cpp's files: text.gguf of its own quantizer, mmproj.gguf of our int4 bundle."""
    folder: Path = options.folder / "stock"
    if not (folder / "text.gguf").is_file():
        folder.mkdir(exist_ok=True)
        plain = _bundle(checkpoint, options.folder / "bf16", "bf16", "gguf")
        source, made = _gguf(plain, "decoder"), folder / "quantized.gguf"
        measure([options.python, _ROOT / "benchmarks" / "peers.py", "quantize-gguf", source, made, "q4_0"])
        audio = _gguf(_bundle(checkpoint, options.folder / "int4", "int4"), "audio_encoder")
        shutil.copyfile(audio, folder / "mmproj.gguf")
        made.rename(folder / "text.gguf")
    return folder


def _gguf(bundle: Path, stage: str) -> Path:
    found = [one for one in manifests.read(bundle).artifacts if (one.target, one.stage) == ("gguf", stage)]
    return Path(bundle, found[0].files[0].path)


def _entries(
    options: argparse.Namespace, checkpoint: Path, bundles: Mapping[str, Path], stock: Path
) -> Sequence[Entry]:
    ours = [
        Entry(f"ossicle {recipe}, {engine}", ["ours", str(bundle), "--engine", engine])
        for recipe, bundle in bundles.items()
        for engine in options.engines.split(",")
    ]
    prompt = ["--bundle", str(next(iter(bundles.values())))]
    peers = [
        Entry(f"{_STOCK} -fa off", [f"{_STOCK} -fa off", str(stock), *prompt]),
        Entry("transformers, bf16, eager", ["transformers", str(checkpoint), *prompt]),
    ]
    if options.genai:
        peers.append(Entry("onnxruntime-genai, int4, text", ["genai", str(options.genai), *prompt], options.python))
    wanted = [entry for entry in peers if entry.arguments[0] in ("genai", *options.peers.split(","))]
    exports = _exports(options.exports, ["--checkpoint", str(checkpoint), *prompt]) if options.exports else []
    return [Entry(_STOCK, [_STOCK, str(stock), *prompt]), *ours, *wanted, *exports]


def _exports(folder: Path, rest: Sequence[str]) -> Sequence[Entry]:
    return [
        Entry(
            f"transformers' export to {title}, int4",
            [f"export {name}", str(folder / name / "int4"), *rest],
            may_fail=True,
        )
        for name, title in (("onnx", "ONNX"), ("openvino", "OpenVINO"))
    ]


def _take_turns(
    entries: Sequence[Entry], options: argparse.Namespace
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """What each told in its turns, and why some have nothing to tell."""
    told: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    for _ in range(options.rounds):
        for entry in entries:
            try:
                told.setdefault(entry.title, []).append(_run(entry, options))
            except RuntimeError as error:
                if not entry.may_fail:
                    raise
                failed[entry.title] = str(error).strip().splitlines()[-1]
    return {title: runs for title, runs in told.items() if title not in failed}, failed


def _run(entry: Entry, options: argparse.Namespace) -> dict[str, Any]:
    script = str(Path(__file__).with_name("contestants.py"))
    told = ["--passes", str(options.passes), "--tokens", str(options.tokens)]
    done = subprocess.run([entry.python, script, *entry.arguments, *told], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{entry.title} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{entry.title}: {answer}", file=sys.stderr, flush=True)
    return answer


def figures(runs: Sequence[Mapping[str, Any]]) -> Figures:
    """Medians over all passes of some processes; the peak is the largest."""
    passes = [one for run in runs for one in run["passes"]]

    def median(of: Sequence[float]) -> float:
        return statistics.median(of)

    return Figures(
        encode=median([one["encode"] for one in passes]),
        prefill=median([one["prompt_tokens"] / one["prefill"] for one in passes]),
        decode=median([one["new_tokens"] / one["decode"] for one in passes]),
        total=median([one["encode"] + one["prefill"] + one["decode"] for one in passes]),
        peak=max(run["peak"] for run in runs) / 2**30,
    )


def report(found: Mapping[str, Figures], first: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str]) -> None:
    """Print figures and, for each line, how many times as good as stock llama.cpp it is; why a line has none."""
    print("| | engine | prompt | encoder | prefill tok/s | decode tok/s | total | peak | opened in |")
    print("|---" * 9 + "|")
    for title, one in found.items():
        run = first[title]
        print(
            f"| {title} | {run['engine']} | {run['passes'][0]['prompt_tokens']} | {one.encode:.2f} s | {one.prefill:.0f} "
            f"| {one.decode:.1f} | {one.total:.2f} s | {one.peak:.2f} GiB | {run['open']:.1f} s |"
        )
    for title, reason in failed.items():
        print(f"| {title} | {reason} |" + " |" * 7)
    print(f"\n| times as good as stock {_STOCK} | encoder | prefill | decode | total | peak memory |")
    print("|---" * 6 + "|")
    for title, one in found.items():
        times = one.times(found[_STOCK])
        print(f"| {title} | " + " | ".join(f"{times[name]:.2f}x" if name in times else "" for name in GOALS) + " |")
    print("| goal | " + " | ".join(f"{goal:.2f}x" for goal in GOALS.values()) + " |")


if __name__ == "__main__":
    main()
