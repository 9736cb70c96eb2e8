"""A verification as people and as machines read it: `verification.md`, `verification.html` and `verification.json`."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .figures import AdapterVerification, Check, Comparison, Figures, Said, TargetVerification, Verification
from .speech import Speech

VERSION = 1
NAME = "verification"

_LABELS = {
    "logmel": "log-mel, largest difference",
    "embeddings": "audio embeddings, largest difference",
    "embeddings_relative": "audio embeddings, relative error",
    "logits": "logits, largest difference",
    "kl": "KL divergence, mean (nats)",
    "kl_clip": "KL divergence, worst clip's mean (nats)",
    "kl_max": "KL divergence, worst position (nats)",
    "embeddings_stored": "audio embeddings, relative error beyond the rounding of weights",
    "kl_stored": "KL divergence beyond the rounding of weights, worst clip's mean (nats)",
    "top1": "most likely token agrees",
    "same_text": "transcripts identical",
    "same_answers": "answers identical",
    "wer_original": "word error rate of the original",
    "wer": "word error rate",
    "answers_original": "questions the original answers exactly",
    "answers": "questions answered exactly",
}
SHARES = {"top1", "same_text", "same_answers", "wer_original", "wer", "answers_original", "answers"}
_AT_LEAST = {"top1", "same_text", "same_answers"}


def write(folder: Path, verification: Verification, speech: Speech | None = None) -> tuple[Path, Path]:
    """Write the reports under `folder`, and give back where the page in Markdown and the record in JSON are.

    The page in HTML is written where the recordings are given that it lets hear.
    """
    from . import report_html

    folder.mkdir(parents=True, exist_ok=True)
    page, record = folder / f"{NAME}.md", folder / f"{NAME}.json"
    page.write_text(markdown(verification), encoding="utf-8")
    record.write_text(
        json.dumps(document(verification), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    if speech is not None:
        report_html.write_verification(folder, verification, speech)
    return page, record


def document(verification: Verification) -> dict[str, Any]:
    """All figures, clip by clip, as JSON holds them; what is no finite number is a word ("nan", "inf")."""
    content = asdict(verification) | {"version": VERSION, "passed": verification.passed}
    for entry, target in zip(content["targets"], verification.targets, strict=True):
        entry["passed"] = target.passed
    result: dict[str, Any] = finite(content)
    return result


def markdown(verification: Verification) -> str:
    """A page: the verdict, each target's figures beside their limits, its clips, and the texts that differ."""
    verdict = "passed" if verification.passed else "FAILED"
    lines = [
        f"# Verification of {verification.bundle}, {verification.recipe}: {verdict}",
        "",
        f"Against the original in torch float32, on {verification.speech}.",
    ]
    for target in verification.targets:
        lines += ["", *_target(target)]
    lines += ["", *_adapters(verification.adapters)] if verification.adapters else []
    return "\n".join(lines) + "\n"


def faults(verification: Verification) -> list[str]:
    """A sentence for each check that failed."""
    told = [f"{target.target}: {fault}" for target in verification.targets for fault in faults_of(target)]
    return told + [
        f"{one.target} with adapter '{one.adapter}': {_fault(check)}"
        for one in verification.adapters
        for check in one.checks
        if not check.passed
    ]


def faults_of(target: TargetVerification) -> list[str]:
    """A sentence for each check that failed of one target."""
    return [_fault(check) for check in target.checks if not check.passed]


def figure(name: str, value: float | None) -> str:
    """A figure in words: a share in per cent, a difference in two digits."""
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if name in SHARES and math.isfinite(value) else f"{value:.2g}"


def label(name: str) -> str:
    """What a figure is called in a report, "wer" or "kl_clip with adapter 'legal'"."""
    which, apart, adapter = name.partition(" with adapter ")
    return _LABELS.get(which, which) + apart + adapter


def finite(value: Any) -> Any:
    """The same document with a word in place of each number that JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


def _target(target: TargetVerification) -> list[str]:
    verdict = "passed" if target.passed else "FAILED"
    lines = [f"## {target.target}: {verdict}", "", f"Proof: {target.proof}, by {target.engine}.", ""]
    lines += table(("figure", "value", "limit", ""), _figure_rows(target.figures, target.checks))
    lines += [
        "",
        *table(("clip", "windows", "log-mel", "embeddings", "logits", "KL", "top-1", "text"), _clips(target)),
    ]
    differing = [(clip.clip, said) for clip in target.clips for said in clip.said if not said.same]
    return lines + (["", "Texts that differ:", "", *_differing(differing)] if differing else [])


def adapter_rows(adapters: Sequence[AdapterVerification]) -> list[tuple[str, ...]]:
    """Each adapter on each target: its figures, the one that is judged beside its limit."""
    return [
        (
            one.adapter,
            f"{one.target} ({one.engine})",
            *(figure(name, getattr(one, name)) for name in ("logits", "kl", "kl_clip", "top1")),
            ", ".join(f"{check.figure} {_limit(check)}: {_verdict(check)}" for check in one.checks),
        )
        for one in adapters
    ]


ADAPTER_HEAD = ("adapter", "target", "logits", "KL", "KL, worst clip", "top-1", "")


def _adapters(adapters: Sequence[AdapterVerification]) -> list[str]:
    verdict = "passed" if all(one.passed for one in adapters) else "FAILED"
    said = "Added as it runs, against the original in the recipe's weights with the adapter merged."
    return [f"## Adapters: {verdict}", "", said, "", *table(ADAPTER_HEAD, adapter_rows(adapters))]


def _figure_rows(figures: Figures, checks: Sequence[Check]) -> list[tuple[str, ...]]:
    limits = {check.figure: check for check in checks}
    return [
        (text, figure(name, getattr(figures, name)), _limit(limits.get(name)), _verdict(limits.get(name)))
        for name, text in _LABELS.items()
    ]


def _limit(check: Check | None) -> str:
    if check is None:
        return ""
    return f"{'≥' if check.figure in _AT_LEAST else '≤'} {figure(check.figure, check.limit)}"


def _verdict(check: Check | None) -> str:
    if check is None:
        return ""
    if check.passed:
        return "ok"
    return "FAILED" + (f" ({check.worst})" if check.worst else "")


def _clips(target: TargetVerification) -> list[tuple[str, ...]]:
    return [
        (
            clip.clip,
            str(clip.windows),
            figure("logmel", clip.logmel),
            figure("embeddings_relative", clip.embeddings_relative),
            figure("logits", clip.logits),
            figure("kl", clip.kl),
            figure("top1", clip.top1),
            _same(clip),
        )
        for clip in target.clips
    ]


def _same(clip: Comparison) -> str:
    same = sum(said.same for said in clip.said)
    return "same" if same == len(clip.said) else f"{same} of {len(clip.said)} same"


def _differing(entries: Iterable[tuple[str, Said]]) -> list[str]:
    return table(
        ("clip", "prompt", "original", "artifact"),
        [(clip, _prompt(said), said.original, said.artifact) for clip, said in entries],
    )


def _prompt(said: Said) -> str:
    if said.question is not None:
        return said.question
    return f"transcribe ({said.language})" if said.language else "transcribe"


def _fault(check: Check) -> str:
    relation = "below" if check.figure in _AT_LEAST else "above"
    clip = f", worst on '{check.worst}'" if check.worst else ""
    value, limit = figure(check.figure, check.value), figure(check.figure, check.limit)
    return f"{_LABELS[check.figure]} {value} is {relation} {limit}{clip}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(text) for text in line) + " |" for line in lines]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
