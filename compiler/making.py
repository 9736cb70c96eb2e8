"""What a bundle is made of, and what is written of it beside its artifacts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..targets import manifest as manifests
from ..targets import registry
from ..targets.contract import Artifact, Recipe
from ..targets.hub_folder import write_configs
from ..targets.manifest import Manifest, RuntimeAdapter
from .bits import Allocation
from .checkpoint import Checkpoint
from .families import family
from .runtime_adapters import Kept
from .staging import STATE
from .tekken import tekken_version
from .tokenizer import write_tokenizer

_NOT_SHARED = (manifests.NAME, STATE)
_TOOLS = ("numpy", "numba", "onnx-ir", "onnxscript", "torch", "transformers")


@dataclass(frozen=True)
class Making:
    """A checkpoint, a recipe, what is built for, and what targets are told beside; all of it goes together.

    `assigned` are the stages of each target, those that serve another among them. `kept` are adapters that the bundle keeps
    apart; `allocation` is what the recipe was made of.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    targets: Sequence[str]
    assigned: Mapping[str, Sequence[str]]
    options: Mapping[str, Mapping[str, Any]]
    kept: Sequence[Kept] = ()
    allocation: Allocation | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """Everything that decides the bundle's bytes."""
        checkpoint = self.checkpoint
        return {
            "source": asdict(checkpoint.source),
            "adapters": [asdict(adapter) for adapter in checkpoint.adapters],
            "runtime_adapters": [[one.name, *map(asdict, one.source)] for one in self.kept],
            "recipe": asdict(self.recipe),
            "imatrix": asdict(checkpoint.imatrix.file) if checkpoint.imatrix else None,
            "quantized": asdict(checkpoint.quantized.file) if checkpoint.quantized else None,
            "targets": {name: list(stages) for name, stages in self.assigned.items()},
            "options": {name: repr(values) for name, values in self.options.items()},
            "tools": tools(self.assigned),
        }


def write_shared(checkpoint: Checkpoint, artifacts: Sequence[Artifact], folder: Path) -> None:
    """The files that every artifact of a bundle shares: tokenizer and configurations."""
    tokenizer = write_tokenizer(checkpoint.folder, folder / "tokenizer.json")
    write_configs(folder, checkpoint.config, checkpoint.generation_config, artifacts, tokenizer)


def describe(
    making: Making, artifacts: Sequence[Artifact], folder: Path, runtime_adapters: Sequence[RuntimeAdapter]
) -> Manifest:
    """The manifest of a bundle whose files are all in `folder`."""
    checkpoint, recipe = making.checkpoint, making.recipe
    model = family(checkpoint.family)
    owned = {file.path for artifact in artifacts for file in artifact.files}
    owned |= {adapter.file.path for adapter in runtime_adapters}
    shared = [path for path in sorted(folder.rglob("*")) if path.is_file() and _relative(folder, path) not in owned]
    version = tekken_version(checkpoint.folder)
    text = model.text_format(checkpoint.config, checkpoint.generation_config, version)
    return Manifest(
        family=checkpoint.family,
        name=checkpoint.name,
        recipe=asdict(recipe),
        source=checkpoint.source,
        adapters=checkpoint.adapters,
        audio=model.audio_format(checkpoint.config),
        text=replace(text, context=min(text.context, recipe.context)),
        artifacts=tuple(artifacts),
        files=tuple(manifests.file_entry(folder, path) for path in shared if path.name not in _NOT_SHARED),
        tools=tools({artifact.target for artifact in artifacts}),
        runtime_adapters=tuple(runtime_adapters),
        imatrix=checkpoint.imatrix.file if checkpoint.imatrix else None,
        quantized=checkpoint.quantized.file if checkpoint.quantized else None,
    )


def tools(targets: Iterable[str]) -> dict[str, str]:
    """The versions of all packages that decide the bytes of a bundle for these targets."""
    return {"ossicle": __version__, **{name: version(name) for name in _TOOLS}, **registry.tools(targets)}


def _relative(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
