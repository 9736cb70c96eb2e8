"""Integers that were made of a checkpoint beforehand: one safetensors file, for a build of any target.

For every matrix [N, K] that it has: `<name>.codes` (four bits: two to a byte), `<name>.scales` and, where the format is
asymmetric, `<name>.zeros` [N, ceil(K/g)]; of GGUF's blocks their bytes alone, `<name>.blocks`. Where sizes of channels were
moved, `<name>.rows` and `<name>.columns` are the factors that the checkpoint's own tensor gets, before it is stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..kernels import groupwise, kquants
from ..kernels.rounding import Codes
from ..targets.contract import (
    AdapterError,
    BundleFile,
    CheckpointError,
    Float32,
    QuantizedRows,
    Recipe,
    RecipeError,
    TensorSource,
    UInt8,
    WeightFormat,
    WeightStore,
)
from ..targets.manifest import file_entry
from .calibration import check_identity, metadata, refusal
from .folds import folded
from .quantizers import Found, option
from .safetensors import StoredTensor, read_header
from .safetensors_write import Layout

VERSION = 1
KIND = "quantized"
_BLOCK = 1 << 22  # codes read at a time


@dataclass(frozen=True)
class Quantized:
    """The file, the quantizer and recipe that it was made with, and each matrix's format by canonical name."""

    file: BundleFile
    quantizer: str
    recipe: str
    formats: Mapping[str, WeightFormat]
    columns: Mapping[str, int] = field(repr=False)  # how many each matrix has
    stored: Mapping[str, StoredTensor] = field(repr=False)
    on_rows: Mapping[str, Float32] = field(repr=False)
    on_columns: Mapping[str, Float32] = field(repr=False)

    def blocks(self, name: str) -> Iterator[QuantizedRows]:
        """The integers of a matrix, a few rows at a time."""
        form, codes, scales = self.formats[name], self.stored[f"{name}.codes"], self.stored[f"{name}.scales"]
        zeros = self.stored.get(f"{name}.zeros")
        height = max(1, _BLOCK // codes.shape[1])
        for start in range(0, codes.shape[0], height):
            stop = min(start + height, codes.shape[0])
            coded = codes.raw_rows(start, stop)
            if form.bits <= 4:
                coded = groupwise.unpack_pairs(coded, self.columns[name])
            offsets = None if zeros is None else zeros.raw_rows(start, stop)
            yield QuantizedRows(start, coded, scales.raw_rows(start, stop), offsets)

    def packed(self, name: str, start: int, stop: int) -> UInt8:
        """Rows of a matrix as GGUF's blocks."""
        blocks: UInt8 = self.stored[f"{name}.blocks"].raw_rows(start, stop)
        return blocks

    def folded(self, source: TensorSource) -> TensorSource:
        """A tensor of the checkpoint with its factors."""
        return folded(source, self.on_rows, self.on_columns)

    def check(self, weights: WeightStore, runtime_adapters: Sequence[Any]) -> None:
        """Refuse a recipe that stores one of the matrices otherwise, and adapters where sizes of channels were moved.

        Raises:
            RecipeError: naming every matrix and both its formats.
            AdapterError: an adapter would be added to what it was not trained on.
        """
        faults = [
            f"'{name}' is {form.name} there and {weights.format(name).name} in the recipe"
            for name, form in self.formats.items()
            if form != weights.format(name)
        ]
        if faults:
            raise RecipeError(
                f"'{self.file.path}' was made for recipe '{self.recipe}': {'; '.join(faults[:4])}"
                f"{f' and {len(faults) - 4} more' if len(faults) > 4 else ''}. Build with {option(self.recipe)}"
            )
        if runtime_adapters and self.on_columns:
            raise AdapterError(
                f"quantizer '{self.quantizer}' changes the inputs of matrices, so that no adapter fits them as it runs "
                "(possible: merged, with --adapter, at ossicle quantize and build; or quantizer gptq)"
            )


def read(path: Path, identity: str, tensors: Mapping[str, TensorSource]) -> Quantized:
    """The integers in a file, made of the checkpoint with this identity and these tensors.

    Raises:
        BuildError: it is no such file, or of another checkpoint.
    """
    document = metadata(path, KIND, VERSION)
    check_identity(path, document, identity)
    try:
        held = read_header(path)
    except CheckpointError as reason:
        raise refusal(path, KIND, str(reason)) from reason
    if unknown := sorted(document["formats"].keys() - tensors.keys()):
        raise refusal(path, KIND, f"'{unknown[0]}' is no tensor of this checkpoint")
    formats = {name: WeightFormat(**entry) for name, entry in document["formats"].items()}
    expected = layouts({name: tensors[name].shape for name in formats}, formats, document["rows"], document["columns"])
    if {name: (one.stored, one.shape) for name, one in held.items()} != {
        name: (one.stored, one.shape) for name, one in expected.items()
    }:
        raise refusal(path, KIND, "its tensors are not those that it says it has")
    factors = [
        {name: held[f"{name}.{key}"].rows(0, size) for name, size in document[key].items()}
        for key in ("rows", "columns")
    ]
    columns = {name: tensors[name].shape[1] for name in formats}
    return Quantized(
        file_entry(path.parent, path),
        document["quantizer"],
        document["recipe"]["name"],
        formats,
        columns,
        held,
        *factors,
    )


def quantizer_of(path: Path) -> str:
    """The quantizer that a file of integers was made with.

    Raises:
        BuildError: it is no such file.
    """
    return str(metadata(path, KIND, VERSION)["quantizer"])


def document(
    identity: str,
    recipe: Recipe,
    speech: tuple[str, str],
    formats: Mapping[str, WeightFormat],
    on_rows: Mapping[str, int],
    on_columns: Mapping[str, int],
) -> dict[str, Any]:
    """What a file says of itself; `speech` is a list's name and sha256, the factors are by name with their number."""
    return {
        "kind": KIND,
        "version": VERSION,
        "checkpoint": identity,
        "quantizer": recipe.quantizer,
        "recipe": asdict(recipe),
        "speech": speech[0],
        "speech_sha256": speech[1],
        "formats": {name: asdict(form) for name, form in formats.items()},
        "rows": dict(on_rows),
        "columns": dict(on_columns),
    }


def entries(found: Found, form: WeightFormat) -> dict[str, Any]:
    """Rows of a matrix as they stand in a file, by the end of their tensors' names."""
    if not isinstance(found, Codes):
        return {"blocks": found}
    held = {"codes": groupwise.pack_pairs(found.codes) if form.bits <= 4 else found.codes, "scales": found.scales}
    return held if form.symmetric else held | {"zeros": found.zeros}


def layouts(
    shapes: Mapping[str, tuple[int, ...]],
    formats: Mapping[str, WeightFormat],
    on_rows: Mapping[str, int],
    on_columns: Mapping[str, int],
) -> dict[str, Layout]:
    """Every tensor of a file for matrices of these shapes and formats."""
    held: dict[str, Layout] = {}
    for name, form in formats.items():
        rows, columns = shapes[name]
        if form.is_block:
            held[f"{name}.blocks"] = Layout("U8", (rows, kquants.row_bytes(form.kind, columns)))
            continue
        groups = rows, -(-columns // form.group)
        held[f"{name}.codes"] = Layout("U8", (rows, -(-columns // 2) if form.bits <= 4 else columns))
        held[f"{name}.scales"] = Layout("F16", groups)
        if not form.symmetric:
            held[f"{name}.zeros"] = Layout("U8", groups)
    held |= {f"{name}.rows": Layout("F32", (size,)) for name, size in on_rows.items()}
    return held | {f"{name}.columns": Layout("F32", (size,)) for name, size in on_columns.items()}
