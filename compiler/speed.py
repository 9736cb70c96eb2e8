"""What running a bundle takes on this machine: real recordings, transcribed in a process of its own that has no torch."""

from collections.abc import Sequence
from pathlib import Path

from ..targets.contract import OssicleError
from ..targets.probe import Answer, Report, Request
from .cells import Speed
from .reference import MAX_TOKENS
from .speech import Clip
from .verify import ask

REPEATS = 3  # processes, since an engine remembers what it has heard
CLIPS = 6


def measure(bundle: Path, engine: str, clips: Sequence[Clip]) -> Speed:
    """Tokens per second, real-time factor, load time and peak memory of a bundle on an engine.

    A first recording warms up; of each other the least of all repeats counts. What stands in for the engine is asked once.
    """
    chosen = spread(clips)
    asked = [_request(clip) for clip in (chosen[0], *chosen)]
    try:
        reports = [ask(bundle, asked, engine=engine)]
        if reports[0].proof == "executed":
            reports += [ask(bundle, asked, engine=engine) for _ in range(REPEATS - 1)]
    except OssicleError as reason:
        return Speed(reason=" ".join(str(reason).split()))
    return summarize(reports)


def spread(clips: Sequence[Clip]) -> list[Clip]:
    """Some of the recordings, of all lengths; the first one is the shortest."""
    ordered = sorted(clips, key=lambda clip: clip.file.stat().st_size)
    if len(ordered) <= CLIPS:
        return ordered
    return [ordered[round(place * (len(ordered) - 1) / (CLIPS - 1))] for place in range(CLIPS)]


def summarize(reports: Sequence[Report]) -> Speed:
    """The figures of repeats that answered the same requests, the first of each set aside."""
    rounds = list(zip(*(report.answers[1:] for report in reports), strict=True))
    audio = sum(answers[0].timings["audio"] for answers in rounds)
    work = sum(min(map(_work, answers)) for answers in rounds)
    tokens = sum(answers[0].timings["tokens"] for answers in rounds)
    decode = sum(min(answer.timings["decode"] for answer in answers) for answers in rounds)
    return Speed(
        tokens_per_second=tokens / decode if decode else 0.0,
        real_time_factor=work / audio if audio else 0.0,
        load=min(report.load_seconds for report in reports),
        memory=max(report.peak_memory for report in reports),
        audio=audio,
        proof=reports[0].proof,
    )


def _request(clip: Clip) -> Request:
    return Request("transcribe", str(clip.file.resolve()), language=clip.language, max_tokens=MAX_TOKENS)


def _work(answer: Answer) -> float:
    return sum(answer.timings[name] for name in ("encode", "prefill", "decode"))
