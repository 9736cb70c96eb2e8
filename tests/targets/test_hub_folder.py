"""The configs that transformers.js reads, and transformers where it reads the same files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ossicle.targets.contract import BuildError
from ossicle.targets.hub_folder import CONFIGS, MAX_CHUNKS, STEMS, SUFFIXES, data_file, model_file, write_configs
from ossicle.targets.manifest import AudioFormat
from transformers import GenerationConfig, PreTrainedTokenizerFast, VoxtralConfig, WhisperFeatureExtractor

AUDIO = AudioFormat(sample_rate=16000, mel_bins=128, fft=400, hop=160, window_frames=3000, tokens_per_window=375)
FLOATS = dict.fromkeys(STEMS, "fp32")


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
    arguments: dict[str, Any] = {"generation_config": {}, "audio": AUDIO, "dtypes": FLOATS, "external": {}}
    write_configs(folder, config, **{**arguments, **changed}, tokenizer_json=tokenizer)
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
def test_a_file_that_would_never_be_read_is_refused(stem: str, dtype: str) -> None:
    with pytest.raises(BuildError, match=r"transformers\.js"):
        model_file(stem, dtype)


def test_config_says_which_file_of_each_stage_to_load(tmp_path: Path, config: dict[str, Any], tokenizer: Path) -> None:
    dtypes = {"audio_encoder": "fp16", "embed_tokens": "q8", "decoder_model_merged": "q4"}
    external = {"audio_encoder": 0, "decoder_model_merged": 3}
    written = _write(tmp_path, config, tokenizer, dtypes=dtypes, external=external)["config.json"]
    assert written["transformers.js_config"] == {
        "dtype": dtypes,
        "use_external_data_format": {"decoder_model_merged": 3},
    }


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
    read = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (read.bos_token, read.eos_token, read.pad_token, read.unk_token) == ("<s>", "</s>", "<pad>", "<unk>")
    assert read("a<s>")["input_ids"] == [12, 1]
    assert (tmp_path / "tokenizer.json").read_bytes() == tokenizer.read_bytes()


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
    _write(tmp_path, dict(reversed(config.items())), tokenizer, dtypes=dict(reversed(FLOATS.items())))
    assert {name: (tmp_path / name).read_bytes() for name in CONFIGS} == first


def test_every_gap_is_listed_and_nothing_written(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(BuildError) as refused:
        _write(
            tmp_path, {"model_type": "whisper"}, tokenizer, dtypes={"encoder": "fp32"}, external={"embed_tokens": 101}
        )
    for part in ("num_hidden_layers", "'whisper'", "audio_token_id", "'embed_tokens' is not given", "'encoder'", "101"):
        assert part in str(refused.value)
    assert not (tmp_path / "config.json").exists()


@given(
    dtypes=st.fixed_dictionaries({stem: st.sampled_from(sorted(SUFFIXES)) for stem in STEMS}),
    external=st.dictionaries(st.sampled_from(STEMS), st.integers(-2, MAX_CHUNKS + 2)),
)
def test_chunks_are_written_or_refused(
    tmp_path_factory: pytest.TempPathFactory, dtypes: dict[str, str], external: dict[str, int]
) -> None:
    folder = tmp_path_factory.mktemp("folder")
    (folder / "source.json").write_text("{}")
    config = {
        "model_type": "voxtral",
        "audio_token_id": 24,
        "text_config": {
            "model_type": "llama",
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "hidden_size": 8,
        },
    }
    if any(not 0 <= count <= MAX_CHUNKS for count in external.values()):
        with pytest.raises(BuildError, match="data files"):
            _write(folder, config, folder / "source.json", dtypes=dtypes, external=external)
        return
    loading = _write(folder, config, folder / "source.json", dtypes=dtypes, external=external)["config.json"]
    chunks = loading["transformers.js_config"].get("use_external_data_format", {})
    assert chunks == {stem: count for stem, count in external.items() if count}
