"""llama.cpp's K-quants as recipes: which matrices get more bits than the rest, and what rows get that no block fits.

The rules are those by which llama.cpp picks tensor types for architecture `llama` when it quantizes a file:
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from .contract import Override, WeightFormat

BFLOAT16 = WeightFormat(16, kind="bfloat16")
Q4_0 = WeightFormat(4, 32, kind="Q4_0")
Q5_0 = WeightFormat(5, 32, kind="Q5_0")
Q5_1 = WeightFormat(5, 32, symmetric=False, kind="Q5_1")
Q8_0 = WeightFormat(8, 32, kind="Q8_0")
Q2_K = WeightFormat(2, 256, symmetric=False, kind="Q2_K")
Q3_K = WeightFormat(3, 256, kind="Q3_K")
Q4_K = WeightFormat(4, 256, symmetric=False, kind="Q4_K")
Q5_K = WeightFormat(5, 256, symmetric=False, kind="Q5_K")
Q6_K = WeightFormat(6, 256, kind="Q6_K")

# The general.file_type of a file that is quantized by a mix of this name.
FILE_TYPES: Mapping[str, int] = {
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_m": 17,
    "q6_k": 18,
}

# What rows are stored as that are no multiple of 256.
_NARROW: Mapping[WeightFormat, WeightFormat] = {Q2_K: Q4_0, Q3_K: Q4_0, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0}
_FLOAT16 = WeightFormat(16)

_QUERY, _VALUE, _OUTPUT = (f"*.self_attn.{name}_proj.weight" for name in "qvo")
_DOWN = "*.mlp.down_proj.weight"


def fitting(form: WeightFormat, columns: int) -> WeightFormat:
    """The format for rows of so many columns: itself, or what llama.cpp falls back to where they are no whole blocks."""
    if not form.is_block or columns % form.group == 0:
        return form
    narrow = _NARROW.get(form, _FLOAT16)
    return _FLOAT16 if narrow.is_float or columns % narrow.group else narrow


def in_layers(rule: str, layer: int, layers: int, shared: int = 1) -> bool:
    """Whether an `Override.layers` takes in a layer, counted from 0, of so many: by a name, or by a list of numbers.

    `shared` is how many query heads share a head of keys and values.
    """
    eighth = layers // 8
    named = {
        "all": True,
        "first 2": layer < 2,
        "first 4": layer < 4,
        "first sixteenth": layer < layers // 16,
        "first eighth": layer < eighth,
        "outer eighths and every third": layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2,
        "all where 4 queries share": shared >= 4,
        "all of 80": layers == 80,  # what llama.cpp takes for a model of 70 billion parameters
    }
    return named[rule] if rule in named else layer in {int(number) for number in rule.split(",")}


def queries(rows: Mapping[str, int]) -> int:
    """How many query heads share a head of keys and values, of the rows of a decoder's matrices by canonical name."""
    asking, asked = (next((rows[name] for name in rows if fnmatchcase(name, one)), 1) for one in (_QUERY, _VALUE))
    return max(1, asking // asked)


def overrides(name: str) -> tuple[Override, ...]:
    """The departures from its main format that a mix of this name makes in the decoder; none where it is uniform."""
    return tuple(Override("decoder", tensors, form, layers) for tensors, form, layers in _MIXES.get(name, ()))


_MORE_BITS = (
    (_VALUE, Q6_K, "outer eighths and every third"),
    (_DOWN, Q6_K, "outer eighths and every third"),
)
_MIXES: Mapping[str, tuple[tuple[str, WeightFormat, str], ...]] = {
    "q2_k": (
        (_VALUE, Q5_K, "all of 80"),
        (_VALUE, Q4_K, "all where 4 queries share"),
        (_VALUE, Q3_K, "all"),
        (_DOWN, Q3_K, "all"),
        (_OUTPUT, Q3_K, "all"),
    ),
    "q3_k_s": ((_VALUE, Q5_K, "all of 80"),),
    "q3_k_m": (
        (_VALUE, Q5_K, "first 2"),
        (_VALUE, Q5_K, "all of 80"),
        (_VALUE, Q4_K, "all"),
        (_DOWN, Q5_K, "first sixteenth"),
        (_DOWN, Q4_K, "all"),
        (_OUTPUT, Q4_K, "all"),
    ),
    "q3_k_l": ((_VALUE, Q5_K, "all"), (_DOWN, Q5_K, "all"), (_OUTPUT, Q5_K, "all")),
    "q4_k_s": (
        (_VALUE, Q5_K, "first 4"),
        (_VALUE, Q5_K, "all of 80"),
        (_DOWN, Q5_K, "first eighth"),
    ),
    "q4_k_m": (*_MORE_BITS, (_VALUE, Q5_K, "all of 80")),
    "q5_k_m": _MORE_BITS,
}
