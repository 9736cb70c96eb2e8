"""OpenVINO: runs the bundle's `openvino` artifacts on a CPU, a GPU, an NPU, or on what OpenVINO chooses itself (auto).

Compiled models are kept in the folder that the environment variable OSSICLE_OPENVINO_CACHE names, where it is set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..targets.contract import EngineError, Float32, Int64
from ..targets.manifest import Manifest
from ..targets.openvino_core import core
from . import openvino_devices, openvino_models, openvino_static
from .artifacts import stage_file
from .base import Encoder, Engine, Sequences, opened_without_encoder
from .handing import KeyValues
from .mapped import let_go
from .openvino_settings import KV_CACHES, settings
from .openvino_stateful import StatefulDecoder
from .openvino_static import StaticDecoder
from .options import Options, check_options
from .refusal import missing_package

ENCODER = "openvino_audio_encoder_model.xml"
EMBEDDINGS = "openvino_text_embeddings_model.xml"
DECODER, STATELESS = "openvino_language_model.xml", "openvino_language_model_stateless.xml"


class OpenVino:
    """OpenVINO on one of its devices."""

    name = "openvino"
    target = "openvino"
    package = "openvino"

    def usable(self) -> str | None:
        try:
            import openvino  # noqa: F401
        except Exception as reason:  # a package that is broken raises what it likes
            return missing_package("openvino", "openvino", reason)
        return None

    def providers(self) -> Mapping[str, str | None]:
        """What speaks against each of its devices here, by name; None: nothing."""
        return {} if self.usable() else openvino_devices.states()

    def __init__(self, static: Sequence[str] = ("npu",)) -> None:
        self._static = static  # devices whose decoder has fixed shapes and no state

    def open(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        return self._opened(folder, manifest, options, self.open_encoder(folder, manifest, options))

    def open_decoder(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        return self._opened(folder, manifest, options, None)

    def open_encoder(self, folder: Path, manifest: Manifest, options: Options) -> Encoder:
        models = _Models(self._core(options), folder, manifest, options)
        return models.encoder()

    def _opened(self, folder: Path, manifest: Manifest, options: Options, encoder: Encoder | None) -> Engine:
        models = _Models(self._core(options), folder, manifest, options)
        static = options.provider in self._static
        decoder = models.static_decoder() if static else models.stateful_decoder()
        return OpenVinoEngine(encoder, models.embedding(), decoder, options.provider)

    def _core(self, options: Options) -> Any:
        if reason := self.usable():
            raise EngineError(f"engine 'openvino' cannot be used: {reason}")
        check_options(
            self.name,
            options,
            providers=openvino_devices.present(core()),
            kv_caches=("float32",) if options.provider in self._static else tuple(KV_CACHES),
        )
        return core()


class OpenVinoEncoder:
    """An opened audio encoder."""

    def __init__(self, model: Any, device: str, data: Path) -> None:
        self.name = f"openvino-{device}"
        self._model = model
        self._unpacked: Path | None = data  # the engine packs some weights now, and others when it first runs
        let_go(data)

    def encode(self, mel: Float32) -> Float32:
        inputs = [{"audio_values": mel[i : i + 1]} for i in range(len(mel))]
        windows = [openvino_models.run(self._model, window)["audio_features"] for window in inputs]
        if self._unpacked is not None:
            let_go(self._unpacked)
            self._unpacked = None
        return np.asarray(np.concatenate(windows), np.float32)

    def close(self) -> None:
        self.__dict__.clear()


class OpenVinoEngine:
    """An opened bundle."""

    def __init__(
        self, encoder: Encoder | None, embedding: Any, decoder: StatefulDecoder | StaticDecoder, device: str
    ) -> None:
        self.name = f"openvino-{device}"
        self._encoder = encoder
        self._embedding = embedding
        self._decoder = decoder

    def encode(self, mel: Float32) -> Float32:
        if self._encoder is None:
            raise opened_without_encoder(self.name)
        return self._encoder.encode(mel)

    def embed(self, ids: Int64) -> Float32:
        inputs = {"input_ids": np.asarray(ids, np.int64)[None]}
        embeddings: Float32 = openvino_models.run(self._embedding, inputs)["inputs_embeds"][0]
        return embeddings

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        return self._decoder.prefill(prompts)

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        if len(state.lengths) != 1:
            raise EngineError(f"engine '{self.name}' cannot extend {len(state.lengths)} rows at once (it can: 1).")
        return self._decoder.advance(state, prompt[None])

    def step(self, state: Sequences, tokens: Int64) -> tuple[Float32, Sequences]:
        return self._decoder.advance(state, self.embed(tokens)[:, None])

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        return self._decoder.keep(state, rows)

    def give(self, state: Sequences) -> list[KeyValues]:
        return self._decoder.give(state)

    def take(self, rows: Sequence[KeyValues]) -> Sequences:
        return self._decoder.take(rows)

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        return self._decoder.score(prompt, last)

    def close(self) -> None:
        self.__dict__.clear()


class _Models:
    """The models of a bundle, compiled as it was asked for."""

    def __init__(self, core: Any, folder: Path, manifest: Manifest, options: Options) -> None:
        self._core = core
        self._folder = folder
        self._manifest = manifest
        self._options = options

    def encoder(self) -> OpenVinoEncoder:
        """The audio encoder for one window at a time: a batch takes the memory of all its windows at once."""
        stage, audio, device = "audio_encoder", self._manifest.audio, self._options.provider
        model, path, data = self._read(stage, ENCODER)
        model.reshape({"audio_values": [1, audio.mel_bins, audio.window_frames]})
        return OpenVinoEncoder(self._compiled(stage, model, path, device), device, data)

    def embedding(self) -> Any:
        """The token embedding, on the CPU whatever the device: it looks rows up."""
        stage = "embed_tokens"
        model, path, _ = self._read(stage, EMBEDDINGS)
        return self._compiled(stage, model, path, "cpu")

    def stateful_decoder(self) -> StatefulDecoder:
        """The decoder that keeps keys and values itself."""
        model, path, data = self._read("decoder", DECODER)
        openvino_models.keep_last(model)
        return StatefulDecoder(self._compiled("decoder", model, path, self._options.provider), data)

    def static_decoder(self) -> StaticDecoder:
        """The decoder that is handed its keys and values."""
        columns = min(openvino_static.COLUMNS, self._manifest.text.context)

        def compiled(width: int) -> Any:
            model, path, _ = self._read("decoder", STATELESS)
            openvino_static.fix(model, width, columns)
            return self._compiled("decoder", model, path, self._options.provider)

        return StaticDecoder(compiled, columns)

    def _read(self, stage: str, xml: str) -> tuple[Any, Path, Path]:
        """A model, and the files of its graph and of its weights."""
        names = (xml, xml.replace("_stateless", "").replace(".xml", ".bin"))
        path, data = (stage_file(self._folder, self._manifest, RUNTIME, stage, name) for name in names)
        return openvino_models.read(self._core, path, data), path, data

    def _compiled(self, stage: str, model: Any, path: Path, device: str) -> Any:
        options = replace(self._options, provider=device)
        told = settings(self._manifest.recipe, options, self._core.available_devices, stage=stage)
        return openvino_models.compiled(self._core, model, path, device.upper(), told)


RUNTIME = OpenVino()
