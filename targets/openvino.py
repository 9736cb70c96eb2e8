"""OpenVINO: three models (xml and bin) under `openvino/`, named as optimum-intel names the parts of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import openvino_graph
from .contract import (
    STAGES,
    Artifact,
    BuildError,
    Memory,
    Port,
    Progress,
    Recipe,
    RecipeError,
    TracedStage,
    WeightFormat,
    WeightStore,
)
from .manifest import file_entry
from .openvino_weights import Constants
from .streaming import Layout, fill

FOLDER = "openvino"
STEMS: Mapping[str, str] = {
    "audio_encoder": "openvino_audio_encoder_model",
    "embed_tokens": "openvino_text_embeddings_model",
    "decoder": "openvino_language_model",
}


@dataclass(frozen=True)
class Planned:
    """A stage's model with its weights placed, not yet written."""

    model: Any
    constants: Constants

    @property
    def layout(self) -> Layout:
        return self.constants.layout


class Openvino:
    """OpenVINO IR: integers as compressed constants, keys and values as inputs and outputs."""

    name = "openvino"

    def check(self, recipe: Recipe, stages: Sequence[str] = STAGES) -> None:
        """Raise `RecipeError` listing everything that these stages store under the recipe and OpenVINO cannot hold."""
        faults = [f"{form.name} for {what}" for what, form in recipe.formats(stages) if not _holds(form)]
        if "embed_tokens" in stages and recipe.embedding.bits == 4 and _holds(recipe.embedding):
            faults.append(f"{recipe.embedding.name} for embedding")
        if faults:
            raise RecipeError(
                f"target 'openvino' cannot hold {', '.join(faults)} (it can: float32, float16, int8, and int4 but for the "
                "embedding, in groups of an even size). See: ossicle targets"
            )
        _check_installed()

    def plan(self, stage: TracedStage, recipe: Recipe, weights: WeightStore) -> int:
        """Bytes of weights that `lower` will write for this stage."""
        return sum(place(stage, recipe, weights).layout.sizes())

    def lower(
        self, stage: TracedStage, recipe: Recipe, weights: WeightStore, folder: Path, progress: Progress
    ) -> Artifact:
        """Write `openvino/<stage>.xml` and its `.bin` under `folder`, and give back what was written."""
        planned = place(stage, recipe, weights)
        path = folder / FOLDER / f"{STEMS[stage.name]}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        openvino_graph.write(planned.model, planned.constants, path)
        fill(planned.layout, [path.with_suffix(".bin")], progress, f"openvino {stage.name}")
        taken = {name for port in planned.model.inputs for name in port.get_names()}
        return Artifact(
            target=self.name,
            stage=stage.name,
            recipe=recipe.name,
            precision=precision(stage.name, recipe),
            files=tuple(file_entry(folder, path.with_suffix(suffix)) for suffix in (".xml", ".bin")),
            inputs=tuple(port for port in stage.inputs if port.name in taken),
            outputs=stage.outputs,
            requirements={"engine": "openvino", "version": ">=2026.0"},
            memory=_memory(planned.layout, stage),
        )


def place(stage: TracedStage, recipe: Recipe, weights: WeightStore) -> Planned:
    """A stage's model for a recipe, every weight in its form and its place."""
    model = openvino_graph.graph(stage, recipe)
    return Planned(model, openvino_graph.place(model, weights, stage.weights))


def precision(stage: str, recipe: Recipe) -> str:
    """How a stage's matrices are stored: fp32, fp16, int8 or int4."""
    form = {"audio_encoder": recipe.encoder, "embed_tokens": recipe.embedding, "decoder": recipe.decoder}[stage]
    return f"fp{form.bits}" if form.is_float else f"int{form.bits}"


def _holds(form: WeightFormat) -> bool:
    return not form.kind and (form.is_float or form.group % 2 == 0)


def _check_installed() -> None:
    try:
        import openvino  # noqa: F401
    except ImportError as reason:
        raise BuildError(
            f"target 'openvino' needs the package that writes it, which cannot be imported: {reason}. "
            'Install it with: pip install "ossicle[openvino]"'
        ) from reason


def _memory(layout: Layout, stage: TracedStage) -> Memory:
    """Weights as stored; the cache of one token in float32; the largest activations of a window or of 1024 tokens."""
    caches = [port.shape for port in _caches(stage.inputs)]
    per_token = 4 * sum(int(shape[1]) * int(shape[3]) for shape in caches)
    widest = max((slot.shape[0] for slot in layout.slots if slot.name != "constants"), default=0)
    positions = {"audio_encoder": 1500, "decoder": 1024}.get(stage.name, 0)
    return Memory(weights=sum(layout.sizes()), kv_per_token=per_token, working=16 * positions * widest)


def _caches(ports: tuple[Port, ...]) -> list[Port]:
    return [port for port in ports if port.name.startswith("past_key_values.")]
