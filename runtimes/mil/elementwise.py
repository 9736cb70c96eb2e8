"""Operations on one element at a time.

Each is computed in float32 and rounded once. How `real_div` rounds a fraction of integers MIL does not tell: it is refused.
"""

from collections.abc import Callable, Mapping

import numpy as np

from ...kernels.erf import erf
from .arguments import Arguments, Operator, Result, common
from .tensors import BOOL, BY_NAME, FP16, Array, Tensor, computed

GELU_SIGMOID = np.float32(1.702)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _divided(x: Array, y: Array) -> Array:
    if x.dtype.kind == "f":
        return np.true_divide(x, y)
    quotient, remainder = np.divmod(x, y)
    if remainder.any() or not np.all(y):
        raise ValueError("integers do not divide")
    return quotient


UNARY: Mapping[str, Callable[[Array], Array]] = {
    "abs": np.abs,
    "atan": np.arctan,
    "ceil": np.ceil,
    "cos": np.cos,
    "erf": erf,
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "round": np.round,
    "sigmoid": _sigmoid,
    "sign": np.sign,
    "silu": lambda x: x * _sigmoid(x),
    "sin": np.sin,
    "softplus": lambda x: np.logaddexp(x, np.float32(0)),
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}
EXACT_IN_INTEGERS = ("abs", "identity", "sign", "square")

BINARY: Mapping[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "floor_div": np.floor_divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mod": np.mod,
    "mul": np.multiply,
    "pow": np.power,
    "real_div": _divided,
    "sub": np.subtract,
}

TRUTH: Mapping[str, Callable[[Array, Array], Array]] = {
    "equal": np.equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "not_equal": np.not_equal,
}

# With a small number added before: the operation, and the number where none is given.
OFFSET: Mapping[str, tuple[Callable[[Array], Array], float]] = {
    "inverse": (np.reciprocal, 1e-4),
    "log": (np.log, 1e-45),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1e-12),
}


def _unary(kind: str) -> Operator:
    def run(a: Arguments) -> Result:
        x = a.tensor("x")
        if not x.element.is_float and kind not in EXACT_IN_INTEGERS:
            raise ValueError(f"it takes no {x.element.name}")
        return computed(x.element, UNARY[kind](x.array))

    return run


def _binary(kind: str) -> Operator:
    def run(a: Arguments) -> Result:
        x, y = a.tensor("x"), a.tensor("y")
        element = common(x, y)
        return computed(element, BINARY[kind](x.array, y.array))

    return run


def _truth(function: Callable[[Array, Array], Array]) -> Operator:
    def run(a: Arguments) -> Result:
        x, y = a.tensor("x"), a.tensor("y")
        common(x, y)
        return computed(BOOL, function(x.array, y.array))

    return run


def _offset(kind: str) -> Operator:
    function, default = OFFSET[kind]

    def run(a: Arguments) -> Result:
        x = a.tensor("x")
        small = np.float32(a.number("epsilon", float(np.float16(default)) if x.element == FP16 else default))
        return computed(x.element, function(x.array + small))

    return run


def _gelu(a: Arguments) -> Result:
    x, mode = a.tensor("x"), a.word("mode", "EXACT")
    if mode not in GELU:
        raise ValueError(f"mode '{mode}' is unknown (it can be: {', '.join(GELU)})")
    return computed(x.element, GELU[mode](x.array))


GELU: Mapping[str, Callable[[Array], Array]] = {
    "EXACT": lambda x: 0.5 * x * (1 + erf(x * np.sqrt(0.5))),
    "TANH_APPROXIMATION": lambda x: 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + 0.044715 * x**3))),
    "SIGMOID_APPROXIMATION": lambda x: x * _sigmoid(GELU_SIGMOID * x),
}


def _leaky_relu(a: Arguments) -> Result:
    x = a.tensor("x")
    return computed(x.element, np.where(x.array < 0, x.array * np.float32(a.number("alpha", 0.01)), x.array))


def _clip(a: Arguments) -> Result:
    x = a.tensor("x")
    least, most = (np.asarray(a.tensor(name).array, x.array.dtype) for name in ("alpha", "beta"))
    return computed(x.element, np.minimum(np.maximum(x.array, least), most))


def _logical_not(a: Arguments) -> Result:
    return computed(BOOL, np.logical_not(a.tensor("x").array))


def _select(a: Arguments) -> Result:
    chosen, other = a.tensor("a"), a.tensor("b")
    return Tensor(common(chosen, other), np.where(a.tensor("cond").array, chosen.array, other.array))


def _cast(a: Arguments) -> Result:
    """Towards zero where a fraction is dropped; any number but zero is true."""
    x, to = a.tensor("x"), BY_NAME.get(a.word("dtype", ""))
    if to is None or to.bits < 8:
        raise ValueError(f"dtype '{a.word('dtype', '')}' is unknown")
    whole = x.element.is_float and not to.is_float and to != BOOL
    return computed(to, x.array.astype(np.int64).astype(to.carried) if whole else x.array)


OPERATORS: Mapping[str, Operator] = {
    **{kind: _unary(kind) for kind in UNARY},
    **{kind: _binary(kind) for kind in BINARY},
    **{kind: _truth(function) for kind, function in TRUTH.items()},
    **{kind: _offset(kind) for kind in OFFSET},
    "cast": _cast,
    "clip": _clip,
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "logical_not": _logical_not,
    "select": _select,
}
