"""How strongly what a model says depends on each number of its matrices: gradients, one block in memory at a time.

A small change dz of a position's logits moves its distribution p by a divergence of dz^T F dz / 2 nats, F = diag(p) - p p^T.
For random signs s, u = sqrt(p) s - p (sqrt(p)^T s) has the mean u u^T = F: what comes back from u to a weight, squared and
averaged, is that weight's entry on the diagonal of the Fisher information (Martens, New insights and perspectives on the
natural gradient method, 2014, https://arxiv.org/abs/1412.1193). Signs instead of tokens drawn from p, since rare ones count.

The model runs forward as streamed.py has it, the inputs of every block kept in files, and back from the head, each block's
weights read once more.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..targets.contract import Float32, TensorSource
from .readings import Utterance
from .streamed import Between, Run, Streamed

_ROWS = 4096  # of the head, whose gradients are made at a time


class Watcher(Protocol):
    """Told how strongly each number of a matrix counts, from the head to the first layer of the encoder."""

    def weigh(self, name: str, rows: Sequence[int], squares: Float32) -> None:
        """`squares` [rows, K]: for these rows of a matrix, the mean square over scored positions of each number's gradient.

        A matrix may come in several parts. Rows that never come, as those of tokens that are not looked up, count for nothing.
        """


@dataclass(frozen=True)
class Kept:
    """So many tensors of float32, in files."""

    folder: Path
    count: int

    @classmethod
    def beside(cls, between: Between, name: str, count: int) -> "Kept":
        """In a new folder of this name beside what lies between two blocks."""
        folder = between.folder.parent / name
        folder.mkdir()
        return cls(folder, count)

    def load(self, place: int) -> Any:
        import torch

        return torch.from_numpy(np.load(self.path(place), allow_pickle=False))

    def put(self, place: int, values: Any) -> None:
        np.save(self.path(place), np.ascontiguousarray(values.numpy()), allow_pickle=False)

    def path(self, place: int) -> Path:
        return self.folder / f"{place:05d}.npy"


@dataclass(frozen=True)
class Passed:
    """A block that was gone through: the prefixes of its parameters, how it runs, and its inputs."""

    prefixes: Sequence[str]
    run: Run
    inputs: Kept


@dataclass
class Backward(Streamed):
    """A checkpoint's model, forward and then backward; so many `draws` of signs are made for each utterance."""

    watcher: Watcher = field(kw_only=True)
    draws: int = field(default=1, kw_only=True)
    _heard: Sequence[Utterance] = field(default=(), init=False, repr=False)
    _passed: list[Passed] = field(default_factory=list, init=False, repr=False)

    def run(self, utterances: Sequence[Utterance]) -> None:
        """Take every utterance forward through the model, and back from its words; the watcher is told of every matrix."""
        self._heard, self._passed = utterances, []
        super().run(utterances)

    def _block(self, prefixes: Sequence[str], between: Between, run: Run) -> None:
        kept = Kept.beside(between, f"block-{len(self._passed)}", between.count)
        for item in range(between.count):
            os.link(between.path(item), kept.path(item))
        self._passed.append(Passed(prefixes, run, kept))
        super()._block(prefixes, between, run)

    def _decode(self, utterances: Sequence[Utterance], hidden: Between) -> None:
        """Forward to the head, and all the way back."""
        import torch

        super()._decode(utterances, hidden)
        layers = len(self._model.model.language_model.layers)
        encoder, decoder = self._passed[:-layers], self._passed[-layers:]
        if self.progress:
            self.progress.start("weigh", len(self._passed), "layers")
        with torch.inference_mode(False), torch.enable_grad():
            back = self._leave_head(hidden)
            for block in reversed(decoder):
                self._return(block, back, [[item] for item in range(hidden.count)])
            back = self._leave_embedding(hidden, back)
            for block in reversed(encoder):
                self._return(block, back, self._windows())

    def _leave_head(self, hidden: Between) -> Kept:
        """The gradients of every utterance's last activations [tokens, hidden], one for each draw."""
        import torch

        back = Kept.beside(hidden, "back", hidden.count * self.draws)
        given, signed = Kept.beside(hidden, "given", hidden.count), Kept.beside(hidden, "signed", back.count)
        random, norm = torch.Generator().manual_seed(0), self._model.model.language_model.norm
        head = torch.from_numpy(_whole(self.checkpoint.tensors[self._family.LM_HEAD]))
        with self._loaded(["model.language_model.norm."]):
            for item, utterance in enumerate(self._heard):
                inputs = hidden.load(item).requires_grad_()
                scored = norm(inputs)[-utterance.scored :]
                given.put(item, scored.detach())
                for draw in range(self.draws):
                    signs = _signs(torch.softmax(scored.detach() @ head.T, -1), random)
                    (gradient,) = torch.autograd.grad(scored, inputs, signs @ head, retain_graph=True)
                    signed.put(item * self.draws + draw, signs)
                    back.put(item * self.draws + draw, gradient)
        self._weigh_head(given, signed, len(head))
        return back

    def _weigh_head(self, given: Kept, signed: Kept, count: int) -> None:
        """Tell of the head, some of its rows at a time."""
        for start in range(0, count, _ROWS):
            rows = range(start, min(start + _ROWS, count))
            squares: Any = 0
            for place in range(signed.count):
                signs = signed.load(place)[:, start : rows.stop]
                squares = squares + (signs.T @ given.load(place // self.draws)).square_()
            self._tell(self._family.LM_HEAD, rows, squares)

    def _return(self, block: Passed, back: Kept, groups: Sequence[Sequence[int]]) -> None:
        """Take the gradients behind a block to its front, and tell of its matrices; a group's items are one utterance."""
        import torch

        with self._loaded(block.prefixes) as names:
            linear = [name for name in names if self._family.linear(name)]
            weights = [self._model.get_parameter(name).requires_grad_() for name in linear]
            squares = [torch.zeros_like(weight, requires_grad=False) for weight in weights]
            for group in groups:
                inputs = [block.inputs.load(item).requires_grad_() for item in group]
                outputs = [block.run(one) for one in inputs]
                for draw in range(self.draws):
                    places = [item * self.draws + draw for item in group]
                    last = draw + 1 == self.draws
                    _add(squares, _gradients(back, places, outputs, inputs, weights, last=last))
            for name, total in zip(linear, squares, strict=True):
                self._tell(name, range(len(total)), total)
        self._advance()

    def _leave_embedding(self, hidden: Between, back: Kept) -> Kept:
        """The gradients of every window's audio embeddings; told of are the rows that were looked up."""
        import torch

        audio = Kept.beside(hidden, "back-audio", self.draws * sum(len(one.logmel) for one in self._heard))
        token = self.checkpoint.config["audio_token_id"]
        looked_up: dict[int, Any] = {}
        for item, (utterance, windows) in enumerate(zip(self._heard, self._windows(), strict=True)):
            tokens = torch.tensor(utterance.tokens)
            for draw in range(self.draws):
                gradient = back.load(item * self.draws + draw)
                if windows:
                    parts = gradient[tokens == token].tensor_split(len(windows))
                    for window, part in zip(windows, parts, strict=True):
                        audio.put(window * self.draws + draw, part)
                for one in set(utterance.tokens) - {token}:
                    square = gradient[tokens == one].sum(0).square()
                    looked_up[one] = looked_up.get(one, 0) + square
        rows = sorted(looked_up)
        self._tell(self._family.EMBEDDING, rows, torch.stack([looked_up[one] for one in rows]))
        return audio

    def _windows(self) -> list[list[int]]:
        """The numbers of each utterance's windows."""
        ends = np.cumsum([0, *(len(utterance.logmel) for utterance in self._heard)])
        return [list(range(*pair)) for pair in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]

    def _tell(self, name: str, rows: Sequence[int], squares: Any) -> None:
        count = self.draws * sum(utterance.scored for utterance in self._heard)
        self.watcher.weigh(name, rows, (squares / count).numpy())


def _gradients(
    back: Kept,
    places: Sequence[int],
    outputs: Sequence[Any],
    inputs: Sequence[Any],
    weights: Sequence[Any],
    *,
    last: bool,
) -> Sequence[Any]:
    """Those of a block's weights, of what lies behind it at these places; there what lies before it takes its place."""
    import torch

    given = [back.load(place) for place in places]
    found: tuple[Any, ...] = torch.autograd.grad(outputs, [*inputs, *weights], given, retain_graph=not last)
    for place, gradient in zip(places, found, strict=False):
        back.put(place, gradient)
    return found[len(places) :]


def _add(squares: Sequence[Any], gradients: Sequence[Any]) -> None:
    """Add each gradient's squares, and let go of it: a large layer's are as large as its weights."""
    for total, gradient in zip(squares, gradients, strict=True):
        total.addcmul_(gradient, gradient)


def _signs(chances: Any, random: Any) -> Any:
    """Random vectors [positions, vocabulary] whose mean outer product is diag(p) - p p^T of each position."""
    import torch

    roots = chances.sqrt()
    signed = roots * (torch.randint(0, 2, chances.shape, generator=random) * 2 - 1)
    return signed - chances * signed.sum(-1, keepdim=True)


def _whole(source: TensorSource) -> Float32:
    """A tensor's numbers, read some rows at a time."""
    whole = np.empty(source.shape, np.float32)
    for start in range(0, source.shape[0], _ROWS):
        whole[start : start + _ROWS] = source.rows(start, min(start + _ROWS, source.shape[0]))
    return whole
