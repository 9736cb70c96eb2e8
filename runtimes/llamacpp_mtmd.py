"""llama.cpp with its own audio path, `mtmd`: what its users hear, and not what the model was trained to hear.

Its encoder averages pairs of Voxtral's frames, so that half as many tokens stand for a window, and a recording that fills its
last window gets a silent one more. It is here to be compared with; nobody gets it who has not asked for it by name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ..targets import gguf_file
from ..targets.contract import EngineError, Float32
from ..targets.manifest import Manifest
from .artifacts import stage_file
from .base import Engine
from .llamacpp import LlamaCpp, LlamaCppEngine
from .llamacpp_process import Process
from .options import Options


class LlamaCppMtmd(LlamaCpp):
    """llama.cpp on the CPU, audio and all."""

    name = "llamacpp-mtmd"
    encoderless = None
    inexact = "its audio path averages pairs of encoder frames, which the model does not"

    def open(self, folder: Path, manifest: Manifest, options: Options) -> Engine:
        opening = self.opening(folder, manifest, options)
        heard = replace(opening, mmproj=str(stage_file(folder, manifest, self, "audio_encoder", ".gguf")))
        contents = gguf_file.read(Path(opening.path))
        return MtmdEngine(Process(asdict(heard)), contents, self.kept(manifest), options.adapters)


class MtmdEngine(LlamaCppEngine):
    """An opened bundle."""

    def __init__(
        self, process: Process, contents: gguf_file.Contents, adapters: Iterable[str], scales: Mapping[str, float]
    ) -> None:
        super().__init__(process, contents, adapters, scales)
        self.name = "llamacpp-mtmd-cpu (inexact)"
        self.tokens_per_window = int(process.model["audio_tokens"])

    def encode(self, mel: Float32) -> Float32:
        raise EngineError(
            f"engine 'llamacpp-mtmd' takes recordings and makes log-mel itself, and was given {list(mel.shape)}. "
            "Take an exact engine: ossicle doctor"
        )

    def hear(self, samples: Float32) -> Float32:
        self._process.start()
        return np.asarray(self._process.call("hear", {}, [samples])[1][0], np.float32)


RUNTIME = LlamaCppMtmd()
