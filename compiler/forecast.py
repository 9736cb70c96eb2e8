"""How fast a bundle will run on a device, before it is built: from bandwidth, arithmetic and what its engine makes of them.

docs/plan.md has the formulas.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..targets.devices import Device
from .pace import LAYER, NUMBER, pace
from .plan import Model, Size

WINDOW = 30.0  # seconds
PROMPT, ANSWER = 16, 100  # tokens round a window's audio, and of its transcript


@dataclass(frozen=True)
class Forecast:
    """How a bundle will do on a device, times in seconds; `reason` says why it does not fit, None: it does."""

    device: str
    size: Size
    context: int  # tokens that keys and values are counted of
    memory: int
    reason: str | None
    encoder: float  # of a window
    prefill: float  # of the prompt with a window
    tokens_per_second: float

    @property
    def first_token(self) -> float:
        """Seconds until an answer begins."""
        return self.encoder + self.prefill

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for each second of audio: a window, and an answer of 100 tokens."""
        return (self.first_token + ANSWER / self.tokens_per_second) / WINDOW


def forecast(model: Model, one: Size, device: Device, context: int) -> Forecast:
    """How a bundle will do on a device: a window of 30 s with its prompt, and an answer of 100 tokens."""
    tokens = model.family.audio_format(model.config).tokens_per_window + PROMPT
    memory = one.memory(one.kept(context))
    return Forecast(
        device.name,
        one,
        one.kept(context),
        memory,
        _refusal(one, device, memory),
        encoder_seconds(model, one, device),
        prompt_seconds(one, device, tokens),
        1 / step_seconds(one, device, tokens + ANSWER // 2),
    )


def encoder_seconds(model: Model, one: Size, device: Device) -> float:
    """Seconds of a window: products with matrices, and those of attention between all of its positions."""
    frames = model.family.audio_format(model.config).window_frames // 2
    names = (name for name in model.stages["audio_encoder"] if "q_proj.weight" in name)
    attention = 4 * frames**2 * sum(model.tensors[name].shape[0] for name in names)
    held = [some for some in one.matrices if some.part == "encoder"]
    kept, largest = pace(one.target, device.kind), max(held, key=lambda some: some.numbers)
    reached = device.achieved_operations * (kept.encoders(largest.format) if kept else 1.0)
    return (2 * frames * sum(some.numbers for some in held) + attention) / reached


def prompt_seconds(one: Size, device: Device, tokens: int) -> float:
    """Seconds of a prompt: its products with the decoder, or reading that once, whichever takes longer."""
    kept = pace(one.target, device.kind)
    held = [some for some in one.matrices if some.part == "decoder"]
    each = sum(kept.prompts(some.format, some.numbers) if kept else 2 * some.numbers for some in held)
    return max(tokens * each / device.achieved_operations, one.decoder / device.achieved_bandwidth)


def step_seconds(one: Size, device: Device, tokens: int) -> float:
    """Seconds of a token behind so many others: reading what it takes, and multiplying on the cores that have waited for it.

    Where no engine's pace is known, the longer of both.
    """
    kept = pace(one.target, device.kind)
    held = [some for some in one.matrices if some.part != "encoder"]
    read = (one.decoder + one.kv_per_token * tokens) / device.achieved_bandwidth
    if kept is None:
        return max(read, sum(2 * some.numbers for some in held) / device.achieved_operations)
    numbers = sum(some.numbers for some in held)
    return read + NUMBER * numbers / device.achieved_operations + LAYER * one.layers


def best(forecasts: Iterable[Forecast]) -> Forecast | None:
    """Of those that fit that of the most bits, which differs least; of equals the fastest, whatever else its files hold."""
    fitting = [one for one in forecasts if one.reason is None]
    return max(fitting, key=lambda one: (one.size.bits, -one.real_time_factor), default=None)


def nearest(forecasts: Sequence[Forecast], device: Device) -> Forecast:
    """Of those that do not fit what takes the least memory, of those that have an engine there if any has."""
    return min(forecasts, key=lambda one: (one.size.target not in device.targets, one.memory))


def _refusal(one: Size, device: Device, memory: int) -> str | None:
    if one.target not in device.targets:
        return f"target {one.target} has no engine there (it has: {', '.join(device.targets)})"
    if memory > device.usable:
        room = f"{device.usable / 1e9:.1f} of its {device.memory / 1e9:.1f} GB"
        return f"needs {memory / 1e9:.1f} GB, and a model may take {room}"
    return None
