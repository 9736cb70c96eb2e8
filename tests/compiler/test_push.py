"""`ossicle push` against a stub of the hub: what is uploaded, what the card says, what is refused."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ossicle.cli import main as cli
from ossicle.compiler import card as cards
from ossicle.compiler import report_clips
from ossicle.compiler.push import prepare
from ossicle.compiler.speech import load, shipped
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import BundleError, PushError
from typer.testing import CliRunner

GOLDEN = Path(__file__).parents[1] / "golden" / "bundle-v1"
NAME = "org/demo-int4"
ENTRY: dict[str, Any] = {
    "passed": True,
    "failed": [],
    "proof": "executed",
    "engine": "onnxruntime-cpu",
    "speech": {"name": "speech.jsonl", "sha256": "ab" * 32, "clips": 29},
    "figures": {
        "wer": 0.0357, "wer_original": 0.0429, "kl": 0.0075, "top1": 0.9874, "same_text": 0.8793, "answers": 0.88,
        "answers_original": 0.8947,
    },
}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """The routes that an upload takes: a repository, what goes how, large files, a commit."""

    server: "Stub"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if self.headers["authorization"] != "Bearer hf_of_a_test":
            self._answer(401, {"error": "who are you?"})
        elif path == "/api/repos/create":
            status = 409 if self.server.created else 200
            self.server.created = json.loads(body)
            self._answer(status, {"url": f"{self.server.url}/{NAME}", "name": NAME})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path == f"/api/models/{NAME}/preupload/main":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith("_data") else "regular" for path in files}
            self._answer(200, {"files": [_mode(path, mode) for path, mode in modes.items()]})
        elif path == f"/{NAME}.git/info/lfs/objects/batch":
            self._answer(200, {"objects": [self._large(one) for one in json.loads(body)["objects"]]})
        elif path == f"/api/models/{NAME}/commit/main":
            self.server.commit = [json.loads(line) for line in body.splitlines()]
            self._answer(200, {"commitUrl": f"{self.server.url}/{NAME}/commit/1", "commitOid": "1"})
        else:
            self._answer(404, {"error": path})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self.server.large[self.path.rpartition("/")[2]] = content
        self._answer(200, {})

    def log_message(self, *_: object) -> None: ...

    def _large(self, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}}

    def _answer(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Stub(ThreadingHTTPServer):
    """The hub, with what it was given."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.created: dict[str, Any] = {}
        self.commit: list[dict[str, Any]] = []
        self.large: dict[str, bytes] = {}


def _mode(path: str, mode: str) -> dict[str, Any]:
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


@pytest.fixture
def hub() -> Iterator[Stub]:
    stub = Stub()
    thread = threading.Thread(target=stub.serve_forever, args=(0.01,))
    thread.start()
    yield stub
    stub.shutdown()
    thread.join()
    stub.server_close()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return verified(tmp_path, ENTRY)


def verified(folder: Path, entry: dict[str, Any] | None) -> Path:
    """The golden bundle, marked."""
    bundle = folder / "bundle"
    shutil.copytree(GOLDEN, bundle)
    manifest = manifests.read(bundle)
    manifests.write(bundle, replace(manifest, verification={"onnx": entry} if entry else {}))
    (bundle / "verification.md").write_text("# Verification\n")
    clip = load(shipped()).clips[0]
    told = report_clips.Heard(clip.name, "transcribe", clip.text or "", None, {"another text": ("onnx",)})
    page = report_clips.section([told], load(shipped()))
    (bundle / "verification.html").write_text(page, encoding="utf-8")
    return bundle


def pushed(hub: Stub, bundle: Path, *options: str, token: str = "hf_of_a_test") -> "subprocess.CompletedProcess[str]":
    main = "import sys; from ossicle.cli.main import main; sys.exit(main())"
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(bundle.parent / "home")}
    command = [sys.executable, "-P", "-c", main, "push", str(bundle), NAME, *options]
    return subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)


def test_every_file_arrives_with_a_card_in_one_commit(hub: Stub, bundle: Path) -> None:
    done = pushed(hub, bundle, "--license", "apache-2.0", "--private")
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/{NAME}/commit/1" in done.stdout
    assert (hub.created["name"], hub.created["organization"], hub.created["visibility"]) == (
        "demo-int4",
        "org",
        "private",
    )
    small = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in hub.commit
        if line["key"] == "file"
    }
    large = {line["value"]["path"]: hub.large[line["value"]["oid"]] for line in hub.commit if line["key"] == "lfsFile"}
    assert len(large) == 3
    card = small.pop("README.md").decode()
    reports = ("verification.md", "verification.html")
    held = {"manifest.json", *reports, *(file.path for file in manifests.bundle_files(manifests.read(bundle)))}
    assert small.keys() | large.keys() == held
    assert all(content == (bundle / path).read_bytes() for path, content in (small | large).items())
    assert all(hashlib.sha256(content).hexdigest() == oid for oid, content in hub.large.items())
    assert yaml.safe_load(card.split("---")[1]) == {
        "library_name": "ossicle",
        "pipeline_tag": "audio-text-to-text",
        "tags": ["voxtral", "int4", "onnx"],
        "license": "apache-2.0",
    }


def test_a_second_upload_goes_to_the_same_repository(hub: Stub, bundle: Path) -> None:
    hub.created = {"name": "there before"}
    done = pushed(hub, bundle)
    assert done.returncode == 0, done.stderr
    assert hub.commit


def test_recordings_are_left_out_where_that_is_asked_for(hub: Stub, bundle: Path) -> None:
    assert b"data:audio/flac" in (bundle / "verification.html").read_bytes()
    done = pushed(hub, bundle, "--no-audio", "--json")
    assert done.returncode == 0, done.stderr
    told = {file["path"]: file["bytes"] for file in json.loads(done.stdout)["files"]}
    sent = {line["value"]["path"]: line["value"]["content"] for line in hub.commit if line["key"] == "file"}
    page = base64.b64decode(sent["verification.html"])
    assert len(page) == told["verification.html"] < (bundle / "verification.html").stat().st_size / 10
    assert not any(word in page for word in (b"data:", b"<audio", b"flac"))
    assert b"<ins>another</ins> <ins>text</ins>" in page
    assert b"recording was left out" in page
    assert prepare(bundle, NAME).changed == {}


def test_what_the_hub_refuses_is_one_line(hub: Stub, bundle: Path) -> None:
    done = pushed(hub, bundle, token="hf_of_another")
    assert done.returncode == 1
    assert done.stderr.startswith(f"ossicle: '{NAME}' cannot be written on the hub: ")
    assert done.stderr.count("\n") == 1
    assert hub.commit == []


def test_a_dry_run_asks_nobody(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossicle.compiler.push.push", lambda *_, **__: pytest.fail("the hub was asked"))
    done = CliRunner().invoke(cli.app, ["push", str(bundle), NAME, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "onnx/decoder_model_merged_q4.onnx_data" in done.stdout
    assert "# demo-int4" in done.stdout


def test_the_card_says_what_was_measured_and_guesses_nothing(bundle: Path) -> None:
    card = prepare(bundle, NAME).card
    assert "license" not in card
    assert "base_model" not in card
    assert "| original, torch float32 |  | 4.29 % |" in card
    assert "| 3.57 % | 0.0075 | 98.74 % | 87.93 % | 88.00 % | passed |" in card
    assert "- onnx: its own engine ran the artifact (onnxruntime-cpu)" in card
    assert "pip install 'ossicle[onnx]'" in card
    assert "| onnx | 0.2 | 3.57 % |" in card  # megabytes
    assert "- onnx: `ossicle run demo-int4 recording.wav --engine onnxruntime`" in card
    assert 'base_model: "org/base"\nbase_model_relation: quantized\n' in prepare(bundle, NAME, base="org/base").card
    assert "dapter" not in card


def test_the_card_tells_of_adapters_that_are_kept(bundle: Path) -> None:
    manifest = manifests.read(bundle)
    figures = {"logits": 0.5, "kl": 0.0015, "kl_clip": 0.003, "top1": 0.99}
    held = {"legal": {"failed": [], "figures": figures}, "polite": {"failed": ["kl_clip"], "figures": figures}}
    kept = tuple(manifests.RuntimeAdapter(name, "onnx", manifest.files[0], ()) for name in held)
    entry = ENTRY | {"adapters": held, "passed": False, "failed": ["kl_clip with adapter 'polite'"]}
    merged = (manifests.AdapterSource("polish", 0.5, ()),)
    assert "LoRA adapters merged: `polish` with weight 0.5." in cards.card(replace(manifest, adapters=merged), NAME)
    told = cards.card(replace(manifest, runtime_adapters=kept, verification={"onnx": entry}), NAME)
    assert "LoRA adapters kept, for requests that ask for them: `legal` (onnx), `polite` (onnx)." in told
    assert "| FAILED: kl_clip with adapter 'polite' |" in told
    assert "| legal | onnx | 0.0015 | 99.00 % | passed |" in told
    assert "| polite | onnx | 0.0015 | 99.00 % | FAILED: kl_clip |" in told


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (ENTRY | {"passed": False, "failed": ["wer"]}, "failed verification for onnx"),
        (None, "was never verified"),
    ],
)
def test_what_is_not_proved_is_refused_unless_asked_for(tmp_path: Path, entry: Any, said: str) -> None:
    bundle = verified(tmp_path, entry)
    with pytest.raises(PushError, match=said):
        prepare(bundle, NAME)
    card = prepare(bundle, NAME, allow_failed=True).card
    assert ("FAILED: wer" if entry else "Not verified") in card


def test_a_damaged_bundle_and_a_name_that_is_none_are_refused(bundle: Path) -> None:
    with pytest.raises(PushError, match="'demo' is no repository of the hub"):
        prepare(bundle, "demo")
    held = (bundle / "tokenizer.json").read_bytes()
    (bundle / "tokenizer.json").write_bytes(held.swapcase())  # as many bytes
    with pytest.raises(BundleError, match=r"is damaged: tokenizer\.json"):
        prepare(bundle, NAME)
    refused = CliRunner().invoke(cli.app, ["push", str(bundle), NAME, "--dry-run"])
    assert refused.exit_code == 1
