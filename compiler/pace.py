"""What engines make of a CPU: docs/plan.md says how these numbers were found, and how far they carry."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..targets.contract import WeightFormat
from ..targets.devices import Kind

_CPUS: tuple[Kind, ...] = ("cpu", "here")

# Of a step beside reading: operations of float32 products for each number, and seconds of each layer, for threads to meet.
NUMBER, LAYER = 1.4, 4e-4


@dataclass(frozen=True)
class Pace:
    """How an engine multiplies beside float32 products on the same cores.

    `encoder` and `prompt`: how many times as many operations a second the audio encoder and a prompt reach with matrices of
    integers, and with floats. `scale`: operations for each token of a prompt and each group of integers.
    """

    encoder: tuple[float, float]
    prompt: tuple[float, float]
    scale: float

    def encoders(self, form: WeightFormat) -> float:
        """How many times as many operations as float32 products the audio encoder reaches."""
        return self.encoder[form.is_float]

    def prompts(self, form: WeightFormat, numbers: int) -> float:
        """Operations of float32 products that take as long as so many numbers do for a token of a prompt."""
        return 2 * numbers / self.prompt[form.is_float] + self.scale * _groups(form, numbers)


def pace(target: str, kind: Kind) -> Pace | None:
    """That of a target's engine on a kind of device; None where nobody has measured it."""
    return _ON_CPU.get(target) if kind in _CPUS else None


def _groups(form: WeightFormat, numbers: int) -> float:
    return numbers / form.group if form.group else 0.0


_ON_CPU: Mapping[str, Pace] = {
    "openvino": Pace((3.9, 1.0), (5.0, 1.0), 6.0),
    "onnx": Pace((2.0, 1.0), (3.3, 1.0), 13.0),
    "gguf": Pace((2.0, 1.0), (0.88, 0.88), 0.0),
}
