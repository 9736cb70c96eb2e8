"""How much each position counts for each matrix: by the gradient that arrives behind it there.

With G the gradient of what is said at what a matrix gives at one position, x its input there, a rounding dW loses about half
the mean of (G^T dW x)^2. With the gradient's size alone that is |G|^2 |dW x|^2: x x^T is to be weighed by |G|^2. Source:
Kim et al., GuidedQuant, 2025 (https://arxiv.org/abs/2505.07004), whose groups of outputs are one here.

The sizes are noisy, and of few recordings most of their sum may be that of a few positions. So each is taken as a share of
the mean, and what a position counts without it is added.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..targets.contract import Float32, Progress
from .backward import Backward, Kept, Passed
from .checkpoint import Checkpoint
from .readings import Utterance
from .streamed import Silence

DRAWS = 4  # of signs for each utterance


@dataclass
class Positions:
    """|G|^2 of every matrix at every position, in the order in which positions are seen: a file of float32 for each matrix."""

    folder: Path
    _sums: dict[str, float] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, squares: Float32) -> None:
        """Keep the next positions' [rows] of a matrix."""
        with self._path(name).open("ab") as stream:
            stream.write(squares.astype("<f4", copy=False).tobytes())
        self._sums[name] = self._sums.get(name, 0.0) + float(squares.sum(dtype=np.float64))
        self._counts[name] = self._counts.get(name, 0) + len(squares)

    def weigh(self, name: str, counted: Any) -> Any:
        """How much the next positions of a matrix count, a tensor like `counted` [rows], which is what they count without."""
        import torch

        start = self._seen.get(name, 0)
        self._seen[name] = start + len(counted)
        squares = np.fromfile(self._path(name), "<f4", len(counted), offset=4 * start)
        mean = self._sums[name] / self._counts[name]
        return torch.from_numpy(squares) / mean + counted if mean > 0 else counted

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.f32"


@contextmanager
def positions(checkpoint: Checkpoint, heard: Sequence[Utterance], progress: Progress | None) -> Iterator[Positions]:
    """How much every position of these utterances counts, to be seen once in their order; kept in files until the end."""
    with tempfile.TemporaryDirectory(prefix="ossicle-positions-") as scratch:
        found = Positions(Path(scratch))
        _Sizing(checkpoint, Silence(), progress, watcher=_Nobody(), draws=DRAWS, found=found).run(heard)
        yield found


class _Nobody:
    """A watcher that asks for nothing."""

    def weigh(self, name: str, rows: Sequence[int], squares: Float32) -> None: ...


@dataclass
class _Sizing(Backward):
    """A way back that asks for no gradient of weights, only for those behind them."""

    found: Positions = field(kw_only=True)

    def _weigh_head(self, given: Kept, signed: Kept, count: int) -> None:  # noqa: ARG002 - signs are all that is needed
        for item in range(given.count):
            draws = [signed.load(item * self.draws + draw).square_().sum(1).numpy() for draw in range(self.draws)]
            self.found.add(self._family.LM_HEAD, np.mean(draws, axis=0))

    def _return(self, block: Passed, back: Kept, groups: Sequence[Sequence[int]]) -> None:
        with self._loaded(block.prefixes) as names, self._outputs(names) as outputs:
            for item in chain.from_iterable(groups):
                self._return_one(block, back, item, outputs)
        self._advance()

    def _return_one(self, block: Passed, back: Kept, item: int, outputs: Mapping[str, Any]) -> None:
        """Take one item's gradients to the block's front, and keep the sizes of those behind its matrices."""
        import torch

        inputs = block.inputs.load(item).requires_grad_()
        end = block.run(inputs)
        behind = list(outputs.values())
        squares: list[Any] = [0.0] * len(behind)
        for draw in range(self.draws):
            place = item * self.draws + draw
            kept = draw + 1 < self.draws
            first, *found = torch.autograd.grad(end, [inputs, *behind], back.load(place), retain_graph=kept)
            back.put(place, first)
            squares = [
                total + one.reshape(-1, one.shape[-1]).square().sum(1)
                for total, one in zip(squares, found, strict=True)
            ]
        for name, total in zip(outputs, squares, strict=True):
            self.found.add(name, (total / self.draws).numpy())

    @contextmanager
    def _outputs(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """What each linear matrix of these gave when its block ran last."""
        given: dict[str, Any] = {}

        def hook(name: str) -> Any:
            module = self._model.get_submodule(name.removesuffix(".weight"))
            return module.register_forward_hook(lambda _module, _inputs, output: given.update({name: output}))

        hooks = [hook(name) for name in names if self._family.linear(name)]
        try:
            yield given
        finally:
            for one in hooks:
                one.remove()
