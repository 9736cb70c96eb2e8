"""The command line: what it prints, its exit codes, and what it does not import."""

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import ossicle
import pytest
from ossicle.cli import common, doctor, progress
from ossicle.cli import main as cli
from ossicle.compiler import checkpoint, figures, marking, verify
from ossicle.runtimes import replies
from ossicle.runtimes.accelerators import Accelerator
from ossicle.runtimes.bench import Bench
from ossicle.runtimes.device import fingerprint
from ossicle.runtimes.replies import Segment
from ossicle.runtimes.tools import ToolCall
from ossicle.targets.contract import AudioError, BundleError, EngineError, Thresholds
from ossicle.targets.recipes import RECIPES
from ossicle.tests.fakes import write_bundle
from rich.console import Console
from typer.testing import CliRunner

RUNNER = CliRunner()


@dataclass(frozen=True)
class Timings:
    audio: float = 2.0
    encode: float = 0.123456
    tokens: int = 4


@dataclass(frozen=True)
class Heard:
    text: str
    engine: str = "fake-cpu"
    timings: Timings = field(default_factory=Timings)


class FakeSession:
    """Says the name of a recording back; refuses one that is called bad."""

    engine = "fake-cpu"

    def __init__(self):
        self.asked = []
        self.opened = {}

    def open(self, _, **options):
        self.opened = options
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.asked.append("closed")

    def transcribe(self, audio, *, language=None):
        if "bad" in str(audio):
            raise AudioError(f"'{audio}' cannot be read:\n it is text. Convert it")
        if "stop" in str(audio):
            raise KeyboardInterrupt
        if "dead" in str(audio):
            raise EngineError("no engine is left")
        return Heard(f"{Path(audio).stem} {language or ''}".strip())

    def stream(self, source, *, language=None, **settings):
        if isinstance(source, list):
            self.asked.append((source, settings))
            yield from ("kit", "chen \u00e9")
            return
        if "late" in str(source):
            yield "begun"
            raise AudioError("it ends at second 5")
        yield from ("", *self.transcribe(source, language=language).text)

    def segments(self, audio, *, language=None, progress=None):
        self.transcribe(audio, language=language)
        for number, text in enumerate(("one <two>", "three")):
            yield Segment(100.0 * number, 100.0 * number + 1.5, text, (5,), "stop", replies.Timings(1.5, 0, 0, 0.25, 1))
            progress(100.0 * (number + 1), 200.0)


class Said:
    """An answer that is calls alone."""

    settings: ClassVar[dict] = {}

    def __init__(self, settings, calls):
        Said.settings = settings
        self.reply = SimpleNamespace(tool_calls=calls)

    def __iter__(self):
        return iter(())


@pytest.fixture
def session(monkeypatch):
    fake = FakeSession()
    monkeypatch.setattr(ossicle, "load", fake.open, raising=False)
    return fake


def invoke(*arguments):
    return RUNNER.invoke(cli.app, [str(argument) for argument in arguments])


def test_version_and_help():
    assert invoke("--version").stdout == f"ossicle {ossicle.__version__}\n"
    shown = invoke("--help").stdout
    for command in ("build", "run", "chat", "verify", "inspect", "doctor", "targets", "demo"):
        assert command in shown
        assert "Usage" in invoke(command, "--help").stdout


def test_run_prints_a_list_in_the_order_of_the_files(session):
    found = invoke("run", "bundle", "b.wav", "a.wav", "--language", "en", "--json")
    assert found.exit_code == 0
    timings = {"audio": 2.0, "encode": 0.1235, "tokens": 4}
    assert json.loads(found.stdout) == [
        {"file": "b.wav", "text": "b en", "engine": "fake-cpu", "timings": timings},
        {"file": "a.wav", "text": "a en", "engine": "fake-cpu", "timings": timings},
    ]
    assert session.asked == ["closed"]


@pytest.mark.usefixtures("session")
def test_a_file_that_fails_leaves_the_others_transcribed():
    found = invoke("run", "bundle", "a.wav", "bad.wav", "c.wav", "--json")
    assert found.exit_code == 1
    first, failed, last = json.loads(found.stdout)
    assert (first["text"], last["text"]) == ("a", "c")
    assert failed == {"file": "bad.wav", "error": "'bad.wav' cannot be read: it is text. Convert it"}


@pytest.mark.usefixtures("session")
def test_what_was_found_before_a_failure_is_not_lost():
    found = invoke("run", "bundle", "a.wav", "dead.wav", "--json")
    assert found.exit_code == 1
    assert [entry.get("text", entry.get("error")) for entry in json.loads(found.stdout)] == ["a", "no engine is left"]
    found = invoke("run", "bundle", "a.wav", "stop.wav", "b.wav", "--json")
    assert found.exit_code == 130
    assert [entry["text"] for entry in json.loads(found.stdout)] == ["a"]


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("charset", ["utf-8", "latin-1"])
def test_names_and_words_that_standard_output_has_no_characters_for_are_escaped(charset):
    name = b"a\xe9\xff.wav".decode("utf-8", "surrogateescape") + "\u65e5.wav"
    runner = CliRunner(charset=charset)
    said = runner.invoke(cli.app, ["run", "bundle", name, "b.wav"]).stdout_bytes.decode(charset)
    assert said.splitlines() == [
        f"{name}: {Path(name).stem}".encode(charset, "backslashreplace").decode(charset),
        "b.wav: b",
    ]
    document = json.loads(runner.invoke(cli.app, ["run", "bundle", name, "--json"]).stdout_bytes)
    assert document[0]["file"] == name


@pytest.mark.usefixtures("session")
def test_run_prints_texts_and_says_errors_aside():
    assert invoke("run", "bundle", "a.wav").stdout == "a\n"
    found = invoke("run", "bundle", "a.wav", "bad.wav")
    assert found.stdout == "a.wav: a\n"
    assert found.stderr == "ossicle: 'bad.wav' cannot be read: it is text. Convert it\n"


@pytest.mark.usefixtures("session")
def test_run_writes_segments_with_their_times():
    assert invoke("run", "bundle", "a.wav", "--timestamps").stdout == "[00:00] one <two>\n[01:40] three\n"
    assert invoke("run", "bundle", "a.wav", "b.wav", "--timestamps").stdout.splitlines()[1:3] == [
        "a.wav: [01:40] three",
        "b.wav: [00:00] one <two>",
    ]
    found = invoke("run", "bundle", "a.wav", "--format", "srt").stdout
    assert found.startswith("1\n00:00:00,000 --> 00:00:01,500\none <two>\n\n2\n00:01:40,000 --> ")
    found = invoke("run", "bundle", "a.wav", "--format", "vtt").stdout
    assert found.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none &lt;two&gt;\n\n")
    (entry,) = json.loads(invoke("run", "bundle", "a.wav", "--format", "json", "--timestamps").stdout)
    assert entry["text"] == "one <two> three"
    assert entry["segments"][1] == {"start": 100.0, "end": 101.5, "text": "three"}
    assert (entry["timings"]["audio"], entry["timings"]["decode"]) == (200.0, 0.5)


@pytest.mark.usefixtures("session")
def test_run_refuses_subtitles_of_several_recordings():
    found = invoke("run", "bundle", "a.wav", "b.wav", "--format", "srt")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "--format srt is of one recording, and 2 were given" in found.stderr


@pytest.mark.usefixtures("session")
def test_a_text_that_breaks_off_ends_its_line():
    found = invoke("run", "bundle", "late.wav", "a.wav")
    assert found.stdout == "late.wav: begun\na.wav: a\n"
    assert (found.exit_code, found.stderr) == (1, "ossicle: it ends at second 5\n")


def test_chat_streams_what_it_is_told(session):
    found = invoke("chat", "bundle", "--audio", "a.wav", "--audio", "b.wav", "which room?", "--temperature", "0.5")
    assert found.stdout == "kitchen \u00e9\n"
    (messages, settings), closed = session.asked
    assert messages == [
        {
            "role": "user",
            "content": [
                {"type": "audio", "audio": "a.wav"},
                {"type": "audio", "audio": "b.wav"},
                {"type": "text", "text": "which room?"},
            ],
        }
    ]
    assert settings == {"max_tokens": 512, "temperature": 0.5, "seed": 0}
    assert closed == "closed"


def test_chat_asks_for_what_its_files_say(session, tmp_path):
    schema, tools = {"type": "boolean"}, [{"type": "function", "function": {"name": "f"}}]
    (tmp_path / "on.json").write_text(json.dumps(schema))
    (tmp_path / "tools.json").write_text(json.dumps(tools))
    assert invoke("chat", "bundle", "hi", "--json-schema", tmp_path / "on.json").exit_code == 0
    form = {"type": "json_schema", "json_schema": {"name": "on", "schema": schema}}
    assert session.asked[0][1]["response_format"] == form

    calls = (ToolCall("abcdefghi", "f", '{"a": "\u00e9"}'),)
    session.stream = lambda _, **settings: Said(settings, calls)
    for choice, meant in (
        ("auto", "auto"),
        ("required", "required"),
        ("f", {"type": "function", "function": {"name": "f"}}),
    ):
        found = invoke("chat", "bundle", "hi", "--tools", tmp_path / "tools.json", "--tool-choice", choice)
        assert json.loads(found.stdout) == [{"id": "abcdefghi", "name": "f", "arguments": {"a": "\u00e9"}}]
        assert (Said.settings["tools"], Said.settings["tool_choice"]) == (tools, meant)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--json-schema", "none.json"), "none.json"),
        (("--json-schema", __file__), "is no JSON"),
        (("--tool-choice", "f"), "--tools FILE"),
    ],
)
@pytest.mark.usefixtures("session")
def test_files_of_an_answer_that_cannot_be_used_are_named(options, reason):
    found = invoke("chat", "bundle", "hi", *options)
    assert found.exit_code == 1
    assert reason in found.stderr


@pytest.mark.parametrize("command", [("run", "bundle", "a.wav"), ("chat", "bundle", "which room?")])
def test_how_the_engine_runs_is_handed_on(session, command):
    assert invoke(*command).exit_code == 0
    plain = {"engine": "auto", "threads": 0, "provider": "cpu", "kv_cache": "", "flash_attention": None}
    assert session.opened == plain | {"adapters": {}, "compute": ""}
    chosen = ("--engine", "llamacpp", "--threads", 2, "--provider", "cpu", "--kv-cache", "int8", "--flash-attention")
    invoke(*command, *chosen, "--adapter", "legal:0.5", "--adapter", "polite")
    assert session.opened == {
        "engine": "llamacpp", "threads": 2, "provider": "cpu", "kv_cache": "int8", "flash_attention": True,
        "adapters": {"legal": 0.5, "polite": 1.0}, "compute": "",
    }  # fmt: skip
    invoke(*command, "--no-flash-attention", "--compute", "float32")
    assert (session.opened["flash_attention"], session.opened["compute"]) == (False, "float32")


def test_how_the_engine_runs_is_handed_on_to_a_server(session, monkeypatch):
    from ossicle.runtimes.server import running

    served = []
    monkeypatch.setattr(running, "listen", lambda _: None)
    monkeypatch.setattr(running, "serve", lambda session, *_: served.append(session))
    invoke("serve", "bundle", "--engine", "llamacpp", "--compute", "float32", "--kv-cache", "int8")
    assert len(served) == 1
    assert [session.opened[name] for name in ("engine", "compute", "kv_cache")] == ["llamacpp", "float32", "int8"]


@pytest.mark.parametrize("megabytes", ["inf", "nan"])
def test_an_upload_that_is_no_size_is_refused(megabytes):
    found = invoke("serve", "bundle", "--max-upload", megabytes)
    assert (found.exit_code, f"--max-upload {megabytes} is not possible" in found.stderr) == (1, True)


def test_bench_measures_what_is_asked_for(monkeypatch):
    asked = {}
    found = Bench("bundle", "onnxruntime", 1.0, (), ())
    monkeypatch.setattr(ossicle, "bench", lambda _, **options: asked.update(options) or found, raising=False)
    assert json.loads(invoke("bench", "b", "--compute", "float32", "--again", "--json").stdout)["plan"] == "onnxruntime"
    assert asked == {"budget": None, "again": True, "context": None, "compute": "float32"}


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(("adapters", "said"), [(["a:half"], "'a:half' is no adapter"), (["a", "a:2"], "named twice")])
def test_scales_that_are_none_are_refused(adapters, said):
    found = invoke("run", "bundle", "a.wav", *(part for name in adapters for part in ("--adapter", name)))
    assert found.exit_code == 1
    assert said in found.stderr


def test_an_error_is_one_line_and_exit_code_one(monkeypatch):
    def refuse(_, **__):
        raise BundleError("'x' is damaged:\n  a.onnx is missing. Build it again")

    monkeypatch.setattr(ossicle, "load", refuse, raising=False)
    found = invoke("run", "x", "a.wav", "--json")
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr == "ossicle: 'x' is damaged: a.onnx is missing. Build it again\n"
    assert isinstance(invoke("--debug", "run", "x", "a.wav").exception, BundleError)


def test_an_interruption_is_exit_code_130(monkeypatch):
    def interrupted(_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ossicle, "load", interrupted, raising=False)
    found = invoke("run", "x", "a.wav")
    assert found.exit_code == 130
    assert found.stderr.startswith("ossicle: interrupted")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (OSError(28, "No space left"), "a file cannot be read or written: No space left"),
        (OSError(28, "No space left", "x/y"), "'x/y' cannot be used: No space left"),
    ],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, fault, said):
    def refused(_, **__):
        raise fault

    monkeypatch.setattr(ossicle, "load", refused, raising=False)
    found = invoke("run", "x", "a.wav")
    assert (found.exit_code, found.stderr) == (1, f"ossicle: {said}\n")


def test_inspect_tells_what_each_token_takes():
    found = invoke("inspect", Path(__file__).parents[1] / "golden" / "bundle-v1")
    assert found.exit_code == 0
    assert "and each token" in found.output
    assert "512 bytes" in found.output


def test_inspect_refuses_what_is_not_there(tmp_path):
    found = invoke("inspect", tmp_path / "nothing")
    assert found.exit_code == 1
    assert "nothing" in found.stderr
    assert found.stderr.count("\n") == 1


def test_targets_lists_the_recipes_that_each_holds():
    rows = {row["target"]: row["recipes"] for row in json.loads(invoke("targets", "--json").stdout)}
    assert {"fp32", "int4-g128"} <= set(rows["onnx"])
    assert {"fp32", "q4_k_m"} <= set(rows["gguf"])
    assert "q4_k_m" not in rows["onnx"]
    assert set().union(*rows.values()) == set(RECIPES)
    assert "onnx" in invoke("targets").stdout


def test_doctor_prints_json_alone():
    document = json.loads(invoke("doctor", "--json", "--no-measure").stdout)
    assert (document["version"], document["bandwidth"]) == (1, None)
    assert document["processor"]["cores"] >= 1
    assert document["fingerprint"] == fingerprint(ossicle.doctor())
    (runtime,) = (one for one in document["runtimes"] if one["name"] == "onnxruntime")
    assert (runtime["usable"], runtime["missing"], runtime["command"]) == (True, None, None)
    directml = runtime["providers"]["directml"]
    assert (directml["usable"], directml["missing"], directml["command"]) == (False, "system", None)
    assert directml["reason"] == "it needs Windows, and this is Linux"
    assert runtime["providers"]["openvino"]["command"] == "pip install onnxruntime-openvino"


def test_the_page_of_doctor_shows_every_name_of_its_document(tmp_path):
    page = (Path(cli.__file__).parents[1] / "docs" / "doctor.md").read_text()
    example = json.loads(page.partition("```json\n")[2].partition("```")[0])
    gpu = Accelerator("gpu", "nvidia", "NVIDIA L4", "580.65", 24 << 30, "8.9")
    facts = replace(ossicle.doctor(), accelerators=(gpu,))
    found = doctor.document(facts, write_bundle(tmp_path))
    levels = (
        lambda held: held,
        lambda held: held["processor"],
        lambda held: held["accelerators"][0],
        lambda held: held["runtimes"][0],
        lambda held: held["runtimes"][0]["providers"]["cuda"],
        lambda held: held["bundle"],
        lambda held: held["bundle"]["stages"][0],
    )
    for level in levels:
        assert set(level(example)) == set(level(found))


def test_doctor_shows_the_machine_and_every_engine():
    found = invoke("doctor")
    assert "is read at" in found.stdout
    assert " GB/s" in found.stdout
    for runtime in ossicle.doctor().runtimes:
        assert f" {runtime.name} " in found.stdout


def test_doctor_says_of_every_engine_whether_it_can_run_a_bundle(tmp_path):
    manifest = write_bundle(tmp_path / "bundle")
    shown = invoke("doctor", "--no-measure", "--bundle", tmp_path / "bundle").stdout
    assert f"stage of {manifest.name}" in shown
    document = json.loads(invoke("doctor", "--no-measure", "--json", "--bundle", tmp_path / "bundle").stdout)
    stages = document["bundle"]["stages"]
    assert {one["engine"] for one in stages} == {runtime["name"] for runtime in document["runtimes"]}
    assert {one["stage"] for one in stages} == {"encoder", "prefill", "decoder"}
    assert all("no artifacts for target" in one["reason"] for one in stages)


def test_doctor_refuses_a_folder_that_is_no_bundle(tmp_path):
    found = invoke("doctor", "--bundle", tmp_path)
    assert found.exit_code == 1
    assert str(tmp_path) in found.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "checkpoint", "--out", "bundle"),
        ("verify", "bundle", "--checkpoint", "checkpoint"),
        ("demo",),
    ],
)
def test_without_the_build_extra_the_pip_command_is_said(monkeypatch, arguments):
    monkeypatch.setattr(common, "BUILD", ("torch_that_is_not_here",))
    found = invoke(*arguments)
    assert found.exit_code == 1
    assert "pip install 'ossicle[build,onnx]'" in found.stderr
    assert "torch_that_is_not_here" in found.stderr


@pytest.mark.parametrize(("named", "marked"), [((), 1), (("--engine", "llamacpp-mtmd"), 0)])
def test_what_another_engine_makes_of_a_bundle_leaves_its_verdict(monkeypatch, tmp_path, named, marked):
    found = figures.Verification("demo", "fp32", "speech.jsonl", "0" * 64, Thresholds(), ())
    asked, marks = [], []
    monkeypatch.setattr(checkpoint, "open_checkpoint", lambda *_, **__: None)
    monkeypatch.setattr(verify, "verify", lambda *_, engine, **__: asked.append(engine) or found)
    monkeypatch.setattr(marking, "mark", lambda *found: marks.append(found))
    assert invoke("verify", tmp_path, "--checkpoint", "somewhere", *named, "--json").exit_code == 0
    assert asked == [named[-1] if named else None]
    assert len(marks) == len(list(tmp_path.iterdir())[:1]) == marked


@pytest.mark.parametrize("arguments", [["--version"], ["doctor", "--json"], ["targets", "--json"]])
def test_light_commands_import_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from ossicle.cli.main import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'onnx_ir'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_bars_show_amounts_and_stay_quiet_off_a_terminal():
    terminal = Console(force_terminal=True, width=120, record=True, file=StringIO())
    for console in (terminal, Console(force_terminal=False, record=True, file=StringIO())):
        with progress.Bars(console) as bars:
            bars.advance(1)
            bars.start("write", 4_000_000, "bytes")
            bars.advance(4_000_000)
            bars.start("original", 3, "clips")
            bars.advance(3)
        shown = console.export_text()
        if console is terminal:
            assert "4.0 MB of 4.0 MB" in shown
            assert "3 clips of 3 clips" in shown
        else:
            assert shown.strip() == ""


def test_a_log_hears_of_long_steps_once_a_minute():
    minutes = iter([0, 0.2, 0.9, 1.1, 1.5, 2.2])
    log = Console(force_terminal=False, record=True, file=StringIO())
    with progress.Bars(log, clock=lambda: 60 * next(minutes)) as bars:
        bars.start("weigh", 62, "layers")
        for _ in range(5):
            bars.advance(1)
    assert log.export_text().splitlines() == ["weigh: 3 layers of 62 layers", "weigh: 5 layers of 62 layers"]
