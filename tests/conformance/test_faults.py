"""Faults planted into what artifacts store of few bits: each moves logits further than its recipe may go."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ossicle.compiler.figures import divergence
from ossicle.runtimes.options import Options
from ossicle.runtimes.registry import runtime
from ossicle.targets.recipes import RECIPES
from ossicle.tests.conformance.conftest import Case

LAYER = "model.language_model.layers.1"
Parts = Mapping[str, NDArray[np.uint8]]  # of the decoder's weights, as they lie in the file: changing them changes it


def openvino_parts(bundle: Path) -> Parts:
    """The constants of the decoder by name, bytes [size]."""
    path = bundle / "openvino" / "openvino_language_model.xml"
    data = np.memmap(path.with_suffix(".bin"), np.uint8, "r+")
    layers = [layer for layer in ElementTree.parse(path).iter("layer") if layer.get("type") == "Const"]
    places = {str(layer.get("name")): layer.find("data") for layer in layers}
    spans = {
        name: (int(place.get("offset", 0)), int(place.get("size", 0)))
        for name, place in places.items()
        if place is not None
    }
    return {name: data[start : start + size] for name, (start, size) in spans.items()}


def gguf_parts(bundle: Path) -> Parts:
    """The blocks of the decoder's tensors by name, bytes [blocks, size]."""
    reader = gguf.GGUFReader(next((bundle / "gguf").glob("voxtral-*.gguf")), "r+")
    sizes = {one.name: gguf.GGML_QUANT_SIZES[one.tensor_type][1] for one in reader.tensors}
    return {one.name: one.data.reshape(-1).view(np.uint8).reshape(-1, sizes[one.name]) for one in reader.tensors}


def swap(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
    one[:], other[:] = other.copy(), one.copy()


def scale(bytes_: NDArray[np.uint8]) -> None:
    halves = np.ascontiguousarray(bytes_).view(np.float16)
    bytes_[:] = (halves * np.float16(1.25)).view(np.uint8)


def shift(bytes_: NDArray[np.uint8], width: int) -> None:
    """Each number of so many bytes where its neighbour was."""
    bytes_[:] = np.roll(bytes_, width, axis=-1)


PLANTS: Mapping[str, Mapping[str, Callable[[Parts], None]]] = {
    "int3": {
        "scale": lambda parts: scale(parts[f"{LAYER}.mlp.down_proj.weight.scales"]),
        "codes": lambda parts: swap(*(parts[f"{LAYER}.mlp.{name}_proj.weight.codes"] for name in ("gate", "up"))),
        "groups": lambda parts: shift(parts[f"{LAYER}.self_attn.o_proj.weight.scales"], 2),
    },
    "q2_k": {  # a block: 16 scales with their minima, 64 bytes of codes, the scale of both
        "scale": lambda parts: scale(parts["blk.1.ffn_gate.weight"][:, 80:]),
        "codes": lambda parts: swap(*(parts[f"blk.1.ffn_{name}.weight"][:, 16:80] for name in ("gate", "up"))),
        "groups": lambda parts: shift(parts["blk.1.ffn_up.weight"][:, :16], 1),
    },
}
OPENED = {"openvino": ("openvino", "", openvino_parts), "gguf": ("llamacpp", "float32", gguf_parts)}


@pytest.fixture
def planted(case: Case, tmp_path: Path) -> Callable[[Callable[[Parts], None]], float]:
    """What a fault does: the divergence from the numbers that were stored before it, in nats."""
    engine, compute, parts = OPENED[case.target]
    prompt = (np.random.default_rng(3).standard_normal((70, case.manifest.text.hidden)) * 0.5).astype(np.float32)
    with torch.no_grad():
        expected = case.stored(inputs_embeds=torch.from_numpy(prompt)[None]).logits[0].numpy()

    def diverged(plant: Callable[[Parts], None]) -> float:
        copy = tmp_path / "copy"
        shutil.copytree(case.folder, copy)
        plant(parts(copy))
        with closing(runtime(engine).open_decoder(copy, case.manifest, Options(1, compute=compute))) as opened:
            return float(divergence(expected, opened.score(prompt)).mean())

    return diverged


@pytest.mark.parametrize("fault", ["", "scale", "codes", "groups"])
def test_faults_are_beyond_what_a_recipe_may_differ_by(
    case: Case, planted: Callable[[Callable[[Parts], None]], float], fault: str
) -> None:
    most = RECIPES[case.recipe].thresholds.kl_stored
    assert most is not None
    if fault:
        assert planted(PLANTS[case.recipe][fault]) > most
    else:
        assert planted(lambda _: None) < most / 100
