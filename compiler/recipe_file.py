"""A recipe that names the format of every matrix, in a file that can be read, edited and built again.

One JSON document, a line for each matrix: its format, the bytes that it takes in the target where it takes most, and, where
they were measured, what it loses in every format that it may have (nats of divergence at a token). Formats may be edited; what
follows from them is reckoned anew when the file is read.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..targets.contract import Recipe, RecipeError
from ..targets.gguf_mixes import Q4_0, Q5_0, Q5_1
from ..targets.recipes import FLOAT32
from .bits import BLOCKS, SHARED, Allocation, Limit, Measured, Spent, recipe
from .families import family
from .written import write_text

NAME = "recipe.json"  # in a bundle
VERSION = 1
_NAMED = {form.name: form for form in (FLOAT32, *SHARED, *BLOCKS, Q4_0, Q5_0, Q5_1)}


def write(path: Path, allocation: Allocation) -> None:
    """Write an allocation, whole or not at all; the same one gives the same bytes."""
    write_text(path, _text(allocation))


def _text(allocation: Allocation) -> str:
    head: dict[str, Any] = {
        "kind": "recipe",
        "version": VERSION,
        "name": allocation.name,
        "targets": list(allocation.targets),
        "quantizer": allocation.quantizer,
        "limits": [vars(limit) for limit in allocation.limits],
        "loss": None if allocation.loss is None else rounded(allocation.loss),
        "measured": vars(allocation.measured) if allocation.measured else None,
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    tensors = [f"  {json.dumps(name)}: {json.dumps(_entry(one))}" for name, one in allocation.tensors.items()]
    return "\n".join(["{", *lines, ' "tensors": {', ",\n".join(tensors), " }", "}", ""])


def _entry(one: Spent) -> dict[str, Any]:
    losses = {form.name: loss for form, loss in one.losses.items()}
    return {"format": one.format.name, "bytes": one.bytes, "loss": one.loss, "losses": losses}


def rounded(loss: float) -> float:
    """A loss as it is kept: to four digits, so that a file that is read says the same."""
    return float(f"{loss:.3e}")


def read(path: Path) -> Allocation:
    """The allocation in a file; its bytes are as they were written.

    Raises:
        RecipeError: the file cannot be read, or naming every matrix whose format is none.
    """
    document = _document(path)
    try:
        formats = {name: entry["format"] for name, entry in document["tensors"].items()}
        unknown = [f"'{name}' has {form!r}" for name, form in formats.items() if form not in _NAMED]
        if unknown:
            raise _refusal(path, f"{'; '.join(unknown)}, and the formats are {', '.join(_NAMED)}")
        return Allocation(
            str(document["name"]),
            tuple(document["targets"]),
            str(document["quantizer"]),
            tuple(Limit(**entry) for entry in document["limits"]),
            {name: _spent(entry) for name, entry in document["tensors"].items()},
            Measured(**document["measured"]) if document["measured"] else None,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as reason:
        raise _refusal(path, f"it lacks or garbles {reason}") from reason


def recipe_in(path: Path, family_name: str) -> Recipe:
    """The recipe that a file holds, for a model of this family.

    Raises:
        RecipeError: the file cannot be read.
    """
    return recipe(read(path), family(family_name))


def _spent(entry: Mapping[str, Any]) -> Spent:
    losses = {_NAMED[name]: float(loss) for name, loss in entry.get("losses", {}).items()}
    if strange := [loss for loss in losses.values() if not 0 <= loss < math.inf]:
        raise ValueError(f"a loss of {strange[0]}")
    return Spent(_NAMED[entry["format"]], int(entry.get("bytes", 0)), losses)


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise _refusal(path, str(reason)) from reason
    if not isinstance(document, dict) or document.get("kind") != "recipe":
        raise _refusal(path, "it does not say that it is one")
    if document.get("version") != VERSION:
        raise _refusal(path, f"it is of version {document.get('version')}, and {VERSION} is what is read")
    return document


def _refusal(path: Path, reason: str) -> RecipeError:
    return RecipeError(
        f"'{path}' cannot be used as a recipe: {reason}. Make one with: ossicle build CHECKPOINT --max-size SIZE --out DIR, "
        f"which leaves DIR/{NAME}"
    )
