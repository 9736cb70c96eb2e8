"""What runs where: an engine for each stage of a model, as a user says it and as it is chosen.

"openvino"                                  one engine for everything, on its CPU
"openvino:gpu"                              the same on a GPU
"encoder=openvino,decoder=onnxruntime"      an engine for each stage; prefill is the decoder's where it is not named
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from ..targets.contract import EngineError

Stage = Literal["encoder", "prefill", "decoder"]
STAGES: tuple[Stage, ...] = get_args(Stage)
AUTO = "auto"


@dataclass(frozen=True, order=True)
class Placement:
    """Where a stage runs: on which runtime, what that computes on, with how many threads (0: as it sees fit)."""

    runtime: str
    provider: str = "cpu"
    threads: int = 0

    def __str__(self) -> str:
        return self.runtime if self.provider == "cpu" else f"{self.runtime}:{self.provider}"


@dataclass(frozen=True)
class Plan:
    """A placement for every stage. `encoder` None: nothing here encodes audio, and texts alone can be answered."""

    encoder: Placement | None
    prefill: Placement
    decoder: Placement

    @property
    def stages(self) -> dict[Placement, tuple[Stage, ...]]:
        """The stages of each placement, each placement once."""
        found: dict[Placement, tuple[Stage, ...]] = {}
        for stage in STAGES:
            placement: Placement | None = getattr(self, stage)
            if placement is not None:
                found[placement] = (*found.get(placement, ()), stage)
        return found

    @property
    def is_single(self) -> bool:
        """Whether one engine does everything."""
        return len(self.stages) == 1 and self.encoder is not None

    def __str__(self) -> str:
        if self.is_single:
            return str(self.decoder)
        named = {stage: getattr(self, stage) for stage in STAGES}
        if self.prefill == self.decoder:
            del named["prefill"]
        return ",".join(f"{stage}={placement or 'none'}" for stage, placement in named.items())


def one(placement: Placement) -> Plan:
    """The plan that leaves everything to one engine."""
    return Plan(placement, placement, placement)


def parse(text: str) -> str | dict[str, str]:
    """What --engine says: a word for all stages, or a word for each that is named.

    Raises:
        EngineError: a stage is unknown, or named twice.
    """
    if "=" not in text:
        return text
    pairs = [part.partition("=") for part in text.split(",")]
    named = [stage.strip() for stage, _, _ in pairs]
    if twice := sorted({stage for stage in named if named.count(stage) > 1}):
        raise EngineError(f"engine '{text}' names {', '.join(twice)} twice. Name each stage once.")
    return {stage.strip(): spec.strip() for stage, _, spec in pairs}


def asked(engine: str | Mapping[str, str], provider: str = "cpu") -> dict[Stage, str]:
    """The word for every stage: a placement's, or "auto". Prefill is as the decoder, the encoder auto where it is not named.

    `provider` is that of an engine which is named alone.

    Raises:
        EngineError: a stage is unknown or named to nothing, or a provider is given and not the one engine that it is of.
    """
    if isinstance(engine, str) and not isinstance(engine := parse(engine), Mapping):
        return dict.fromkeys(STAGES, _with_provider(engine, provider))
    if unknown := sorted(set(engine) - set(STAGES)):
        raise EngineError(f"stages {', '.join(unknown)} are unknown (an engine can be given to: {', '.join(STAGES)}).")
    if empty := [stage for stage, word in engine.items() if not word]:
        raise EngineError(f"no engine is named for {', '.join(empty)} (such as: decoder=onnxruntime; auto: the best).")
    if provider != "cpu":
        raise EngineError(
            f"provider '{provider}' is of one engine. Name it beside each: decoder=onnxruntime:{provider}"
        )
    decoder = engine.get("decoder", AUTO)
    return {"encoder": engine.get("encoder", AUTO), "prefill": engine.get("prefill", decoder), "decoder": decoder}


def _with_provider(engine: str, provider: str) -> str:
    if provider == "cpu" or engine.endswith(f":{provider}"):
        return engine
    if engine == AUTO:
        raise EngineError(
            f"provider '{provider}' is of one engine, and none is named. Name it: --engine onnxruntime:{provider}"
        )
    if ":" in engine:
        raise EngineError(f"engine '{engine}' names its provider, and '{provider}' is another. Name one of them.")
    return f"{engine}:{provider}"


def placement(word: str, threads: int = 0) -> Placement:
    """The placement that a word such as "openvino:gpu" names."""
    runtime, _, provider = word.partition(":")
    return Placement(runtime, provider or "cpu", threads)
