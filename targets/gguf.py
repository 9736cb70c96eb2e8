"""GGUF: the decoder as llama.cpp's architecture `llama`, and the audio encoder as an `mmproj` beside it.

    gguf/voxtral-Q4_0.gguf  gguf/mmproj-voxtral-Q8_0.gguf

The token embedding lies in the decoder's file. llama.cpp's own audio path averages pairs of Voxtral's encoder frames, which the
model does not: the `mmproj` is written for tools that load it, and runtimes/llamacpp.py takes audio from an exact encoder.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import gguf_adapter, gguf_blocks, gguf_file, gguf_metadata, gguf_names
from .contract import (
    Artifact,
    BuildError,
    BundleFile,
    LowRankUpdate,
    Memory,
    Progress,
    Recipe,
    RecipeError,
    TracedStage,
    UInt8,
    WeightFormat,
    WeightStore,
)
from .gguf_blocks import F16, F32, BlockType
from .gguf_file import TensorInfo
from .gguf_metadata import Model
from .manifest import file_entry
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
    """GGUF version 3 for llama.cpp: F32, F16, Q8_0, Q4_0 and Q4_1."""

    name = "gguf"

    def check(self, recipe: Recipe) -> None:
        """Raise `RecipeError` listing every part of the recipe that GGUF cannot hold."""
        faults = [f"{form.name} for {part}" for part, form in recipe.parts.items() if gguf_blocks.holding(form) is None]
        if faults:
            raise RecipeError(
                f"target 'gguf' cannot hold {', '.join(faults)} (it can: float32, float16, int8-g32, int4-g32, "
                "int4-g32-asymmetric). Try --quant int4, or leave this target out"
            )

    def plan(self, stage: TracedStage, recipe: Recipe, weights: WeightStore) -> int:
        """Bytes of tensors that `lower` will write for this stage; the header comes before them."""
        self.check(recipe)
        if stage.name == EMBEDDING:
            return 0
        names = _canonical_names(stage, weights, tied=False)
        kinds = [(weights.source(name).shape, _kind(stage.name, name, weights)) for name in names]
        return sum(int(np.prod(shape[:-1])) * kind.row_bytes(shape[-1]) for shape, kind in kinds)

    def lower(
        self, stage: TracedStage, recipe: Recipe, weights: WeightStore, folder: Path, progress: Progress
    ) -> Artifact:
        """Write the stage's file under `folder`, where config.json and tokenizer.json stand, and give back what was written.

        The embedding is written with the decoder, so its own stage has no file.
        """
        kind = _mostly(stage.name, recipe)
        if stage.name == EMBEDDING:
            return self._artifact(stage, recipe, kind, folder, ())
        model = gguf_metadata.read_model(folder)
        path = folder / FOLDER / _file_name(stage.name, model, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = _place(stage, weights, model)
        fill(_layout(_metadata(stage.name, model, kind), tensors, weights), [path], progress, f"gguf {stage.name}")
        return self._artifact(stage, recipe, kind, folder, (path,))

    def lower_adapter(self, name: str, updates: Mapping[str, LowRankUpdate], folder: Path) -> BundleFile:
        """Write a LoRA adapter of the decoder under `folder`, where config.json and tokenizer.json stand."""
        path = folder / FOLDER / f"adapter-{name}.gguf"
        gguf_adapter.write(path, name, updates, gguf_metadata.read_model(folder))
        return file_entry(folder, path)

    def _artifact(
        self, stage: TracedStage, recipe: Recipe, kind: BlockType, folder: Path, paths: tuple[Path, ...]
    ) -> Artifact:
        size = sum(path.stat().st_size for path in paths)
        return Artifact(
            target=self.name,
            stage=stage.name,
            recipe=recipe.name,
            precision=kind.name,
            files=tuple(file_entry(folder, path) for path in paths),
            inputs=stage.inputs,
            outputs=stage.outputs,
            requirements={"engine": "llamacpp", "gguf": "3"},
            memory=Memory(weights=size, kv_per_token=_kv_per_token(stage)),
        )


def _file_name(stage: str, model: Model, kind: BlockType) -> str:
    prefix = "mmproj-" if stage == AUDIO_ENCODER else ""
    return f"{prefix}{model.config['model_type']}-{kind.name}.gguf"


def _mostly(stage: str, recipe: Recipe) -> BlockType:
    """What a file's matrices mostly are."""
    form = {AUDIO_ENCODER: recipe.encoder, EMBEDDING: recipe.embedding, DECODER: recipe.decoder}[stage]
    return _held(form)


def _metadata(stage: str, model: Model, kind: BlockType) -> dict[str, gguf_file.Value]:
    write = gguf_metadata.audio_metadata if stage == AUDIO_ENCODER else gguf_metadata.text_metadata
    return write(model, kind)


def _place(stage: TracedStage, weights: WeightStore, model: Model) -> list[Stored]:
    """Every tensor of a stage's file, named, typed and placed."""
    name_of = gguf_names.audio_name if stage.name == AUDIO_ENCODER else gguf_names.text_name
    names = _canonical_names(stage, weights, tied=model.tied)
    wanted = [(name_of(name), _shape(name, weights), _kind(stage.name, name, weights)) for name in names]
    heads = [int(model.text["head_dim"]) if gguf_names.rotated(name) else 0 for name, _, _ in wanted]
    return [Stored(*entry) for entry in zip(names, gguf_file.place(wanted), heads, strict=True)]


def _canonical_names(stage: TracedStage, weights: WeightStore, *, tied: bool) -> list[str]:
    """The weights that go into a stage's file; a head that is the embedding in the same format is left out."""
    names = list(dict.fromkeys(stage.weights.values()))
    if stage.name != DECODER:
        return names
    same = tied and weights.format(gguf_names.EMBEDDING) == weights.format(gguf_names.LM_HEAD)
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


def _layout(metadata: dict[str, gguf_file.Value], tensors: list[Stored], weights: WeightStore) -> Layout:
    """The whole file as places and the jobs that fill them, its header among them."""
    start = np.frombuffer(gguf_file.header(metadata, [stored.info for stored in tensors]), np.uint8)
    layout = Layout()
    head = Slot("header", start.dtype, start.shape, 0, 0)
    layout.slots.append(head)
    layout.jobs.append((start.nbytes, lambda files: files.write(head, 0, start)))
    for stored in tensors:
        info = stored.info
        slot = Slot(info.name, start.dtype, (info.size,), 0, len(start) + info.offset)
        layout.slots.append(slot)
        elements = int(np.prod(info.shape, dtype=np.int64))
        layout.jobs.append((4 * elements, _job(stored, slot, weights)))
    layout.slots.append(_padding(layout.slots[-1]))
    return layout


def _padding(last: Slot) -> Slot:
    """What fills a file up to its alignment."""
    end = last.offset + last.size
    return Slot("padding", last.dtype, (gguf_file.aligned(end) - end,), 0, end)


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
        yield from _packed_floats(stored, weights)
        return
    for block in weights.quantized(name).blocks():
        if kind is F32:
            yield block.start, gguf_blocks.pack_floats(gguf_blocks.spelled_out(block, form), F32)
        else:
            yield block.start, gguf_blocks.pack_codes(block, kind)


def _packed_floats(stored: Stored, weights: WeightStore) -> Iterator[tuple[int, UInt8]]:
    source = weights.source(stored.canonical)
    for start, stop in row_blocks(source.shape):
        values = source.rows(start, stop)
        try:
            packed = gguf_blocks.pack_floats(values.reshape(-1, stored.info.shape[-1]), stored.info.type)
        except ValueError as reason:
            raise BuildError(
                f"tensor '{stored.canonical}' cannot be stored as {stored.info.type.name}: rows {start} to {stop}: {reason}. "
                "Repair the checkpoint, or build with --quant fp32"
            ) from reason
        scale = stored.info.rows // source.shape[0]  # rows of the file in one of the tensor's first axis
        yield start * scale, packed


def _kv_per_token(stage: TracedStage) -> int:
    """Bytes of the float32 cache of one token."""
    caches = [port.shape for port in stage.inputs if port.name.startswith("past_key_values.")]
    return 4 * sum(int(shape[1]) * int(shape[3]) for shape in caches)
