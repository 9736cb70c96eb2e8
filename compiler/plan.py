"""What will run where, before anything is built: sizes, memory by part, and speed from bandwidth and arithmetic.

docs/plan.md has the formulas. Sizes come from the shapes of the weights, so that neither weights nor torch are needed: a folder
that holds only a configuration is enough.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..targets import needs, sizes
from ..targets.contract import STAGE_PARTS, BuildError, Float32, Recipe, RecipeError
from ..targets.devices import Device
from .assignment import assign, serving
from .checkpoint import configured
from .families import Family
from .quantize import Weights

WINDOW = 30.0  # seconds
PROMPT, ANSWER = 16, 100  # tokens round a window's audio, and of its transcript


@dataclass(frozen=True)
class Shape:
    """A tensor that is known by its shape alone."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "bfloat16"

    def rows(self, start: int, stop: int) -> Float32:
        raise BuildError(f"'{self.name}' has no numbers here: rows {start} to {stop} were asked for of a plan")


@dataclass(frozen=True)
class Model:
    """What a plan is made for: a family's model of these sizes."""

    name: str
    family: Family = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    tied: bool

    @cached_property
    def tensors(self) -> dict[str, Shape]:
        return {name: Shape(name, shape) for name, shape in self.family.parameters(self.config).items()}

    @cached_property
    def stages(self) -> dict[str, list[str]]:
        """The canonical names of each stage's weights."""
        part = {name: self.family.part(name) for name in self.tensors}
        held = {stage: (*parts, *(["projector"] if "encoder" in parts else [])) for stage, parts in STAGE_PARTS.items()}
        return {stage: [name for name in self.tensors if part[name] in parts] for stage, parts in held.items()}


@dataclass(frozen=True)
class Size:
    """What a bundle of one target and recipe takes, in bytes.

    `stored` is by the stages that it is built of, those of another target that serve it among them; `encoder`, `embedding`
    and `decoder` are what its engines hold, `decoder` what a step reads of it.
    """

    target: str
    recipe: str
    stored: Mapping[str, int]
    encoder: int
    embedding: int
    decoder: int
    kv_per_token: int
    working: int

    @property
    def total(self) -> int:
        return sum(self.stored.values())

    def memory(self, context: int) -> int:
        """Bytes that running it takes with a context of so many tokens."""
        return self.encoder + self.embedding + self.decoder + self.kv_per_token * context + self.working


@dataclass(frozen=True)
class Work:
    """Operations, a multiply-add counted as two: of a window, and of each token."""

    window: float
    token: float


@dataclass(frozen=True)
class Forecast:
    """How a bundle will do on a device, times in seconds; `reason` says why it does not fit, None: it does."""

    device: str
    size: Size
    memory: int
    reason: str | None
    first_token: float
    tokens_per_second: float
    real_time_factor: float


def described(location: str | Path) -> Model:
    """The model that a checkpoint's folder or hub id describes; its configuration is enough.

    Raises:
        CheckpointError: there is none.
    """
    name, family, config = configured(location)
    return Model(name, family, config, family.tied(config))


def plan(model: Model, targets: Sequence[str], recipes: Sequence[Recipe], context: int) -> list[Size]:
    """The size of every recipe in every target that holds it."""
    return [size(model, target, recipe, context) for recipe in recipes for target in targets if holds(target, recipe)]


def holds(target: str, recipe: Recipe) -> bool:
    """Whether a target has a place for what a recipe stores, whether or not what writes it is installed."""
    try:
        assign((target,), recipe)
    except RecipeError:
        return False
    except BuildError:
        return True
    return True


def size(model: Model, target: str, recipe: Recipe, context: int, targets: Sequence[str] = ()) -> Size:
    """What a bundle of one target takes, whose tables are prepared for `context` tokens.

    Of `targets` in the same bundle, one may serve it with its audio encoder.
    """
    weights = Weights(model.tensors, recipe, model.family, model.tied)
    stored = {
        f"{name} {stage}": sizes.stage_bytes(name, stage, model.stages[stage], recipe, weights)
        for name, stage in serving(target, targets or (target,), recipe)
    }
    text = model.family.text_format(model.config, {})
    width = 2 if sizes.computes_in(target, recipe) == "float16" else 4
    stored[f"{target} decoder"] += sizes.table_width(target, width) * min(context, text.context) * text.head_dim
    embedding = sizes.embedding_bytes(target, model.family.EMBEDDING, recipe, weights)
    decoder = stored[f"{target} decoder"] - (embedding if target == "gguf" else 0)
    encoder = next(held for name, held in stored.items() if name.endswith("audio_encoder"))
    kept = 2 * text.layers * text.kv_heads * text.head_dim * width
    return Size(target, recipe.name, stored, encoder, embedding, decoder, kept, _working(model, width))


def work(model: Model) -> Work:
    """What an engine has to compute."""
    encoder, decoder = (_multiplied(model, stage) for stage in ("audio_encoder", "decoder"))
    head = math.prod(model.tensors[model.family.LM_HEAD].shape)
    frames = model.family.audio_format(model.config).window_frames // 2
    queries = (model.tensors[name].shape[0] for name in model.stages["audio_encoder"] if "q_proj.weight" in name)
    return Work(2 * encoder * frames + 4 * frames**2 * sum(queries), 2 * (decoder - head))


def forecast(model: Model, one: Size, device: Device, context: int) -> Forecast:
    """How a bundle will do on a device: a window of 30 s with its prompt, and an answer of 100 tokens."""
    load, text = work(model), model.family.text_format(model.config, {})
    tokens = model.family.audio_format(model.config).tokens_per_window + PROMPT
    encode = load.window / device.achieved_operations
    prefill = max(tokens * load.token / device.achieved_operations, one.decoder / device.achieved_bandwidth)
    read = one.decoder + one.kv_per_token * (tokens + ANSWER // 2)
    step = max(read / device.achieved_bandwidth, load.token / device.achieved_operations)
    memory = one.memory(min(context, text.context))
    return Forecast(
        device.name,
        one,
        memory,
        _refusal(one, device, memory),
        encode + prefill,
        1 / step,
        (encode + prefill + ANSWER * step) / WINDOW,
    )


def best(forecasts: Iterable[Forecast]) -> Forecast | None:
    """Of those that fit the largest, since what is stored in more bits differs least; of equals the fastest."""
    fitting = [one for one in forecasts if one.reason is None]
    return max(fitting, key=lambda one: (one.size.total, one.tokens_per_second), default=None)


def _refusal(one: Size, device: Device, memory: int) -> str | None:
    if one.target not in device.targets:
        return f"target {one.target} has no engine there (it has: {', '.join(device.targets)})"
    if memory > device.usable:
        room = f"{device.usable / 1e9:.1f} of its {device.memory / 1e9:.1f} GB"
        return f"needs {memory / 1e9:.1f} GB, and a model may take {room}"
    return None


def _multiplied(model: Model, stage: str) -> int:
    """Numbers of a stage's matrices that activations are multiplied with."""
    return sum(math.prod(model.tensors[name].shape) for name in model.stages[stage] if model.family.linear(name))


def _working(model: Model, width: int) -> int:
    tall = {stage: needs.tallest([model.tensors[name].shape for name in model.stages[stage]]) for stage in STAGE_PARTS}
    return max(needs.working(stage, rows, width) for stage, rows in tall.items())
