"""Engines made of engines: a plan opened, its audio encoder, prefill and steps each where the plan has them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..targets.contract import EngineError, Float32, Int64
from ..targets.manifest import Manifest
from . import adapters as choices
from .base import (
    BoundedEngine,
    BranchingEngine,
    DecoderRuntime,
    Encoder,
    EncoderRuntime,
    Engine,
    HandingEngine,
    Runtime,
    Sequences,
    encoder_lacking,
)
from .handing import KeyValues
from .options import Options
from .plans import Placement, Plan, Stage

LONG = 64  # tokens from which on it is the reader that extends a sequence, though its keys and values go there and back
OPTIONAL = ("give", "take", "branch")  # methods of engines whose states leave them, or begin as others do
Finder = Callable[[str], Runtime]  # the runtime of a name


def open_plan(folder: Path, manifest: Manifest, plan: Plan, options: Options, find: Finder) -> Engine:
    """A bundle opened as a plan has it; no stage is loaded where it does not run.

    `options` are those of the whole; what a placement says of provider and threads stands above them.

    Raises:
        EngineError: an engine is missing, cannot be a part of a whole, or refused an artifact.
    """
    with ExitStack() as opened:
        parts: dict[Placement, Encoder | Engine] = {}
        for placement, stages in plan.stages.items():
            parts[placement] = _opened(folder, manifest, find(placement.runtime), stages, _options(options, placement))
            opened.callback(parts[placement].close)
        engine = _joined(plan, parts)
        opened.pop_all()
    return engine


def _opened(
    folder: Path, manifest: Manifest, runtime: Runtime, stages: Sequence[Stage], options: Options
) -> Encoder | Engine:
    """What a runtime opens for some stages, and no more."""
    if stages == ("encoder",):
        return _encoder(runtime).open_encoder(folder, manifest, Options(options.threads, options.provider))
    if "encoder" in stages:
        return runtime.open(folder, manifest, options)
    return _decoder(runtime).open_decoder(folder, manifest, options)


def _joined(plan: Plan, parts: Mapping[Placement, Any]) -> Engine:
    decoder: Engine = parts[plan.decoder]
    if len(parts) == 1:
        return decoder
    encoder = decoder if plan.encoder is None else parts[plan.encoder]
    return MixedEngine(encoder, None if plan.prefill == plan.decoder else _handing(parts[plan.prefill]), decoder)


def _handing(engine: Engine) -> HandingEngine:
    if isinstance(engine, HandingEngine):
        return engine
    raise EngineError(
        f"engine '{engine.name}' does not hand keys and values over, so prefill and steps cannot be on different engines. "
        "Name one engine for both: decoder=NAME"
    )


def _options(options: Options, placement: Placement) -> Options:
    return replace(options, provider=placement.provider, threads=placement.threads or options.threads)


def _encoder(runtime: Runtime) -> EncoderRuntime:
    if encoder_lacking(runtime) is None and isinstance(runtime, EncoderRuntime):
        return runtime
    reason = encoder_lacking(runtime) or "it opens whole bundles alone"
    raise EngineError(
        f"engine '{runtime.name}' cannot be the audio encoder beside another: {reason}. See: ossicle doctor"
    )


def _decoder(runtime: Runtime) -> DecoderRuntime:
    if isinstance(runtime, DecoderRuntime):
        return runtime
    raise EngineError(
        f"engine '{runtime.name}' cannot be the decoder beside another's audio encoder: it opens whole bundles alone. "
        "See: ossicle doctor"
    )


class MixedEngine:
    """The audio encoder of one engine before the decoder of another; prompts may be read by a third, the reader.

    Keys and values of what the reader has read are handed to the decoder. None: the decoder reads prompts itself.
    """

    context: int  # where an engine is bounded
    give: Callable[[Sequences], list[KeyValues]]  # these two where the decoder hands over
    take: Callable[[Sequence[KeyValues]], Sequences]
    branch: Callable[[Sequences, int], Sequences]  # where the decoder branches

    def __init__(self, encoder: Encoder, reader: HandingEngine | None, decoder: Engine) -> None:
        self._encoder = encoder
        self._reader = reader
        self._decoder = decoder
        self._taker = None if reader is None else _handing(decoder)
        self.parts: dict[Stage, str] = {
            "encoder": encoder.name,
            "prefill": (reader or decoder).name,
            "decoder": decoder.name,
        }
        self.name = "+".join(dict.fromkeys(self.parts.values()))
        if isinstance(decoder, HandingEngine):
            self.give, self.take = decoder.give, decoder.take
        elif isinstance(decoder, BranchingEngine):
            self.branch = decoder.branch
        bounds = [engine.context for engine in (reader, decoder) if isinstance(engine, BoundedEngine)]
        if bounds:
            self.context = min(bounds)
        # What is optional, a mix can where its decoder can, which all states live in.
        for name in OPTIONAL:
            if hasattr(decoder, name):
                setattr(self, name, getattr(decoder, name))

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters of the decoder."""
        return choices.names(self._decoder)

    def adapted(self, adapters: Mapping[str, float]) -> Engine:
        """The same with adapters; where the reader has not got them, the decoder reads prompts itself."""
        has_them = self._reader is not None and set(adapters) <= set(choices.names(self._reader))
        reader = choices.adapted(self._reader, adapters) if self._reader is not None and has_them else None
        decoder = choices.adapted(self._decoder, adapters)
        return MixedEngine(self._encoder, None if reader is None else _handing(reader), decoder)

    def encode(self, mel: Float32) -> Float32:
        return self._encoder.encode(mel)

    def embed(self, ids: Int64) -> Float32:
        return self._decoder.embed(ids)

    def prefill(self, prompts: Sequence[Float32]) -> tuple[Float32, Sequences]:
        if self._reader is None or self._taker is None:
            return self._decoder.prefill(prompts)
        logits, state = self._reader.prefill(prompts)
        return logits, self._taker.take(self._reader.give(state))

    def extend(self, state: Sequences, prompt: Float32) -> tuple[Float32, Sequences]:
        if self._reader is None or self._taker is None or len(prompt) < LONG:
            return self._decoder.extend(state, prompt)
        logits, read = self._reader.extend(self._reader.take(self._taker.give(state)), prompt)
        return logits, self._taker.take(self._reader.give(read))

    def step(self, state: Sequences, tokens: Int64) -> tuple[Float32, Sequences]:
        return self._decoder.step(state, tokens)

    def keep(self, state: Sequences, rows: Sequence[int]) -> Sequences:
        return self._decoder.keep(state, rows)

    def score(self, prompt: Float32, last: int = 0) -> Float32:
        return (self._reader or self._decoder).score(prompt, last)

    def close(self) -> None:
        with ExitStack() as stack:
            for engine in (self._encoder, self._reader, self._decoder):
                if engine is not None:
                    stack.callback(engine.close)
