"""Builds as a whole: the same bytes every time, resumed after a kill, nothing left behind by a failure."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ossicle.compiler import pipeline, tekken, tokenizer, trace
from ossicle.compiler.lora import AdapterSpec
from ossicle.compiler.staging import STATE
from ossicle.runtimes.onnxruntime import RUNTIME
from ossicle.runtimes.options import Options
from ossicle.targets import manifest as manifests
from ossicle.targets import registry, streaming
from ossicle.targets.contract import BuildError, BundleError, CheckpointError, OssicleError, RecipeError
from ossicle.tests import checkpoints

LORA = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj", "linear_1", "fc1", "down_proj"],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_hub(tmp_path_factory.mktemp("pipeline") / "tiny", checkpoints.model(dtype="bfloat16"))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose embedding has fewer rows than its tokenizer ids."""
    made = checkpoints.model(checkpoints.tiny_config(text={"vocab_size": 500}))
    return checkpoints.save_hub(tmp_path_factory.mktemp("narrow") / "tiny", made)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "tiny-int4"
    pipeline.build(checkpoint, out, recipe="int4", verify=False)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(checkpoint: Path, out: Path) -> list[str]:
    main = "import sys; from ossicle.cli.main import main; sys.exit(main())"
    return [sys.executable, "-c", main, "build", str(checkpoint), "--out", str(out), "--quant", "int4", "--no-verify"]


def until_a_stage_is_done(out: Path, process: subprocess.Popen[str]) -> None:
    state = out.parent / f".{out.name}.ossicle-build" / STATE
    while process.poll() is None:
        if state.is_file() and "onnx/audio_encoder" in state.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"the build ended before a stage was done: {process.communicate()}")


@pytest.fixture
def building(checkpoint: Path, tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A build in a process of its own, one stage done, about to be stopped."""
    out = tmp_path / "out"
    process = subprocess.Popen(command(checkpoint, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until_a_stage_is_done(out, process)
    yield out, process
    process.kill()
    process.communicate()


def test_the_same_inputs_give_the_same_bytes(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    trace.traced.cache_clear()  # what another process would do: trace anew
    again = pipeline.build(checkpoint, tmp_path / "again", recipe="int4", verify=False).folder
    assert contents(again) == contents(bundle)


def test_a_model_is_traced_and_translated_once(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever recipes it is built, and as often; a copy of a graph is a graph of its own."""
    built = [pipeline.build(checkpoint, tmp_path / "fp32", recipe="fp32", verify=False)]
    for place in ("compiler.families.voxtral.stages", "targets.onnx_graph._translate"):
        monkeypatch.setattr(f"ossicle.{place}", lambda *_: pytest.fail("it was made again"))
    built += [pipeline.build(checkpoint, tmp_path / recipe, recipe=recipe, verify=False) for recipe in ("fp16", "int4")]
    assert [report.manifest.recipe["name"] for report in built] == ["fp32", "fp16", "int4"]
    assert contents(built[-1].folder) == contents(bundle)


def test_a_bundle_says_nothing_of_the_machine_that_built_it(checkpoint: Path, bundle: Path) -> None:
    for path, data in contents(bundle).items():
        assert str(checkpoint.parent).encode() not in data, path
        assert b"site-packages" not in data, path


def test_a_killed_build_leaves_nothing_that_loads_and_resumes(
    checkpoint: Path, bundle: Path, building: tuple[Path, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, process = building
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    staging = out.parent / ".out.ossicle-build"
    with pytest.raises(BundleError, match="is not a bundle"):
        manifests.read(staging)
    filled: list[str] = []
    fill = streaming.fill
    monkeypatch.setattr(streaming, "fill", lambda *all_: (filled.append(all_[-1]), fill(*all_)))
    pipeline.build(checkpoint, out, recipe="int4", verify=False)
    assert "onnx audio_encoder" not in filled
    assert filled
    assert contents(out) == contents(bundle)
    assert list(out.parent.iterdir()) == [out]


def test_ctrl_c_ends_a_build_cleanly(building: tuple[Path, subprocess.Popen[str]]) -> None:
    out, process = building
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not out.exists()


def test_other_inputs_do_not_resume(checkpoint: Path, tmp_path: Path) -> None:
    staging = tmp_path / ".out.ossicle-build"
    staging.mkdir()
    (staging / STATE).write_text(json.dumps({"inputs": "of another build", "done": {}}))
    (staging / "left-over").write_text("x")
    pipeline.build(checkpoint, tmp_path / "out", recipe="int4", verify=False)
    assert not (tmp_path / "out" / "left-over").exists()


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("target", registry.names())
def test_a_vocabulary_larger_than_the_embedding_is_refused_before_anything_is_written(
    narrow: Path, tmp_path: Path, target: str, own: bool
) -> None:
    file = narrow / tokenizer.OWN
    file.unlink(missing_ok=True)
    if own:
        tokenizer.write_tokenizer(narrow, file)
    with pytest.raises(CheckpointError, match="has 512 ids, and the model's embedding 500 rows") as refused:
        pipeline.build(narrow, tmp_path / "out", targets=(target,), recipe="int8", verify=False)
    assert f"'{file if own else narrow / tekken.TEKKEN}'" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(streaming.os, "pwrite", full)
    with pytest.raises(BuildError, match="the disk is full"):
        pipeline.build(checkpoint, tmp_path / "out", recipe="int4", verify=False)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_place_is_left_alone(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    before = contents(bundle)
    with pytest.raises(BuildError, match=r"exists\. Give another --out, or replace it with --force"):
        pipeline.build(checkpoint, bundle, recipe="int4", verify=False)
    assert contents(bundle) == before
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(BuildError, match="is no bundle"):
        pipeline.build(checkpoint, precious, recipe="int4", verify=False, force=True)
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_force_replaces_a_bundle(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(bundle, out)
    pipeline.build(checkpoint, out, recipe="fp32", verify=False, force=True)
    assert manifests.read(out).recipe["name"] == "fp32"
    assert not (out / "onnx" / "decoder_model_merged_q4.onnx").exists()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("place", ["file/out", "/proc/out"])
def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    checkpoint: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(pipeline, "trace", lambda *_: pytest.fail("it traced"))
    with pytest.raises(BuildError, match="cannot be written"):
        pipeline.build(checkpoint, tmp_path / place, recipe="int4", verify=False)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"recipe": "int5"}, RecipeError, "precision 'int5' is unknown .there are: fp32, fp16"),
        ({"targets": ("onx",)}, RecipeError, "target 'onx' is unknown"),
        ({"targets": ()}, RecipeError, "no target is named .there are: onnx, openvino, gguf"),
        ({"recipe": ""}, RecipeError, "precision '' is unknown"),
        ({"quantizer": ""}, RecipeError, "quantizer '' is unknown"),
    ],
)
def test_unknown_words_are_refused(
    checkpoint: Path, tmp_path: Path, options: dict[str, object], error: type[OssicleError], says: str
) -> None:
    with pytest.raises(error, match=says):
        pipeline.build(checkpoint, tmp_path / "out", verify=False, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    made = checkpoints.model(dtype="bfloat16")
    made.model.language_model.layers[1].mlp.up_proj.weight.data[3, 5] = float("inf")
    folder = checkpoints.save_hub(tmp_path / "checkpoint", made)
    with pytest.raises(CheckpointError, match=r"model.language_model.layers.1.mlp.up_proj.weight.*infinite"):
        pipeline.build(folder, tmp_path / "out", recipe="int4", verify=False)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_number_that_no_float_holds_is_named(tmp_path: Path) -> None:
    """Not stored as an infinity: norms and convolutions are floats in every recipe."""
    made = checkpoints.model(dtype="bfloat16")
    made.model.language_model.norm.weight.data[3] = 1e6
    folder = checkpoints.save_hub(tmp_path / "checkpoint", made)
    with pytest.raises(CheckpointError, match=r"language_model.norm.weight' cannot be stored as float16: .*too large"):
        pipeline.build(folder, tmp_path / "out", recipe="fp16", verify=False)
    assert list(tmp_path.iterdir()) == [folder]


def test_what_cannot_be_verified_is_refused_before_it_is_built(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window of 0.8 s: the original's own processors make 30 s."""
    monkeypatch.setattr(pipeline, "trace", lambda *_: pytest.fail("it traced"))
    with pytest.raises(CheckpointError, match=r"windows of 80 frames, .* gives 3000.*--no-verify"):
        pipeline.build(checkpoint, tmp_path / "out", recipe="int4")
    assert list(tmp_path.iterdir()) == []


def test_a_merged_adapter_is_pefts_own_merge(tmp_path: Path) -> None:
    import torch

    folder = checkpoints.save_hub(tmp_path / "checkpoint", checkpoints.model())
    wrapped = checkpoints.save_adapter(tmp_path / "adapter", checkpoints.model(), **LORA)
    merged = wrapped.merge_and_unload()
    out = tmp_path / "out"
    pipeline.build(folder, out, recipe="fp32", adapters=[AdapterSpec(tmp_path / "adapter")], verify=False)
    manifest = manifests.read(out)
    assert [adapter.name for adapter in manifest.adapters] == ["adapter"]
    engine = RUNTIME.open(out, manifest, Options(threads=1))
    generator = np.random.default_rng(5)
    mel = generator.standard_normal((2, manifest.audio.mel_bins, manifest.audio.window_frames)).astype(np.float32)
    prompt = (generator.standard_normal((90, manifest.text.hidden)) * 0.5).astype(np.float32)
    with torch.no_grad():
        audio = merged.model.get_audio_features(torch.from_numpy(mel)).pooler_output.numpy()
        logits = merged(inputs_embeds=torch.from_numpy(prompt)[None]).logits[0].numpy()
        plain = checkpoints.model()(inputs_embeds=torch.from_numpy(prompt)[None]).logits[0].numpy()
    assert np.abs(engine.encode(mel).reshape(audio.shape) - audio).max() <= 1e-4
    assert np.abs(engine.score(prompt) - logits).max() <= 1e-4
    assert np.abs(plain - logits).max() > 0.1  # the adapter does something


def test_mistrals_own_layout_gives_the_same_artifacts(bundle: Path, tmp_path: Path) -> None:
    made = checkpoints.model(dtype="bfloat16")
    made.model.audio_tower.embed_positions.float()
    folder = checkpoints.save_mistral(tmp_path / "mistral", made)
    out = tmp_path / "out"
    pipeline.build(folder, out, recipe="int4", verify=False)
    ours, theirs = contents(bundle), contents(out)
    # the encoder's positions are computed in this layout
    same = [path for path in ours if path.startswith("onnx/") and "audio_encoder" not in path]
    assert len(same) == 4
    assert all(ours[path] == theirs[path] for path in same)
