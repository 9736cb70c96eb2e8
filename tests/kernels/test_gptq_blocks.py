"""GPTQ in GGUF's blocks against gguf-py's reader, ggml's own search and plain references."""

import numpy as np
import pytest
from ossicle.kernels import gptq_blocks, kquants
from ossicle.kernels.gptq_blocks import BlockSolver
from ossicle.kernels.kquants import LAYOUTS
from ossicle.kernels.kquants_read import FORMS

COLUMNS = 512


def matrix(rows=12):
    return (np.random.default_rng(1).standard_t(5, (rows, COLUMNS)) * 0.02).astype(np.float32)


@pytest.fixture(scope="module")
def hessian():
    """The mean x x^T of inputs whose columns go together, and two of which are always zero."""
    random = np.random.default_rng(2)
    inputs = random.standard_normal((2 * COLUMNS, COLUMNS // 4)) @ random.standard_normal((COLUMNS // 4, COLUMNS))
    inputs[:, [3, 300]] = 0
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def lost(weights, hessian, data, name):
    """tr((W - Q) H (W - Q)^T) row by row, in float64, Q as gguf-py reads it."""
    gguf = pytest.importorskip("gguf")
    distance = weights - gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name]).astype(np.float64)
    return ((distance @ hessian) * distance).sum(axis=1)


def random_blocks(name, count=6):
    layout = LAYOUTS[name]
    blocks = np.random.default_rng(3).integers(0, 256, (count, layout.size), np.uint8)
    for start in layout.halves:
        blocks[:, start + 1] &= 0xBB  # no infinities
    return blocks


@pytest.mark.parametrize("name", LAYOUTS)
def test_levels_that_are_put_back_make_the_same_bytes(name):
    form, blocks = FORMS[name], random_blocks(name)
    levels = form.levels(blocks)
    assert levels.shape == (6, LAYOUTS[name].columns)
    assert levels.max() == 2 ** LAYOUTS[name].bits - 1
    assert np.array_equal(form.with_levels(blocks, levels), blocks)


@pytest.mark.parametrize("name", LAYOUTS)
def test_gguf_py_reads_the_numbers_that_were_meant(name):
    gguf = pytest.importorskip("gguf")
    form, layout, blocks = FORMS[name], LAYOUTS[name], random_blocks(name)
    meant = np.random.default_rng(4).integers(0, 2**layout.bits, (6, layout.columns), np.uint8)
    codes, shifted, group = gptq_blocks.as_codes(blocks, form, np.zeros((6, layout.columns), np.float32))
    scales = np.repeat(codes.scales.astype(np.float64), group, axis=1)
    numbers = scales * (meant.astype(np.float64) - form.middle) - shifted
    read = gguf.quants.dequantize(form.with_levels(blocks, meant), gguf.GGMLQuantizationType[name])
    np.testing.assert_allclose(read, numbers, rtol=1e-6, atol=1e-6 * np.abs(shifted).max(initial=1e-30))


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_row_loses_more_than_by_ggml_s_search(name, hessian):
    weights = matrix()
    weights[5] = 0
    weights[6, :256] = 0
    found = BlockSolver(hessian, name).quantize(weights)
    searched = kquants.quantize(weights, name, np.ascontiguousarray(np.diagonal(hessian)))
    assert found.shape == searched.shape
    ours, theirs = lost(weights, hessian, found, name), lost(weights, hessian, searched, name)
    assert (ours <= theirs * (1 + 1e-6)).all()
    assert ours.sum() < 0.5 * theirs.sum()
    levels = np.zeros((found.size // LAYOUTS[name].size, LAYOUTS[name].columns), np.uint8)
    emptied = [FORMS[name].with_levels(one.reshape(len(levels), -1), levels) for one in (found, searched)]
    assert np.array_equal(*emptied)  # all but levels
    assert np.array_equal(found, BlockSolver(hessian, name).quantize(weights))
