"""Faults planted into a bundle of the shipped model: verification has to see each of them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from ossicle.compiler import verify
from ossicle.compiler.checkpoint import open_checkpoint
from ossicle.compiler.marking import mark
from ossicle.targets import manifest as manifests
from ossicle.tests.faults import DEMO, judged, recordings

LAYER = "model.language_model.layers.1."
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DEMO / "model" / "model.safetensors").is_file(), reason="the demo model is not there"),
]


class Stored:
    """The tensors of a bundle's ONNX graphs, as they lie in the files of weights."""

    def __init__(self, folder):
        import onnx

        self.places = {}
        for path in sorted(folder.glob("onnx/*.onnx")):
            for tensor in onnx.load(path, load_external_data=False).graph.initializer:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                if entries:
                    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
                    place = path.parent / entries["location"], int(entries["offset"]), dtype, tuple(tensor.dims)
                    self.places[tensor.name] = place

    def read(self, name):
        path, offset, dtype, shape = self.places[name]
        return np.fromfile(path, dtype, int(np.prod(shape)), offset=offset).reshape(shape)

    def write(self, name, values):
        path, offset, dtype, _ = self.places[name]
        with path.open("r+b") as stream:
            stream.seek(offset)
            stream.write(values.astype(dtype).tobytes())


def swap(stored):
    for part in ("codes", "scales"):
        first, second = (f"{LAYER}mlp.{name}_proj.weight.{part}" for name in ("gate", "up"))
        before, after = stored.read(first), stored.read(second)
        stored.write(first, after)
        stored.write(second, before)


def scale(stored):
    name = f"{LAYER}mlp.down_proj.weight.scales"
    stored.write(name, stored.read(name) * 1.25)


def shift_groups(stored):
    name = f"{LAYER}self_attn.o_proj.weight.scales"
    stored.write(name, np.roll(stored.read(name), 1))


def turn_backwards(stored):
    stored.write("sin", -stored.read("sin"))


def swap_nibbles(stored):
    name = f"{LAYER}self_attn.o_proj.weight.codes"
    codes = stored.read(name)
    stored.write(name, (codes << 4) | (codes >> 4))


def scale_encoder(stored):
    name = "model.audio_tower.layers.1.fc2.weight.scales"
    stored.write(name, stored.read(name) * 1.25)


def swap_encoder_layers(stored):
    for part in ("codes", "scales"):
        first, second = (f"model.audio_tower.layers.{layer}.self_attn.v_proj.weight.{part}" for layer in (0, 1))
        before, after = stored.read(first), stored.read(second)
        stored.write(first, after)
        stored.write(second, before)


@pytest.fixture(scope="module")
def work(demo_int4, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    recordings(folder)
    shutil.copytree(demo_int4, folder / "whole")
    return folder


def planted(work, plant, **options):
    return judged(work, "onnx", lambda bundle: plant(Stored(bundle)), **options)


def test_a_bundle_without_faults_computes_what_it_stores(work):
    checks = planted(work, lambda _: None)
    assert checks["kl_stored"].passed
    assert checks["embeddings_stored"].passed
    assert checks["kl"].passed
    assert checks["logmel"].passed


@pytest.mark.parametrize("plant", [swap, scale, shift_groups, turn_backwards, swap_nibbles])
def test_a_fault_in_the_decoder_is_seen(work, plant):
    assert not planted(work, plant, longest=1)["kl_stored"].passed


@pytest.mark.parametrize("plant", [scale_encoder, swap_encoder_layers])
def test_a_fault_in_the_encoder_is_seen(work, plant):
    assert not planted(work, plant, longest=1)["embeddings_stored"].passed


def test_a_failed_bundle_is_marked(work):
    planted(work, turn_backwards, longest=1)
    bundle = work / "bundle"
    before = manifests.read(bundle)
    checkpoint = open_checkpoint(DEMO / "model")
    verification = verify.verify(bundle, checkpoint, speech=work / "data.jsonl", cache=work / "cache")
    marked = mark(bundle, verification)
    assert manifests.read(bundle) == marked
    assert replace(marked, verification={}) == replace(before, verification={})
    assert marked.verification["onnx"]["passed"] is False
    assert "kl_stored" in marked.verification["onnx"]["failed"]
    assert not list(bundle.glob(".verification-*"))
