"""What an HTML report shows is what was found: each number in its place, each point where its values are."""

import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import soundfile
from ossicle.compiler import report_html
from ossicle.compiler.breakdown import by_length
from ossicle.compiler.cells import Cell, Found, Proof, Speed
from ossicle.compiler.figures import Comparison, Figures, Said, judge
from ossicle.compiler.report_clips import CLIPS
from ossicle.compiler.speech import Clip, Speech
from ossicle.targets.contract import Thresholds

SECONDS = (2, 5, 20)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    folder = tmp_path_factory.mktemp("speech")
    for seconds in SECONDS:
        soundfile.write(folder / f"{seconds}.wav", np.zeros(seconds * 8000), 8000)
    clips = [Clip(f"{seconds}.wav", folder / f"{seconds}.wav", "one two") for seconds in SECONDS]
    return Speech("speech.jsonl", tuple(clips), "0" * 64)


def compared(clip: Clip) -> Comparison:
    said = (Said(None, None, "one to", "won two", clip.text), Said("en", None, "one two", "one too", clip.text))
    return Comparison(clip.name, 1, 0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 1.0, 10, said)


def cell(speech: Speech, name: str, target: str, size: int, speed: float, **figures: float) -> Found:
    verified = judge(target, f"{target}-cpu", "executed", list(map(compared, speech.clips)), Thresholds(kl=1, wer=9))
    held: Figures = replace(verified.figures, **figures)
    timed = Speed(tokens_per_second=speed, real_time_factor=0.456, load=7.89, memory=321_000_000, audio=27.0)
    return Found(Cell(name, target, target), Proof(None, "", size, replace(verified, figures=held)), timed)


@pytest.fixture(scope="module")
def page(speech: Speech) -> str:
    small = cell(speech, "int4", "onnx", 2_340_000, 300, wer=0.11, kl=0.02, top1=0.93, same_text=0.84, answers=0.75)
    large = cell(speech, "int8", "coreml", 8_000_000, 100, wer=0.07, kl=0.001)
    assert large.proof.verified is not None
    proof = replace(large.proof, verified=replace(large.proof.verified, proof="interpreted"))
    return report_html.page("a", "b", (small, replace(large, proof=proof)), speech)


def _rows(page: str, head: str) -> list[list[str]]:
    section = page.split(f"<h2>{head}</h2>")[1].split("</section>")[0]
    rows = re.findall("<tr>(.*?)</tr>", section)
    return [[unescape(re.sub("<.*?>", "", text)) for text in re.findall("<td>(.*?)</td>", row)] for row in rows[1:]]


def test_each_figure_stands_in_its_column(page: str) -> None:
    figures = ["2.34", "11.00 %", "0.02", "93.00 %", "84.00 %", "75.00 %", "300", "0.456", "321", "7.89"]
    assert _rows(page, "Cells")[0] == ["int4 onnx", "passed", *figures]


def test_what_is_beyond_its_limits_is_told_apart_from_what_failed(speech: Speech) -> None:
    beyond = judge("onnx", "onnx-cpu", "executed", list(map(compared, speech.clips)), Thresholds(kl=1e-9, wer=9))
    proofs = (Proof(None, "", 1, beyond), Proof("it broke"))
    text = report_html.page("a", "b", [Found(Cell("int4", "onnx", "onnx"), proof) for proof in proofs], speech)
    assert [row[1] for row in _rows(text, "Cells")] == ["beyond limits", "failed"]


def test_groups_have_the_originals_words_beside_each_cells(page: str) -> None:
    assert _rows(page, "By length") == [
        ["original", "25.00 %", "25.00 %"],
        ["int4 onnx", "50.00 % · 0.25", "50.00 % · 0.25"],
        ["int8 coreml", "50.00 % · 0.25", "50.00 % · 0.25"],
    ]


def test_a_proof_is_told_as_it_was(page: str) -> None:
    assert [row[2] for row in _rows(page, "How each was proved")] == [
        "its own engine ran the artifact",
        "another program read the artifact and computed what it says",
    ]


def test_points_stand_where_their_values_are(page: str) -> None:
    said = [
        [title.split("\n") for title in re.findall("<title>(.*?)</title>", plot, re.DOTALL)] for plot in _plots(page)
    ]
    assert said[0][0] == ["int4 in onnx on onnx", "size, MB: 2.34", "word error rate, %: 11"]
    assert said[1][1] == ["int8 in coreml on coreml", "size, MB: 8", "KL divergence, nats: 0.001"]
    assert said[2][0] == ["int4 in onnx on onnx", "tokens per second: 300", "KL divergence, nats: 0.02"]
    for plot, first in zip(_plots(page), ("left", "left", "right"), strict=True):
        (x, y), (across, up) = _places(plot)
        assert (x < across) == (first == "left")
        assert y < up  # more of what is drawn upwards: word errors, divergence


def test_between_points_the_front_stays_where_the_worse_is(page: str) -> None:
    """What a size allows is what the smaller cell has; what a speed asks for, what the faster one has."""
    for plot, turns in zip(_plots(page), ("HV", "HV", "VH"), strict=True):
        (path,) = re.findall('class="front" d="(.*?)"', plot)
        places = sorted(_places(plot))
        start = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
        ends = {"H": f"H{places[1][0]:.1f}", "V": f"V{places[1][1]:.1f}"}
        assert path == start + ends[turns[0]] + ends[turns[1]]


def test_a_length_belongs_to_the_range_that_it_ends(speech: Speech) -> None:
    lengths = by_length(list(map(compared, speech.clips)), speech)
    assert [(group.name, group.clips) for group in lengths] == [("up to 5 s", 2), ("10 to 30 s", 1)]


def test_what_is_heard_is_cut_and_counted(page: str, speech: Speech) -> None:
    assert page.count("first 12 s") == 1
    clips = [replace(speech.clips[0], name=f"{place}.wav") for place in range(CLIPS + 2)]
    many = Speech("many.jsonl", tuple(clips), "0" * 64)
    text = report_html.page("a", "b", (cell(many, "int4", "onnx", 1, 1.0),), many)
    assert text.count("<details") == text.count("<audio") == CLIPS
    assert "2 more recordings with disagreements" in text


def _plots(page: str) -> list[str]:
    return re.findall('<svg class="plot".*?</svg>', page, re.DOTALL)


def _places(plot: str) -> list[tuple[float, float]]:
    """The middles of the first two marks: a circle, and a square by its corners."""
    ((x, y),) = re.findall('<circle cx="(.*?)" cy="(.*?)"', plot)
    (corners,) = re.findall('<polygon points="(.*?)"', plot)
    pairs = [tuple(map(float, corner.split(","))) for corner in corners.split()]
    middle = [sum(pair[axis] for pair in pairs) / 4 for axis in (0, 1)]
    return [(float(x), float(y)), (middle[0], middle[1])]
