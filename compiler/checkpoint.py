"""A trained model as it comes: Hugging Face's or Mistral's layout, in shards or not, adapters merged, nothing loaded.

Every tensor has the name that transformers gives the parameter in memory and is read in row blocks (see `safetensors.py`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..targets.contract import CheckpointError, Float32, TensorSource
from ..targets.manifest import AdapterSource, Source, file_entry
from .calibration import identity
from .canonical import CONFIG, canonical
from .families import Family, Layout, family, mistral_family
from .hub import fetch
from .imatrix import Imatrix
from .imatrix import read as read_imatrix
from .lora import Adapter, AdapterSpec, merge
from .peft_adapter import open_adapter
from .quantized import Quantized
from .quantized import read as read_quantized
from .safetensors import read_shards

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
    tensors, tied = canonical(folder, stored, layout, model, config)
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
        files=(*shards, folder / CONFIG[layout], tokenizer, *([generation] if generation.is_file() else [])),
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
    folder, name = fetch(location, lambda _: list(CONFIG.values()))
    layouts: tuple[Layout, ...] = ("huggingface", "mistral")
    for layout in layouts:
        if (folder / CONFIG[layout]).is_file():
            return (name, *_configuration(folder, layout))
    raise CheckpointError(f"'{folder}' describes no model (possible: {' or '.join(CONFIG.values())})")


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
        if weights and (folder / CONFIG[layout]).is_file():
            return layout
    for layout, weights in present.items():
        if weights:
            raise CheckpointError(f"'{folder}' has weights but no {CONFIG[layout]}. Copy it from where they come from")
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
    document = _json(folder / CONFIG[layout])
    if layout == "mistral":
        model = mistral_family(document)
        return model, model.mistral_config(document)
    model = family(document.get("model_type"))
    return model, model.huggingface_config(document)


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
