"""Core ML: three packages under `coreml/` for iOS 18 and macOS 15, the decoder with its keys and values as state.

The decoder has two functions over the same weights: `prefill` takes a chunk of a prompt, `decode` one token, its shapes all
fixed. Programs compute in float16, the precision of the neural engine; a recipe of float32 alone in float32, with keys and
values as inputs and outputs, since states are float16.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from . import coreml_decoder, coreml_graph, coreml_package
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
from .coreml_graph import Emission
from .coreml_mil import Block, Value
from .coreml_package import Function
from .coreml_weights import Records
from .manifest import file_entry
from .needs import needs
from .recipes import PALETTES
from .streaming import Layout, fill

FOLDER = "coreml"
CONTEXT = 4096  # tokens; the memory of a state is taken whole, however short the conversation
CHUNK = 512  # tokens: one window of audio is 375


@dataclass(frozen=True)
class Planned:
    """A stage's functions with their weights placed, not yet written."""

    functions: Mapping[str, Function]
    records: Records
    requirements: Mapping[str, str]

    @property
    def layout(self) -> Layout:
        return self.records.layout


class Coreml:
    """ML programs: integers and palettes as compressed constants, keys and values as state."""

    name = "coreml"

    def __init__(self, context: int = CONTEXT, chunk: int = CHUNK) -> None:
        self._context, self._chunk = context, chunk

    def check(self, recipe: Recipe, stages: Sequence[str] = STAGES) -> None:
        """Raise `RecipeError` listing everything that these stages store under the recipe and Core ML cannot hold."""
        faults = [f"{form.name} for {what}" for what, form in recipe.formats(stages) if not _holds(form)]
        if self._context < self._chunk:
            faults.append(f"a state of {self._context} tokens (from {self._chunk} on)")
        if faults:
            tables = ", ".join(form.name for form in PALETTES)
            raise RecipeError(
                f"target 'coreml' cannot hold {', '.join(faults)} (it can: float32, float16, int8 and int4 in groups of an "
                f"even size, symmetric int3 in groups of a multiple of 8, {tables}). See: ossicle targets"
            )

    def check_here(self) -> None:
        """Raise `BuildError` where coremltools is not installed. It is not imported: it brings torch with it."""
        if find_spec("coremltools") is None:
            raise BuildError(
                "target 'coreml' needs package coremltools, which is not installed. "
                'Install it with: pip install "ossicle[coreml]"'
            )

    def lower(
        self, stage: TracedStage, recipe: Recipe, weights: WeightStore, folder: Path, progress: Progress
    ) -> Artifact:
        """Write `coreml/<stage>.mlpackage` under `folder`, and give back what was written."""
        planned = self.place(stage, recipe, weights)
        package = folder / FOLDER / f"{stage.name}.mlpackage"
        description = f"{stage.name} of an audio-language model, {recipe.name}"
        coreml_package.write(package, coreml_package.specification(planned.functions, description))
        written = coreml_package.paths(package)
        fill(planned.layout, [written[2]], progress, f"coreml {stage.name}")
        first = next(iter(planned.functions.values()))
        return Artifact(
            target=self.name,
            stage=stage.name,
            recipe=recipe.name,
            precision=precision(stage.name, recipe),
            files=tuple(file_entry(folder, path) for path in written),
            inputs=_ports(first.inputs),
            outputs=_ports(first.outputs),
            requirements={"engine": "coreml", "system": "iOS 18, macOS 15", **planned.requirements},
            memory=needs(stage, weights, sum(planned.layout.sizes()), 2 if planned.records.compute == "float16" else 4),
        )

    def place(self, stage: TracedStage, recipe: Recipe, weights: WeightStore) -> Planned:
        """A stage's functions for a recipe, every weight in its form and its place."""
        records = Records(_compute(recipe))
        model = coreml_graph.graph(stage, replace(recipe, compute="float32"))
        if stage.name == "decoder":
            return self._place_decoder(stage, model, records, weights)
        emission = Emission(Block(), records, weights)
        inputs = tuple(_input(port, records.compute) for port in stage.inputs)
        emission.values |= {value.name: value for value in inputs}
        made = coreml_graph.emit(model, emission)
        outputs = tuple(
            emission.block.rename(value, port.name) for value, port in zip(made, stage.outputs, strict=True)
        )
        varies = any(None in value.shape for value in inputs)
        function = Function(emission.block, inputs, outputs, longest=self._chunk if varies else 1)
        return Planned({"main": function}, records, {"chunk": str(self._chunk)} if varies else {})

    def _place_decoder(self, stage: TracedStage, model: object, records: Records, weights: WeightStore) -> Planned:
        context = min(self._context, len(stage.constants["cos"]))
        chunk = min(self._chunk, context)
        functions = {
            name: coreml_decoder.function(stage, model, Emission(Block(), records, weights), context, longest)
            for name, longest in (("prefill", chunk), ("decode", 1))
        }
        return Planned(functions, records, {"context": str(context), "chunk": str(chunk)})


def precision(stage: str, recipe: Recipe) -> str:
    """How a stage's matrices are stored: fp32, fp16, int8, int4, int3, palette4 or palette3."""
    form = recipe.main_format(stage)
    if form.kind:
        return form.kind
    return f"fp{form.bits}" if form.is_float else f"int{form.bits}"


def _compute(recipe: Recipe) -> str:
    """The type of a program's floats; devices multiply integers in float16."""
    single = recipe.compute == "float32" and all(form.bits == 32 for _, form in recipe.formats())
    return "float32" if single else "float16"


def _holds(form: WeightFormat) -> bool:
    if form.kind:
        return form in PALETTES
    if form.bits == 3:
        return form.symmetric and form.group % 8 == 0
    return form.is_float or form.group % 2 == 0


def _input(port: Port, compute: str) -> Value:
    """An input of a package: one window, one row of tokens."""
    dtype = compute if port.dtype == "float32" else "int32"
    shape = tuple(1 if size in ("num_windows", "batch_size") else size for size in port.shape)
    return Value(port.name, dtype, tuple(None if isinstance(size, str) else size for size in shape))


def _ports(values: Sequence[Value]) -> tuple[Port, ...]:
    """What a function takes or gives, as the manifest has it."""
    return tuple(
        Port(value.name, value.dtype, tuple(_VARYING[value.name] if size is None else size for size in value.shape))
        for value in values
    )


_VARYING: Mapping[str, str] = {
    "input_ids": "sequence_length",
    "inputs_embeds": "sequence_length",
    "position_ids": "sequence_length",
    "logit_positions": "num_logits",
    "logits": "num_logits",
}
