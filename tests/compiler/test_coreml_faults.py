"""Faults planted into the Core ML packages of the shipped model: verification has to see each of them."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ossicle.compiler import pipeline
from ossicle.targets import coreml_ops as ops
from ossicle.targets.coreml_mil import Block, Value
from ossicle.tests.faults import DEMO, judged, recordings

CLIPS = ("02-digits-espeak.wav",)
LAYER = "model.language_model.layers.1."
ENCODER = "model.audio_tower.layers.1."
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DEMO / "model" / "model.safetensors").is_file(), reason="the demo model is not there"),
]


class Package:
    """A package opened for changing: its specification, and the numbers behind it."""

    def __init__(self, folder: Path) -> None:
        from coremltools.proto import Model_pb2

        self._path = folder / "Data" / "com.apple.CoreML" / "model.mlmodel"
        self._weights = self._path.parent / "weights" / "weight.bin"
        self.spec = Model_pb2.Model.FromString(self._path.read_bytes())

    def save(self) -> None:
        self._path.write_bytes(self.spec.SerializeToString(deterministic=True))

    def blocks(self, *names: str) -> Iterator[Any]:
        """The bodies of these functions, of all where none is named."""
        functions = self.spec.mlProgram.functions
        for name in names or sorted(functions):
            yield functions[name].block_specializations["CoreML8"]

    def of_kind(self, kind: str, *names: str) -> list[Any]:
        """Operations of a kind, in order, function by function."""
        return [one for block in self.blocks(*names) for one in block.operations if one.type == kind]

    def titled(self, title: str) -> list[Any]:
        """What makes a weight, in each function."""
        return [one for block in self.blocks() for one in block.operations if _title(one) == title]

    def parts(self, title: str) -> dict[str, np.ndarray]:
        """The numbers that a matrix is made of, as they lie in the file: changing them changes it."""
        operation = self.titled(title)[0]
        return {name: self._record(given.arguments[0].value) for name, given in operation.inputs.items()}

    def constant(self, title: str) -> np.ndarray:
        return self._record(self.titled(title)[0].attributes["val"])

    def _record(self, value: Any) -> np.ndarray:
        offset = value.blobFileValue.offset
        with self._weights.open("rb") as stream:
            stream.seek(offset)
            _, kind, size, data, _ = struct.unpack("<IIQQQ", stream.read(32))
        dtype = np.float16 if kind == 1 else np.uint8
        sizes = [dimension.constant.size for dimension in value.type.tensorType.dimensions]
        shape = (sizes[0], -1) if len(sizes) > 1 else (-1,)
        held = np.memmap(self._weights, dtype, "r+", data, (size // np.dtype(dtype).itemsize,))
        return held.reshape(shape)


def _title(operation: Any) -> str:
    return operation.attributes["name"].immediateValue.tensor.strings.values[0]


def drop_state_write(decoder: Package) -> None:
    for block in decoder.blocks():
        last = [index for index, one in enumerate(block.operations) if one.type == "write_state"][-1]
        del block.operations[last]


def write_to_the_slot_before(decoder: Package) -> None:
    """Only in steps, and only of the second layer's keys."""
    shift(decoder, "slice_update", "begin", 2, -1)
    shift(decoder, "slice_update", "end", 2, -1)


def turn_one_position_too_far(decoder: Package) -> None:
    """Only in steps: of everything alike it would not be seen, for it would change nothing."""
    shift(decoder, "gather", "indices", 0, 1)
    shift(decoder, "gather", "indices", 1, 1)


def shift(decoder: Package, kind: str, given: str, number: int, by: int) -> None:
    """Make what an operation of `decode` is given, of this kind and number, more by so much; of slots, the third."""
    slots = kind == "slice_update"
    (body,) = decoder.blocks("decode")
    place = [index for index, one in enumerate(body.operations) if one.type == kind][number]
    binding = body.operations[place].inputs[given].arguments[0]
    more = Block(_counts=dict.fromkeys(("const", "add"), 1000 * place))  # names that nothing else has
    held = Value(binding.name, "int32", (4,) if slots else (1, 1))
    moved = ops.binary(more, "add", held, more.constant([0, 0, by, 0] if slots else [by], "int32"))
    binding.name = moved.name
    for one in reversed(more.operations):
        body.operations.insert(place, one)


def flip_a_sign(decoder: Package) -> None:
    """x1 cos + x2 sin, of the second layer's keys."""
    for block in decoder.blocks():
        differences = [one for one in block.operations if one.type == "sub"]
        differences[3].type = "add"  # the first is the mask's; two for each layer


def swap_gate_and_up(decoder: Package) -> None:
    swap(decoder, f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight")


def swap(package: Package, first: str, second: str) -> None:
    before, after = package.parts(first), package.parts(second)
    for name in before:
        kept = before[name].copy()
        before[name][:] = after[name]
        after[name][:] = kept


def multiply_a_scale(decoder: Package) -> None:
    scale = decoder.parts(f"{LAYER}mlp.down_proj.weight")["scale"]
    scale *= np.float16(1.25)


def shift_scales(decoder: Package) -> None:
    scale = decoder.parts(f"{LAYER}self_attn.o_proj.weight")["scale"]
    scale[:] = np.roll(scale, 1)


def swap_nibbles(decoder: Package) -> None:
    codes = decoder.parts(f"{LAYER}self_attn.o_proj.weight")["data"]
    codes[:] = codes << 4 | codes >> 4


def take_a_stale_epsilon(decoder: Package) -> None:
    """That of another family, a thousand times this model's."""
    for block in decoder.blocks():
        names = {one.inputs["epsilon"].arguments[0].name for one in block.operations if one.type == "rsqrt"}
        for one in block.operations:
            if one.type == "const" and one.outputs[0].name in names:
                values = one.attributes["val"].immediateValue.tensor.floats.values
                assert values[0] == np.float32(1e-5)
                values[0] = 1e-2


def see_everything(decoder: Package) -> None:
    """A mask that hides nothing."""
    for block in decoder.blocks():
        for one in block.operations:
            if one.type != "const":
                continue
            held = one.attributes["val"].immediateValue.tensor.bytes
            if held.values == np.float16(-3e4).tobytes():
                held.values = np.float16(0).tobytes()


def see_one_less(decoder: Package) -> None:
    """A token does not see itself."""
    for one in decoder.of_kind("less_equal"):
        one.type = "less"


def order_heads_otherwise(decoder: Package) -> None:
    """Query heads as if they took turns with the key heads."""
    for part in decoder.parts(f"{LAYER}self_attn.q_proj.weight").values():
        heads = part.reshape(4, 64, -1)
        heads[:] = heads[[0, 2, 1, 3]]


def swap_layers(decoder: Package) -> None:
    swap(decoder, f"{LAYER}self_attn.v_proj.weight", "model.language_model.layers.0.self_attn.v_proj.weight")


def transpose_a_weight(encoder: Package) -> None:
    codes = encoder.parts(f"{ENCODER}self_attn.q_proj.weight")["data"]
    codes[:] = codes.T.copy()


def forget_a_bias(encoder: Package) -> None:
    encoder.constant(f"{ENCODER}fc1.bias")[:] = 0


def take_another_activation(encoder: Package) -> None:
    for one in encoder.of_kind("gelu")[2:3]:
        one.type = "relu"
        del one.inputs["mode"]


def pad_on_one_side(encoder: Package) -> None:
    (block,) = encoder.blocks()
    names = {one.inputs["pad"].arguments[0].name for one in block.operations if one.type == "conv"}
    for one in block.operations:
        if one.type == "const" and one.outputs[0].name in names:
            one.attributes["val"].immediateValue.tensor.ints.values[:] = [2, 0]


DECODER = (
    drop_state_write,
    write_to_the_slot_before,
    turn_one_position_too_far,
    flip_a_sign,
    swap_gate_and_up,
    multiply_a_scale,
    shift_scales,
    swap_nibbles,
    take_a_stale_epsilon,
    see_everything,
    see_one_less,
    order_heads_otherwise,
    swap_layers,
)
ENCODERS = (transpose_a_weight, forget_a_bias, take_another_activation, pad_on_one_side)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    recordings(folder, CLIPS)
    pipeline.build(DEMO / "model", folder / "whole", targets=("coreml",), recipe="int4", verify=False)
    return folder


def planted(work: Path, stage: str, plant: Callable[[Package], None], **options: int) -> dict[str, Any]:
    def change(bundle: Path) -> None:
        package = Package(bundle / "coreml" / f"{stage}.mlpackage")
        plant(package)
        package.save()

    return judged(work, "coreml", change, **options)


def test_packages_without_faults_compute_what_they_store(work: Path) -> None:
    checks = planted(work, "decoder", lambda _: None)
    assert checks["kl_stored"].passed
    assert checks["embeddings_stored"].passed


@pytest.mark.parametrize("plant", DECODER)
def test_a_fault_in_the_decoder_is_seen(work: Path, plant: Callable[[Package], None]) -> None:
    checks = planted(work, "decoder", plant, longest=1)
    assert not checks["kl_stored"].passed, checks["kl_stored"]
    assert checks["embeddings_stored"].passed


@pytest.mark.parametrize("plant", ENCODERS)
def test_a_fault_in_the_encoder_is_seen(work: Path, plant: Callable[[Package], None]) -> None:
    checks = planted(work, "audio_encoder", plant, longest=1)
    assert not checks["embeddings_stored"].passed, checks["embeddings_stored"]
