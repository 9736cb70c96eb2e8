"""What engines make of a CPU, beside reading its memory: docs/plan.md says how these numbers were found."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..targets.contract import WeightFormat
from ..targets.devices import Kind

_CPUS: tuple[Kind, ...] = ("cpu", "here")


@dataclass(frozen=True)
class Pace:
    """An engine's kernels, in units of what the same cores make of float32 products.

    `encoder` and `prompt`: how many times as many operations a second the audio encoder and a prompt reach, by the bits that
    matrices are stored in. `number`: operations that a step takes for each number of a matrix, by its bits, and `group` for
    each group of them, while it waits for no memory.
    """

    encoder: Mapping[int, float]
    prompt: Mapping[int, float]
    number: Mapping[int, float]
    group: float

    def unpacking(self, form: WeightFormat, numbers: int) -> float:
        """Operations that a step takes for so many numbers of a format."""
        groups = numbers / form.group if form.group else 0.0
        return self._of(self.number, form) * numbers + self.group * groups

    def prompts(self, form: WeightFormat) -> float:
        """How many times as many operations as float32 products a prompt reaches."""
        return self._of(self.prompt, form)

    def encoders(self, form: WeightFormat) -> float:
        """The same of the audio encoder."""
        return self._of(self.encoder, form)

    @staticmethod
    def _of(known: Mapping[int, float], form: WeightFormat) -> float:
        """The value of the nearest number of bits that is known."""
        return known[min(known, key=lambda bits: abs(bits - form.bits))]


_EVEN = {32: 1.0}
_STEADY = Pace(_EVEN, _EVEN, {32: 0.0}, 0.0)  # of devices whose shares say all that is known

_ON_CPU: Mapping[str, Pace] = {}


def pace(target: str, kind: Kind) -> Pace:
    """That of a target's engine on a kind of device."""
    return _ON_CPU.get(target, _STEADY) if kind in _CPUS else _STEADY
