"""Packages as files: what is damaged, missing, unknown or not as declared is an error that names it, whatever the bytes."""

import shutil
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.libmilstoragepython import _BlobStorageWriter
from coremltools.proto import MIL_pb2, Model_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ossicle.runtimes.mil import program, wire
from ossicle.runtimes.mil.interpreter import Program
from ossicle.targets.contract import BundleError, EngineError
from ossicle.tests.runtimes.mil_package import Package, Stored, tensor_type, write_package

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
WEIGHT = np.random.default_rng(0).normal(0, 1, (5, 4)).astype(np.float16)
SCALE = np.full((6, 2), 0.5, np.float16)
CODES = np.random.default_rng(1).integers(-8, 8, (6, 8)).astype(np.int8)
FUZZ = settings(max_examples=150, suppress_health_check=list(HealthCheck), derandomize=True)


def blob(package: Package, element: str, shape: Any, offset: int) -> str:
    name = package.const(Stored(element, np.zeros(0, np.uint8)))
    entry = package.block.operations[-1]
    value = entry.attributes["val"]
    value.Clear()
    tensor_type(value.type, element, shape)
    entry.outputs[0].type.CopyFrom(value.type)
    value.blobFileValue.fileName = "@model_path/weights/weight.bin"
    value.blobFileValue.offset = offset
    return name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear layer of float16 and an int4 one behind it, their weights in a file that Apple's writer wrote."""
    folder = tmp_path_factory.mktemp("whole") / "p.mlpackage"
    file = folder.parent / "weight.bin"
    writer = _BlobStorageWriter(str(file))
    weight = writer.write_fp16_data(WEIGHT.view(np.uint16).ravel())
    codes = writer.write_int4_data(CODES.ravel())
    del writer
    package = Package()
    x = package.input("x", "fp16", (None, 4))
    package.op("linear", {"h": ("fp16", (None, 5))}, x=x, weight=blob(package, "fp16", (5, 4), weight))
    data = blob(package, "int4", (6, 8), codes)
    package.op("constexpr_blockwise_shift_scale", {"w": ("fp16", (6, 8))}, data=data, scale=SCALE)
    package.op("pad", {"wide": ("fp16", (None, 8))}, x="h", pad=np.array([0, 3]), mode=package.const("constant"))
    package.op("linear", {"y": ("fp16", (None, 6))}, x="wide", weight="w")
    package.output("y", "fp16", ())
    return package.write(folder, file.read_bytes())


def run(folder: Path) -> np.ndarray:
    return Program(folder).function().run({"x": np.ones((2, 4), np.float16)})[0]["y"]


def test_a_whole_package_runs(whole: Path) -> None:
    h = (np.ones((2, 4)) @ WEIGHT.T.astype(np.float64)).astype(np.float16).astype(np.float64)
    expected = np.pad(h, ((0, 0), (0, 3))) @ (CODES * 0.5).T
    assert np.abs(run(whole) - expected).max() < 2e-2


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy.mlpackage"))


@pytest.mark.parametrize("file", ["Manifest.json", str(MODEL), str(WEIGHTS)])
def test_a_missing_file_is_named(copy: Path, file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(BundleError, match=rf"{Path(file).name}.*ossicle build"):
        run(copy)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "{}",
        "[]",
        '{"itemInfoEntries": {}, "rootModelIdentifier": "A"}',
        '{"itemInfoEntries": {"A": {"path": "../../x"}}, "rootModelIdentifier": "A"}',
    ],
)
def test_a_manifest_that_leads_nowhere_is_refused(copy: Path, manifest: str) -> None:
    (copy / "Manifest.json").write_text(manifest)
    with pytest.raises(BundleError, match=r"Manifest\.json"):
        run(copy)


@pytest.mark.parametrize("path", ["@model_path/../../../../secret", "/etc/passwd", "weights/weight.bin"])
def test_weights_outside_the_package_are_refused(copy: Path, path: str) -> None:
    model = Model_pb2.Model.FromString((copy / MODEL).read_bytes())
    for operation in model.mlProgram.functions["main"].block_specializations["CoreML8"].operations:
        if operation.type == "const" and operation.attributes["val"].WhichOneof("value") == "blobFileValue":
            operation.attributes["val"].blobFileValue.fileName = path
    (copy / MODEL).write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"model\.mlmodel' is damaged: weights are in .* not beside it"):
        run(copy)


RECORDS = [
    (0, "<I", 0xDEADBEE0, "no record"),
    (4, "<I", 2, "of type 2 and not fp16"),
    (8, "<Q", 42, "42 bytes"),
    (16, "<Q", 1 << 40, "cut off"),
    (24, "<Q", 4, "4 bits unused"),
]


@pytest.mark.parametrize(("place", "form", "number", "reason"), RECORDS)
def test_a_wrong_record_is_named_with_its_file_and_offset(
    copy: Path, place: int, form: str, number: int, reason: str
) -> None:
    content = bytearray((copy / WEIGHTS).read_bytes())
    struct.pack_into(form, content, 64 + place, number)
    (copy / WEIGHTS).write_bytes(content)
    with pytest.raises(BundleError, match=rf"weight\.bin' is damaged: at offset 64 .*{reason}"):
        run(copy)


def test_a_truncated_file_of_weights_is_refused_at_every_length(copy: Path) -> None:
    content = (copy / WEIGHTS).read_bytes()
    expected = run(copy)
    used = 256 + CODES.size // 2  # behind the header, and a record and the bytes of the first weight
    for length in range(0, len(content) + 1, 7):
        (copy / WEIGHTS).write_bytes(content[:length])
        if length < used:
            with pytest.raises(BundleError, match=r"weight\.bin"):
                run(copy)
        else:
            assert np.array_equal(run(copy), expected)


def test_a_truncated_model_is_refused_or_says_less(copy: Path) -> None:
    """Cut between two fields a message is whole, and then lacks what the program needs."""
    content = (copy / MODEL).read_bytes()
    for length in range(0, len(content), 3):
        (copy / MODEL).write_bytes(content[:length])
        with pytest.raises((BundleError, EngineError)):
            run(copy)


@FUZZ
@given(place=st.integers(0, 10**6), value=st.integers(0, 255), count=st.integers(1, 4))
def test_any_bytes_in_the_model_are_a_result_or_an_error_of_ours(
    whole: Path, tmp_path: Path, place: int, value: int, count: int
) -> None:
    content = bytearray((whole / MODEL).read_bytes())
    for i in range(count):
        content[(place * (i + 1)) % len(content)] = (value + i) % 256
    write_package(tmp_path / "fuzzed.mlpackage", bytes(content), (whole / WEIGHTS).read_bytes())
    with suppress(BundleError, EngineError):
        run(tmp_path / "fuzzed.mlpackage")


@FUZZ
@given(place=st.integers(64, 64 + 63 + 128), value=st.integers(0, 255))
def test_any_bytes_in_the_weights_are_numbers_or_an_error_of_ours(
    whole: Path, tmp_path: Path, place: int, value: int
) -> None:
    content = bytearray((whole / WEIGHTS).read_bytes())
    content[place] = value
    write_package(tmp_path / "fuzzed.mlpackage", (whole / MODEL).read_bytes(), bytes(content))
    with suppress(BundleError):
        assert run(tmp_path / "fuzzed.mlpackage").shape == (2, 6)


@FUZZ
@given(content=st.binary(max_size=200))
def test_any_bytes_at_all_are_no_program(content: bytes) -> None:
    with pytest.raises(ValueError):
        program.read(content)


def test_messages_nested_without_end_are_refused() -> None:
    value = b""
    for _ in range(200):  # tuple of one type, of one type, ...
        value = b"\x1a" + varint(len(value) + 1 + len(varint(len(value)))) + b"\x0a" + varint(len(value)) + value
    with pytest.raises(ValueError, match="nested"):
        wire.decode(value, program.MESSAGES, "ValueType")


def varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


@FUZZ
@given(
    floats=st.lists(st.floats(width=32, allow_nan=False), max_size=5),
    ints=st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=5),
    words=st.lists(st.text(max_size=5), max_size=3),
    number=st.integers(-(1 << 63), (1 << 63) - 1),
)
def test_messages_are_read_as_protobuf_wrote_them(floats: Any, ints: Any, words: Any, number: int) -> None:
    for field, values in (("floats", floats), ("ints", ints), ("strings", words), ("longInts", [number])):
        message = MIL_pb2.TensorValue()
        getattr(message, field).values.extend(values)
        getattr(message, field).SetInParent()
        found = wire.decode(message.SerializeToString(), program.MESSAGES, "TensorValue")
        assert found[{"longInts": "longs"}.get(field, field)]["values"] == list(values)


def test_unknown_operations_are_all_listed(tmp_path: Path) -> None:
    package = Package()
    x = package.input("x", "fp32", (3,))
    package.op("zebra_norm", {"a": ("fp32", (3,))}, x=x)
    package.op("relu", {"b": ("fp32", (3,))}, x="a")
    package.op("aardvark", {"y": ("fp32", (3,))}, x="b")
    package.output("y", "fp32", (3,))
    with pytest.raises(EngineError, match="has operations aardvark, zebra_norm, which the interpreter does not know"):
        Program(package.write(tmp_path / "p.mlpackage"))


def test_an_opset_that_means_something_else_is_refused(tmp_path: Path) -> None:
    package = Package("CoreML5")
    package.output(package.input("x", "fp32", (3,)), "fp32", (3,))
    with pytest.raises(EngineError, match="has opset CoreML5"):
        Program(package.write(tmp_path / "p.mlpackage"))


def small(tmp_path: Path, declared: tuple[str, Any], described: tuple[str, Any] | None = None, x: str = "x") -> Program:
    package = Package()
    package.input("x", "fp32", (2, 3))
    package.op("transpose", {"y": declared}, x=x, perm=np.array([1, 0]))
    package.output("y", *(described or declared))
    return Program(package.write(tmp_path / "p.mlpackage"))


WRONG = [
    (("fp16", (3, 2)), r"transpose 'transpose_2'.* gives 'y' as fp32 \[3, 2\] and declares it fp16 \[3, 2\]"),
    (("fp32", (2, 3)), r"gives 'y' as fp32 \[3, 2\] and declares it fp32 \[2, 3\]"),
    (("fp32", (3, 2, 1)), r"declares it fp32 \[3, 2, 1\]"),
    (("fp32", (3, None)), None),
]


@pytest.mark.parametrize(("declared", "fault"), WRONG)
def test_values_are_held_to_what_is_declared(tmp_path: Path, declared: Any, fault: str | None) -> None:
    function, given = small(tmp_path, declared, ("fp32", ())).function(), {"x": np.ones((2, 3), np.float32)}
    if fault is None:
        assert function.run(given)[0]["y"].shape == (3, 2)
    else:
        with pytest.raises(EngineError, match=fault):
            function.run(given)


def test_outputs_are_held_to_their_description(tmp_path: Path) -> None:
    function = small(tmp_path, ("fp32", (3, 2)), ("fp16", (3, 2))).function()
    with pytest.raises(EngineError, match=r"output 'y' is fp32 \[3, 2\] and described as fp16 \[3, 2\]"):
        function.run({"x": np.ones((2, 3), np.float32)})


def test_a_value_that_nothing_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"transpose 'transpose_2' of function 'main' is given 'lost'"):
        small(tmp_path, ("fp32", (3, 2)), x="lost")


def test_an_argument_that_is_missing_or_of_another_kind_is_named(tmp_path: Path) -> None:
    for arguments, fault in (
        ({}, "'perm' is not given"),
        ({"perm": np.array([0.5, 1.5], np.float32)}, "'perm' is fp32"),
    ):
        package = Package()
        package.op("transpose", {"y": ("fp32", (3, 2))}, x=package.input("x", "fp32", (2, 3)), **arguments)
        package.output("y", "fp32", (3, 2))
        function = Program(package.write(tmp_path / "p.mlpackage")).function()
        with pytest.raises(EngineError, match=f"fails: {fault}"):
            function.run({"x": np.ones((2, 3), np.float32)})


def test_values_go_when_nothing_wants_them(tmp_path: Path) -> None:
    package, last = Package(), "x"
    package.input("x", "fp32", (1 << 20,))
    for number in range(30):
        package.op("square", {f"y{number}": ("fp32", (1 << 20,))}, x=last)
        last = f"y{number}"
    package.output(last, "fp32", (1 << 20,))
    function = Program(package.write(tmp_path / "p.mlpackage")).function()
    given = {"x": np.ones(1 << 20, np.float32)}
    tracemalloc.start()
    function.run(given)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * given["x"].nbytes
