"""Eight-bit floats against torch's, row by row."""

import numpy as np
import pytest
import torch
from ossicle.kernels import float8

ROWS = {
    "normal": np.random.default_rng(0).standard_normal((32, 100)),
    "far apart": np.random.default_rng(1).standard_normal((16, 64)) * np.logspace(-6, 3, 16)[:, None],
    "small": np.random.default_rng(2).standard_normal((4, 64)) * 1e-7,
    "one number": np.full((2, 5), -3.0),
    "zeros": np.zeros((3, 7)),
}


@pytest.mark.parametrize("name", ROWS)
def test_codes_are_torchs_of_the_scaled_rows(name: str) -> None:
    weights = ROWS[name].astype(np.float32)
    codes, scales = float8.quantize(weights)
    scaled = torch.from_numpy(weights / scales.astype(np.float32)[:, None]).clamp(-448, 448)
    theirs = scaled.to(torch.float8_e4m3fn)
    assert np.array_equal(codes, theirs.view(torch.uint8).numpy())
    back = theirs.float().numpy() * scales.astype(np.float32)[:, None]
    assert np.array_equal(float8.dequantize(codes, scales), back)


def test_rows_come_back_to_three_bits_of_mantissa() -> None:
    weights = ROWS["normal"].astype(np.float32)
    back = float8.dequantize(*float8.quantize(weights))
    assert (np.abs(back - weights) <= np.maximum(2.0**-4 * np.abs(weights), 1e-4)).all()


def test_scales_are_positive_and_the_largest_weight_fits() -> None:
    codes, scales = float8.quantize(ROWS["zeros"].astype(np.float32))
    assert (scales > 0).all()
    assert not codes.any()
    weights = np.array([[65504.0 * 448, 1.0]], np.float32)
    assert np.isfinite(float8.dequantize(*float8.quantize(weights))).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e7])
def test_what_no_scale_can_stand_for_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"a weight is infinite or not a number|is too large for a float16 scale"):
        float8.quantize(np.array([[0.0, value]], np.float32))
