"""Quantizers the whole way on a tiny model: made once, stored alike, folded exactly, refused where they mean nothing."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ossicle.compiler import quantized, quantizers, reference, stored
from ossicle.compiler.calibrate import calibrate
from ossicle.compiler.calibration import write as write_calibration
from ossicle.compiler.checkpoint import Checkpoint, open_checkpoint
from ossicle.compiler.families import family
from ossicle.compiler.imatrix import Imatrix
from ossicle.compiler.making import Making
from ossicle.compiler.pipeline import build
from ossicle.compiler.provenance import check_source
from ossicle.compiler.quantize import weights_of
from ossicle.compiler.quantize_on_speech import Plan, quantize
from ossicle.compiler.runtime_adapters import Kept
from ossicle.compiler.safetensors import read_header
from ossicle.kernels import gptq, groupwise
from ossicle.targets import manifest as manifests
from ossicle.targets.contract import AdapterError, BuildError, BundleFile, QuantizedRows, RecipeError, VerificationError
from ossicle.targets.recipes import INT3, RECIPES
from ossicle.tests import checkpoints

AUDIO = {
    "num_mel_bins": 128, "max_source_positions": 1500, "hidden_size": 32, "intermediate_size": 128,
    "num_hidden_layers": 1,
}  # fmt: skip
INT4 = RECIPES["int4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = checkpoints.model(checkpoints.tiny_config(audio=AUDIO))
    return checkpoints.save_hub(tmp_path_factory.mktemp("quantizers") / "tiny", made)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import soundfile

    listed = tmp_path_factory.mktemp("speech") / "speech.jsonl"
    for number in range(2):
        samples = np.random.default_rng(number).standard_normal(16000) * 0.1
        soundfile.write(listed.with_name(f"{number}.wav"), samples, 16000)
    listed.write_text("\n".join(json.dumps({"file": f"{number}.wav", "text": "one two"}) for number in range(2)))
    return listed


@pytest.fixture(scope="module")
def files(folder: Path, spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("files")
    for name in quantizers.ON_INPUTS:
        quantize(open_checkpoint(folder), INT4, name, out / name, spoken)
    return {name: out / name for name in quantizers.ON_INPUTS}


def opened(folder: Path, file: Path | None = None) -> Checkpoint:
    return open_checkpoint(folder, quantized=file)


@pytest.mark.parametrize("name", quantizers.ON_INPUTS)
def test_a_file_has_every_matrix(name: str, folder: Path, files: dict[str, Path]) -> None:
    made = opened(folder, files[name])
    assert made.quantized is not None
    assert set(made.quantized.formats) == {one for one in made.tensors if family("voxtral").linear(one)}
    weights = weights_of(made, replace(INT4, quantizer=name))
    for one, form in made.quantized.formats.items():
        block = next(iter(weights.quantized(one).blocks()))
        assert block.codes.shape == made.tensors[one].shape
        assert block.codes.max() < 2**form.bits
        assert (block.scales > 0).all()
        rounded = stored.Rounded(one, weights).rows(0, made.tensors[one].shape[0])
        exact = weights.source(one).rows(0, made.tensors[one].shape[0])
        assert np.linalg.norm(rounded - exact) < 0.2 * np.linalg.norm(exact)


def test_three_bits_by_gptq_lose_less_than_by_nearest_and_lie_two_to_a_byte_in_a_file() -> None:
    random = np.random.default_rng(0)
    weights, inputs = (random.standard_normal(shape).astype(np.float32) for shape in ((24, 80), (400, 80)))
    inputs[:, 1:] += inputs[:, :-1]
    hessian = inputs.T @ inputs / len(inputs)
    found = gptq.Solver(hessian, INT3.bits, INT3.group, INT3.symmetric).quantize(weights)
    nearest = quantizers.codes(quantizers.rows(0, weights, INT3, "nearest", None), INT3)
    assert set(np.unique(found.codes)) == set(range(8))
    assert gptq.error(weights, hessian, found, 32) < 0.7 * gptq.error(weights, hessian, nearest, 32)
    held = quantized.entries(found, INT3)
    expected = quantized.layouts({"m": (24, 80)}, {"m": INT3}, {}, {})
    assert {f"m.{key}": array.shape for key, array in held.items()} == {key: one.shape for key, one in expected.items()}
    assert np.array_equal(groupwise.unpack_pairs(held["codes"], 80), found.codes)


def test_a_file_is_the_same_bytes_each_time(folder: Path, spoken: Path, files: dict[str, Path], tmp_path: Path) -> None:
    quantize(opened(folder), INT4, "awq-gptq", tmp_path / "again", spoken)
    assert (tmp_path / "again").read_bytes() == files["awq-gptq"].read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def logits(checkpoint: Checkpoint) -> Any:
    import torch

    original = reference.Original(checkpoint)
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(2, 128, 3000, generator=generator).numpy()
    audio = original._encode(mel)
    inputs = original._embed([1, *[24] * (audio.shape[0] * audio.shape[1]), 5, 6, 7], audio)
    with torch.inference_mode():
        return original.model(inputs_embeds=inputs).logits[0].numpy()


@pytest.mark.parametrize("name", ["awq", "awq-gptq"])
def test_a_folded_model_is_the_same_model(name: str, folder: Path, files: dict[str, Path]) -> None:
    checkpoint = opened(folder, files[name])
    assert checkpoint.quantized is not None
    moved = {one: checkpoint.quantized.folded(source) for one, source in checkpoint.tensors.items()}
    changed = [one for one, source in moved.items() if source is not checkpoint.tensors[one]]
    assert {one.rpartition(".")[0].rpartition(".")[2] for one in changed} >= {
        "input_layernorm",
        "o_proj",
        "up_proj",
        "fc1",
    }
    assert any(np.ptp(factors) > 0.1 for factors in checkpoint.quantized.on_columns.values())
    before, after = logits(checkpoint), logits(replace(checkpoint, tensors=moved))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * np.abs(before).max())


def test_every_fold_of_the_family_leaves_the_model_as_it_is(folder: Path) -> None:
    """Each with scales of its own, so that no two wrong ones make good for each other."""
    from ossicle.compiler.folds import folded

    checkpoint = opened(folder)
    on_rows: dict[str, Any] = {}
    on_columns: dict[str, Any] = {}
    random = np.random.default_rng(0)
    for fold in family("voxtral").folds(checkpoint.config):
        width = checkpoint.tensors[fold.before[0]].shape[0]
        scales = np.exp(random.uniform(-1, 1, width)).astype(np.float32)
        on_rows |= {one: on_rows.get(one, np.float32(1)) / scales for one in fold.before}
        on_columns |= {one: fold.spread(scales) for one in fold.after}
    moved = {one: folded(source, on_rows, on_columns) for one, source in checkpoint.tensors.items()}
    before, after = logits(checkpoint), logits(replace(checkpoint, tensors=moved))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * np.abs(before).max())


def test_a_build_stores_what_was_made_and_says_so(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    import gguf

    out = tmp_path / "out"
    build(folder, out, targets=("gguf",), recipe="int4", quantized=files["gptq"], verify=False)
    manifest = manifests.read(out)
    assert manifest.recipe["quantizer"] == "gptq"
    assert manifest.quantized == manifests.file_entry(files["gptq"].parent, files["gptq"])
    with pytest.raises(VerificationError, match="quantized gptq is missing"):
        check_source(manifest, opened(folder))
    check_source(manifest, opened(folder, files["gptq"]))
    scales = read_header(files["gptq"])["model.language_model.layers.1.self_attn.o_proj.weight.scales"].raw_rows(0, 48)
    reader = gguf.GGUFReader(next((out / "gguf").glob("voxtral*")))
    blocks = next(one.data for one in reader.tensors if one.name == "blk.1.attn_output.weight")
    assert np.array_equal(blocks.reshape(48, 2, 18)[..., :2].copy().view(np.float16)[..., 0], scales)


def integers(checkpoint: Checkpoint, quantizer: str, name: str) -> QuantizedRows:
    """The first rows of a matrix under a quantizer."""
    return next(iter(weights_of(checkpoint, replace(INT4, quantizer=quantizer)).quantized(name).blocks()))


MATRICES = {
    "encoder": "model.audio_tower.layers.0.fc1.weight",
    "projector": "model.multi_modal_projector.linear_1.weight",
    "embedding": "model.language_model.embed_tokens.weight",
    "decoder": "model.language_model.layers.0.mlp.down_proj.weight",
    "lm_head": "lm_head.weight",
}


def test_each_part_gets_its_quantizer_in_a_build(folder: Path, tmp_path: Path) -> None:
    asked = "hqq, lm_head = mse,encoder=nearest"
    build(folder, tmp_path / "out", targets=("gguf",), recipe="int4", quantizer=asked, verify=False)
    said = manifests.read(tmp_path / "out").recipe["quantizer"]
    assert said == "hqq,encoder=nearest,lm_head=mse"
    for part, name in MATRICES.items():
        by = {"encoder": "nearest", "lm_head": "mse"}.get(part, "hqq")
        found = {one: integers(opened(folder), one, name) for one in (said, by, *quantizers.AT_ONCE)}
        same = {one for one, other in found.items() if np.array_equal(other.scales, found[said].scales)}
        assert same == {said, by}


def test_each_part_gets_its_quantizer_in_a_file(
    folder: Path, spoken: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    quantize(opened(folder), INT4, "encoder=gptq,decoder=hqq", tmp_path / "out", spoken)
    mixed, gptq = opened(folder, tmp_path / "out"), opened(folder, files["gptq"])
    said = quantized.quantizer_of(tmp_path / "out")
    for part, by in {"projector": "nearest", "decoder": "hqq", "lm_head": "nearest"}.items():
        assert np.array_equal(
            integers(mixed, said, MATRICES[part]).codes, integers(opened(folder), by, MATRICES[part]).codes
        )
    assert np.array_equal(
        integers(mixed, said, MATRICES["encoder"]).codes, integers(gptq, "gptq", MATRICES["encoder"]).codes
    )
    with pytest.raises(RecipeError, match="'encoder=gptq,decoder=hqq' has to see"):
        build(folder, tmp_path / "bundle", recipe="int4", quantizer=said)
    with pytest.raises(RecipeError, match="is of quantizer 'encoder=gptq,decoder=hqq', not 'gptq'"):
        build(folder, tmp_path / "bundle", recipe="int4", quantizer="gptq", quantized=tmp_path / "out")


def test_a_tied_head_of_other_integers_is_not_the_embedding(tmp_path: Path) -> None:
    """One table would be stored for both where a format can."""
    made = checkpoints.model(checkpoints.tiny_config(audio=AUDIO), tied=True)
    tied = opened(checkpoints.save_memory(tmp_path / "tied", made))
    assert tied.tied
    apart = {"nearest": False, "lm_head=mse": True, "embedding=hqq,lm_head=hqq": False, "encoder=mse": False}
    for quantizer, expected in apart.items():
        assert weights_of(tied, replace(RECIPES["int8"], quantizer=quantizer)).tied is not expected
    assert weights_of(tied, RECIPES["q6_k"]).tied
    measured = replace(tied, imatrix=Imatrix(tied.source.files[0], {MATRICES["lm_head"]: np.ones(48, np.float32)}))
    assert weights_of(measured, RECIPES["int8"]).tied
    assert not weights_of(measured, replace(RECIPES["int8"], quantizer="mse")).tied


def test_mse_is_weighed_by_a_calibration(folder: Path, spoken: Path, tmp_path: Path) -> None:
    write_calibration(tmp_path / "measured", calibrate(opened(folder), spoken))
    plain, weighed = opened(folder), open_checkpoint(folder, imatrix=tmp_path / "measured")
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    importance = weighed.importances[name]
    source = plain.tensors[name].rows(0, plain.tensors[name].shape[0])

    def lost(checkpoint: Checkpoint) -> float:
        weights = weights_of(checkpoint, replace(INT4, quantizer="mse"))
        distance = stored.Rounded(name, weights).rows(0, len(source)) - source
        return float((distance**2 * importance).sum())

    assert lost(weighed) < lost(plain)


@pytest.mark.parametrize(
    ("recipe", "options", "said"),
    [
        ("fp16", {"quantizer": "mse"}, r"'mse' has no meaning for recipe 'fp16', which stores float16"),
        ("int4", {"quantizer": "best"}, r"quantizer 'best' is unknown \(there are: nearest, mse, hqq, gptq, awq"),
        (
            "int4",
            {"quantizer": "gptq"},
            r"'gptq' has to see .*ossicle quantize CHECKPOINT --quantizer gptq --quant int4",
        ),
        (
            "int4",
            {"quantizer": "head=mse"},
            r"part 'head' is unknown.*parts: encoder, projector, embedding, decoder, lm_head",
        ),
        ("int4", {"quantizer": "decoder=mse,decoder=hqq"}, "says twice what decoder gets"),
        ("int4", {"quantizer": "mse,hqq"}, "says twice what every part gets"),
        ("int4", {"quantizer": "decoder="}, r"quantizer '' is unknown"),
        (
            "int4",
            {"quantizer": "embedding=gptq"},
            r"looked up .*'gptq' has no meaning for it \(possible: nearest, mse, hqq",
        ),
        (
            "q4_k_m",
            {"quantizer": "decoder=mse"},
            r"no meaning for the decoder of recipe 'q4_k_m', which stores Q4_K, Q6_K.*GGUF's blocks have ggml's search, "
            r"weighed with --imatrix FILE, or gptq, awq, awq-gptq: ossicle quantize .* --quant q4_k_m",
        ),
        (
            "q3_k_m",
            {"quantizer": "hqq"},
            r"'hqq' has no meaning for recipe 'q3_k_m', which stores Q3_K, .*ggml's search",
        ),
        ("q3_k_m", {"quantizer": "gptq"}, r"ossicle quantize CHECKPOINT --quantizer gptq --quant q3_k_m"),
        ("int8", {"quantized": "gptq"}, r"made for recipe 'int4'.*Build with --quant int4"),
        ("int4", {"quantized": "gptq", "quantizer": "awq"}, r"is of quantizer 'gptq', not 'awq'"),
    ],
)
def test_what_has_no_meaning_is_refused(
    recipe: str, options: dict[str, Any], said: str, folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    if "quantized" in options:
        options = options | {"quantized": files[options["quantized"]]}
    with pytest.raises(RecipeError, match=said):
        build(folder, tmp_path / "out", recipe=recipe, verify=False, **options)
    assert not (tmp_path / "out").exists()


def test_what_decides_the_bytes_decides_whether_a_build_is_gone_on_with(
    folder: Path, files: dict[str, Path], spoken: Path, tmp_path: Path
) -> None:
    opened = open_checkpoint(folder)
    calibrated = tmp_path / "calibration"
    write_calibration(calibrated, calibrate(opened, spoken))
    adapter = Kept("a", (BundleFile("adapter_model.safetensors", 1, "0" * 64),), {})
    making = Making(opened, INT4, ("onnx",), {"onnx": ("decoder",)}, {})
    makings = [
        making,
        replace(making, checkpoint=open_checkpoint(folder, quantized=files["gptq"])),
        replace(making, checkpoint=open_checkpoint(folder, imatrix=calibrated)),
        replace(making, recipe=replace(INT4, quantizer="mse")),
        replace(making, assigned={"onnx": ("audio_encoder",)}),
        replace(making, options={"gguf": {"split_bytes": 1}}),
        replace(making, kept=(adapter,)),
        replace(making, kept=(replace(adapter, name="b"),)),
    ]
    assert len({json.dumps(one.inputs, sort_keys=True) for one in makings}) == len(makings)


def test_adapters_are_not_kept_beside_moved_channels(folder: Path, files: dict[str, Path]) -> None:
    for name, refused in (("gptq", False), ("awq", True)):
        opened = open_checkpoint(folder, quantized=files[name])
        assert opened.quantized is not None
        said = pytest.raises(AdapterError, match="'awq' changes the inputs of matrices") if refused else nullcontext()
        with said:
            opened.quantized.check(weights_of(opened, replace(INT4, quantizer=name)), ["an adapter"])


def test_channels_are_not_moved_into_a_head_that_is_looked_up(folder: Path, tmp_path: Path) -> None:
    made = checkpoints.model(checkpoints.tiny_config(audio=AUDIO), tied=True)
    tied = open_checkpoint(checkpoints.save_memory(tmp_path / "tied", made))
    for opened, moved in ((open_checkpoint(folder), True), (tied, False)):
        plan = Plan.of(opened, weights_of(opened, replace(INT4, quantizer="awq")))
        assert ("lm_head.weight" in plan.on_columns) is moved


def test_the_command_that_helps_names_a_file_where_the_recipe_is_in_one() -> None:
    listed, own = RECIPES["int4"], replace(RECIPES["int4"], name="max-2.20GB")
    with pytest.raises(RecipeError, match=r"--quantizer gptq --quant int4 --out FILE"):
        quantizers.chosen(listed, "gptq", None)
    with pytest.raises(RecipeError, match=r"--quantizer gptq --recipe FILE .of recipe 'max-2\.20GB'. --out FILE"):
        quantizers.chosen(own, "gptq", None)


def test_a_file_of_another_checkpoint_or_none_is_refused(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    other = checkpoints.save_hub(tmp_path / "other", checkpoints.model(checkpoints.tiny_config(audio=AUDIO), seed=1))
    with pytest.raises(BuildError, match="made from another checkpoint"):
        opened(other, files["gptq"])
    (tmp_path / "cut").write_bytes(files["gptq"].read_bytes()[:-10])
    for name, said in {"cut": "not a whole safetensors file", "none": "there is no such file"}.items():
        with pytest.raises(BuildError, match=rf"{name}' cannot be used as a file of quantized weights: .*{said}"):
            opened(folder, tmp_path / name)
    with pytest.raises(BuildError, match="there is no such file"):
        quantized.quantizer_of(tmp_path / "none")


def test_a_quantizer_that_needs_no_file_makes_none(folder: Path, spoken: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'hqq' needs no file \(those that do: gptq, awq, awq-gptq\)"):
        quantize(opened(folder), INT4, "hqq", tmp_path / "out", spoken)
    with pytest.raises(RecipeError, match="'gptq' has no meaning for recipe 'bf16'"):
        quantize(opened(folder), RECIPES["bf16"], "gptq", tmp_path / "out", spoken)
