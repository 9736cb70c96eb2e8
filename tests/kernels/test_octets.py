"""Three-bit codes against what coremltools and OpenVINO read."""

import numpy as np
import openvino
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from openvino import opset13 as operators
from ossicle.kernels import groupwise, octets

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 6).map(lambda count: 8 * count))
CODES = arrays.arrays(np.uint8, SHAPES, elements=st.integers(0, 7))


@settings(max_examples=25)
@given(CODES)
def test_a_stream_has_the_bits_of_each_code_behind_those_of_the_one_before(codes):
    packed = octets.pack_stream(codes)
    assert packed.shape == (len(codes), 3 * codes.shape[1] // 8)
    bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(*codes.shape, 3)
    assert np.array_equal(bits @ [1, 2, 4], codes)


@settings(max_examples=25)
@given(CODES)
def test_openvino_reads_the_split_order(codes):
    packed = octets.pack_split(codes)
    held = openvino.Tensor(openvino.Type.u3, openvino.Shape(codes.shape))
    held.data.reshape(-1)[:] = packed.reshape(-1)
    wide = operators.convert(openvino.op.Constant(held), openvino.Type.f32)
    read = openvino.Tensor(np.empty(codes.shape, np.float32))
    assert wide.evaluate([read], [held])
    assert np.array_equal(read.data, codes)


@settings(max_examples=25)
@given(CODES)
def test_nibbles_are_the_codes_less_four(codes):
    nibbles = octets.split_to_nibbles(octets.pack_split(codes).reshape(-1))
    signed = groupwise.unpack_pairs(nibbles.reshape(len(codes), -1), codes.shape[1]).astype(int)
    assert np.array_equal(np.where(signed > 7, signed - 16, signed), codes.astype(int) - 4)


@pytest.mark.parametrize("pack", [octets.pack_stream, octets.pack_split])
def test_every_code_has_a_place_of_its_own(pack):
    lone = [pack(7 * np.eye(8, dtype=np.uint8)[[place]]) for place in range(8)]
    assert np.array_equal(np.bitwise_or.reduce(lone), [[255, 255, 255]])
    assert sum(int(np.bitwise_count(one).sum()) for one in lone) == 24
