"""A trained model as it comes: Hugging Face's or Mistral's layout, in shards or not, adapters merged, nothing loaded.

Every tensor has the name that transformers gives the parameter in memory and is read in row blocks (see `safetensors.py`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..targets.contract import CheckpointError, Float32, TensorSource
from ..targets.manifest import AdapterSource, Source, file_entry
from .calibration import identity
from .families import Family, Layout, family, mistral_family
from .hub import fetch
from .imatrix import Imatrix
from .imatrix import read as read_imatrix
from .lora import Adapter, AdapterSpec, merge
from .peft_adapter import open_adapter
from .quantized import Quantized
from .quantized import read as read_quantized
from .safetensors import StoredTensor, read_shards

_CONFIG = {"huggingface": "config.json", "mistral": "params.json"}
_STEM = {"huggingface": "model", "mistral": "consolidated"}
_GENERATION = "generation_config.json"
_TOKENIZERS = ("tekken.json", "tokenizer.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A model's configuration and tensors, whatever layout they are stored in.

    `config` is what transformers' configuration class takes. `tied` says that the head is the embedding's own numbers. `files`
    are those that the numbers, the configuration and the tokenizer come from.
    """

    location: Path
    name: str
    layout: Layout
    family: str
    config: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, TensorSource] = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    tokenizer: Path
    generation_config: Mapping[str, Any] = field(repr=False)
    tied: bool
    merged: tuple[Adapter, ...] = ()
    imatrix: Imatrix | None = None
    quantized: Quantized | None = None

    @property
    def folder(self) -> Path:
        return self.location

    @property
    def importances(self) -> Mapping[str, Float32]:
        """The mean square of what each column of a matrix is multiplied with, where it was measured."""
        return self.imatrix.importances if self.imatrix else {}

    @cached_property
    def source(self) -> Source:
        """The files with their sizes and hashes, for the manifest; the first use reads them all."""
        return Source(self.name, tuple(file_entry(self.location, path) for path in self.files))

    @cached_property
    def adapters(self) -> tuple[AdapterSource, ...]:
        """The adapters merged, for the manifest."""
        return tuple(
            AdapterSource(one.name, one.weight, tuple(file_entry(one.location, path) for path in one.files))
            for one in self.merged
        )

    @cached_property
    def identity(self) -> str:
        """A hash of the checkpoint's files and adapters, by which what was made of it is known again."""
        return identity(self.source, self.adapters)


def open_checkpoint(
    location: str | Path,
    *,
    adapters: Sequence[AdapterSpec] = (),
    imatrix: Path | None = None,
    quantized: Path | None = None,
) -> Checkpoint:
    """The checkpoint in a folder, or on the hub as `org/name[@revision]`, with `adapters` merged as its rows are read.

    `imatrix` is a file of what was measured of its activations, `quantized` one of integers made of its weights.
    Only headers and configurations are read here. A checkpoint that holds both layouts is read in Hugging Face's.

    Raises:
        CheckpointError: it cannot be read, or is not what its family needs; every gap is named.
        AdapterError: the same of an adapter.
        BuildError: one of these files is none, or not of this checkpoint.
    """
    folder, name = fetch(location, _wanted)
    layout = _layout(folder)
    model, config = _configuration(folder, layout)
    stored, shards = read_shards(folder, _STEM[layout])
    tensors, tied = _canonical(folder, stored, layout, model, config)
    adding = tuple(open_adapter(spec, model, model.parameters(config)) for spec in adapters)
    tokenizer = _tokenizer(folder)
    generation = folder / _GENERATION
    checkpoint = Checkpoint(
        location=folder,
        name=name,
        layout=layout,
        family=model.MODEL_TYPE,
        config=config,
        tensors=merge(tensors, adding),
        files=(*shards, folder / _CONFIG[layout], tokenizer, *([generation] if generation.is_file() else [])),
        tokenizer=tokenizer,
        generation_config=_json(generation) if generation.is_file() else {},
        tied=tied and not any({model.EMBEDDING, model.LM_HEAD} & one.targets for one in adding),
        merged=adding,
    )
    weighed = read_imatrix(imatrix, lambda: checkpoint.identity, tensors, model) if imatrix else None
    made = read_quantized(quantized, checkpoint.identity, checkpoint.tensors) if quantized else None
    return replace(checkpoint, imatrix=weighed, quantized=made)


def configured(location: str | Path) -> tuple[str, Family, dict[str, Any]]:
    """The name, the family and the configuration of a checkpoint, in a folder or on the hub; its weights need not be there.

    Raises:
        CheckpointError: there is no configuration, or none of a known family.
    """
    folder, name = fetch(location, lambda _: list(_CONFIG.values()))
    layouts: tuple[Layout, ...] = ("huggingface", "mistral")
    for layout in layouts:
        if (folder / _CONFIG[layout]).is_file():
            return (name, *_configuration(folder, layout))
    raise CheckpointError(f"'{folder}' describes no model (possible: {' or '.join(_CONFIG.values())})")


def _wanted(names: Sequence[str]) -> list[str]:
    """The files of a hub repository to download: one layout's weights, configurations, the tokenizer; never a pickle."""
    both = ["*.json"]
    if "config.json" in names and any(name.startswith("model") and name.endswith(".safetensors") for name in names):
        return [*both, "model*.safetensors"]
    return [*both, "consolidated*.safetensors"]


def _layout(folder: Path) -> Layout:
    """Which layout a folder is in.

    Raises:
        CheckpointError: none of the two is whole; with the way out where the weights are pickled.
    """
    present: dict[Layout, bool] = {
        "huggingface": any(folder.glob("model*.safetensors*")),
        "mistral": any(folder.glob("consolidated*.safetensors*")),
    }
    for layout, weights in present.items():
        if weights and (folder / _CONFIG[layout]).is_file():
            return layout
    for layout, weights in present.items():
        if weights:
            raise CheckpointError(f"'{folder}' has weights but no {_CONFIG[layout]}. Copy it from where they come from")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(_pickled(folder, pickles))
    raise CheckpointError(
        f"'{folder}' is not a checkpoint (possible: config.json with model*.safetensors, or params.json with "
        "consolidated*.safetensors)"
    )


def _pickled(folder: Path, names: list[str]) -> str:
    return (
        f"'{folder}' holds only pickled weights ({', '.join(names)}), which run code when they are loaded and are refused "
        '(possible: safetensors). If you trust them, convert them: python -c "from transformers import AutoModel; '
        f"AutoModel.from_pretrained('{folder}').save_pretrained('converted')\""
    )


def _configuration(folder: Path, layout: Layout) -> tuple[Family, dict[str, Any]]:
    document = _json(folder / _CONFIG[layout])
    if layout == "mistral":
        model = mistral_family(document)
        return model, model.mistral_config(document)
    model = family(document.get("model_type"))
    return model, model.huggingface_config(document)


def _canonical(
    folder: Path, stored: Mapping[str, StoredTensor], layout: Layout, model: Family, config: Mapping[str, Any]
) -> tuple[dict[str, TensorSource], bool]:
    """Every tensor by its canonical name in the family's order, and whether the head is the embedding."""
    shapes = model.parameters(config)
    found, faults = _renamed(stored, shapes, layout, model)
    tied = model.LM_HEAD not in found and model.tied(config)
    if tied and model.EMBEDDING in found:
        found[model.LM_HEAD] = found[model.EMBEDDING]
    absent = [name for name in shapes if name not in found and not model.computed(name, layout)]
    faults += [f"'{name}' {_shape(shapes[name])} is missing" for name in absent]
    if faults:
        listed = "\n  ".join(faults)
        raise CheckpointError(
            f"'{folder}' does not hold the {model.MODEL_TYPE} that its {_CONFIG[layout]} describes:\n  {listed}\n"
            "An adapter goes to --adapter; a checkpoint of another model or a partial one cannot be built"
        )
    return {name: _placed(name, found.get(name), shapes[name], layout, model, config) for name in shapes}, tied


def _renamed(
    stored: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], layout: Layout, model: Family
) -> tuple[dict[str, StoredTensor], list[str]]:
    found: dict[str, StoredTensor] = {}
    faults = []
    for name, tensor in stored.items():
        canonical = model.canonical(name, layout)
        if canonical is None:
            continue
        if canonical not in shapes:
            faults.append(f"'{name}' {_shape(tensor.shape)} in '{tensor.path.name}' is no tensor of this family")
        elif canonical in found:
            faults.append(f"'{name}' is the same tensor as '{found[canonical].name}'")
        elif tensor.refusal:
            faults.append(tensor.refusal)
        elif tensor.shape != shapes[canonical]:
            faults.append(f"'{name}' is {_shape(tensor.shape)}, the configuration says {_shape(shapes[canonical])}")
        if canonical in shapes:
            found.setdefault(canonical, tensor)
    return found, faults


def _placed(
    name: str,
    stored: StoredTensor | None,
    shape: tuple[int, ...],
    layout: Layout,
    model: Family,
    config: Mapping[str, Any],
) -> TensorSource:
    if stored is None:
        return Sinusoids(name, (shape[0], shape[1]))
    tensor = replace(stored, name=name)
    heads = model.permuted_heads(name, config) if layout == "mistral" else None
    return tensor if heads is None else HalfSplit(tensor, heads)


@dataclass(frozen=True)
class HalfSplit:
    """A q or k matrix of Mistral's layout with its rows in transformers' order.

    Within each head of d rows, interleaved RoPE turns row 2i with row 2i + 1, transformers' turns row i with row i + d/2.
    """

    stored: TensorSource
    heads: int

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    def rows(self, start: int, stop: int) -> Float32:
        head = self.shape[0] // self.heads
        first, last = start // head * head, -(-stop // head) * head
        pairs = self.stored.rows(first, last).reshape(-1, head // 2, 2, *self.shape[1:])
        ordered: Float32 = pairs.swapaxes(1, 2).reshape(last - first, *self.shape[1:])
        return ordered[start - first : stop - first]


@dataclass(frozen=True)
class Sinusoids:
    """Whisper's table of positions [positions, channels], which Mistral's layout leaves out: sines, then cosines."""

    name: str
    shape: tuple[int, int]
    dtype: str = "float32"

    def rows(self, start: int, stop: int) -> Float32:
        half = self.shape[1] // 2
        step = np.float32(np.log(10000) / (half - 1))
        rates = np.exp(-step * np.arange(half, dtype=np.float32))
        angles = np.arange(start, stop, dtype=np.float32)[:, None] * rates
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _tokenizer(folder: Path) -> Path:
    for name in _TOKENIZERS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"'{folder}' has no tokenizer ({' or '.join(_TOKENIZERS)}). Copy it from the model this one was trained from"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:
        raise CheckpointError(f"'{path}' cannot be read: {reason}. Copy it again") from reason
    if not isinstance(document, dict):
        raise CheckpointError(f"'{path}' is not a JSON object. Copy it again")
    return document


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
