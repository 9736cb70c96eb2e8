import ctypes
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from ossicle.kernels.kquants import LAYOUTS, dequantize, quantize

GGML_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8}
GGML_TYPES |= {"Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
ROWS, COLUMNS = 7, 768


@pytest.fixture(scope="module")
def ggml():
    """ggml's own quantizer, in the shared object that xllamacpp brings."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        pytest.skip('no xllamacpp here: pip install "ossicle[gguf]"')
    chunk = ctypes.CDLL(str(Path(found.origin).with_name("xllamacpp.abi3.so"))).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantized(weights, name, importance=None):
        rows, columns = weights.shape
        out = np.zeros((rows, columns // LAYOUTS[name].columns * LAYOUTS[name].size), np.uint8)
        given = None if importance is None else importance.ctypes.data
        written = chunk(GGML_TYPES[name], weights.ctypes.data, out.ctypes.data, 0, rows, columns, given)
        assert written == out.size
        return out

    return quantized


def distributions():
    random = np.random.default_rng(1)
    shape = (ROWS, COLUMNS)
    normal = random.standard_normal(shape)
    one_hot = np.zeros(shape)
    one_hot[np.arange(ROWS), np.arange(ROWS) * 101] = [1, -1, 1e-3, -1e-3, 1e3, 3, -7]
    return {
        "normal": normal * 0.02,
        "uniform": random.uniform(-1, 1, shape),
        "heavy": random.standard_t(2, shape) * 0.02,
        "cauchy": np.clip(random.standard_cauchy(shape), -1e4, 1e4),
        "denormal": normal * 1e-40,
        "almost denormal": normal * 1e-37,
        "zeros": np.zeros(shape),
        "negative zeros": -np.zeros(shape),
        "constant rows": np.repeat(random.standard_normal((ROWS, 1)), COLUMNS, axis=1),
        "one-hot": one_hot,
        "huge": normal * 1e4,
        "tiny": normal * 1e-8,
        "vanishing": normal * 1e-15,
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "alternating": np.tile([1.0, -1.0], (ROWS, COLUMNS // 2)) * random.random((ROWS, 1)),
        "sparse": normal * (random.random(shape) < 0.1),
        "of many sizes": normal * 10.0 ** random.uniform(-9, 2, shape),
        "blocks of many sizes": normal * 10.0 ** np.repeat(random.uniform(-9, 2, (ROWS, COLUMNS // 16)), 16, axis=1),
        "offset": normal * 1e-4 + 3,
        "integers": random.integers(-8, 8, shape),
        "brain floats": (normal.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32),
    }


def importances(kind):
    random = np.random.default_rng(2)
    importance = random.exponential(size=COLUMNS)
    if kind == "of many sizes":
        importance = 10.0 ** random.uniform(-12, 4, COLUMNS)
    if kind == "mostly zero":  # and of whole sub-blocks
        importance *= random.random(COLUMNS) < 0.05
    return None if kind == "none" else importance.astype(np.float32)


@pytest.mark.parametrize("important", ["none", "usual", "of many sizes", "mostly zero"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_bytes_are_those_of_ggml(ggml, name, important):
    importance, different = importances(important), {}
    for kind, values in distributions().items():
        weights = np.ascontiguousarray(values, np.float32)
        ours, theirs = quantize(weights, name, importance), ggml(weights, name, importance)
        blocks = (ours != theirs).reshape(-1, LAYOUTS[name].size).any(axis=1)
        if blocks.any():
            different[kind] = f"{blocks.sum()} of {blocks.size} blocks"
    assert not different


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    weights=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.sampled_from([256, 512])),
        elements=st.floats(-1000, 1000, width=32, allow_subnormal=True),
    ),
    importance=st.none() | arrays.arrays(np.float32, 512, elements=st.floats(0, 100, width=32)),
)
def test_any_weights_get_the_bytes_of_ggml(ggml, name, weights, importance):
    importance = None if importance is None else np.ascontiguousarray(importance[: weights.shape[1]])
    assert np.array_equal(quantize(weights, name, importance), ggml(weights, name, importance))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_gguf_reader_reads_back_what_was_near(name):
    gguf = pytest.importorskip("gguf")
    weights = np.random.default_rng(3).standard_normal((3, 512)).astype(np.float32)
    back = gguf.quants.dequantize(quantize(weights, name), gguf.GGMLQuantizationType[name])
    assert np.sqrt(np.mean((back - weights) ** 2)) < 2.6 / 2 ** LAYOUTS[name].bits


def test_rows_shared_out_among_threads_make_the_same_bytes():
    weights = np.random.default_rng(4).standard_normal((64, 1024)).astype(np.float32)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda part: quantize(part, "Q4_K"), np.array_split(weights, 4)))
    assert np.array_equal(quantize(weights, "Q4_K"), np.concatenate(parts))


def test_a_strided_matrix_is_read_as_it_stands():
    weights = np.random.default_rng(5).standard_normal((256, 6)).astype(np.float32)
    assert np.array_equal(quantize(weights.T, "Q6_K"), quantize(np.ascontiguousarray(weights.T), "Q6_K"))


def test_no_rows_make_no_bytes():
    assert quantize(np.zeros((0, 256), np.float32), "Q4_K").shape == (0, 144)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_not_finite_is_refused(name, value):
    weights = np.zeros((2, 512), np.float32)
    weights[1, 300] = value
    with pytest.raises(ValueError, match="infinite or not a number"):
        quantize(weights, name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_no_float16_scale_can_stand_for_is_refused(name):
    weights = np.zeros((1, 256), np.float32)
    weights[0, ::2] = 3e38
    with pytest.raises(ValueError, match=f"too large for the float16 scales of {name}"):
        quantize(weights, name)


@pytest.mark.parametrize(
    ("name", "columns", "importance", "said"),
    [
        ("Q7_K", 256, None, "no block format 'Q7_K'"),
        ("Q4_K", 288, None, "multiple of 256 columns"),
        ("Q4_0", 48, None, "multiple of 32 columns"),
        ("Q4_K", 256, np.ones(255, np.float32), "an importance for each of 256 columns"),
        ("Q4_K", 256, np.full(256, -1, np.float32), "negative"),
        ("Q4_K", 256, np.full(256, np.nan, np.float32), "not a number"),
    ],
)
def test_a_bad_request_is_refused(name, columns, importance, said):
    with pytest.raises(ValueError, match=said):
        quantize(np.zeros((1, columns), np.float32), name, importance)


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_bytes_stand_for_what_gguf_py_reads(name):
    gguf = pytest.importorskip("gguf")
    layout = LAYOUTS[name]
    data = np.random.default_rng(6).integers(0, 256, (5, 3 * layout.size), np.uint8)
    for start in layout.halves:
        data.reshape(-1, layout.size)[:, start + 1] &= 0xBB  # no infinities
    read = dequantize(data, name)
    assert read.dtype == np.float32
    assert np.array_equal(read, gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name]))


def test_bytes_that_are_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="Q4_K needs rows of a multiple of 144 bytes"):
        dequantize(np.zeros((2, 143), np.uint8), "Q4_K")
    with pytest.raises(ValueError, match="no block format 'Q7_K'"):
        dequantize(np.zeros((2, 144), np.uint8), "Q7_K")
    assert dequantize(np.zeros((0, 144), np.uint8), "Q4_K").shape == (0, 256)
