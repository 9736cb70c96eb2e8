"""The HTML report: what it shows, that it needs nothing else, and that a real browser draws it."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from ossicle.compiler import report_html
from ossicle.compiler.breakdown import by_language, by_length
from ossicle.compiler.cells import Cell, Found, Proof, Speed
from ossicle.compiler.figures import Comparison, Said, Verification, judge
from ossicle.compiler.report_clips import disagreements, marked
from ossicle.compiler.report_plots import Axis, Point, front
from ossicle.compiler.speech import Clip, Speech
from ossicle.targets.contract import Thresholds

NASTY = '<script>alert("1")</script>'
MACHINE = {
    "system": "Linux", "python": "3.12", "memory": 2**34, "processor": {"name": NASTY, "cores": 4},
    "engines": {"onnxruntime": "1.31"},
}  # fmt: skip


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    folder = tmp_path_factory.mktemp("speech")
    clips = []
    for name, seconds, language in (("a.wav", 2, "en"), (f"{NASTY[:8]}b.wav".replace("/", ""), 20, "fr")):
        noise = np.random.default_rng(0).normal(0, 0.1, seconds * 16000)
        soundfile.write(folder / name, noise, 16000)
        clips.append(Clip(name, folder / name, "turn on the light", language))
    return Speech("speech.jsonl", tuple(clips), "0" * 64)


def comparison(clip: Clip, text: str, kl: float) -> Comparison:
    said = (Said(clip.language, None, "turn on the light", text, clip.text),)
    return Comparison(clip.name, 1, 0.0, 1e-6, 1e-6, 1e-6, kl, kl, 1.0, 10, said)


def cell(speech: Speech, recipe: str, target: str, size: int, kl: float, texts: tuple[str, str], rate: float) -> Found:
    clips = [comparison(clip, text, kl) for clip, text in zip(speech.clips, texts, strict=True)]
    verified = judge(target, f"{target}-cpu", "executed", clips, Thresholds(kl=1.0, wer=1.0))
    speed = Speed(tokens_per_second=rate, real_time_factor=0.1, load=1.0, memory=10**8, audio=22.0)
    return Found(Cell(recipe, target, target), Proof(None, "bundles/x", size, verified), speed)


@pytest.fixture(scope="module")
def found(speech: Speech) -> tuple[Found, ...]:
    right, wrong = "turn on the light", f"turn off the {NASTY}"
    failed = Found(Cell("fp16", "onnx", "onnx"), Proof(f"it broke {NASTY}"))
    return (
        cell(speech, "fp32", "onnx", 16_000_000, 0.0, (right, right), 100.0),
        cell(speech, "int4", "onnx", 4_000_000, 0.01, (right, wrong), 300.0),
        cell(speech, "int4", "gguf", 3_000_000, 0.02, (wrong, wrong), 200.0),
        failed,
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, speech: Speech, found: tuple[Found, ...]) -> Path:
    refused = {Cell("q4_k_m", "onnx", "onnx"): "cannot hold Q4_K"}
    return report_html.write_sweep(tmp_path_factory.mktemp("out"), NASTY, found, refused, speech, MACHINE)


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_needs_nothing_else_and_runs_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tags = Tags(text).found
    assert "script" not in {tag for tag, _ in tags}
    assert not re.search(r"https?:|@import|url\(", text)
    sources = [value or "" for _, held in tags for name, value in held.items() if name in ("src", "href")]
    assert sources
    assert all(source.startswith("data:audio/flac;base64,") for source in sources)
    assert "&lt;script&gt;alert" in text


def test_failures_and_what_is_not_possible_have_their_reasons(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "it broke &lt;script&gt;" in text
    assert "cannot hold Q4_K" in text


def test_sizes_say_what_they_leave_out(page: Path, speech: Speech, found: tuple[Found, ...]) -> None:
    said = "Size of gguf: without the audio encoder of another target"
    assert said in page.read_text(encoding="utf-8")
    assert said not in report_html.page("a", "b", found[:2], speech)


def test_what_stood_in_for_an_engine_has_no_speed(speech: Speech, found: tuple[Found, ...]) -> None:
    here, there = found[0], replace(found[2], speed=Speed(tokens_per_second=4711.0, proof="same graph"))
    text = report_html.page("a", "b", (here, there), speech)
    assert "4711" not in text
    assert "no speed of its own" in text
    assert "no speed of its own" not in report_html.page("a", "b", found, speech)


def test_where_nothing_was_compared_nothing_is_said_to_agree(speech: Speech, found: tuple[Found, ...]) -> None:
    text = report_html.page("a", "b", found[3:], speech)
    assert re.findall("<h2>(.*?)</h2>", text) == ["Cells", "Failed or not possible"]
    assert "every artifact said" not in text


def test_groups_count_their_own_clips_alone(found: tuple[Found, ...], speech: Speech) -> None:
    verified = found[1].proof.verified
    assert verified is not None
    languages = {group.name: group for group in by_language(verified.clips, speech)}
    assert (languages["en"].wer, languages["fr"].wer) == (0.0, 5 / 4)
    lengths = by_length(verified.clips, speech)
    assert [(group.name, group.clips) for group in lengths] == [("up to 5 s", 1), ("10 to 30 s", 1)]


def test_disagreements_are_gathered_over_cells(found: tuple[Found, ...], speech: Speech) -> None:
    heard = disagreements(found, {0: "fp32", 1: "int4 onnx", 2: "int4 gguf"})
    assert [one.clip for one in heard] == [speech.clips[1].name, speech.clips[0].name]
    assert list(heard[0].others.values()) == [("int4 onnx", "int4 gguf")]


def test_differing_words_are_marked_and_escaped() -> None:
    assert marked("turn on the <b>", "turn off <b> now") == (
        "turn <del>on</del> <del>the</del> &lt;b&gt;",
        "turn <ins>off</ins> &lt;b&gt; <ins>now</ins>",
    )


def test_the_front_is_what_nothing_beats() -> None:
    size, kl = Axis("size", str), Axis("kl", str, log=True)
    points = [Point(x, y, f"{x},{y}", 0, "") for x, y in ((1, 5), (2, 3), (2, 4), (3, 3), (4, 1), (5, 2))]
    assert [one.label for one in front(points, size, kl)] == ["1,5", "2,3", "4,1"]
    assert [one.label for one in front(points, replace(size, higher_is_better=True), kl)] == ["4,1", "5,2"]


def test_a_bundles_report_tells_nothing_of_the_machine(
    tmp_path: Path, speech: Speech, found: tuple[Found, ...]
) -> None:
    verified = tuple(one.proof.verified for one in found if one.proof.verified)[1:2]
    whole = Verification("demo", "int4", speech.name, speech.sha256, Thresholds(), verified)
    text = report_html.write_verification(tmp_path, whole, speech).read_text(encoding="utf-8")
    assert str(speech.clips[0].file.parent) not in text
    assert "Measured on" not in text
    assert "<ins>off</ins>" in text


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_draws_the_plots(browser: Any, page: Path, width: int, scheme: str) -> None:
    faults: list[str] = []
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened.on("console", lambda message: faults.append(message.text))
    opened.on(
        "request", lambda asked: faults.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None
    )
    opened.goto(page.as_uri())
    plots = opened.locator("svg.plot")
    assert plots.count() == 3
    assert all(plots.nth(place).bounding_box()["height"] > 150 for place in range(3))
    assert [plots.nth(place).locator(".point").count() for place in range(3)] == [3, 3, 3]
    assert opened.locator("svg.plot .front").count() >= 2
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    opened.locator("details").first.evaluate("one => { one.open = true }")
    assert opened.locator("ins").first.is_visible()
    seconds = opened.evaluate(
        "() => new Promise((done, failed) => { const a = document.querySelector('audio'); a.onerror = failed;"
        " a.onloadedmetadata = () => done(a.duration); a.preload = 'auto'; a.load() })"
    )
    assert seconds == pytest.approx(12.0, abs=0.1)
    assert faults == []
    opened.close()
