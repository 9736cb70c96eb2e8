"""The configs that transformers.js reads, and transformers where it reads the same files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ossicle.targets.contract import Artifact, BuildError, BundleFile, Memory
from ossicle.targets.hub_folder import MAX_CHUNKS, STEMS, SUFFIXES, data_file, model_file, write_configs
from transformers import GenerationConfig, PreTrainedTokenizerFast, VoxtralConfig, WhisperFeatureExtractor

CONFIGS = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json")


def _artifact(stem: str, precision: str = "fp32", chunks: int = 1, path: str | None = None) -> Artifact:
    path = path or f"onnx/{stem}{SUFFIXES.get(precision, '')}.onnx"
    data = [f"{path}_data", *(f"{path}_data_{chunk}" for chunk in range(1, chunks))][:chunks]
    files = tuple(BundleFile(name, 1, "0") for name in (path, *data))
    return Artifact("onnx", stem, "test", precision, files, (), (), {}, Memory(1))


@pytest.fixture
def config() -> dict[str, Any]:
    return dict(VoxtralConfig(text_config={"num_hidden_layers": 2, "pad_token_id": 11}, audio_token_id=24).to_dict())


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer of the special tokens and a word, in a folder of its own."""
    names = ["<unk>", "<s>", "</s>", *(f"<SPECIAL_{id}>" for id in range(3, 11)), "<pad>"]
    document = {
        "version": "1.0",
        "added_tokens": [
            dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            | {"id": id, "content": name, "special": True}
            for id, name in enumerate(names)
        ],
        "model": {"type": "BPE", "vocab": {name: id for id, name in enumerate([*names, "a"])}, "merges": []},
    }
    path = tmp_path / "source.json"
    path.write_text(json.dumps(document))
    return path


def _write(folder: Path, config: dict[str, Any], tokenizer: Path, **changed: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"generation_config": {}, "artifacts": [_artifact(stem) for stem in STEMS]}
    assert set(write_configs(folder, config, **{**arguments, **changed}, tokenizer_json=tokenizer)) == {*CONFIGS}
    return {name: json.loads((folder / name).read_text()) for name in CONFIGS}


@pytest.mark.parametrize(
    ("stem", "dtype", "path"),
    [
        ("audio_encoder", "fp32", "onnx/audio_encoder.onnx"),
        ("embed_tokens", "fp16", "onnx/embed_tokens_fp16.onnx"),
        ("embed_tokens", "int8", "onnx/embed_tokens_int8.onnx"),
        ("audio_encoder", "q8", "onnx/audio_encoder_quantized.onnx"),
        ("decoder_model_merged", "q4", "onnx/decoder_model_merged_q4.onnx"),
        ("decoder_model_merged", "q4f16", "onnx/decoder_model_merged_q4f16.onnx"),
    ],
)
def test_files_are_named_as_transformers_js_asks_for_them(stem: str, dtype: str, path: str) -> None:
    assert model_file(stem, dtype) == path
    assert [data_file(stem, dtype, chunk) for chunk in range(3)] == [f"{path}_data", f"{path}_data_1", f"{path}_data_2"]


@pytest.mark.parametrize(("stem", "dtype"), [("encoder", "fp32"), ("audio_encoder", "int4")])
def test_a_name_that_is_never_looked_for_is_refused(stem: str, dtype: str) -> None:
    with pytest.raises(BuildError, match=r"transformers\.js"):
        model_file(stem, dtype)


def test_config_says_which_file_of_each_stage_to_load(tmp_path: Path, config: dict[str, Any], tokenizer: Path) -> None:
    artifacts = [
        _artifact("audio_encoder", "fp16", chunks=0),
        _artifact("embed_tokens", "int8"),
        _artifact("decoder_model_merged", "q4", chunks=3),
    ]
    written = _write(tmp_path, config, tokenizer, artifacts=artifacts)["config.json"]
    assert written["transformers.js_config"] == {
        "dtype": {"audio_encoder": "fp16", "embed_tokens": "int8", "decoder_model_merged": "q4"},
        "use_external_data_format": {"embed_tokens": 1, "decoder_model_merged": 3},
    }


def test_a_bundle_without_onnx_says_nothing_to_transformers_js(
    tmp_path: Path, config: dict[str, Any], tokenizer: Path
) -> None:
    others = [replace(_artifact(stem), target="gguf") for stem in STEMS]
    assert "transformers.js_config" not in _write(tmp_path, config, tokenizer, artifacts=others)["config.json"]


def test_an_encoder_alone_says_nothing_to_transformers_js(
    tmp_path: Path, config: dict[str, Any], tokenizer: Path
) -> None:
    alone = [_artifact("audio_encoder")]
    assert "transformers.js_config" not in _write(tmp_path, config, tokenizer, artifacts=alone)["config.json"]


def test_nothing_else_is_taken_for_the_audio_token(tmp_path: Path, config: dict[str, Any], tokenizer: Path) -> None:
    written = _write(tmp_path, config | {"ignore_index": -100, "_name_or_path": "somewhere"}, tokenizer)["config.json"]
    assert "ignore_index" not in written
    assert "_name_or_path" not in written
    assert written["audio_token_id"] == 24


def test_transformers_reads_the_same_configuration(tmp_path: Path, config: dict[str, Any], tokenizer: Path) -> None:
    _write(tmp_path, config, tokenizer)
    read = VoxtralConfig.from_pretrained(tmp_path).to_dict()
    assert {key: read[key] for key in ("text_config", "audio_config", "audio_token_id")} == {
        key: config[key] for key in ("text_config", "audio_config", "audio_token_id")
    }


def test_the_feature_extractor_is_the_original_one(tmp_path: Path, config: dict[str, Any], tokenizer: Path) -> None:
    written = _write(tmp_path, config, tokenizer)["preprocessor_config.json"]
    read, original = WhisperFeatureExtractor.from_pretrained(tmp_path), WhisperFeatureExtractor(feature_size=128)
    assert written["processor_class"] == "VoxtralProcessor"
    for name in ("n_samples", "nb_max_frames", "chunk_length", "sampling_rate", "hop_length", "n_fft", "feature_size"):
        assert getattr(read, name) == getattr(original, name) == written[name]


def test_the_tokenizer_knows_its_special_tokens(tmp_path: Path, config: dict[str, Any], tokenizer: Path) -> None:
    _write(tmp_path, config, tokenizer)
    shutil.copy(tokenizer, tmp_path / "tokenizer.json")
    read = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (read.bos_token, read.eos_token, read.pad_token, read.unk_token) == ("<s>", "</s>", "<pad>", "<unk>")
    assert read("a<s>")["input_ids"] == [12, 1]


def test_generation_stops_where_the_checkpoint_says(tmp_path: Path, config: dict[str, Any], tokenizer: Path) -> None:
    given = {"eos_token_id": [2, 4], "_from_model_config": True, "max_length": 300}
    written = _write(tmp_path, config, tokenizer, generation_config=given)
    read = GenerationConfig.from_pretrained(tmp_path)
    assert (read.eos_token_id, read.bos_token_id, read.max_length) == ([2, 4], 1, 300)
    assert "max_new_tokens" not in written["generation_config.json"]
    assert written["tokenizer_config.json"]["eos_token"] == "</s>"


def test_generation_goes_beyond_the_prompt(tmp_path: Path, config: dict[str, Any], tokenizer: Path) -> None:
    written = _write(tmp_path, config, tokenizer)["generation_config.json"]
    assert written == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11, "max_new_tokens": 1024}


def test_the_bytes_do_not_depend_on_the_order_of_keys(tmp_path: Path, config: dict[str, Any], tokenizer: Path) -> None:
    _write(tmp_path, config, tokenizer)
    first = {name: (tmp_path / name).read_bytes() for name in CONFIGS}
    _write(tmp_path, dict(reversed(config.items())), tokenizer, artifacts=[_artifact(stem) for stem in reversed(STEMS)])
    assert {name: (tmp_path / name).read_bytes() for name in CONFIGS} == first


def test_every_gap_is_listed_and_nothing_written(tmp_path: Path, tokenizer: Path) -> None:
    artifacts = [
        _artifact("encoder"),
        _artifact("embed_tokens", "int4"),
        _artifact("audio_encoder", chunks=MAX_CHUNKS + 1),
    ]
    with pytest.raises(BuildError) as refused:
        _write(tmp_path, {"model_type": "whisper"}, tokenizer, artifacts=artifacts)
    for part in (
        "num_hidden_layers",
        "'whisper'",
        "audio_token_id",
        "'encoder'",
        "'int4'",
        "101",
        "'decoder_model_merged'",
    ):
        assert part in str(refused.value)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("path", ["onnx/embed_tokens_q4.onnx", "embed_tokens.onnx", "onnx/embed_tokens.pb"])
def test_a_file_that_would_never_be_found_is_refused(
    tmp_path: Path, config: dict[str, Any], tokenizer: Path, path: str
) -> None:
    artifacts = [_artifact("audio_encoder"), _artifact("embed_tokens", path=path), _artifact("decoder_model_merged")]
    with pytest.raises(BuildError, match="embed_tokens"):
        _write(tmp_path, config, tokenizer, artifacts=artifacts)


@given(
    st.fixed_dictionaries(
        {stem: st.tuples(st.sampled_from(sorted(SUFFIXES)), st.integers(0, MAX_CHUNKS + 2)) for stem in STEMS}
    )
)
def test_any_precision_and_number_of_data_files_is_said_or_refused(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("folder")
    (folder / "source.json").write_text("{}")
    artifacts = [_artifact(stem, *form) for stem, form in files.items()]
    config = VoxtralConfig(audio_token_id=24).to_dict()
    if any(chunks > MAX_CHUNKS for _, chunks in files.values()):
        with pytest.raises(BuildError, match="data files"):
            _write(folder, config, folder / "source.json", artifacts=artifacts)
        return
    loading = _write(folder, config, folder / "source.json", artifacts=artifacts)["config.json"][
        "transformers.js_config"
    ]
    assert loading["dtype"] == {stem: precision for stem, (precision, _) in files.items()}
    assert loading.get("use_external_data_format", {}) == {stem: n for stem, (_, n) in files.items() if n}
