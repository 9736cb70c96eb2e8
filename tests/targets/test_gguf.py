"""GGUF files against gguf-py, ggml's own quantizers, and the integers that ONNX stores."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import jinja2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper
from ossicle.compiler.families import family
from ossicle.compiler.pipeline import build
from ossicle.kernels import groupwise
from ossicle.targets import gguf_blocks, gguf_file, gguf_metadata, gguf_names, registry
from ossicle.targets.contract import BuildError, BundleError, OssicleError, QuantizedRows, RecipeError, WeightFormat
from ossicle.targets.gguf_blocks import BF16, F16, F32, Q4_0, Q4_1, Q8_0
from ossicle.targets.recipes import RECIPES
from ossicle.tests import checkpoints
from tokenizers import Tokenizer

ALL = (F32, F16, BF16, Q4_0, Q4_1, Q8_0)
# Every row is whole blocks of 32.
WIDE = checkpoints.tiny_config(
    text={"hidden_size": 64, "intermediate_size": 96}, audio={"hidden_size": 64, "intermediate_size": 256}
)

texts = st.text(max_size=12)
values = st.one_of(
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.floats(width=32, allow_nan=False),
    texts,
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
    st.lists(texts, min_size=1, max_size=5),
)
keys = st.text("abcdefghij._", min_size=1, max_size=20).filter(lambda key: not key.startswith("general.alignment"))
matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 3).map(lambda blocks: 32 * blocks)),
    elements=st.floats(-1000, 1000, width=32) | st.sampled_from([0.0, 1e-7, -3e-8]),
)


@given(st.dictionaries(keys, values, max_size=8), st.lists(st.sampled_from(ALL), max_size=4))
@settings(max_examples=60)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Any], kinds: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "file.gguf"
    tensors = gguf_file.place([(f"t{i}", (i + 1, 64), kind) for i, kind in enumerate(kinds)])
    text = gguf_file.header(metadata, tensors)
    path.write_bytes(text + bytes(sum(gguf_file.aligned(info.size) for info in tensors)))
    ours = gguf_file.read(path)
    assert ours.metadata == metadata
    assert tuple(ours.tensors.values()) == tensors
    assert ours.data == len(text)
    theirs = gguf.GGUFReader(path)
    assert {key: theirs.fields[key].contents() for key in metadata} == metadata
    for info, read in zip(tensors, theirs.tensors, strict=True):
        assert (read.name, read.tensor_type.name, tuple(read.shape.tolist()[::-1])) == (
            info.name,
            info.type.name,
            info.shape,
        )
        assert read.data_offset == ours.data + info.offset


@pytest.fixture(scope="module")
def small() -> bytes:
    """A whole file."""
    tensors = gguf_file.place([("a", (2, 32), Q4_0), ("b", (3,), F32)])
    data = bytes(range(36)).ljust(64, b"\0") + bytes(12)
    return gguf_file.header({"general.name": "small", "counts": [1, 2]}, tensors) + data


@given(st.data())
@settings(max_examples=80)
def test_a_file_cut_short_is_refused(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.gguf"
    path.write_bytes(small[: data.draw(st.integers(0, len(small) - 1))])
    with pytest.raises(BundleError, match=r"cut\.gguf.*cut short"):
        gguf_file.read(path)


@given(st.data())
@settings(max_examples=150)
def test_a_damaged_file_is_read_or_refused(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(small) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(bytes(damaged))
    with suppress(BundleError):  # any other error is a fault
        gguf_file.read(path)


@pytest.mark.parametrize(
    ("at", "bytes_", "reason"), [(0, b"GGML", "b'GGML'"), (4, b"\x09", "version 9"), (4, b"\x02", "version 2")]
)
def test_another_format_or_version_is_refused(
    tmp_path: Path, small: bytes, at: int, bytes_: bytes, reason: str
) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(small[:at] + bytes_ + small[at + len(bytes_) :])
    with pytest.raises(BundleError, match=reason):
        gguf_file.read(path)


def test_a_type_or_a_row_that_no_block_fits_is_refused(tmp_path: Path) -> None:
    for kind, columns, reason in (
        (replace(F32, number=99), 32, "type 99"),
        (Q8_0, 33, "no multiple of Q8_0's block 32"),
    ):
        path = tmp_path / "odd.gguf"
        path.write_bytes(gguf_file.header({}, [gguf_file.TensorInfo("w", (1, columns), kind, 0)]) + bytes(4096))
        with pytest.raises(BundleError, match=f"'w'.*{reason}"):
            gguf_file.read(path)


@given(matrices)
@settings(max_examples=60)
def test_eight_bits_are_the_bytes_of_ggml(weights: np.ndarray) -> None:
    # a block so small that its scale is no float16 keeps its numbers here, and is zero there
    largest = np.abs(weights.reshape(len(weights), -1, 32)).max(-1)
    weights[np.repeat((largest > 0) & (largest < 127 * 2.0**-24), 32, axis=1)] = 0
    codes, scales = groupwise.quantize_symmetric(weights, 8, 32)
    packed = gguf_blocks.pack_codes(QuantizedRows(0, codes, scales, None), Q8_0)
    assert np.array_equal(packed, gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0))


@given(matrices)
@settings(max_examples=60)
def test_four_bits_stand_for_the_shared_numbers(weights: np.ndarray) -> None:
    codes, scales = groupwise.quantize_symmetric(weights, 4, 32)
    rows = QuantizedRows(0, codes, scales, None)
    read = gguf.quants.dequantize(gguf_blocks.pack_codes(rows, Q4_0), gguf.GGMLQuantizationType.Q4_0)
    assert np.array_equal(read, groupwise.dequantize(codes, scales, None, 4, 32))


@given(matrices)
@settings(max_examples=60)
def test_four_bits_with_a_minimum_agree_to_its_float16(weights: np.ndarray) -> None:
    codes, scales, zeros = groupwise.quantize_asymmetric(weights, 4, 32)
    packed = gguf_blocks.pack_codes(QuantizedRows(0, codes, scales, zeros), Q4_1)
    read = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_1)
    lowest = zeros.astype(np.float32) * scales.astype(np.float32)
    allowed = np.repeat(lowest * 2.0**-11 + 2.0**-24, 32, axis=1) * 1.01
    assert (np.abs(read - groupwise.dequantize(codes, scales, zeros, 4, 32)) <= allowed).all()
    assert np.array_equal(packed.reshape(-1, 20)[:, :2].copy().view(np.float16)[:, 0], scales.reshape(-1))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_bytes_mean_what_gguf_py_says(kind: gguf_blocks.BlockType) -> None:
    generator = np.random.default_rng(1)
    data = generator.integers(0, 256, (5, kind.row_bytes(96)), np.uint8)
    data.reshape(-1, kind.size)[:, 1::2] &= 0x3B  # no infinities
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.name])
    assert np.array_equal(gguf_blocks.unpack(data, kind), theirs, equal_nan=True)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hidden_act": "gelu"}, "activation 'gelu' of the decoder is not llama.cpp's"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rotary scaling 'yarn' is not written into GGUF"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(changed: dict[str, Any], said: str) -> None:
    config = family("voxtral").huggingface_config(checkpoints.tiny_config(text=changed))
    with pytest.raises(BuildError, match=said):
        gguf_metadata.text_metadata(gguf_metadata.Model(config, {}), gguf_metadata.FileType("F16", 1))


def test_a_float_too_large_for_float16_is_refused() -> None:
    for value in (7e4, np.inf, np.nan):
        with pytest.raises(ValueError, match="infinite, not a number or too large"):
            gguf_blocks.pack_floats(np.array([[1.0, value]], np.float32), F16)


@pytest.mark.parametrize("recipe", ["int4-g128"])
def test_what_no_type_holds_is_refused(recipe: str) -> None:
    with pytest.raises(
        RecipeError, match=r"int4-g128 for decoder, int4-g128 for lm_head \(it can: .*Q6_K.*--quant int4"
    ):
        registry.target("gguf").check(RECIPES[recipe])


def test_every_part_that_is_not_held_is_named() -> None:
    wide = WeightFormat(8, 64)
    odd = replace(RECIPES["int8"], encoder=wide, embedding=replace(wide, group=32, symmetric=False))
    with pytest.raises(RecipeError, match="int8-g64 for encoder, int8-g32-asymmetric for embedding"):
        registry.target("gguf").check(odd)


def test_a_tensor_without_a_name_is_refused() -> None:
    for name in ("model.language_model.layers.0.self_attn.rotary.weight", "model.vision_tower.weight"):
        with pytest.raises(BuildError, match=f"'{name}' has no name in GGUF"):
            gguf_names.text_name(name)


@given(st.integers(1, 5), st.integers(1, 8).map(lambda half: 2 * half))
def test_rows_are_permuted_as_llama_cpp_permutes_them(heads: int, width: int) -> None:
    rows = np.arange(heads * width)
    theirs = rows.reshape(heads, 2, width // 2).swapaxes(1, 2).reshape(-1)
    ours = np.empty_like(rows)
    ours[[gguf_names.permuted_row(int(row), width) for row in rows]] = rows
    assert np.array_equal(ours, theirs)


@pytest.fixture(scope="module", params=["int4", "int4-asymmetric", "int8"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("bundle")
    checkpoint = checkpoints.save_hub(work / "checkpoint", checkpoints.model(WIDE))
    return build(checkpoint, work / "out", targets=("onnx", "gguf"), recipe=request.param, verify=False).folder


def onnx_integers(folder: Path) -> dict[str, tuple[np.ndarray, ...]]:
    """Codes [N, K], and scales and zero points [N, groups], of every quantized matrix by its canonical name."""
    found = {}
    for path in (folder / "onnx").glob("*.onnx"):
        model = onnx.load(path)
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for name in [name.removesuffix(".codes") for name in held if name.endswith(".codes")]:
            codes = held[f"{name}.codes"]
            rows = len(codes)
            scales = held[f"{name}.scales"].reshape(rows, -1)
            bits = codes.size * 8 // (scales.size * 32)
            zeros = held.get(f"{name}.zero_points")
            plain = [
                one.reshape(rows, -1) if bits == 8 else halves(one.reshape(rows, -1))
                for one in (codes, zeros)
                if one is not None
            ]
            found[name] = (plain[0], scales.astype(np.float16), *(one[:, : scales.shape[1]] for one in plain[1:]))
    return found


def halves(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def gguf_integers(folder: Path) -> dict[str, tuple[np.ndarray, ...]]:
    """Codes [N, K], scales and minima [N, groups] of every quantized tensor by its name in GGUF, from gguf-py."""
    found = {}
    for path in (folder / "gguf").glob("*.gguf"):
        for tensor in gguf.GGUFReader(path).tensors:
            kind = tensor.tensor_type.name
            if kind not in ("Q4_0", "Q4_1", "Q8_0"):
                continue
            size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
            blocks = np.array(tensor.data).reshape(tensor.data.shape[0], -1, size)
            heads = np.ascontiguousarray(blocks[..., : 4 if kind == "Q4_1" else 2]).view(np.float16)
            body = blocks[..., 2 * heads.shape[-1] :]
            codes = body + np.uint8(128) if kind == "Q8_0" else np.concatenate([body & 15, body >> 4], axis=-1)
            found[tensor.name] = (codes.reshape(len(codes), -1), *np.moveaxis(heads, -1, 0))
    return found


def test_the_integers_are_those_of_onnx(bundle: Path) -> None:
    ours, theirs = gguf_integers(bundle), onnx_integers(bundle)
    assert len(ours) == len(theirs) == 3 + 7 * 2 + 6 * 2 + 1  # embedding, projector; layers of both towers; head
    for canonical, (codes, scales, *zeros) in theirs.items():
        audio = "audio_tower" in canonical or "projector" in canonical
        name = gguf_names.audio_name(canonical) if audio else gguf_names.text_name(canonical)
        fields = (
            [one.reshape(-1, 8, 2, one.shape[-1]).swapaxes(1, 2).reshape(one.shape) for one in ours[name]]
            if name.startswith("blk.") and name.split(".")[2] in ("attn_q", "attn_k")
            else list(ours[name])
        )
        assert np.array_equal(fields[0], codes), name
        zero_blocks = (codes.reshape(*scales.shape, 32) == 128).all(-1)
        assert (fields[1].view(np.uint16) == scales.view(np.uint16))[~zero_blocks].all(), name
        for lowest, zero in zip(fields[2:], zeros, strict=True):
            assert np.array_equal(lowest, (-zero.astype(np.float32) * scales.astype(np.float32)).astype(np.float16))


def test_rows_that_no_block_fits_are_spelled_out(tmp_path: Path) -> None:
    """The numbers are those of ONNX all the same: float32 holds a code times a scale exactly."""
    checkpoint = checkpoints.save_hub(tmp_path / "checkpoint", checkpoints.model())
    folder = build(checkpoint, tmp_path / "out", targets=("onnx", "gguf"), recipe="int4", verify=False).folder
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "gguf" / "voxtral-Q4_0.gguf").tensors}
    assert read["blk.0.attn_v.weight"].tensor_type.name == "F32"
    assert read["blk.0.attn_output.weight"].tensor_type.name == "Q4_0"
    held = {
        tensor.name: numpy_helper.to_array(tensor)
        for path in (folder / "onnx").glob("decoder*.onnx")
        for tensor in onnx.load(path).graph.initializer
    }
    name = "model.language_model.layers.0.self_attn.v_proj.weight"
    codes = halves(held[f"{name}.codes"].reshape(32, -1))[:, :48].astype(np.float32) - 8
    expected = codes * np.repeat(held[f"{name}.scales"].reshape(32, 2), 32, axis=1)[:, :48]
    assert np.array_equal(read["blk.0.attn_v.weight"].data, expected)


def test_the_vocabulary_is_the_tokenizers(bundle: Path) -> None:
    fields = gguf.GGUFReader(next((bundle / "gguf").glob("voxtral*"))).fields
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokens, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    assert tokens == [tokenizer.id_to_token(id) for id in range(tokenizer.get_vocab_size())]
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    assert special == {id for id, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL}
    merges = json.loads((bundle / "tokenizer.json").read_text())["model"]["merges"]
    assert fields["tokenizer.ggml.merges"].contents() == [" ".join(pair) for pair in merges]
    ids = {"bos": "<s>", "eos": "</s>", "unknown": "<unk>", "padding": "<pad>"}
    for name, token in ids.items():
        assert fields[f"tokenizer.ggml.{name}_token_id"].contents() == tokenizer.token_to_id(token)


def test_the_chat_template_gives_mistrals_own_prompt(bundle: Path) -> None:
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "three"}]},
    ]
    fields = gguf.GGUFReader(next((bundle / "gguf").glob("voxtral*"))).fields
    template = jinja2.Environment(autoescape=False).from_string(fields["tokenizer.chat_template"].contents())
    text = template.render(messages=messages, bos_token="<s>", eos_token="</s>")
    ours = Tokenizer.from_file(str(bundle / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    theirs = MistralTokenizer.from_file(str(checkpoints.TEKKEN))
    request = ChatCompletionRequest.from_openai(messages)
    assert ours == theirs.encode_chat_completion(request).tokens


def test_without_sizes_and_vocabulary_nothing_is_written(tmp_path: Path) -> None:
    from ossicle.targets.gguf_metadata import read_model

    with pytest.raises(OssicleError, match=r"no config\.json and no tokenizer\.json.*--target gguf"):
        read_model(tmp_path)
