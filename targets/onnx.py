"""ONNX: three graphs under `onnx/`, named and shaped as transformers.js and Optimum look for them, weights as external data."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import hub_folder, onnx_adapters, onnx_graph, onnx_weights, streaming
from .contract import (
    STAGES,
    Artifact,
    BundleFile,
    LowRankUpdate,
    Progress,
    Recipe,
    RecipeError,
    TracedStage,
    WeightFormat,
    WeightStore,
)
from .manifest import file_entry
from .needs import needs

STEMS: Mapping[str, str] = {
    "audio_encoder": hub_folder.AUDIO_ENCODER,
    "embed_tokens": hub_folder.EMBED_TOKENS,
    "decoder": hub_folder.DECODER,
}
_GROUPS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Planned:
    """A stage's graph with its weights placed, not yet written."""

    model: Any
    layout: streaming.Layout
    file: str  # path of the model file in the bundle
    data: tuple[str, ...]  # paths of its data files, beside it


class Onnx:
    """ONNX opset 23 for ONNX Runtime: groupwise integers as MatMulNBits and GatherBlockQuantized.

    `adapted` are the decoder's matrices that adapters are added to at run time: see targets/onnx_adapters.py.
    """

    name = "onnx"

    def __init__(self, adapted: Collection[str] = ()) -> None:
        self._adapted = frozenset(adapted)

    def check(self, recipe: Recipe, stages: Sequence[str] = STAGES) -> None:
        """Raise `RecipeError` listing everything that these stages store under the recipe and ONNX cannot hold."""
        faults = [f"{form.name} for {what}" for what, form in recipe.formats(stages) if not _holds(form)]
        if "embed_tokens" in stages and recipe.embedding.bits == 8 and not recipe.embedding.symmetric:
            faults.append(f"{recipe.embedding.name} for embedding")
        if faults:
            raise RecipeError(
                f"target 'onnx' cannot hold {', '.join(faults)} (it can: float32, float16, int8 and int4 in groups of "
                f"{', '.join(map(str, _GROUPS))}). See: ossicle targets"
            )

    def check_here(self) -> None:
        """Raise `BuildError` where there are adapters and ONNX Runtime, which writes them, cannot be imported."""
        if self._adapted:
            onnx_adapters.check_installed()

    def lower(
        self, stage: TracedStage, recipe: Recipe, weights: WeightStore, folder: Path, progress: Progress
    ) -> Artifact:
        """Write `onnx/<stage>.onnx` and its data under `folder`, and give back what was written."""
        planned = place(stage, recipe, weights, self._adapted if stage.name == "decoder" else ())
        (folder / planned.file).parent.mkdir(parents=True, exist_ok=True)
        streaming.fill(planned.layout, [folder / path for path in planned.data], progress, f"onnx {stage.name}")
        save(planned, folder)
        files = tuple(file_entry(folder, folder / path) for path in (planned.file, *planned.data))
        graph = planned.model.graph
        return Artifact(
            target=self.name,
            stage=stage.name,
            recipe=recipe.name,
            precision=precision(stage.name, recipe),
            files=files,
            inputs=onnx_graph.ports(stage.inputs, graph.inputs),
            outputs=onnx_graph.ports(stage.outputs, graph.outputs),
            requirements=_requirements(planned.model),
            memory=needs(stage, weights, sum(planned.layout.sizes()), 2 if recipe.compute == "float16" else 4),
        )

    def lower_adapter(
        self, name: str, updates: Mapping[str, LowRankUpdate], recipe: Recipe, folder: Path
    ) -> BundleFile:
        """Write a LoRA adapter of the decoder, in what it computes in, under `folder`."""
        path = folder / hub_folder.FOLDER / f"adapter-{name}.onnx_adapter"
        onnx_adapters.write(path, updates, recipe.compute)
        return file_entry(folder, path)


def place(stage: TracedStage, recipe: Recipe, weights: WeightStore, adapted: Collection[str] = ()) -> Planned:
    """A stage's graph for a recipe, every weight in its form and its place, with inputs for adapters of `adapted`."""
    model = onnx_graph.graph(stage, recipe)
    onnx_adapters.open_inputs(model, adapted)
    layout = onnx_weights.place(model, recipe, weights, frozenset(stage.weights))
    stem, dtype = STEMS[stage.name], precision(stage.name, recipe)
    data = tuple(hub_folder.data_file(stem, dtype, chunk) for chunk in range(len(layout.sizes())))
    onnx_weights.attach(model, layout, [Path(path).name for path in data])
    return Planned(model, layout, hub_folder.model_file(stem, dtype), data)


def precision(stage: str, recipe: Recipe) -> str:
    """The transformers.js name of a stage's precision: fp32, fp16, int8, q4 or q4f16."""
    form = recipe.main_format(stage)
    if form.bits == 4:
        return "q4" if recipe.compute == "float32" else "q4f16"
    if form.bits == 8:
        return "int8"
    return "fp32" if recipe.compute == "float32" else "fp16"


def _holds(form: WeightFormat) -> bool:
    return not form.kind and (form.is_float or (form.bits in (8, 4) and form.group in _GROUPS))


def save(planned: Planned, folder: Path) -> None:
    """Write the graph of a planned stage under `folder`; its data is written apart."""
    import onnx_ir as ir

    proto = ir.to_proto(planned.model)
    (folder / planned.file).write_bytes(proto.SerializeToString(deterministic=True))


def _requirements(model: Any) -> dict[str, str]:
    domains = {node.domain or "ai.onnx": node.version for node in model.graph}
    operators = sorted({f"{node.domain}::{node.op_type}" for node in model.graph if node.domain})
    opsets = ", ".join(
        f"{domain} {model.opset_imports['' if domain == 'ai.onnx' else domain]}" for domain in sorted(domains)
    )
    return {"engine": "onnxruntime", "version": ">=1.24", "opsets": opsets, "operators": ", ".join(operators)}
