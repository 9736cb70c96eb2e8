"""Subtitle files: times, cues, what their formats cannot hold."""

from itertools import pairwise

from ossicle.runtimes.replies import Segment, Timings
from ossicle.runtimes.subtitles import LINES, WIDTH, cues, srt, stamped, vtt

NONE = Timings(0, 0, 0, 0, 0)


def _segment(start: float, end: float, text: str) -> Segment:
    return Segment(start, end, text, (), "stop", NONE)


def test_a_subrip_file_counts_its_cues() -> None:
    segments = [_segment(0, 4.5, "two words"), _segment(4.5, 5, "  "), _segment(61.25, 3725.0004, "more")]
    assert list(srt(segments)) == [
        "1\n00:00:00,000 --> 00:00:04,500\ntwo words\n\n",
        "2\n00:01:01,250 --> 01:02:05,000\nmore\n\n",
    ]


def test_a_webvtt_file_has_its_header_and_escapes() -> None:
    assert list(vtt([_segment(0.0006, 2, "a < b --> c & d")])) == [
        "WEBVTT\n\n",
        "00:00:00.001 --> 00:00:02.000\na &lt; b --&gt; c &amp; d\n\n",
    ]
    assert list(vtt([])) == ["WEBVTT\n\n"]


def test_times_carry_into_the_next_unit_and_hours_go_on_beyond_two_digits() -> None:
    (cue,) = srt([_segment(59.9996, 360000.0, "late")])
    assert cue.splitlines()[1] == "00:01:00,000 --> 100:00:00,000"


def test_an_arrow_or_an_empty_line_in_the_text_ends_no_subrip_cue() -> None:
    (cue,) = srt([_segment(0, 1, "a --> b\n\n2\n00:00:01,000")])
    assert cue.count("-->") == 1
    assert "" not in cue.splitlines()[:-1]


def test_a_long_segment_becomes_cues_that_share_its_time() -> None:
    words = " ".join(f"word{number}" for number in range(100))
    found = list(cues([_segment(10, 40, words)]))
    assert " ".join(" ".join(cue.lines) for cue in found) == words
    assert all(len(cue.lines) <= LINES and max(map(len, cue.lines)) <= WIDTH for cue in found)
    assert (found[0].start, round(found[-1].end, 9)) == (10, 40)
    assert all(one.end == two.start and one.start < one.end for one, two in pairwise(found))


def test_a_word_longer_than_a_line_stays_whole() -> None:
    (cue,) = cues([_segment(0, 1, "a" * 100)])
    assert cue.lines == ("a" * 100,)


def test_a_line_of_text_has_its_minute_before_it() -> None:
    assert stamped(_segment(125.9, 130, "two\nlines")) == "[02:05] two lines"
    assert stamped(_segment(3725, 3730, "")) == "[1:02:05]"
