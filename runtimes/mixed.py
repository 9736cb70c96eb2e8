"""Engines made of engines: a plan opened, its audio encoder, prefill and steps each where the plan has them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ..targets.contract import EngineError, Float32, Int64
from ..targets.manifest import Manifest
from .base import (
    BoundedEngine,
    DecoderRuntime,
    Encoder,
    EncoderRuntime,
    Engine,
    Options,
    Runtime,
    Sequences,
    encoder_lacking,
)
from .plans import Placement, Plan

Finder = Callable[[str], Runtime]  # the runtime of a name


def open_plan(folder: Path, manifest: Manifest, plan: Plan, options: Options, find: Finder) -> Engine:
    """A bundle opened as a plan has it; no stage is loaded where it does not run.

    `options` are those of the whole; what a placement says of provider and threads stands above them.

    Raises:
        EngineError: an engine is missing, cannot be a part of a whole, or refused an artifact.
    """
    decoder_runtime = find(plan.decoder.runtime)
    if plan.is_single and not encoder_lacking(decoder_runtime):
        return decoder_runtime.open(folder, manifest, _options(options, plan.decoder))
    with ExitStack() as opened:
        encoder = None
        if plan.encoder is not None:
            encoder = _encoder(find(plan.encoder.runtime)).open_encoder(
                folder, manifest, Options(plan.encoder.threads or options.threads, plan.encoder.provider)
            )
            opened.callback(encoder.close)
        decoder = _decoder(decoder_runtime).open_decoder(folder, manifest, _options(options, plan.decoder))
        opened.pop_all()
    return decoder if encoder is None else MixedEngine(encoder, decoder)


def _options(options: Options, placement: Placement) -> Options:
    return replace(options, provider=placement.provider, threads=placement.threads or options.threads)


def _encoder(runtime: Runtime) -> EncoderRuntime:
    if encoder_lacking(runtime) is None and isinstance(runtime, EncoderRuntime):
        return runtime
    reason = encoder_lacking(runtime) or "it opens whole bundles alone"
    raise EngineError(f"engine '{runtime.name}' cannot be the audio encoder beside another: {reason}. See: ossicle doctor")


def _decoder(runtime: Runtime) -> DecoderRuntime:
    if isinstance(runtime, DecoderRuntime):
        return runtime
    raise EngineError(
        f"engine '{runtime.name}' cannot be the decoder beside another's audio encoder: it opens whole bundles alone. "
        "See: ossicle doctor"
    )


class MixedEngine:
    """The audio encoder of one engine before the decoder of another."""

    context: int  # where the decoder is bounded

    def __init__(self, encoder: Encoder, decoder: Engine) -> None:
        self._encoder = encoder
        self._decoder = decoder
        self.name = f"{encoder.name}+{decoder.name}"
        if isinstance(decoder, BoundedEngine):
            self.context = decoder.context

    def encode(self, mel: Float32) -> Float32:
        return self._encoder.encode(mel)

    def embed(self, ids: Int64) -> Float32:
        return self._decoder.embed(ids)

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        return self._decoder.prefill(prompts)

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        return self._decoder.extend(state, prompt)

    def step(self, state: Sequences, tokens: Int64) -> tuple[Float32, Sequences]:
        return self._decoder.step(state, tokens)

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        return self._decoder.keep(state, rows)

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        return self._decoder.score(prompt, last)

    def close(self) -> None:
        with ExitStack() as stack:
            for engine in (self._encoder, self._decoder):
                stack.callback(engine.close)
