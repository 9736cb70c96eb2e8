"""The original in torch float32, run block by block: the weights of one encoder or decoder layer are in memory at a time.

All recordings go through a block before the next one is read. What they are between two blocks lies on disk.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..targets import memory
from ..targets.contract import Float32, Progress
from . import torch_model
from .checkpoint import Checkpoint
from .families import Family, family
from .readings import Utterance

Run = Callable[[Any], Any]  # an activation [rows, width] in, one out
SILENCE = 1 / 16  # how much a position counts that has no sound: most of a window is that behind a short recording


class Observer(Protocol):
    """Told what every linear layer is given, block by block."""

    def see(self, name: str, inputs: Any, counted: Any) -> None:
        """`inputs` [rows, K], a tensor, are what the matrix `name` [N, K] is multiplied with; `counted` [rows] how much each
        counts."""

    def leave(self, weights: Mapping[str, Any]) -> bool:
        """A block's matrices by name were seen with all recordings; whether it changed their numbers, in place.

        The head's are not in memory: it is there by its name, as None.
        """


class Weighing(Protocol):
    """Told how much positions count by themselves, in their order; says how much they count for a matrix."""

    def weigh(self, name: str, counted: Any) -> Any:
        """A tensor like `counted` [rows], which is from 0 to 1."""


class Silence:
    """An observer that asks for nothing."""

    def see(self, name: str, inputs: Any, counted: Any) -> None: ...

    def leave(self, weights: Mapping[str, Any]) -> bool:  # noqa: ARG002 - the weights are of no interest
        return False


@dataclass(frozen=True)
class Between:
    """The activations of every item between two blocks, in files of float32; those behind the next block beside them.

    `counted` is of every item how much each of its positions counts.
    """

    folder: Path
    counted: Sequence[Any]

    @property
    def count(self) -> int:
        return len(self.counted)

    def load(self, item: int) -> Any:
        import torch

        return torch.from_numpy(np.load(self.path(item), allow_pickle=False))

    def save(self, item: int, values: Any) -> None:
        np.save(self.path(item, ".next"), np.ascontiguousarray(values.numpy()), allow_pickle=False)

    def advance(self) -> None:
        """What was saved is what is loaded from now on."""
        for item in range(self.count):
            self.path(item, ".next").replace(self.path(item))

    def path(self, item: int, suffix: str = "") -> Path:
        return self.folder / f"{item:05d}{suffix}.npy"


@dataclass
class Streamed:
    """A checkpoint's model, one block in memory at a time."""

    checkpoint: Checkpoint
    observer: Observer
    progress: Progress | None = None
    weighing: Weighing | None = field(
        default=None, kw_only=True
    )  # without one a position counts alike for every matrix
    _model: Any = field(init=False, repr=False)
    _counted: Any = field(init=False, repr=False, default=None)  # of the item that runs
    _last: tuple[Any, Any] = field(init=False, repr=False, default=(None, None))  # what was seen, and its rows
    _family: Family = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._model = torch_model.empty_model(self.checkpoint)
        self._family = family(self.checkpoint.family)

    def run(self, utterances: Sequence[Utterance]) -> None:
        """Take every utterance through the whole model, from log-mel to what the head is given."""
        import torch

        model = self._model.model
        if self.progress:
            self.progress.start("calibrate", len(model.audio_tower.layers) + len(model.language_model.layers), "layers")
        with tempfile.TemporaryDirectory(prefix="ossicle-calibrate-") as scratch, torch.inference_mode():
            frames = [_counted(window) for utterance in utterances for window in utterance.sound]
            audio = Between(_folder(scratch, "audio"), frames)
            hidden = Between(_folder(scratch, "text"), [self._positions(utterance) for utterance in utterances])
            self._encode(utterances, audio)
            self._embed(utterances, audio, hidden)
            self._decode(utterances, hidden)

    def _positions(self, utterance: Utterance) -> Any:
        """How much each token of an utterance counts."""
        import torch

        audio = torch.tensor(utterance.tokens) == self.checkpoint.config["audio_token_id"]
        counted = torch.ones(len(utterance.tokens))
        if utterance.logmel.size:
            counted[audio] = _shared(_counted(utterance.sound.reshape(-1)), int(audio.sum()))
        return counted

    def _encode(self, utterances: Sequence[Utterance], between: Between) -> None:
        """Every window's audio embeddings [tokens, hidden], the windows of all utterances one after the other."""
        tower, projector = self._model.model.audio_tower, self._model.model.multi_modal_projector
        prefix = "model.audio_tower."
        windows = [window for utterance in utterances for window in utterance.logmel]
        self._front(windows, between)
        for number, layer in enumerate(tower.layers):
            self._block([f"{prefix}layers.{number}."], between, _alone(layer))
            self._advance()
        width = self.checkpoint.config["audio_config"]["intermediate_size"]
        self._block(
            [prefix + "layer_norm.", "model.multi_modal_projector."],
            between,
            lambda one: projector(tower.layer_norm(one).reshape(-1, width)),
        )

    def _front(self, windows: Sequence[Float32], between: Between) -> None:
        """The encoder as it is without its layers: convolutions and positions."""
        import torch

        tower = self._model.model.audio_tower
        layers, norm = tower.layers, tower.layer_norm
        tower.layers, tower.layer_norm = torch.nn.ModuleList(), torch.nn.Identity()
        names = [f"model.audio_tower.{name}." for name in ("conv1", "conv2", "embed_positions")]
        with self._loaded(names):
            for item, window in enumerate(windows):
                between.save(item, tower(torch.from_numpy(window[None])).last_hidden_state[0])
        between.advance()
        tower.layers, tower.layer_norm = layers, norm

    def _embed(self, utterances: Sequence[Utterance], audio: Between, hidden: Between) -> None:
        """Each utterance's tokens, its audio in its place [tokens, hidden]; of the table only the rows that it has."""
        import torch

        table, token = self.checkpoint.tensors[self._family.EMBEDDING], self.checkpoint.config["audio_token_id"]
        first = 0
        for item, utterance in enumerate(utterances):
            rows = {one: table.rows(one, one + 1)[0] for one in set(utterance.tokens)}
            inputs = torch.from_numpy(np.stack([rows[one] for one in utterance.tokens]))
            last = first + len(utterance.logmel)
            if last > first:
                inputs[torch.tensor(utterance.tokens) == token] = torch.cat([audio.load(i) for i in range(first, last)])
            hidden.save(item, inputs)
            first = last
        hidden.advance()

    def _decode(self, utterances: Sequence[Utterance], hidden: Between) -> None:
        decoder, prefix = self._model.model.language_model, "model.language_model."

        def through(layer: Any) -> Run:
            def run(one: Any) -> Any:
                places = _places(len(one))
                turned = decoder.rotary_emb(one[None], position_ids=places)
                return layer(one[None], attention_mask=None, position_ids=places, position_embeddings=turned)[0]

            return run

        for number, layer in enumerate(decoder.layers):
            self._block([f"{prefix}layers.{number}."], hidden, through(layer))
            self._advance()
        with self._loaded([prefix + "norm."]):
            for item, utterance in enumerate(utterances):
                inputs = decoder.norm(hidden.load(item))[-utterance.scored :]
                self._observe(self._family.LM_HEAD, inputs, hidden.counted[item][-utterance.scored :])
        self.observer.leave({self._family.LM_HEAD: None})

    def _block(self, prefixes: Sequence[str], between: Between, run: Run) -> None:
        """Take all items through a block; again where what was seen changed its weights, for the blocks behind it."""
        with self._loaded(prefixes) as names:
            linear = [name for name in names if self._family.linear(name)]
            with self._watched(linear):
                self._through(between, run)
            self._last = None, None
            if self.observer.leave({name: self._model.get_parameter(name) for name in linear}):
                self._through(between, run)
        between.advance()

    def _see(self, name: str, inputs: Any) -> None:
        if inputs is not self._last[0]:  # q, k and v are given one tensor, and are seen with one
            self._last = inputs, inputs.reshape(-1, inputs.shape[-1])
        rows = self._last[1]
        self._observe(name, rows, _shared(self._counted, len(rows)))

    def _observe(self, name: str, inputs: Any, counted: Any) -> None:
        self.observer.see(name, inputs, self.weighing.weigh(name, counted) if self.weighing else counted)

    def _through(self, between: Between, run: Run) -> None:
        for item, counted in enumerate(between.counted):
            self._counted = counted
            between.save(item, run(between.load(item)))

    def _advance(self) -> None:
        if self.progress:
            self.progress.advance(1)

    @contextmanager
    def _loaded(self, prefixes: Sequence[str]) -> Iterator[list[str]]:
        """The parameters under these prefixes, filled from the checkpoint, and emptied again behind the block."""
        names = [name for name, _ in self._model.named_parameters() if name.startswith(tuple(prefixes))]
        for name in names:
            torch_model.fill(self._model, name, self.checkpoint.tensors[name])
        yield names
        for name in names:
            torch_model.empty(self._model, name)
        memory.give_back()

    @contextmanager
    def _watched(self, names: Sequence[str]) -> Iterator[None]:
        """The observer sees what these matrices are multiplied with."""

        def hook(name: str) -> Any:
            module = self._model.get_submodule(name.removesuffix(".weight"))
            return module.register_forward_pre_hook(lambda _, inputs: self._see(name, inputs[0]))

        hooks = [hook(name) for name in names]
        yield
        for one in hooks:
            one.remove()


def _counted(sound: Any) -> Any:
    """How much positions count, those with sound and those without."""
    import torch

    return torch.where(torch.from_numpy(sound), 1.0, SILENCE)


def _shared(counted: Any, rows: int) -> Any:
    """Counts of positions as those of so many rows, each of which several neighbours went into."""
    return counted.reshape(rows, -1).mean(axis=1)


def _alone(layer: Any) -> Run:
    return lambda one: layer(one[None], None)[0]


def _places(count: int) -> Any:
    import torch

    return torch.arange(count)[None]


def _folder(parent: str, name: str) -> Path:
    folder = Path(parent) / name
    folder.mkdir()
    return folder
