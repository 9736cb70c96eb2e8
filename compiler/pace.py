"""What engines make of a CPU: docs/plan.md says how these numbers were found."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..targets.contract import WeightFormat
from ..targets.devices import Kind

_CPUS: tuple[Kind, ...] = ("cpu", "here")


@dataclass(frozen=True)
class Pace:
    """An engine's kernels, by the bits of what they multiply, beside float32 products on the same cores.

    `encoder` and `prompt`: how many times as many operations a second the audio encoder and a prompt reach. `number`:
    operations that a step takes for each number that it has read. `scales`: operations for the scale of a group, in a
    prompt for each of its tokens, and in a step.
    """

    encoder: Mapping[int, float]
    prompt: Mapping[int, float]
    number: Mapping[int, float]
    scales: tuple[float, float]

    def encoders(self, form: WeightFormat) -> float:
        """How many times as many operations as float32 products the audio encoder reaches."""
        return _nearest(self.encoder, form)

    def prompts(self, form: WeightFormat, numbers: int) -> float:
        """Operations of float32 products that take as long as so many numbers do for a token of a prompt."""
        return 2 * numbers / _nearest(self.prompt, form) + self.scales[0] * _groups(form, numbers)

    def steps(self, form: WeightFormat, numbers: int) -> float:
        """The same for a step, beside reading them."""
        return _nearest(self.number, form) * numbers + self.scales[1] * _groups(form, numbers)


def pace(target: str, kind: Kind) -> Pace | None:
    """That of a target's engine on a kind of device; None where nobody has measured it."""
    return _ON_CPU.get(target) if kind in _CPUS else None


def _nearest(known: Mapping[int, float], form: WeightFormat) -> float:
    """The value of the number of bits that is nearest among those known."""
    return known[min(known, key=lambda bits: abs(bits - form.bits))]


def _groups(form: WeightFormat, numbers: int) -> float:
    return numbers / form.group if form.group else 0.0


_ON_CPU: Mapping[str, Pace] = {
    "openvino": Pace(
        {4: 3.5, 8: 3.5, 16: 1.6, 32: 1.0}, {4: 4.1, 8: 4.1, 16: 1.35, 32: 1.0}, {4: 2.5, 8: 2.0, 16: 1.0}, (6.0, 33.0)
    ),
    "onnx": Pace(
        {4: 1.9, 8: 1.9, 16: 1.0, 32: 1.0}, {4: 3.0, 8: 3.0, 16: 1.0, 32: 1.0}, {4: 2.5, 8: 2.0, 16: 1.0}, (14.0, 33.0)
    ),
    "gguf": Pace({4: 1.9, 8: 1.9, 16: 1.0, 32: 1.0}, {4: 0.85, 8: 0.85}, {4: 2.5, 8: 2.0, 16: 1.0}, (0.0, 33.0)),
}
