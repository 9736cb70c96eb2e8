"""Group-wise integers against ggml's layout (gguf-py), ONNX Runtime's quantizer, and their own definition."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from ossicle.kernels import groupwise

GENERATOR = np.random.default_rng(7)
MATRICES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 70)),
    elements=st.floats(-1000, 1000, width=32),
)


def quantize(weights, bits, group, symmetric):
    if symmetric:
        return (*groupwise.quantize_symmetric(weights, bits, group), None)
    return groupwise.quantize_asymmetric(weights, bits, group)


@pytest.mark.parametrize("scale", [1e-5, 0.02, 1.0, 300.0])
def test_int8_is_ggml_q8_0(scale):
    weights = (GENERATOR.standard_normal((64, 256)) * scale).astype(np.float32)
    blocks = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0).reshape(64, 8, 34)
    codes, scales = groupwise.quantize_symmetric(weights, 8, 32)
    assert np.array_equal(blocks[..., :2].copy().view(np.float16)[..., 0], scales)
    assert np.array_equal(
        blocks[..., 2:].view(np.int8).reshape(64, 256), (codes.astype(np.int16) - 128).astype(np.int8)
    )


@pytest.mark.parametrize("bits", [4, 3])
def test_few_bits_are_never_worse_than_the_plain_scale(bits):
    weights, half = GENERATOR.standard_normal((128, 512)).astype(np.float32), 2 ** (bits - 1)
    codes, scales = groupwise.quantize_symmetric(weights, bits, 32)
    ours = groupwise.dequantize(codes, scales, None, bits, 32)
    grouped = weights.reshape(128, 16, 32)
    plain = (np.abs(grouped).max(2, keepdims=True) / (half - 1)).astype(np.float16).astype(np.float32)
    theirs = np.clip(np.rint(grouped / plain), -half, half - 1) * plain
    errors = ((ours.reshape(grouped.shape) - grouped) ** 2).sum(2), ((theirs - grouped) ** 2).sum(2)
    assert np.all(errors[0] <= errors[1] * 1.0001)
    assert errors[0].sum() < 0.97 * errors[1].sum()


@settings(max_examples=60)
@given(
    MATRICES, st.sampled_from([(8, True), (4, True), (3, True), (4, False), (8, False)]), st.sampled_from([16, 32, 128])
)
def test_every_weight_comes_back_within_half_a_step(weights, form, group):
    bits, symmetric = form
    codes, scales, zero_points = quantize(weights, bits, group, symmetric)
    assert codes.max(initial=0) < 2**bits
    assert np.all(scales > 0)
    back = groupwise.dequantize(codes, scales, zero_points, bits, group)
    step = np.repeat(scales.astype(np.float32), group, axis=1)[:, : weights.shape[1]]
    slack = 1.02 if symmetric else 2.04  # float16 scales; a rounded zero point moves a whole range by half a step
    clipped = 2.0 if form in [(4, True), (3, True)] else 1.0  # a scale of largest / 8, or 4, cuts off at code 7, or 3
    # scales of tiny weights are float16 subnormals, 2^-24 apart, and Q8_0 rounds up to 127 times before they are
    tiny = 128 * 2.0**-25 if form == (8, True) else 2.0**-24
    bound = 0.5 * step * slack * clipped + np.abs(weights) * 2e-3 + tiny
    assert np.all(np.abs(back - weights) <= bound)


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 33)), elements=st.integers(0, 15)))
def test_packed_pairs_come_back(codes):
    packed = groupwise.pack_pairs(codes)
    assert packed.shape == (codes.shape[0], (codes.shape[1] + 1) // 2)
    assert np.array_equal(groupwise.unpack_pairs(packed, codes.shape[1]), codes)


def test_pairs_stand_low_half_first():
    assert groupwise.pack_pairs(np.array([[1, 2, 3]], np.uint8)).tolist() == [[0x21, 0x03]]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_weight_that_is_not_finite_is_refused(value, symmetric):
    weights = np.zeros((2, 64), np.float32)
    weights[1, 40] = value
    with pytest.raises(ValueError, match="infinite or not a number"):
        quantize(weights, 4, 32, symmetric)


def test_a_weight_beyond_float16_is_refused():
    with pytest.raises(ValueError, match="too large"):
        groupwise.quantize_symmetric(np.full((1, 32), 1e9, np.float32), 4, 32)


@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (4, True), (3, True), (4, False)])
def test_zeros_stay_zeros(bits, symmetric):
    codes, scales, zero_points = quantize(np.zeros((3, 64), np.float32), bits, 32, symmetric)
    assert not groupwise.dequantize(codes, scales, zero_points, bits, 32).any()
