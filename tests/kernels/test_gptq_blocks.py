"""GPTQ in GGUF's blocks against gguf-py's reader, ggml's own search and plain references."""

import numpy as np
import pytest
from ossicle.kernels import gptq_blocks, gptq_scales, kquants
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
    assert np.array_equal(found, BlockSolver(hessian, name).quantize(weights))


@pytest.mark.parametrize("name", LAYOUTS)
def test_scales_and_minima_that_are_put_back_make_the_same_bytes(name):
    form, blocks = FORMS[name], random_blocks(name)
    for part in filter(None, (form.scales, form.minima)):
        counts, changed = part.read(blocks), blocks.copy()
        assert counts.min() >= part.lowest
        assert counts.max() <= part.highest
        part.write(counts, part.units(blocks), changed)
        assert np.array_equal(changed, blocks)


@pytest.mark.parametrize("name", LAYOUTS)
def test_gguf_py_reads_the_scales_and_minima_that_were_written(name):
    gguf = pytest.importorskip("gguf")
    form, blocks, random = FORMS[name], random_blocks(name), np.random.default_rng(5)
    numbers = []
    for part in filter(None, (form.scales, form.minima)):
        shape = part.read(blocks).shape
        counts = random.integers(part.lowest, part.highest + 1, shape).astype(np.float32)
        units = random.uniform(-1, 1, (len(blocks), 1)).astype(np.float16).astype(np.float32)
        part.write(counts, units, blocks)
        numbers.append(np.repeat(counts.astype(np.float64) * units, LAYOUTS[name].columns // shape[1], axis=1))
    expected = numbers[0] * (form.levels(blocks).astype(np.float64) - form.middle) - sum(numbers[1:])
    read = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    np.testing.assert_allclose(read, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q6_K"])
def test_the_last_sub_block_s_scales_are_the_best_of_all(name, hessian, monkeypatch):
    """The error of every scale that the format has, by brute force; units, which move last, are held still."""
    monkeypatch.setattr(gptq_scales._Part, "move_unit", lambda *_: None)
    weights, form = matrix()[:, :256], FORMS[name]
    inputs = np.ascontiguousarray(hessian[:256, :256])
    blocks = gptq_scales.moved(weights, inputs, kquants.quantize(weights, name), form)
    part = form.minima or form.scales
    counts = part.read(blocks)
    errors = []
    for count in range(part.lowest, part.highest + 1):
        counts[:, -1] = count
        other = blocks.copy()
        part.write(counts, part.units(blocks), other)
        errors.append(lost(weights, inputs, other, name))
    assert (lost(weights, inputs, blocks, name) <= np.min(errors, axis=0) * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_moved_scales_lower_the_error_of_every_row(name, hessian):
    weights = matrix()
    weights[5] = 0
    blocks = kquants.quantize(weights, name).reshape(-1, LAYOUTS[name].size)
    moved = gptq_scales.moved(weights, hessian, blocks, FORMS[name]).reshape(len(weights), -1)
    before, after = (lost(weights, hessian, one, name) for one in (blocks.reshape(len(weights), -1), moved))
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.97 * before.sum()
