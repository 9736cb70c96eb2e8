"""TensorRT: three ONNX graphs under `tensorrt/`, and the engines built of them where that can be done.

The graphs are strongly typed, of ONNX's own operators alone, and run on any engine that has opset 24. They compute in float16,
or in float32 where the recipe stores nothing narrower; integers and float8 are unpacked in front of each product.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from . import onnx, onnx_graph, onnx_weights, tensorrt_engine, tensorrt_graph, tensorrt_weights
from .contract import STAGES, Artifact, Progress, Recipe, RecipeError, TracedStage, WeightFormat, WeightStore
from .manifest import file_entry
from .needs import needs
from .onnx import Planned
from .recipes import FLOAT8
from .streaming import fill
from .tensorrt_profiles import Engines

FOLDER = "tensorrt"


class Tensorrt:
    """ONNX opset 24 for TensorRT: matrices behind DequantizeLinear, keys and values written in place."""

    name = "tensorrt"

    def __init__(self, engines: Engines | None = None) -> None:
        self.engines = engines or Engines()

    def check(self, recipe: Recipe, stages: Sequence[str] = STAGES) -> None:
        """Raise `RecipeError` listing everything that these stages store under the recipe and TensorRT cannot hold."""
        faults = [f"{form.name} for {what}" for what, form in recipe.formats(stages) if not _holds(form)]
        if "embed_tokens" in stages and _holds(recipe.embedding) and not _looks_up(recipe.embedding):
            faults.append(f"{recipe.embedding.name} for embedding")
        if faults:
            raise RecipeError(
                f"target 'tensorrt' cannot hold {', '.join(faults)} (it can: float32, float16, symmetric int8 in groups, and "
                "but for the embedding symmetric int4 in groups and float8_e4m3fn). See: ossicle targets"
            )

    def check_here(self) -> None:
        """Raise `BuildError` where the engines asked for cannot be built here, with everything that speaks against it."""
        tensorrt_engine.check(self.engines)

    def lower(
        self, stage: TracedStage, recipe: Recipe, weights: WeightStore, folder: Path, progress: Progress
    ) -> Artifact:
        """Write `tensorrt/<stage>.onnx`, its data and its engine under `folder`, and give back what was written."""
        planned = self._place(stage, recipe, weights)
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        fill(planned.layout, [folder / path for path in planned.data], progress, f"tensorrt {stage.name}")
        onnx.save(planned, folder)
        graph, declared = planned.model.graph, tensorrt_graph.cached(stage, self.engines.context)
        artifact = Artifact(
            target=self.name,
            stage=stage.name,
            recipe=recipe.name,
            precision=precision(stage.name, recipe),
            files=tuple(file_entry(folder, folder / path) for path in (planned.file, *planned.data)),
            inputs=onnx_graph.ports(declared.inputs, graph.inputs),
            outputs=onnx_graph.ports(declared.outputs, graph.outputs),
            requirements=self._requirements(recipe),
            memory=needs(stage, weights, sum(planned.layout.sizes()), 4 if compute(recipe) == "float32" else 2),
        )
        return tensorrt_engine.build(artifact, self.engines, folder, progress)

    def _place(self, stage: TracedStage, recipe: Recipe, weights: WeightStore) -> Planned:
        """A stage's graph for a recipe, every weight in its form and its place."""
        computed = replace(recipe, compute=compute(recipe))
        model = tensorrt_graph.graph(stage, computed, self.engines.context)
        layout = tensorrt_weights.place(model, computed, weights, frozenset(stage.weights))
        file = f"{FOLDER}/{stage.name}.onnx"
        data = tuple(f"{file}_data" + (f"_{part}" if part else "") for part in range(len(layout.sizes())))
        onnx_weights.attach(model, layout, [Path(path).name for path in data])
        return Planned(model, layout, file, data)

    def _requirements(self, recipe: Recipe) -> dict[str, str]:
        engines = self.engines
        return {
            "engine": self.name,
            "opsets": f"ai.onnx {tensorrt_graph.OPSET}",
            "compute": compute(recipe),
            "context": str(engines.context),
            "prompt": str(engines.piece),
            "batch": str(engines.batch),
        }


def compute(recipe: Recipe) -> Literal["float32", "float16"]:
    """What TensorRT computes a recipe in: float32 where nothing is stored narrower, else float16, which its kernels are for."""
    return "float32" if all(form.bits == 32 for _, form in recipe.formats()) else "float16"


def precision(stage: str, recipe: Recipe) -> str:
    """How a stage's matrices are stored: fp32, fp16, fp8, int8 or int4."""
    form = recipe.main_format(stage)
    return f"fp{form.bits}" if form.is_float or form == FLOAT8 else f"int{form.bits}"


def _holds(form: WeightFormat) -> bool:
    return form == FLOAT8 or (not form.kind and (form.is_float or (form.symmetric and form.bits in (8, 4))))


def _looks_up(form: WeightFormat) -> bool:
    """Whether an embedding's table can be in a format."""
    return form.is_float or (form.bits == 8 and not form.kind and form.group % 4 == 0)
