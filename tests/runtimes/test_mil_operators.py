"""MIL's operations one at a time, against torch: what each gives for shapes, axes, masks and types of every kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes
from ossicle.runtimes.mil.interpreter import Program
from ossicle.targets.contract import EngineError
from ossicle.tests.runtimes.mil_package import Package, Stored, element_of, tensor_type
from torch.nn import functional as F  # noqa: N812

QUICK = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
FLOATS = {"fp16": (torch.float16, 1e-3), "fp32": (torch.float32, 2e-6)}


def run(folder: Path, kind: str, expected: list[tuple[str, tuple[int, ...]]], **arguments: Any) -> list[np.ndarray]:
    """What one operation gives; arrays of floats and int32 are inputs, all else constants."""
    package, inputs, given = Package(), {}, {}

    def place(name: str, value: Any) -> Any:
        if (
            isinstance(value, np.ndarray)
            and element_of(value) in ("fp16", "fp32", "int32")
            and not name.startswith("_")
        ):
            inputs[name] = value.astype(np.int32) if value.dtype == np.int64 else value
            return package.input(name, element_of(value), value.shape)
        return package.const(value)

    for name, value in arguments.items():
        if isinstance(value, tuple):
            given[name] = [place(f"{name}{i}", one) for i, one in enumerate(value)]
        else:
            given[name] = place(name, value)
    outputs = {f"out{i}": one for i, one in enumerate(expected)}
    package.op(kind, outputs, **given)
    for name, (element, shape) in outputs.items():
        if element == "bool":
            package.op("cast", {f"{name}_int": ("int32", shape)}, x=name, dtype=package.const("int32"))
            package.output(f"{name}_int", "int32", shape)
        else:
            package.output(name, element, shape)
    results, _ = Program(package.write(folder / "one.mlpackage")).function().run(inputs)
    return list(results.values())


def same(folder: Path, kind: str, expected: torch.Tensor, **arguments: Any) -> None:
    """One operation gives exactly what torch gives, type and shape besides."""
    (result,) = run(folder, kind, [(element_of(expected.numpy()), tuple(expected.shape))], **arguments)
    assert np.array_equal(result, expected.numpy(), equal_nan=expected.is_floating_point()), kind


def near(folder: Path, kind: str, expected: torch.Tensor, element: str, **arguments: Any) -> None:
    """One operation gives what torch gives in float64, rounded as its type is; `arguments` in float64 where they are floats."""
    dtype = {"fp16": np.float16, "fp32": np.float32}[element]
    given = {
        name: np.asarray(value).astype(dtype) if np.asarray(value).dtype == np.float64 else value
        for name, value in arguments.items()
    }
    (result,) = run(folder, kind, [(element, tuple(expected.shape))], **given)
    limit = FLOATS[element][1] * max(1.0, float(expected.abs().max()) if expected.numel() else 0.0)
    assert np.abs(result.astype(np.float64) - expected.numpy()).max(initial=0) <= limit, kind


def numbers(seed: int, *shape: int) -> np.ndarray:
    """Random numbers that float16 holds, as float64."""
    return np.asarray(np.random.default_rng(seed).normal(0, 1, shape)).astype(np.float16).astype(np.float64)


def floats(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values))


UNARY = {
    **{name: getattr(torch, name) for name in ("abs", "atan", "ceil", "cos", "erf", "exp", "exp2", "floor", "relu")},
    **{name: getattr(torch, name) for name in ("round", "sigmoid", "sign", "sin", "square", "tan", "tanh")},
    "silu": F.silu,
    "softplus": F.softplus,
}


@pytest.mark.parametrize("element", FLOATS)
@pytest.mark.parametrize("kind", UNARY)
def test_unary(tmp_path: Path, kind: str, element: str) -> None:
    x = np.concatenate([numbers(0, 300), [0.0, -0.5, 1.5, 2.5, -8.0, 8.0]])
    x = np.delete(x, np.abs(np.abs(x) - np.pi / 2) < 0.1) if kind == "tan" else x
    near(tmp_path, kind, UNARY[kind](floats(x)), element, x=x)


@pytest.mark.parametrize("element", FLOATS)
@pytest.mark.parametrize(("kind", "epsilon"), [("rsqrt", 1e-3), ("inverse", 0.25), ("log", 0.5), ("sqrt", None)])
def test_unary_of_positive_numbers(tmp_path: Path, kind: str, epsilon: float | None, element: str) -> None:
    x = np.abs(numbers(1, 300)) + 0.5
    small = 0.0 if epsilon is None else float(np.float16(epsilon))
    function = {"rsqrt": torch.rsqrt, "inverse": torch.reciprocal, "log": torch.log, "sqrt": torch.sqrt}[kind]
    given = {} if epsilon is None else {"epsilon": np.array(small)}
    near(tmp_path, kind, function(floats(x + small)), element, x=x, **given)


def test_every_float16_result_is_the_nearest(tmp_path: Path) -> None:
    """An operation rounds once: a half of the sum of exact values, not of what was rounded before."""
    x, y = numbers(2, 5000).astype(np.float16), numbers(3, 5000).astype(np.float16)
    for kind, function in {"add": torch.add, "mul": torch.mul, "sub": torch.sub, "real_div": torch.div}.items():
        exact = function(floats(x).double(), floats(y).double())
        same(tmp_path, kind, exact.half(), x=x, y=y)
    same(tmp_path, "exp", floats(x).double().exp().half(), x=x)


def test_float16_overflows_to_infinity(tmp_path: Path) -> None:
    x = np.array([60000, -60000, 300], np.float16)
    same(tmp_path, "add", torch.tensor([float("inf"), -float("inf"), 600]).half(), x=x, y=x)
    same(tmp_path, "square", torch.tensor([float("inf"), float("inf"), float("inf")]).half(), x=x)
    tall = np.array([1e5, -7e4, 65519, 65520], np.float32)
    expected = torch.tensor([float("inf"), -float("inf"), 65504, float("inf")]).half()
    same(tmp_path, "cast", expected, x=tall, dtype=np.array("fp16"))


@QUICK
@given(
    shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4),
    kind=st.sampled_from(["add", "sub", "mul", "maximum", "minimum", "floor_div", "mod", "pow", "real_div"]),
    element=st.sampled_from(["fp16", "fp32"]),
)
def test_binary_operations_broadcast(tmp_path: Path, shapes: Any, kind: str, element: str) -> None:
    x, y = (np.abs(numbers(seed, *shape)) + 0.5 for seed, shape in enumerate(shapes.input_shapes))
    function = {
        "floor_div": lambda a, b: torch.div(a, b, rounding_mode="floor"),
        "mod": torch.remainder,
        "pow": torch.pow,
        "real_div": torch.div,
    }.get(kind) or getattr(torch, kind)
    near(tmp_path, kind, function(floats(x), floats(y)), element, x=x, y=y)


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "maximum", "minimum", "floor_div", "mod"])
def test_integers(tmp_path: Path, kind: str) -> None:
    x, y = np.arange(-6, 7, dtype=np.int32), np.array([3, -4] * 6 + [5], np.int32)
    function = {"floor_div": lambda a, b: torch.div(a, b, rounding_mode="floor"), "mod": torch.remainder}
    same(tmp_path, kind, function.get(kind, getattr(torch, kind, None))(floats(x), floats(y)), x=x, y=y)


def test_integers_are_divided_where_nothing_is_left(tmp_path: Path) -> None:
    x, y = np.array([-6, 0, 8], np.int32), np.array([3, 5, -4], np.int32)
    same(tmp_path, "real_div", torch.tensor([-2, 0, -2], dtype=torch.int32), x=x, y=y)
    for divisor in (4, 0):
        with pytest.raises(EngineError, match=r"real_div .* integers do not divide"):
            run(tmp_path, "real_div", [("int32", (3,))], x=x, y=np.full(3, divisor, np.int32))


@pytest.mark.parametrize(
    ("kind", "function"),
    {
        "equal": torch.eq,
        "greater": torch.gt,
        "greater_equal": torch.ge,
        "less": torch.lt,
        "less_equal": torch.le,
        "not_equal": torch.ne,
    }.items(),
)
@pytest.mark.parametrize("dtype", [np.int32, np.float16])
def test_comparisons(tmp_path: Path, kind: str, function: Any, dtype: Any) -> None:
    x, y = np.array([[1], [2], [3]], dtype), np.array([1, 2, 3], dtype)
    (result,) = run(tmp_path, kind, [("bool", (3, 3))], x=x, y=y)
    assert np.array_equal(result.astype(bool), function(floats(x), floats(y)).numpy())


@pytest.mark.parametrize("kind", ["logical_and", "logical_or", "logical_xor"])
def test_truth(tmp_path: Path, kind: str) -> None:
    x, y = np.array([[True], [False]]), np.array([True, False])
    (result,) = run(tmp_path, kind, [("bool", (2, 2))], x=x, y=y)
    assert np.array_equal(result.astype(bool), getattr(torch, kind)(floats(x), floats(y)).numpy())
    (result,) = run(tmp_path, "logical_not", [("bool", (2, 1))], x=x)
    assert result.tolist() == [[0], [1]]


@pytest.mark.parametrize("element", FLOATS)
@pytest.mark.parametrize("mode", ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION", None])
def test_gelu(tmp_path: Path, mode: str | None, element: str) -> None:
    x = np.concatenate([numbers(4, 400) * 3, [-20.0, 20.0, 0.0]])
    x = x.astype(np.float16).astype(np.float64)
    expected = {
        "TANH_APPROXIMATION": F.gelu(floats(x), approximate="tanh"),
        "SIGMOID_APPROXIMATION": floats(x) * torch.sigmoid(1.702 * floats(x)),
    }.get(mode or "EXACT", F.gelu(floats(x)))
    near(tmp_path, "gelu", expected, element, x=x, **({} if mode is None else {"mode": np.array(mode)}))


@pytest.mark.parametrize(
    ("given_as", "dtype"),
    [
        (np.float32, "int32"),
        (np.float16, "int32"),
        (np.int32, "fp16"),
        (np.int32, "fp32"),
        (np.float32, "bool"),
        (np.int32, "bool"),
        (np.float16, "fp32"),
    ],
)
def test_cast(tmp_path: Path, given_as: Any, dtype: str) -> None:
    x = np.array([-2.75, -1, -0.25, 0, 0.75, 1.5, 2049], given_as)
    to = {"int32": torch.int32, "fp16": torch.float16, "fp32": torch.float32, "bool": torch.bool}[dtype]
    (result,) = run(tmp_path, "cast", [(dtype, (7,))], x=x, dtype=np.array(dtype))
    assert np.array_equal(result, floats(x).to(to).numpy())


def test_select_clip_and_leaky_relu(tmp_path: Path) -> None:
    a, b = numbers(5, 3, 1).astype(np.float32), numbers(6, 4).astype(np.float32)
    cond = np.array([[True], [False], [True]])
    same(tmp_path, "select", torch.where(floats(cond), floats(a), floats(b)), cond=cond, a=a, b=b)
    same(tmp_path, "clip", floats(b).clamp(-0.5, 0.5), x=b, alpha=np.float32(-0.5), beta=np.float32(0.5))
    same(tmp_path, "leaky_relu", F.leaky_relu(floats(b), 0.25), x=b, alpha=np.float32(0.25))


# Slices: begin, end, stride, masks, and the same in Python.
SLICES = [
    ({"begin": [1, 0, 2], "end": [3, 2, 5]}, np.s_[1:3, 0:2, 2:5]),
    ({"begin": [-2, 0, 0], "end": [-1, 3, 6], "stride": [1, 2, 3]}, np.s_[-2:-1, 0:3:2, 0:6:3]),
    ({"begin": [2, 2, 1], "end": [0, 0, 0], "end_mask": [True, True, True]}, np.s_[2:, 2:, 1:]),
    ({"begin": [3, 9, 9], "end": [4, 2, 99], "begin_mask": [False, True, True]}, np.s_[3:4, :2, :99]),
    ({"begin": [1, -1, 0], "end": [0, 0, 6], "squeeze_mask": [True, True, False]}, np.s_[1, -1, 0:6]),
    ({"begin": [1, 2, 3], "end": [0, 0, 0], "squeeze_mask": [True, True, True]}, np.s_[1, 2, 3]),
    ({"begin": [0, 0, -1], "end": [4, 3, -7], "stride": [1, 1, -2]}, np.s_[0:4, 0:3, -1:-7:-2]),
    ({"begin": [0, 2, 0], "end": [4, 2, 6]}, np.s_[0:4, 2:2, 0:6]),
]


@pytest.mark.parametrize(("arguments", "index"), SLICES)
def test_slices(tmp_path: Path, arguments: Any, index: Any) -> None:
    x = np.arange(72, dtype=np.float32).reshape(4, 3, 6)
    given = {name: np.array(value, bool if name.endswith("mask") else np.int32) for name, value in arguments.items()}
    same(
        tmp_path,
        "slice_by_index",
        torch.from_numpy(x[index].copy()) if np.ndim(x[index]) else torch.tensor(x[index]),
        x=x,
        **given,
    )
    if np.ndim(x[index]):
        update = -np.ones_like(x[index])
        expected = x.copy()
        expected[index] = update
        same(tmp_path, "slice_update", torch.from_numpy(expected), x=x, update=update, **given)


def test_an_update_has_to_fit(tmp_path: Path) -> None:
    x, update = np.zeros((4, 3), np.float32), np.zeros((2, 2), np.float32)
    with pytest.raises(EngineError, match=r"slice_update .* update \[2, 2\] does not fit the slice \[1, 2\]"):
        run(
            tmp_path,
            "slice_update",
            [("fp32", (4, 3))],
            x=x,
            update=update,
            begin=np.array([3, 0]),
            end=np.array([5, 2]),
        )


@QUICK
@given(data=st.data(), shape=array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5))
def test_any_slice_is_the_one_of_python(tmp_path: Path, data: Any, shape: Any) -> None:
    x = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    bound = st.integers(-6, 6)
    begin, end = ([data.draw(bound) for _ in shape] for _ in range(2))
    stride = [data.draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in shape]
    from_first, to_last = ([data.draw(st.booleans()) for _ in shape] for _ in range(2))
    index = tuple(
        slice(None if first else b, None if last else e, s)
        for b, e, s, first, last in zip(begin, end, stride, from_first, to_last, strict=True)
    )
    (result,) = run(
        tmp_path,
        "slice_by_index",
        [("int32", x[index].shape)],
        x=x,
        begin=np.array(begin),
        end=np.array(end),
        stride=np.array(stride),
        begin_mask=np.array(from_first),
        end_mask=np.array(to_last),
    )
    assert np.array_equal(result, x[index])


@pytest.mark.parametrize(
    ("begin", "size", "index"),
    [([1, 0], [2, 3], np.s_[1:3, 0:3]), ([-2, 1], [1, -1], np.s_[2:3, 1:]), ([0, 3], [-1, 0], np.s_[:, 3:3])],
)
def test_slice_by_size(tmp_path: Path, begin: Any, size: Any, index: Any) -> None:
    x = np.arange(20, dtype=np.int32).reshape(4, 5)
    same(tmp_path, "slice_by_size", torch.from_numpy(x[index].copy()), x=x, begin=np.array(begin), size=np.array(size))


def test_a_slice_beyond_the_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"begin \[3, 0\] and size \[2, 5\] leave \[4, 5\]"):
        run(
            tmp_path,
            "slice_by_size",
            [("int32", (2, 5))],
            x=np.zeros((4, 5), np.int32),
            begin=np.array([3, 0]),
            size=np.array([2, 5]),
        )


@pytest.mark.parametrize(
    ("shape", "result"),
    [
        ([2, 12], (2, 12)),
        ([-1], (24,)),
        ([0, -1], (3, 8)),
        ([0, 0, 0], (2, 3, 4)),
        ([6, 0], (6, 4)),
        ([1, 0, 0, 0], (1, 2, 3, 4)),
        ([0, -1, 2], (2, 6, 2)),
    ],
)
def test_reshape(tmp_path: Path, shape: Any, result: Any) -> None:
    """Zeros are counted from the last axis."""
    x = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    same(tmp_path, "reshape", torch.from_numpy(x.reshape(result)), x=x, shape=np.array(shape))


@QUICK
@given(data=st.data(), shape=array_shapes(min_dims=1, max_dims=4, max_side=4))
def test_shapes_are_moved(tmp_path: Path, data: Any, shape: Any) -> None:
    x = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    order = data.draw(st.permutations(range(len(shape))))
    same(tmp_path, "transpose", torch.from_numpy(x).permute(order), x=x, perm=np.array(order))
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    same(tmp_path, "expand_dims", torch.from_numpy(x).unsqueeze(axis), x=x, axes=np.array([axis]))
    times = [data.draw(st.integers(1, 3)) for _ in shape]
    same(tmp_path, "tile", torch.from_numpy(x).repeat(times), x=x, reps=np.array(times))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    same(tmp_path, "reverse", torch.from_numpy(x).flip(axis), x=x, axes=np.array([axis]))
    (result,) = run(tmp_path, "shape", [("int32", (len(shape),))], x=x)
    assert tuple(result) == shape


def test_squeeze(tmp_path: Path) -> None:
    x = np.zeros((1, 3, 1, 2), np.float32)
    same(tmp_path, "squeeze", torch.zeros(3, 2), x=x)
    same(tmp_path, "squeeze", torch.zeros(1, 3, 2), x=x, axes=np.array([-2]))
    same(tmp_path, "squeeze", torch.zeros(1, 3, 1, 2), x=x, axes=np.array([1]))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_joins(tmp_path: Path, axis: int) -> None:
    x, y = numbers(7, 2, 3).astype(np.float16), numbers(8, 2, 3).astype(np.float16)
    tensors = [torch.from_numpy(one) for one in (x, y)]
    same(tmp_path, "concat", torch.cat(tensors, axis), values=(x, y), axis=np.int32(axis))
    same(tmp_path, "stack", torch.stack(tensors, axis), values=(x, y), axis=np.int32(axis))
    interleaved = torch.stack(tensors, axis % 2 + 1).flatten(axis % 2, axis % 2 + 1)
    same(tmp_path, "concat", interleaved, values=(x, y), axis=np.int32(axis), interleave=np.True_)


def test_split(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 12)
    parts = run(
        tmp_path,
        "split",
        [("fp32", (2, n)) for n in (3, 4, 5)],
        x=x,
        axis=np.int32(-1),
        split_sizes=np.array([3, 4, 5]),
    )
    assert all(map(np.array_equal, parts, [one.numpy() for one in torch.from_numpy(x).split([3, 4, 5], 1)]))
    parts = run(tmp_path, "split", [("fp32", (2, 4))] * 3, x=x, axis=np.int32(1), num_splits=np.int32(3))
    assert all(map(np.array_equal, parts, [one.numpy() for one in torch.from_numpy(x).chunk(3, 1)]))


@pytest.mark.parametrize(("axis", "shape"), [(0, (5,)), (1, (2, 2)), (-1, ()), (2, (3, 1))])
def test_gather(tmp_path: Path, axis: int, shape: Any) -> None:
    x = numbers(9, 4, 3, 5).astype(np.float16)
    indices = np.random.default_rng(0).integers(0, 3, shape).astype(np.int32)
    expected = torch.from_numpy(x).movedim(axis, 0)[torch.from_numpy(np.asarray(indices)).long()]
    order = list(range(indices.ndim, indices.ndim + 2))
    place = axis % 3
    expected = expected.permute(*order[:place], *range(indices.ndim), *order[place:])
    same(tmp_path, "gather", expected.contiguous(), x=x, indices=np.asarray(indices), axis=np.int32(axis))


def test_gather_in_batches_and_along_an_axis(tmp_path: Path) -> None:
    x = numbers(10, 2, 4, 3).astype(np.float32)
    indices = np.array([[3, 0], [1, 1]], np.int32)
    expected = torch.stack([torch.from_numpy(x)[i][torch.from_numpy(indices[i]).long()] for i in range(2)])
    same(tmp_path, "gather", expected, x=x, indices=indices, axis=np.int32(1), batch_dims=np.int32(1))
    along = np.random.default_rng(1).integers(0, 4, (2, 2, 3)).astype(np.int32)
    expected = torch.gather(torch.from_numpy(x), 1, torch.from_numpy(along).long())
    same(tmp_path, "gather_along_axis", expected, x=x, indices=along, axis=np.int32(1))


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_outside_is_refused(tmp_path: Path, index: int) -> None:
    with pytest.raises(EngineError, match=rf"gather .* indices from {index} to {index} leave 0 to 3"):
        run(tmp_path, "gather", [("fp32", (1,))], x=np.zeros(4, np.float32), indices=np.array([index]))


@pytest.mark.parametrize(
    ("mode", "torchs"), [("constant", "constant"), ("reflect", "reflect"), ("replicate", "replicate")]
)
def test_pad(tmp_path: Path, mode: str, torchs: str) -> None:
    x = numbers(11, 2, 3, 5).astype(np.float32)
    given = {"constant_val": np.float32(2.5)} if mode == "constant" else {}
    expected = F.pad(torch.from_numpy(x), (3, 1), torchs, *([2.5] if given else []))
    same(tmp_path, "pad", expected, x=x, pad=np.array([3, 1]), mode=np.array(mode), **given)
    expected = F.pad(torch.from_numpy(x[None]), (1, 2, 2, 0), torchs, *([2.5] if given else []))[0]
    same(tmp_path, "pad", expected, x=x, pad=np.array([2, 0, 1, 2]), mode=np.array(mode), **given)


def test_filled_and_counted(tmp_path: Path) -> None:
    same(tmp_path, "fill", torch.full((2, 3), 7, dtype=torch.int32), shape=np.array([2, 3]), value=np.array(7))
    same(tmp_path, "fill_like", torch.full((4,), 0.5).half(), ref_tensor=np.zeros(4, np.float32), value=np.float16(0.5))
    for start, end, step in ((0, 7, 2), (5, -2, -3), (3, 3, 1)):
        given = {name: np.int32(value) for name, value in (("start", start), ("end", end), ("step", step))}
        same(tmp_path, "range_1d", torch.arange(start, end, step, dtype=torch.int32), **given)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    same(tmp_path, "band_part", torch.from_numpy(x).triu(), x=x, lower=np.int32(0), upper=np.int32(-1))
    same(tmp_path, "band_part", torch.from_numpy(x).tril(1), x=x, lower=np.int32(-1), upper=np.int32(1))


@pytest.mark.parametrize("element", FLOATS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_linear(tmp_path: Path, lead: Any, bias: bool, element: str) -> None:
    x, weight, offset = numbers(12, *lead, 8), numbers(13, 5, 8), numbers(14, 5)
    given = {"bias": offset} if bias else {}
    expected = F.linear(floats(x), floats(weight), floats(offset) if bias else None)
    near(tmp_path, "linear", expected, element, x=x, weight=weight, **given)


@pytest.mark.parametrize("element", FLOATS)
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("left", "right"), [((), ()), ((3,), (3,)), ((2, 1), (3,)), ((1,), (4, 2))])
def test_matmul(tmp_path: Path, left: Any, right: Any, turned: Any, element: str) -> None:
    x, y = numbers(15, *left, 4, 6), numbers(16, *right, 6, 5)
    expected = floats(x) @ floats(y)
    x, y = (one.swapaxes(-1, -2) if turn else one for one, turn in zip((x, y), turned, strict=True))
    flags = {"transpose_x": np.bool_(turned[0]), "transpose_y": np.bool_(turned[1])}
    near(tmp_path, "matmul", expected, element, x=np.ascontiguousarray(x), y=np.ascontiguousarray(y), **flags)


def test_products_accumulate_in_float32(tmp_path: Path) -> None:
    """Half a million of ones and a small number: float16 sums would stop at 2048."""
    x, y = np.full((1, 4096), 0.25, np.float16), np.full((4096, 1), 1.0, np.float16)
    same(tmp_path, "matmul", torch.tensor([[1024.0]]).half(), x=x, y=y)
    same(tmp_path, "reduce_sum", torch.tensor([1024.0]).half(), x=x, axes=np.array([1]), keep_dims=np.False_)


CONVOLUTIONS = [
    {"shape": (2, 4, 11), "weight": (6, 4, 3), "stride": [1], "pad": [1, 1], "dilation": [1], "groups": 1},
    {"shape": (1, 4, 12), "weight": (6, 2, 3), "stride": [2], "pad": [2, 2], "dilation": [2], "groups": 2},
    {"shape": (1, 6, 9), "weight": (6, 1, 4), "stride": [1], "pad": [0, 0], "dilation": [1], "groups": 6},
    {
        "shape": (2, 3, 8, 9),
        "weight": (4, 3, 3, 2),
        "stride": [2, 1],
        "pad": [1, 1, 0, 0],
        "dilation": [1, 2],
        "groups": 1,
    },
    {
        "shape": (1, 4, 5, 6, 7),
        "weight": (2, 4, 2, 2, 2),
        "stride": [1, 2, 1],
        "pad": [0] * 6,
        "dilation": [1] * 3,
        "groups": 1,
    },
]


@pytest.mark.parametrize("element", FLOATS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv(tmp_path: Path, case: Any, element: str) -> None:
    x, weight, bias = numbers(17, *case["shape"]), numbers(18, *case["weight"]), numbers(19, case["weight"][0])
    function = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.ndim]
    pads = case["pad"][::2]
    expected = function(floats(x), floats(weight), floats(bias), case["stride"], pads, case["dilation"], case["groups"])
    near(
        tmp_path,
        "conv",
        expected,
        element,
        x=x,
        weight=weight,
        bias=bias,
        strides=np.array(case["stride"]),
        pad_type=np.array("custom"),
        pad=np.array(case["pad"]),
        dilations=np.array(case["dilation"]),
        groups=np.int32(case["groups"]),
    )


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("kind", ["same", "same_lower", "valid"])
def test_conv_padded_by_rule(tmp_path: Path, kind: str, kernel: int) -> None:
    x, weight = numbers(20, 1, 2, 9), numbers(21, 3, 2, kernel)
    less, more = (kernel - 1) // 2, kernel // 2
    pads = {"same": (less, more), "same_lower": (more, less), "valid": (0, 0)}[kind]
    expected = F.conv1d(F.pad(floats(x), pads), floats(weight))
    near(tmp_path, "conv", expected, "fp32", x=x, weight=weight, pad_type=np.array(kind))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("element", FLOATS)
def test_softmax(tmp_path: Path, axis: int, element: str) -> None:
    x = numbers(22, 3, 4, 5) * 10
    x = x.astype(np.float16).astype(np.float64)
    near(tmp_path, "softmax", floats(x).softmax(axis), element, x=x, axis=np.int32(axis))
    x[0, 0, 0] = -np.inf
    near(tmp_path, "softmax", floats(x).softmax(axis), element, x=x, axis=np.int32(axis))


@pytest.mark.parametrize("element", FLOATS)
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_attention(tmp_path: Path, mask: str | None, element: str) -> None:
    query, key, value = numbers(23, 1, 3, 4, 8), numbers(24, 1, 3, 7, 8), numbers(25, 1, 3, 7, 6)
    seen = np.tril(np.ones((4, 7), bool), 3)[None, None]
    masks = {None: None, "bool": seen, "float": np.where(seen, 0.0, -1e4)}
    given = {} if mask is None else {"attn_mask": masks[mask]}
    expected = F.scaled_dot_product_attention(
        *map(floats, (query, key, value)), None if mask is None else floats(masks[mask])
    )
    near(tmp_path, "scaled_dot_product_attention", expected, element, query=query, key=key, value=value, **given)


@pytest.mark.parametrize("element", FLOATS)
@pytest.mark.parametrize("axes", [[-1], [2], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("scaled", [True, False])
def test_layer_norm(tmp_path: Path, axes: Any, scaled: bool, element: str) -> None:
    x = numbers(26, 3, 4, 6)
    shape = [x.shape[axis] for axis in axes]
    gamma, beta = numbers(27, *shape), numbers(28, *shape)
    epsilon = float(np.float16(1e-3))
    expected = F.layer_norm(floats(x), shape, *((floats(gamma), floats(beta)) if scaled else (None, None)), epsilon)
    given = {"gamma": gamma, "beta": beta} if scaled else {}
    near(tmp_path, "layer_norm", expected, element, x=x, axes=np.array(axes), epsilon=np.array(epsilon), **given)


REDUCTIONS = {
    "reduce_max": torch.amax,
    "reduce_mean": torch.mean,
    "reduce_min": torch.amin,
    "reduce_sum": torch.sum,
    "reduce_sum_square": lambda x, dim, keepdim: x.square().sum(dim, keepdim),
    "reduce_l2_norm": lambda x, dim, keepdim: torch.linalg.vector_norm(x, 2, dim, keepdim),
}


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("axes", [[0], [-1], [0, 2], [2, 1, 0], None])
@pytest.mark.parametrize("keep", [True, False])
def test_reductions(tmp_path: Path, kind: str, axes: Any, keep: bool) -> None:
    x = numbers(29, 3, 4, 5)
    given = {} if axes is None else {"axes": np.array(axes)}
    expected = REDUCTIONS[kind](floats(x), axes or [0, 1, 2], keep)
    for element in FLOATS:
        near(tmp_path, kind, expected, element, x=x, keep_dims=np.bool_(keep), **given)


def test_places_and_running_sums(tmp_path: Path) -> None:
    x = numbers(30, 3, 5).astype(np.float32)
    for kind, function in (("reduce_argmax", torch.argmax), ("reduce_argmin", torch.argmin)):
        expected = function(torch.from_numpy(x), 0).int()
        same(tmp_path, kind, expected, x=x, axis=np.int32(0), keep_dims=np.False_)
    near(tmp_path, "cumsum", torch.from_numpy(x).double().cumsum(1), "fp32", x=x.astype(np.float64), axis=np.int32(1))
    expected = torch.from_numpy(x).double().flip(1).cumsum(1).flip(1)
    near(tmp_path, "cumsum", expected, "fp32", x=x.astype(np.float64), axis=np.int32(1), reverse=np.True_)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes side by side, the first in the lowest bits, as bytes."""
    columns = (codes.ravel()[:, None] >> np.arange(bits)) & 1
    return np.packbits(columns.astype(np.uint8).ravel(), bitorder="little")


def constant(package: Package, element: str, shape: Any, raw: np.ndarray) -> str:
    name = package.const(Stored(element, raw))
    entry = package.block.operations[-1]
    for message in (entry.attributes["val"].type, entry.outputs[0].type):
        message.tensorType.Clear()
        tensor_type(message, element, shape)
    return name


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("parts", [(1, 1), (6, 1), (3, 4), (6, 8)])
def test_blocks_of_integers(tmp_path: Path, kind: str, parts: Any) -> None:
    random = np.random.default_rng(31)
    bits, signed = int(kind.strip("uint")), kind.startswith("int")
    low = -(1 << (bits - 1)) if signed else 0
    codes = random.integers(low, low + (1 << bits), (6, 16))
    scale = random.uniform(0.01, 0.1, parts).astype(np.float16)
    zeros = random.integers(low, low + (1 << bits), parts)
    package = Package()
    data = constant(package, kind, (6, 16), packed(codes, bits))
    offset = constant(package, kind, parts, packed(zeros, bits))
    package.op("constexpr_blockwise_shift_scale", {"w": ("fp16", (6, 16))}, data=data, scale=scale, offset=offset)
    package.op("identity", {"y": ("fp16", (6, 16))}, x="w")
    package.output("y", "fp16", (6, 16))
    results, _ = Program(package.write(tmp_path / "p.mlpackage")).function().run({})
    expand = np.ones((6 // parts[0], 16 // parts[1]))
    exact = (codes - np.kron(zeros, expand)) * np.kron(scale.astype(np.float64), expand)
    assert np.array_equal(results["y"], torch.from_numpy(exact).half().numpy())


@pytest.mark.parametrize(
    ("bits", "width", "axis"),
    [*((bits, 1, None) for bits in (1, 2, 3, 4, 6, 8)), (2, 3, 0), (4, 2, 1)],
)
def test_palettes(tmp_path: Path, bits: int, width: int, axis: int | None) -> None:
    random = np.random.default_rng(32)
    indices = random.integers(0, 1 << bits, (4, 6))
    lut = random.normal(0, 1, (2, 1, 1 << bits, width)).astype(np.float16)
    expected = np.empty((4, 6, width), np.float16)
    for i, j in np.ndindex(4, 6):
        expected[i, j] = lut[i // 2, 0, indices[i, j]]
    if axis == 0:
        expected = np.stack([expected[i // width, :, i % width] for i in range(4 * width)])
    elif axis == 1:
        expected = np.stack([expected[:, j // width, j % width] for j in range(6 * width)], 1)
    else:
        expected = expected[..., 0]
    package = Package()
    given = {} if axis is None else {"vector_axis": np.int32(axis)}
    named = constant(package, f"uint{bits}", (4, 6), packed(indices, bits))
    package.op("constexpr_lut_to_dense", {"w": ("fp16", expected.shape)}, indices=named, lut=lut, **given)
    package.op("identity", {"y": ("fp16", expected.shape)}, x="w")
    package.output("y", "fp16", expected.shape)
    results, _ = Program(package.write(tmp_path / "p.mlpackage")).function().run({})
    assert np.array_equal(results["y"], expected)
