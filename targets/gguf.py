"""GGUF: the decoder as llama.cpp's architecture `llama`, and the audio encoder as an `mmproj` beside it.

    gguf/voxtral-Q4_0.gguf  gguf/mmproj-voxtral-Q8_0.gguf
    gguf/voxtral-Q4_K_M-00001-of-00002.gguf  gguf/voxtral-Q4_K_M-00002-of-00002.gguf

The token embedding lies in the decoder's file, in the first one where there are several. llama.cpp's own audio path averages
pairs of Voxtral's encoder frames, which the model does not: the `mmproj` is written for tools that load it, and
runtimes/llamacpp.py takes audio from an exact encoder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from . import gguf_adapter, gguf_blocks, gguf_file, gguf_metadata, gguf_mixes, gguf_names
from .contract import (
    STAGES,
    Artifact,
    BuildError,
    BundleFile,
    LowRankUpdate,
    Progress,
    Recipe,
    RecipeError,
    TensorSource,
    TracedStage,
    UInt8,
    WeightFormat,
    WeightStore,
)
from .gguf_blocks import F16, F32, BlockType
from .gguf_file import TensorInfo
from .gguf_metadata import FileType, Model
from .manifest import file_entry
from .needs import needs
from .streaming import DataFiles, Layout, Slot, fill, row_blocks

FOLDER = "gguf"
AUDIO_ENCODER, EMBEDDING, DECODER = "audio_encoder", "embed_tokens", "decoder"


@dataclass(frozen=True)
class Stored:
    """A tensor and what it becomes. `head` is the size of a head where rows are permuted, else 0."""

    canonical: str
    info: TensorInfo
    head: int


class Gguf:
    """GGUF version 3 for llama.cpp: floats, the shared integers in groups of 32, and ggml's own blocks.

    `split_bytes` is the most that one file of the decoder may hold, a larger tensor apart; None: all is in one.
    """

    name = "gguf"

    def __init__(self, split_bytes: int | None = None) -> None:
        self._split_bytes = split_bytes

    def check(self, recipe: Recipe, stages: Sequence[str] = STAGES) -> None:
        """Raise `RecipeError` listing everything that these stages store under the recipe and GGUF cannot hold."""
        formats = recipe.formats(stages)
        faults = [f"{form.name} for {what}" for what, form in formats if gguf_blocks.holding(form) is None]
        if faults:
            raise RecipeError(
                f"target 'gguf' cannot hold {', '.join(faults)} (it can: {gguf_blocks.POSSIBLE}). "
                "Try --quant int4, or leave this target out"
            )

    def check_here(self) -> None:
        """Raise nothing: it is written with what every build needs."""

    def lower(
        self, stage: TracedStage, recipe: Recipe, weights: WeightStore, folder: Path, progress: Progress
    ) -> Artifact:
        """Write the stage's files under `folder`, where config.json and tokenizer.json stand, and give back what was written.

        The embedding is written with the decoder, so its own stage has no file.
        """
        if stage.name == EMBEDDING:
            return self._artifact(stage, recipe, weights, folder, ())
        kind = _mostly(stage.name, recipe)
        model = gguf_metadata.read_model(folder)
        files = self._divided(stage.name, _wanted(stage, weights, model))
        paths = _paths(folder / FOLDER, _file_name(stage.name, model, kind), len(files))
        layout = _layout(_metadata(stage.name, model, kind), files, weights)
        fill(layout, paths, progress, f"gguf {stage.name}")
        return self._artifact(stage, recipe, weights, folder, paths)

    def lower_adapter(
        self, name: str, updates: Mapping[str, LowRankUpdate], recipe: Recipe, folder: Path
    ) -> BundleFile:
        """Write a LoRA adapter of the decoder under `folder`, where config.json and tokenizer.json stand."""
        del recipe  # the factors are float32 whatever they are added to
        path = folder / FOLDER / f"adapter-{name}.gguf"
        gguf_adapter.write(path, name, updates, gguf_metadata.read_model(folder))
        return file_entry(folder, path)

    def _divided(self, stage: str, tensors: list[Stored]) -> list[list[Stored]]:
        """The tensors of each file. llama.cpp reads an audio encoder from one file alone."""
        if stage == AUDIO_ENCODER or self._split_bytes is None:
            return [tensors]
        files: list[list[Stored]] = [[]]
        for stored in tensors:
            if files[-1] and sum(one.info.size for one in (*files[-1], stored)) > self._split_bytes:
                files.append([])
            files[-1].append(stored)
        return [_placed_anew(file) for file in files]

    def _artifact(
        self, stage: TracedStage, recipe: Recipe, weights: WeightStore, folder: Path, paths: Sequence[Path]
    ) -> Artifact:
        size = sum(path.stat().st_size for path in paths)
        return Artifact(
            target=self.name,
            stage=stage.name,
            recipe=recipe.name,
            precision=_mostly(stage.name, recipe).name,
            files=tuple(file_entry(folder, path) for path in paths),
            inputs=stage.inputs,
            outputs=stage.outputs,
            requirements={"engine": "llamacpp", "gguf": "3"},
            memory=needs(stage, weights, size, width=4),
        )


def stage_bytes(stage: str, names: Sequence[str], weights: WeightStore) -> int:
    """Bytes of the tensors of a stage's files, whose weights are `names`; the embedding is among the decoder's."""
    if stage == EMBEDDING:
        return 0
    kinds = [(weights.source(name).shape, _kind(stage, name, weights)) for name in _stored_names(stage, names, weights)]
    return sum(int(np.prod(shape[:-1])) * kind.row_bytes(shape[-1]) for shape, kind in kinds)


def _file_name(stage: str, model: Model, kind: FileType) -> str:
    prefix = "mmproj-" if stage == AUDIO_ENCODER else ""
    return f"{prefix}{model.config['model_type']}-{kind.name}"


def _paths(folder: Path, stem: str, count: int) -> list[Path]:
    """The files of a model: one, or as many as llama.cpp finds from the first one's name."""
    folder.mkdir(parents=True, exist_ok=True)
    if count == 1:
        return [folder / f"{stem}.gguf"]
    return [folder / f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def _mostly(stage: str, recipe: Recipe) -> FileType:
    """What a file's matrices mostly are."""
    kind = _held(recipe.main_format(stage))
    if stage == DECODER and (named := gguf_mixes.FILE_TYPES.get(recipe.name)):
        return FileType(recipe.name.upper(), named)
    return FileType(kind.name, kind.file_type)


def _metadata(stage: str, model: Model, kind: FileType) -> dict[str, gguf_file.Value]:
    write = gguf_metadata.audio_metadata if stage == AUDIO_ENCODER else gguf_metadata.text_metadata
    return write(model, kind)


def _wanted(stage: TracedStage, weights: WeightStore, model: Model) -> list[Stored]:
    """Every tensor of a stage's file, named, typed and placed as if there was one file."""
    name_of = gguf_names.audio_name if stage.name == AUDIO_ENCODER else gguf_names.text_name
    names = _stored_names(stage.name, tuple(stage.weights.values()), weights)
    wanted = [(name_of(name), _shape(name, weights), _kind(stage.name, name, weights)) for name in names]
    heads = [int(model.text["head_dim"]) if gguf_names.rotated(name) else 0 for name, _, _ in wanted]
    return [Stored(*entry) for entry in zip(names, gguf_file.place(wanted), heads, strict=True)]


def _stored_names(stage: str, used: Sequence[str], weights: WeightStore) -> list[str]:
    """Of the weights that a stage uses those in its file; a head that is the embedding in the same format is left out."""
    names = list(dict.fromkeys(used))
    if stage != DECODER:
        return names
    same = weights.tied and weights.format(gguf_names.EMBEDDING) == weights.format(gguf_names.LM_HEAD)
    return [gguf_names.EMBEDDING, *(name for name in names if not (same and name == gguf_names.LM_HEAD))]


def _shape(name: str, weights: WeightStore) -> tuple[int, ...]:
    """The shape in the file: a convolution's bias stands as a column there."""
    shape = weights.source(name).shape
    return (*shape, 1) if ".conv" in name and name.endswith(".bias") else shape


def _kind(stage: str, name: str, weights: WeightStore) -> BlockType:
    """What a tensor is stored as: vectors and positions F32; a matrix whose rows are no whole blocks spelled out as F32."""
    shape, form = weights.source(name).shape, weights.format(name)
    if len(shape) == 1 or (stage == AUDIO_ENCODER and gguf_names.audio_name(name) == gguf_names.POSITIONS):
        return F32
    if len(shape) == 3:
        return F16  # llama.cpp's converter stores no other, and older versions of it read no other
    kind = _held(form)
    return F32 if shape[-1] % kind.block else kind


def _held(form: WeightFormat) -> BlockType:
    kind = gguf_blocks.holding(form)
    if kind is None:
        raise RecipeError(f"target 'gguf' cannot hold {form.name}. See: ossicle targets")
    return kind


def _placed_anew(tensors: list[Stored]) -> list[Stored]:
    """Tensors where they stand in a file of their own."""
    infos = gguf_file.place([(stored.info.name, stored.info.shape, stored.info.type) for stored in tensors])
    return [replace(stored, info=info) for stored, info in zip(tensors, infos, strict=True)]


def _layout(metadata: dict[str, gguf_file.Value], files: list[list[Stored]], weights: WeightStore) -> Layout:
    """Whole files as places and the jobs that fill them, headers among them; the first has the metadata of all."""
    layout, tensors = Layout(), sum(map(len, files))
    for number, file in enumerate(files):
        held = metadata if number == 0 else {}
        if len(files) > 1:
            held = held | gguf_metadata.split_metadata(number, len(files), tensors)
        _add_file(layout, number, held, file, weights)
    return layout


def _add_file(
    layout: Layout, number: int, metadata: dict[str, gguf_file.Value], tensors: list[Stored], weights: WeightStore
) -> None:
    start = np.frombuffer(gguf_file.header(metadata, [stored.info for stored in tensors]), np.uint8)
    head = Slot("header", start.dtype, start.shape, number, 0)
    layout.slots.append(head)
    layout.jobs.append((start.nbytes, lambda files: files.write(head, 0, start)))
    for stored in tensors:
        info = stored.info
        slot = Slot(info.name, start.dtype, (info.size,), number, len(start) + info.offset)
        layout.slots.append(slot)
        elements = int(np.prod(info.shape, dtype=np.int64))
        layout.jobs.append((4 * elements, _job(stored, slot, weights)))
    layout.slots.append(_padding(layout.slots[-1]))


def _padding(last: Slot) -> Slot:
    """What fills a file up to its alignment."""
    end = last.offset + last.size
    return Slot("padding", last.dtype, (gguf_file.aligned(end) - end,), last.file, end)


def _job(stored: Stored, slot: Slot, weights: WeightStore) -> Callable[[DataFiles], None]:
    def job(files: DataFiles) -> None:
        for start, rows in _packed_rows(stored, weights):
            if not stored.head:
                files.write(slot, start * stored.info.row_bytes, rows)
                continue
            for index, row in enumerate(rows, start):
                files.write(slot, gguf_names.permuted_row(index, stored.head) * stored.info.row_bytes, row)

    return job


def _packed_rows(stored: Stored, weights: WeightStore) -> Iterator[tuple[int, UInt8]]:
    """First row and stored bytes [rows, row bytes] of a tensor's blocks."""
    name, kind = stored.canonical, stored.info.type
    form = weights.format(name)
    if form.is_float:
        source, columns = weights.source(name), stored.info.shape[-1]
        yield from _packed(
            stored, source, lambda *rows: gguf_blocks.pack_floats(source.rows(*rows).reshape(-1, columns), kind)
        )
        return
    if form.is_block:
        yield from _packed(stored, weights.source(name), partial(weights.packed, name))
        return
    for block in weights.quantized(name).blocks():
        if kind is F32:
            yield block.start, gguf_blocks.pack_floats(gguf_blocks.spelled_out(block, form), F32)
        else:
            yield block.start, gguf_blocks.pack_codes(block, kind)


def _packed(stored: Stored, source: TensorSource, pack: Callable[[int, int], UInt8]) -> Iterator[tuple[int, UInt8]]:
    """First row and stored bytes of a tensor, a few of its first axis at a time."""
    for start, stop in row_blocks(source.shape):
        try:
            packed = pack(start, stop)
        except ValueError as reason:
            raise BuildError(
                f"tensor '{stored.canonical}' cannot be stored as {stored.info.type.name}: rows {start} to {stop}: {reason}. "
                "Repair the checkpoint, or build with --quant fp32"
            ) from reason
        scale = stored.info.rows // source.shape[0]  # rows of the file in one of the tensor's first axis
        yield start * scale, packed
