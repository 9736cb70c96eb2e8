"""What `ossicle run` writes of recordings: text as it is found, lines with times, subtitles, JSON."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from ..targets.contract import OssicleError
from .common import complain, print_json
from .progress import Bars


class Form(Enum):
    """A form of transcripts, by the word that the user types."""

    TXT = "txt"
    SRT = "srt"
    VTT = "vtt"
    JSON = "json"

    @property
    def is_subtitles(self) -> bool:
        return self in (Form.SRT, Form.VTT)


@dataclass(frozen=True)
class Transcribing:
    """A session at work on recordings: `timed` segment by segment; `bars` where they are to be drawn."""

    session: Any
    language: str | None
    timed: bool
    bars: Bars | None

    def print(self, files: Sequence[Path], form: Form) -> bool:
        """Write transcripts as they are found; whether one failed."""
        failed = False
        for file in files:
            try:
                self._print(file, form, before=f"{file}: " if len(files) > 1 else "")
            except OssicleError as reason:
                complain(str(reason))
                failed = True
        return failed

    def document(self, files: Sequence[Path]) -> bool:
        """Write a list of what was found, or of what failed, as JSON, also where it breaks off; whether one failed."""
        entries: list[dict[str, Any]] = []
        try:
            entries.extend(map(self._entry, files))  # one by one: those before a failure stay
        finally:
            print_json(entries)
        return any("error" in entry for entry in entries)

    def _print(self, file: Path, form: Form, before: str) -> None:
        if not self.timed:
            _write_line(self.session.stream(file, language=self.language, progress=self._drawn(file)), before)
            return
        from ..runtimes import subtitles

        segments = self._segments(file)
        if form.is_subtitles:
            _write(subtitles.srt(segments) if form is Form.SRT else subtitles.vtt(segments))
        else:
            _write(f"{before}{subtitles.stamped(segment)}\n" for segment in segments)

    def _entry(self, file: Path) -> dict[str, Any]:
        try:
            found = self._found(file)
        except OssicleError as reason:
            return {"file": str(file), "error": " ".join(str(reason).split())}
        timings = {name: round(value, 4) for name, value in vars(found.timings).items()}
        entry = {"file": str(file), "text": found.text, "engine": found.engine, "timings": timings}
        if self.timed:
            entry["segments"] = [
                {"start": round(one.start, 3), "end": round(one.end, 3), "text": one.text} for one in found.segments
            ]
        return entry

    def _found(self, file: Path) -> Any:
        if not self.timed:
            return self.session.transcribe(file, language=self.language)
        from ..runtimes.segments import joined

        drawn, seconds = self._drawn(file), 0.0

        def reached(done: float, total: float | None) -> None:
            nonlocal seconds
            seconds = done
            if drawn is not None:
                drawn(done, total)

        found = list(self.session.segments(file, language=self.language, progress=reached))
        return joined(found, self.session.engine, self.language, seconds)

    def _segments(self, file: Path) -> Any:
        return self.session.segments(file, language=self.language, progress=self._drawn(file))

    def _drawn(self, file: Path) -> Callable[[float, float | None], None] | None:
        """Progress as a bar in seconds of audio, where there is more to come and it is known how much."""
        drawn, bars = 0, self.bars
        if bars is None:
            return None

        def tell(done: float, total: float | None) -> None:
            nonlocal drawn
            if total is None or (not drawn and done >= total):
                return
            if not drawn:
                bars.start(file.name, round(total), "s")
            bars.advance(round(done) - drawn)
            drawn = round(done)

        return tell


def _write(parts: Iterable[str]) -> None:
    for part in parts:
        typer.echo(part, nl=False)
        sys.stdout.flush()


def _write_line(pieces: Iterable[str], before: str) -> None:
    """One line, as its pieces come; it ends also where they break off."""
    begun = False
    try:
        for piece in pieces:
            _write([piece if begun else before + piece])
            begun = True
        if not begun:
            typer.echo(before)
    finally:
        if begun:
            typer.echo()
