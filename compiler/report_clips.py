"""Where artifacts disagree with the original: the recording to hear, and the texts side by side with differing words marked."""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape

from .cells import Found
from .speech import Clip, Speech

SECONDS = 12.0  # of a recording, at most
CLIPS = 16  # in a page, at most
RATE = 16000  # Hz
_PLAYER = re.compile(r"<audio\b[^>]*></audio>(<small>[^<]*</small>)?")


@dataclass(frozen=True)
class Heard:
    """A prompt about a clip on which artifacts disagree with the original: each other text, and who gave it."""

    clip: str
    prompt: str
    original: str
    expected: str | None
    others: Mapping[str, tuple[str, ...]]

    @property
    def count(self) -> int:
        return sum(map(len, self.others.values()))


def disagreements(found: Sequence[Found], names: Mapping[int, str]) -> list[Heard]:
    """Every prompt that not all answer as the original does; first those that most disagree on. `names` by place in `found`."""
    held: dict[tuple[str, str], tuple[str, str | None, dict[str, list[str]]]] = {}
    for place, one in enumerate(found):
        for clip in one.proof.verified.clips if one.proof.verified else ():
            for said in (entry for entry in clip.said if not entry.same):
                prompt = said.question or (f"transcribe ({said.language})" if said.language else "transcribe")
                entry = held.setdefault((clip.clip, prompt), (said.original, said.expected, {}))
                entry[2].setdefault(said.artifact, []).append(names[place])
    made = [
        Heard(clip, prompt, original, expected, {text: tuple(who) for text, who in others.items()})
        for (clip, prompt), (original, expected, others) in held.items()
    ]
    return sorted(made, key=lambda heard: -heard.count)


def section(heard: Sequence[Heard], speech: Speech) -> str:
    """The disagreements as HTML, clip by clip, with the recording where it can be read."""
    if not heard:
        return "<p>None: every artifact said what the original said, to every prompt about every recording.</p>"
    files = {clip.name: clip for clip in speech.clips}
    order = list(dict.fromkeys(one.clip for one in heard))
    parts = [_card(files.get(name), name, [one for one in heard if one.clip == name]) for name in order[:CLIPS]]
    left = len(order) - CLIPS
    more = f"<p>{left} more recordings with disagreements: verification.md of each bundle has all texts.</p>"
    return "".join(parts) + (more if left > 0 else "")


def marked(original: str, other: str) -> tuple[str, str]:
    """Both texts as HTML, the words that the other does not share marked."""
    before, after = original.split(), other.split()
    left: list[str] = []
    right: list[str] = []
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        left += _words(before[a:b], "del" if kind != "equal" else "")
        right += _words(after[c:d], "ins" if kind != "equal" else "")
    return " ".join(left) or "<em>nothing</em>", " ".join(right) or "<em>nothing</em>"


def audio(clip: Clip) -> str:
    """The recording's beginning, mono at 16 kHz, as an element that plays it from the page itself."""
    import soundfile

    from ..targets.contract import AudioError

    try:
        with soundfile.SoundFile(clip.file) as held:
            rate = held.samplerate
            mono = held.read(int(SECONDS * rate), dtype="float32", always_2d=True).mean(axis=1)
            longer = held.frames > len(mono)
    except (OSError, soundfile.SoundFileError) as reason:
        raise AudioError(f"'{clip.file}' cannot be read: {reason}. Take it out of the speech list") from reason
    if rate > RATE:
        import soxr

        mono, rate = soxr.resample(mono, rate, RATE), RATE
    stream = io.BytesIO()
    soundfile.write(stream, mono, rate, format="FLAC", subtype="PCM_16")
    data = base64.b64encode(stream.getvalue()).decode()
    cut = f"<small>first {SECONDS:.0f} s</small>" if longer else ""
    return f'<audio controls preload="none" src="data:audio/flac;base64,{data}"></audio>{cut}'


def silenced(page: str) -> str:
    """A page of this section with every recording taken out; its texts stay."""
    return _PLAYER.sub("<p><small>The recording was left out.</small></p>", page)


def _card(clip: Clip | None, name: str, heard: Sequence[Heard]) -> str:
    told, count = "".join(row for one in heard for row in _rows(one)), sum(one.count for one in heard)
    player = audio(clip) if clip else ""
    return (
        f'<details class="clip"><summary>{escape(name)} <small>{count} text{" differs" if count == 1 else "s differ"}</small>'
        f'</summary>{player}<div class="scroll"><table class="texts"><tbody>{told}</tbody></table></div></details>'
    )


def _rows(heard: Heard) -> Iterator[str]:
    yield f'<tr><th colspan="2">{escape(heard.prompt)}</th></tr>'
    if heard.expected is not None and heard.expected != heard.original:
        yield f"<tr><td>expected</td><td>{escape(heard.expected)}</td></tr>"
    for text, who in sorted(heard.others.items(), key=lambda entry: -len(entry[1])):
        left, right = marked(heard.original, text)
        yield f"<tr><td>original</td><td>{left}</td></tr>"
        yield f'<tr class="other"><td>{escape(", ".join(who))}</td><td>{right}</td></tr>'


def _words(words: Sequence[str], tag: str) -> list[str]:
    return [f"<{tag}>{escape(word)}</{tag}>" if tag else escape(word) for word in words]
