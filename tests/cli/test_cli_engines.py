"""What is said of TensorRT's engines on the command line."""

import json
from pathlib import Path

import pytest
from ossicle.cli import engines as cli_engines
from ossicle.cli.main import app
from ossicle.compiler import pipeline
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import BuildError
from ossicle.targets.tensorrt_profiles import Engines
from ossicle.tests import checkpoints
from typer.testing import CliRunner

RUN = CliRunner()


@pytest.mark.parametrize(
    ("said", "engines"),
    [
        ((None, None), None),
        (("none", None), Engines("none")),
        ((None, "86, 8.9,120"), Engines("rtx", (86, 89, 120))),
        (("trt", "89"), Engines("trt", (89,))),
    ],
)
def test_what_is_said_of_engines_and_no_more(said: tuple[str | None, str | None], engines: Engines | None) -> None:
    assert cli_engines.engines(*said, context=None) == engines
    assert cli_engines.engines(*said, context=100) == Engines(**vars(engines or Engines()) | {"context": 100})


@pytest.mark.parametrize("text", ["", "ampere", "86,sm_89", ","])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(BuildError, match=r"names no compute capabilities \(it can be, for example: 86,89,120\)"):
        cli_engines.engines("rtx", text)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    checkpoint = checkpoints.save_hub(work / "checkpoint", checkpoints.model())
    engines = Engines("none", context=256)
    pipeline.build(checkpoint, work / "out", targets=("tensorrt",), recipe="fp16", engines=engines, verify=False)
    return work / "out"


def test_engines_are_built_of_a_bundle_for_its_own_context(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    done = RUN.invoke(
        app, ["engine", str(bundle), "--compute-capability", "8.9", "--prompt", "32", "--batch", "2", "--json"]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert list(told) == ["audio_encoder", "embed_tokens", "decoder"]
    assert told["decoder"]["compute_capabilities"] == [89]
    assert told["decoder"]["profiles"][0]["attention_mask"] == [[1, 1], [1, 256], [2, 256]]
    assert told["decoder"]["size"] == (bundle / "tensorrt" / "decoder.engine").stat().st_size
    shown = RUN.invoke(app, ["engine", str(bundle)])
    assert shown.exit_code == 0, shown.output
    assert "Ampere and newer" in shown.stdout
    manifests.check_files(bundle, manifests.read(bundle))


def test_what_cannot_be_built_is_one_line(bundle: Path) -> None:
    done = RUN.invoke(app, ["engine", str(bundle), "--engine", "trt", "--compute-capability", "89"])
    assert done.exit_code == 1
    assert "not for --engine trt" in done.output
    assert len(done.output.strip().splitlines()) == 1
