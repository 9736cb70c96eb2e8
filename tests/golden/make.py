"""Make a golden bundle: `python tests/golden/make.py NAME`, once for each version of the manifest's format.

A tiny random model in int4, with what it computed when it was made. Committed bundles are never made again: a newer ossicle
has to load them as they are.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from ossicle.compiler.pipeline import build
from ossicle.runtimes.opening import load
from ossicle.targets.recipes import RECIPES
from ossicle.tests import checkpoints
from ossicle.tests.golden.test_golden import EXPECTED, TOKENS, sound

FOLDER = Path(__file__).parent


def main(name: str) -> None:
    recipe = replace(RECIPES["int4"], integer_activations=False, context=512)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = checkpoints.save_hub(Path(scratch) / "tiny", checkpoints.model())
        out = FOLDER / name
        build(checkpoint, out, recipe=recipe, verify=False)
    with load(out) as session:
        np.savez(out / EXPECTED, audio=session.embed_audio(sound()), logits=session.score(sound(), TOKENS))


if __name__ == "__main__":
    main(sys.argv[1])
