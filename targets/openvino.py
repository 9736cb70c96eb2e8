"""OpenVINO: three models (xml and bin) under `openvino/`, named as optimum-intel names the parts of a model.

The decoder has two xml over one `.bin`: keys and values as its state, and, for engines that keep no state, as inputs and
outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import openvino_graph, openvino_tokenizer
from .contract import (
    STAGES,
    Artifact,
    BuildError,
    Port,
    Progress,
    Recipe,
    RecipeError,
    TracedStage,
    WeightFormat,
    WeightStore,
)
from .manifest import file_entry
from .needs import needs
from .openvino_state import BEAM, stateful
from .openvino_weights import Constants
from .streaming import Layout, fill

FOLDER = "openvino"
STEMS: Mapping[str, str] = {
    "audio_encoder": "openvino_audio_encoder_model",
    "embed_tokens": "openvino_text_embeddings_model",
    "decoder": "openvino_language_model",
}
STATELESS = "openvino_language_model_stateless"


@dataclass(frozen=True)
class Planned:
    """A stage's models by the stem of their xml, with their weights placed, not yet written."""

    models: Mapping[str, Any]
    constants: Constants

    @property
    def layout(self) -> Layout:
        return self.constants.layout


class Openvino:
    """OpenVINO IR: integers as compressed constants, keys and values as the decoder's state."""

    name = "openvino"

    def check(self, recipe: Recipe, stages: Sequence[str] = STAGES) -> None:
        """Raise `RecipeError` listing everything that these stages store under the recipe and OpenVINO cannot hold."""
        faults = [f"{form.name} for {what}" for what, form in recipe.formats(stages) if not _holds(what, form)]
        if faults:
            raise RecipeError(
                f"target 'openvino' cannot hold {', '.join(faults)} (it can: float32, float16, int8 and int4 in groups of "
                "an even size, and what is multiplied with in symmetric int3 in groups of a multiple of 8). "
                "See: ossicle targets"
            )

    def check_here(self) -> None:
        """Raise `BuildError` where OpenVINO cannot be imported."""
        try:
            import openvino  # noqa: F401
        except ImportError as reason:
            raise BuildError(
                f"target 'openvino' needs the package that writes it, which cannot be imported: {reason}. "
                'Install it with: pip install "ossicle[openvino]"'
            ) from reason

    def lower(
        self, stage: TracedStage, recipe: Recipe, weights: WeightStore, folder: Path, progress: Progress
    ) -> Artifact:
        """Write `openvino/<stage>.xml` and its `.bin` under `folder`, and give back what was written."""
        planned = place(stage, recipe, weights)
        root = folder / FOLDER
        root.mkdir(parents=True, exist_ok=True)
        paths = [root / f"{stem}.xml" for stem in planned.models]
        for path, model in zip(paths, planned.models.values(), strict=True):
            openvino_graph.write(model, planned.constants, path)
        data = paths[0].with_suffix(".bin")
        fill(planned.layout, [data], progress, f"openvino {stage.name}")
        files = (*paths, data, *(_tokenizers(folder) if stage.name == "embed_tokens" else ()))
        model = planned.models[STEMS[stage.name]]
        return Artifact(
            target=self.name,
            stage=stage.name,
            recipe=recipe.name,
            precision=precision(stage.name, recipe),
            files=tuple(file_entry(folder, path) for path in files),
            inputs=_ports(model.inputs, stage.inputs),
            outputs=_ports(model.outputs, stage.outputs),
            requirements={"engine": "openvino", "version": ">=2026.0"},
            memory=needs(stage, weights, sum(planned.layout.sizes()) + planned.constants.unfolded, width=4),
        )


def place(stage: TracedStage, recipe: Recipe, weights: WeightStore) -> Planned:
    """A stage's models for a recipe, every weight in its form and its place; the first is named as the stage."""
    model = openvino_graph.graph(stage, recipe)
    constants = openvino_graph.place(model, weights, stage.weights, stage.constants)
    models = {STEMS[stage.name]: model}
    if stage.name == "decoder":
        models = {STEMS[stage.name]: stateful(model), STATELESS: model}
    return Planned(models, constants)


def precision(stage: str, recipe: Recipe) -> str:
    """How a stage's matrices are stored: fp32, fp16, int8, int4 or int3."""
    form = recipe.main_format(stage)
    return f"fp{form.bits}" if form.is_float else f"int{form.bits}"


def _holds(what: str, form: WeightFormat) -> bool:
    if form.bits == 3:
        return not form.kind and form.symmetric and form.group % 8 == 0 and what != "embedding"
    return not form.kind and (form.is_float or form.group % 2 == 0)


def _tokenizers(folder: Path) -> tuple[Path, ...]:
    """The bundle's tokenizer beside what takes its ids, where the folder has one."""
    tokenizer = folder / "tokenizer.json"
    return openvino_tokenizer.write(tokenizer, folder / FOLDER) if tokenizer.is_file() else ()


def _ports(held: Any, declared: tuple[Port, ...]) -> tuple[Port, ...]:
    """A model's inputs or outputs, weights apart: the declared ones that it has, and whose row each row continues."""
    names = {name for port in held for name in port.get_names()}
    ports = tuple(port for port in declared if port.name in names)
    return (*ports, Port(BEAM, "int32", ("batch_size",))) if BEAM in names else ports
