"""Our block quantizers against ggml's own in the same run, one thread each; and what a second thread adds to either.

    python benchmarks/kquants.py [--formats Q4_K,Q6_K] [--rows 512] [--columns 4096] [--repeats 5] [--imatrix]

ggml is `ggml_quantize_chunk` in the shared object that xllamacpp brings. The two take turns, and the best turn of each
counts, so that a busy machine slows both. Scaling is the speed of two threads on half of the rows each against one on all.
The threads stand ready, as they do in a build: to start them takes a twentieth of the time that our quantizers take.
"""

import argparse
import ctypes
import importlib.util
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ossicle.benchmarks.process import machine
from ossicle.kernels.kquants import LAYOUTS, Float32, UInt8, quantize

_GGML_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8}
_GGML_TYPES |= {"Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="Q4_K,Q6_K")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--imatrix", action="store_true", help="with an importance of each column")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    weights = random.standard_normal((options.rows, options.columns), np.float32) * np.float32(0.02)
    importance = random.exponential(size=options.columns).astype(np.float32) if options.imatrix else None
    print(
        machine()
        + "\n\n| format | ours, MB/s | ggml, MB/s | ratio | two threads: ours | ggml | bytes |\n"
        + "|---" * 7
        + "|"
    )
    for name in options.formats.split(","):
        print("| " + " | ".join(row(name, weights, importance, options.repeats)) + " |", flush=True)


def row(name: str, weights: Float32, importance: Float32 | None, repeats: int) -> tuple[str, ...]:
    """The table's line of a format: megabytes of float32 read in a second, ratio, scaling, and whether the bytes agree."""
    same = np.array_equal(quantize(weights, name, importance), ggml(weights, name, importance))
    with ThreadPoolExecutor(2) as pool:
        ours, theirs, ours_twice, theirs_twice = fastest(
            (
                lambda: quantize(weights, name, importance),
                lambda: ggml(weights, name, importance),
                lambda: halves(pool, quantize, weights, name, importance),
                lambda: halves(pool, ggml, weights, name, importance),
            ),
            repeats,
        )
    speeds = (f"{weights.nbytes / seconds / 1e6:.0f}" for seconds in (ours, theirs))
    scaling = (f"{ours / ours_twice:.2f}x", f"{theirs / theirs_twice:.2f}x")
    return name, *speeds, f"{theirs / ours:.2f}x", *scaling, "equal" if same else "DIFFERENT"


def fastest(calls: tuple[Callable[[], object], ...], repeats: int) -> list[float]:
    """The least seconds of each call over `repeats` rounds in which they take turns."""
    seconds = [float("inf")] * len(calls)
    for _ in range(repeats):
        for index, call in enumerate(calls):
            started = time.perf_counter()
            call()
            seconds[index] = min(seconds[index], time.perf_counter() - started)
    return seconds


def halves(
    pool: ThreadPoolExecutor,
    quantizer: Callable[[Float32, str, Float32 | None], UInt8],
    weights: Float32,
    name: str,
    importance: Float32 | None,
) -> None:
    """Half of the rows on each of two threads."""
    list(pool.map(lambda part: quantizer(part, name, importance), np.array_split(weights, 2)))


def ggml(weights: Float32, name: str, importance: Float32 | None) -> UInt8:
    """What ggml makes of it, on one thread."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise SystemExit('ggml\'s quantizers are missing: pip install "ossicle[gguf]"')
    chunk = ctypes.CDLL(str(Path(found.origin).with_name("xllamacpp.abi3.so"))).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    rows, columns = weights.shape
    out = np.empty((rows, columns // LAYOUTS[name].columns * LAYOUTS[name].size), np.uint8)
    given = None if importance is None else importance.ctypes.data
    chunk(_GGML_TYPES[name], weights.ctypes.data, out.ctypes.data, 0, rows, columns, given)
    return out


if __name__ == "__main__":
    main()
