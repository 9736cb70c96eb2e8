"""Whole programs, converted from torch by coremltools and executed by the interpreter, against torch itself."""

import warnings
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from ossicle.runtimes.mil import constants
from ossicle.runtimes.mil.interpreter import Program
from ossicle.runtimes.mil.package import read
from ossicle.runtimes.mil.program import Blob, Immediate
from ossicle.targets.contract import EngineError
from ossicle.tests.runtimes import mil_package  # noqa: F401  imports coremltools quietly
from torch import nn
from torch.nn import functional as F  # noqa: N812

pytestmark = pytest.mark.filterwarnings("ignore")  # what coremltools and torch's tracer say while they convert
SLOTS, WIDTH = 24, 16


class Encoder(nn.Module):
    """Convolutions, normalization, attention and a gated layer, each as audio encoders and decoders have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(8, WIDTH, 3, padding=1), nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.norm, self.scale = nn.LayerNorm(WIDTH), nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=i != 1) for i in range(3))
        self.gate, self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH, bias=False)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.second(F.gelu(self.first(mel)))).transpose(1, 2)
        heads = [layer(self.norm(x)).view(1, -1, 2, 8).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        x = x + F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(1, -1, WIDTH)
        h = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.scale
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Attention(nn.Module):
    """One layer over a cache that is written in place, from slot `start` on, with rotated keys."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(WIDTH, 3 * WIDTH)
        self.register_buffer("keys", torch.zeros(1, SLOTS, WIDTH))
        self.register_buffer("values", torch.zeros(1, SLOTS, WIDTH))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        end = mask.shape[-1]
        start = end - x.shape[1]
        q, k, v = self.weights(x).split(WIDTH, -1)
        angle = torch.arange(SLOTS)[start:end, None] / 10 ** (torch.arange(WIDTH // 2) / WIDTH)
        cos, sin = angle.cos(), angle.sin()
        self.keys[:, start:end] = turned(k, cos, sin)
        self.values[:, start:end] = v
        scores = turned(q, cos, sin) @ self.keys[:, :end].transpose(1, 2) * WIDTH**-0.5 + mask
        return scores.softmax(-1) @ self.values[:, :end]


def seeded(module: Any) -> Any:
    torch.manual_seed(0)
    return module().eval()


def converted(module: nn.Module, inputs: dict[str, Any], path: Path, single: bool = False, **more: Any) -> Any:
    """A module as coremltools converts it, saved; inputs by name, with their example and, where it varies, their shape."""
    dtype = np.float32 if single else np.float16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, tuple(example for example, _ in inputs.values()), check_trace=False)
        model = ct.convert(
            traced,
            inputs=[ct.TensorType(name, shape=shape, dtype=dtype) for name, (_, shape) in inputs.items()],
            outputs=[ct.TensorType("y", dtype=dtype)],
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32 if single else ct.precision.FLOAT16,
            skip_model_load=True,
            **more,
        )
        model.save(str(path))
    return model


def relative(ours: np.ndarray, expected: torch.Tensor) -> float:
    exact = expected.detach().numpy().astype(np.float64)
    return float(np.linalg.norm(ours - exact) / np.linalg.norm(exact))


MEL = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (1, 8, 60)).astype(np.float16).astype(np.float32))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The encoder in float16: its folder, and coremltools' model."""
    path = tmp_path_factory.mktemp("encoder") / "half.mlpackage"
    return path, converted(seeded(Encoder), {"mel": (MEL, MEL.shape)}, path)


def test_float32_is_torch_to_rounding(tmp_path: Path) -> None:
    module = seeded(Encoder)
    converted(module, {"mel": (MEL, MEL.shape)}, tmp_path / "p.mlpackage", single=True)
    outputs, _ = Program(tmp_path / "p.mlpackage").function().run({"mel": MEL.numpy()})
    assert relative(outputs["y"], module(MEL)) < 1e-6


def test_float16_is_within_its_rounding(encoder: Any) -> None:
    outputs, _ = Program(encoder[0]).function().run({"mel": MEL.numpy().astype(np.float16)})
    assert outputs["y"].dtype == np.float16
    error = relative(outputs["y"], seeded(Encoder)(MEL))
    assert 1e-5 < error < 2e-3  # it is no float32 either


def test_float16_numbers_are_those_of_torch_in_float16(encoder: Any) -> None:
    """torch computes the same module in float16, each operation rounded: most results are the same to the bit."""
    outputs, _ = Program(encoder[0]).function().run({"mel": MEL.numpy().astype(np.float16)})
    with torch.no_grad():
        expected = seeded(Encoder).half()(MEL.half()).numpy()
    distance = np.abs(outputs["y"].view(np.int16).astype(int) - expected.view(np.int16).astype(int))
    assert np.median(distance) <= 1


def test_constants_are_made_anew_where_memory_does_not_reach(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given, made = {"mel": MEL.numpy().astype(np.float16)}, []
    make = constants.Constants._make
    monkeypatch.setattr(constants.Constants, "_make", lambda self, fixed: made.append(fixed) or make(self, fixed))
    monkeypatch.setattr(constants, "LARGE", 1000)
    counts = []
    for free in (1 << 40, constants.RESERVE):
        monkeypatch.setattr(constants, "available", lambda free=free: free)
        run = Program(encoder[0]).function()
        first = run.run(given)[0]["y"]
        made.clear()
        assert np.array_equal(run.run(given)[0]["y"], first)
        counts.append(len(made))
    assert counts[0] == 0
    assert counts[1] > 3


@pytest.mark.parametrize(("dtype", "limit"), [("int8", 0.02), ("int4", 0.3)])
def test_weights_in_blocks_of_integers(encoder: Any, tmp_path: Path, dtype: str, limit: float) -> None:
    config = ct.optimize.coreml.OptimizationConfig(
        ct.optimize.coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype=dtype, granularity="per_block", block_size=8, weight_threshold=100
        )
    )
    smaller = ct.optimize.coreml.linear_quantize_weights(encoder[1], config)
    stored_and_run(smaller, encoder[1], tmp_path / "p.mlpackage", "constexpr_blockwise_shift_scale", limit)


@pytest.mark.parametrize(("granularity", "more"), [("per_tensor", {}), ("per_grouped_channel", {"group_size": 8})])
def test_weights_in_palettes(encoder: Any, tmp_path: Path, granularity: str, more: Any) -> None:
    config = ct.optimize.coreml.OptimizationConfig(
        ct.optimize.coreml.OpPalettizerConfig(
            mode="uniform", nbits=4, granularity=granularity, weight_threshold=100, **more
        )
    )
    smaller = ct.optimize.coreml.palettize_weights(encoder[1], config)
    stored_and_run(smaller, encoder[1], tmp_path / "p.mlpackage", "constexpr_lut_to_dense", 0.3)


def stored_and_run(smaller: Any, whole: Any, path: Path, kind: str, limit: float) -> None:
    """A compressed model is what coremltools itself makes of its weights, in every bit, and near the whole one."""
    smaller.save(str(path))
    program = Program(path)
    assert kind in {operation.kind for operation in program.function().function.operations}
    dense = ct.optimize.coreml.decompress_weights(smaller)
    dense.save(str(path.with_name("dense.mlpackage")))
    whole.save(str(path.with_name("whole.mlpackage")))
    given = {"mel": MEL.numpy().astype(np.float16)}
    ours, same, exact = (
        Program(one).function().run(given)[0]["y"]
        for one in (path, path.with_name("dense.mlpackage"), path.with_name("whole.mlpackage"))
    )
    assert np.array_equal(ours, same)
    assert 1e-4 < relative(ours, torch.from_numpy(exact)) < limit


def test_blobs_are_what_coremltools_reads(encoder: Any) -> None:
    """Every constant of the package, in the bits that Apple's own reader gives."""
    from coremltools.libmilstoragepython import _BlobStorageReader

    package = read(encoder[0])
    reader = _BlobStorageReader(str(package.model_file.parent / "weights" / "weight.bin"))
    values = [operation.attributes.get("val") for operation in package.model.functions["main"].operations]
    blobs = [value for value in values if isinstance(value, Blob)]
    assert len(blobs) >= 10
    for blob in blobs:
        theirs = np.asarray(reader.read_fp16_data(blob.offset), np.uint16).view(np.float16)
        assert np.array_equal(package.tensor(blob).array.ravel(), theirs.astype(np.float32))
    assert any(isinstance(value, Immediate) for value in values)


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stateful") / "p.mlpackage"
    length, end = ct.RangeDim(1, SLOTS, 3), ct.RangeDim(1, SLOTS, 3)
    converted(
        seeded(Attention),
        {
            "x": (torch.zeros(1, 3, WIDTH), (1, length, WIDTH)),
            "mask": (torch.zeros(1, 3, 3), (1, length, end)),
        },
        path,
        states=[
            ct.StateType(ct.TensorType(shape=(1, SLOTS, WIDTH), dtype=np.float16), name=name)
            for name in ("keys", "values")
        ],
    )
    return path


def causal(new: int, before: int) -> np.ndarray:
    return np.triu(np.full((1, new, before + new), -1e4, np.float16), before + 1)


def test_a_state_is_written_chunk_by_chunk_and_step_by_step(stateful: Path) -> None:
    x = np.random.default_rng(1).normal(0, 1, (1, 20, WIDTH)).astype(np.float16)
    module, run = seeded(Attention), Program(stateful).function()
    expected = module(torch.from_numpy(x).float(), torch.from_numpy(causal(20, 0)).float())
    states, parts, at = run.states(), [], 0
    for size in (9, 6, 1, 1, 1, 2):
        outputs, states = run.run({"x": x[:, at : at + size], "mask": causal(size, at)}, states)
        parts.append(outputs["y"])
        at += size
    assert relative(np.concatenate(parts, 1), expected) < 2e-3
    assert relative(states["keys"].array[:, :20], module.keys[:, :20]) < 2e-3
    assert not states["keys"].array[:, 20:].any()


def test_states_that_were_handed_out_stay_as_they_are(stateful: Path) -> None:
    x, run = np.ones((1, 4, WIDTH), np.float16), Program(stateful).function()
    _, first = run.run({"x": x, "mask": causal(4, 0)})
    held = first["keys"].array.copy()
    again = [run.run({"x": x[:, :1] * factor, "mask": causal(1, 4)}, first)[0]["y"] for factor in (1, 2, 1)]
    assert np.array_equal(first["keys"].array, held)
    assert np.array_equal(again[0], again[2])
    assert not np.array_equal(again[0], again[1])


@pytest.mark.parametrize(("size", "given_as"), [(SLOTS + 1, np.float16), (3, np.float32)])
def test_inputs_are_held_to_their_description(stateful: Path, size: int, given_as: Any) -> None:
    given = {"x": np.zeros((1, size, WIDTH), given_as), "mask": causal(size, 0)}
    with pytest.raises(EngineError, match=r"input 'x' is float.* described as fp16 \[1, 1 to 24, 16\]"):
        Program(stateful).function().run(given)


def test_inputs_have_to_be_all_there(stateful: Path) -> None:
    with pytest.raises(EngineError, match="takes x, mask and is given x"):
        Program(stateful).function().run({"x": np.zeros((1, 1, WIDTH), np.float16)})


def test_functions_share_their_weights(encoder: Any, tmp_path: Path) -> None:
    """Two functions over one file: each runs, and what both store is decoded once."""
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name in ("first", "second"):
        descriptor.add_function(str(encoder[0]), src_function_name="main", target_function_name=name)
    descriptor.default_function_name = "second"
    ct.utils.save_multifunction(descriptor, str(tmp_path / "two.mlpackage"))
    program = Program(tmp_path / "two.mlpackage")
    assert (program.default, set(program.functions)) == ("second", {"first", "second"})
    given = {"mel": MEL.numpy().astype(np.float16)}
    outputs = [program.function(name).run(given)[0]["y"] for name in ("first", "second", "")]
    assert np.array_equal(outputs[0], outputs[1])
    assert np.array_equal(outputs[0], Program(encoder[0]).function().run(given)[0]["y"])
    blobs = [
        {
            value
            for operation in function.operations
            for value in operation.attributes.values()
            if isinstance(value, Blob)
        }
        for function in read(tmp_path / "two.mlpackage").model.functions.values()
    ]
    assert blobs[0] == blobs[1]
    with pytest.raises(EngineError, match=r"no function 'third' \(it has: first, second\)"):
        program.function("third")
