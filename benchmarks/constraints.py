"""What holding an answer to a schema costs, with 131072 tokens: once for a tokenizer, once for a schema, and each token.

    python benchmarks/constraints.py [--repeats 5]

The vocabulary is the Tekken one that comes with mistral-common. The answer is followed token by token, as its own tokenizer
cuts it; logits are noise.
"""

import argparse
import importlib.util
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ossicle.compiler.tokenizer import write_tokenizer
from ossicle.kernels.sampling import Chooser, Sampling
from ossicle.runtimes.constraints import Rules
from ossicle.runtimes.languages import text_language
from ossicle.runtimes.tokens import Tokenizer
from ossicle.tests.fakes import TEXT

FORMAT = replace(TEXT, vocabulary=131072)
FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "object": (
        {
            "type": "object",
            "properties": {
                "room": {"type": "string"},
                "on": {"type": "boolean"},
                "level": {"type": "integer"},
                "notes": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["room", "on", "level", "notes"],
        },
        '{"room": "the kitchen beside the long hall", "on": true, "level": 1234, "notes": ["evening", "warm été 日本"]}',
    ),
    "names": (
        {"type": "array", "items": {"enum": [f"room {number} of {number * 7}" for number in range(500)]}},
        '["room 3 of 21", "room 77 of 539", "room 499 of 3493"]',
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(tekken(), Path(scratch) / "tekken.json")
        path = write_tokenizer(Path(scratch), Path(scratch) / "tokenizer.json")
        took = [prepared(tokenizer := Tokenizer(path)) for _ in range(repeats)]
        print(f"vocabulary prepared: {statistics.median(took):.2f} s")
        for name, (schema, answer) in FORMS.items():
            report(name, tokenizer, schema, answer, repeats)


def tekken() -> Path:
    """The vocabulary of 131072 tokens that comes with mistral-common."""
    package = importlib.util.find_spec("mistral_common")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "data" / "tekken_240911.json"


def prepared(tokenizer: Tokenizer) -> float:
    """Seconds that rules take which need next to nothing but the vocabulary."""
    started = time.perf_counter()
    Rules(tokenizer, FORMAT, FORMAT.stop_tokens, text=text_language(regex="a"))
    return time.perf_counter() - started


def report(name: str, tokenizer: Tokenizer, schema: dict[str, Any], answer: str, repeats: int) -> None:
    """Print what a schema costs, and each token of an answer under it."""
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    tokens, logits = (
        tokenizer.encode(answer),
        np.random.default_rng(0).normal(size=FORMAT.vocabulary).astype(np.float32),
    )
    compiled, each, free = list[float](), list[float](), list[float]()
    for _ in range(repeats):
        started = time.perf_counter()
        rules = Rules(tokenizer, FORMAT, FORMAT.stop_tokens, text=text_language(form))
        compiled.append(time.perf_counter() - started)
        constraint, chooser = rules.start(), Chooser(Sampling(), FORMAT.vocabulary)
        for token in tokens:
            started = time.perf_counter()
            chooser.choose(logits)
            chosen = time.perf_counter()
            chooser.choose(logits, constraint.allowed())
            constraint.add(token)
            free.append(chosen - started)
            each.append(time.perf_counter() - chosen)
    longest = np.quantile(each, 0.99)
    print(
        f"{name}: schema {1e3 * statistics.median(compiled):.1f} ms; {len(tokens)} tokens, each "
        f"{1e3 * statistics.median(each):.2f} ms (99 in 100 within {1e3 * longest:.2f} ms), "
        f"free {1e3 * statistics.median(free):.2f} ms"
    )


if __name__ == "__main__":
    main()
