"""The tables of an HTML report: cells, breakdowns, proofs, what is missing, the machine. Every text is escaped."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ..targets import registry
from .breakdown import Group
from .cells import Cell, Found
from .figures import AdapterVerification, TargetVerification
from .report import ADAPTER_HEAD, adapter_rows, faults_of, figure

MISSING = "-"
PROOFS = {
    "executed": "its own engine ran the artifact",
    "interpreted": "another program read the artifact and computed what it says",
    "same graph": "another engine ran the graph that the artifact was made of",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    told = f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{told}</div>'


def cells(found: Sequence[Found], names: Mapping[int, str]) -> str:
    """A line for each cell, with speeds where any was measured."""
    timed = any(one.speed for one in found)
    head = ["cell", "verdict", "size, MB", "WER", "KL, nats", "top-1", "same text", "answers"]
    head += ["tokens/s", "RTF", "memory, MB", "load, s"] if timed else []
    note = "WER: word error rate. KL: mean divergence from the original's distribution. Top-1: share of positions with its "
    note += "most likely token. Same text: share of its transcripts. Answers: share that is the expected one."
    note += beside(one.cell.target for one in found)
    note += " RTF: seconds of work per second of audio. Memory: the most that all processes held." if timed else ""
    if timed and any(one.speed and one.speed.proof != "executed" for one in found):
        note += " What another program stood in for here has no speed of its own."
    rows = (_cell(names[place], one, timed) for place, one in enumerate(found))
    return table(head, rows, "cells") + f'<p class="note">{note}</p>'


def beside(targets: Iterable[str]) -> str:
    """What sizes leave out: the encoder that an engine takes audio from where its own format has none that is exact."""
    served = [name for name in dict.fromkeys(targets) if name in registry.ENCODER_BESIDE]
    return (
        f" Size of {', '.join(served)}: without the audio encoder of another target, which it is run with."
        if served
        else ""
    )


def breakdown(found: Sequence[Found], names: Mapping[int, str], groups: Callable[[Sequence[Any]], list[Group]]) -> str:
    """Word error rate and divergence of each group of clips, a line a cell; the original's first."""
    held = [(names[place], groups(one.proof.verified.clips)) for place, one in enumerate(found) if one.proof.verified]
    if not held:
        return ""
    columns = [f"{group.name} ({group.clips})" for group in held[0][1]]
    original = ["<b>original</b>", *(_both(group.wer_original, None) for group in held[0][1])]
    rows = [[escape(name), *(_both(group.wer, group.kl) for group in some)] for name, some in held]
    return table(["WER · KL", *columns], [original, *rows], "cells groups")


def proofs(found: Sequence[Found], names: Mapping[int, str]) -> str:
    """How each cell was proved, by which engine, and what failed."""
    rows = [
        [
            escape(names[place]),
            escape(one.proof.verified.engine),
            PROOFS[one.proof.verified.proof],
            _checks(one.proof.verified),
        ]
        for place, one in enumerate(found)
        if one.proof.verified
    ]
    return table(["cell", "engine", "proof", "checks"], rows, "cells prose") if rows else ""


def added(adapters: Sequence[AdapterVerification]) -> str:
    """How each adapter that is added as it runs compares with the original that it is merged into."""
    rows = [list(map(escape, row)) for row in adapter_rows(adapters)]
    return table(ADAPTER_HEAD, rows, "cells") if rows else ""


def missing(found: Sequence[Found], names: Mapping[int, str], refused: Mapping[Cell, str]) -> str:
    """The cells that have no figures, each with its reason."""
    rows = [[escape(names[place]), "failed", escape(one.reason)] for place, one in enumerate(found) if one.reason]
    rows += [[escape(str(cell)), "not possible", escape(reason)] for cell, reason in refused.items()]
    return table(["cell", "", "reason"], rows, "cells prose") if rows else ""


def machine(facts: Mapping[str, Any]) -> str:
    """What the figures were measured on."""
    processor = facts["processor"]
    rows = [
        ["processor", f"{processor['name']}, {processor['cores']} cores"],
        ["memory", f"{facts['memory'] / 2**30:.1f} GiB" if facts["memory"] else MISSING],
        ["system", str(facts["system"])],
        ["Python", str(facts["python"])],
        ["engines", ", ".join(f"{name} {version}" for name, version in facts["engines"].items())],
    ]
    return table(["", ""], [[name, escape(value)] for name, value in rows], "prose")


def _cell(name: str, one: Found, timed: bool) -> list[str]:
    verified = one.proof.verified
    if verified is None:
        return [escape(name), '<span class="bad">failed</span>', *[MISSING] * (10 if timed else 6)]
    told = verified.figures
    row = [escape(name), _verdict(verified), f"{one.proof.size / 1e6:.2f}"]
    row += [figure(which, getattr(told, which)) for which in ("wer", "kl", "top1", "same_text", "answers")]
    return row + (_speed(one) if timed else [])


def _speed(one: Found) -> list[str]:
    taken = one.timed
    if taken is None:
        return [MISSING] * 4
    memory = f"{taken.memory / 1e6:.0f}" if taken.memory else MISSING
    return [f"{taken.tokens_per_second:.0f}", f"{taken.real_time_factor:.3f}", memory, f"{taken.load:.2f}"]


def _verdict(verified: TargetVerification) -> str:
    return '<span class="good">passed</span>' if verified.passed else '<span class="bad">beyond limits</span>'


def _checks(verified: TargetVerification) -> str:
    failed = faults_of(verified)
    return escape("; ".join(failed)) if failed else f"all {len(verified.checks)} held"


def _both(wer: float | None, kl: float | None) -> str:
    return figure("wer", wer) + (f" · {kl:.2g}" if kl is not None else "")
