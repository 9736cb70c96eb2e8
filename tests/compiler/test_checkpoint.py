"""Every layout gives the tensors that transformers gives; what is broken is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ossicle.benchmarks.checkpoints import configuration, write_random
from ossicle.compiler.canonical import HalfSplit
from ossicle.compiler.checkpoint import Checkpoint, open_checkpoint
from ossicle.compiler.families import voxtral
from ossicle.compiler.safetensors import read_header
from ossicle.targets.contract import CheckpointError
from ossicle.tests import checkpoints
from safetensors.torch import load_file, save_file
from transformers import VoxtralConfig, VoxtralForConditionalGeneration


def whole(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A tensor read in blocks of three rows."""
    tensor = checkpoint.tensors[name]
    starts = range(0, tensor.shape[0], 3)
    blocks = [tensor.rows(start, min(start + 3, tensor.shape[0])) for start in starts]
    return torch.from_numpy(np.concatenate(blocks))


def assert_equal(checkpoint: Checkpoint, state: dict[str, Any]) -> None:
    assert checkpoint.tensors.keys() == state.keys()
    for name, expected in state.items():
        got = whole(checkpoint, name)
        assert checkpoint.tensors[name].name == name
        assert checkpoint.tensors[name].shape == tuple(expected.shape) == tuple(got.shape)
        assert torch.equal(got, expected.float()), name


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_hub(tmp_path_factory.mktemp("hub") / "tiny", checkpoints.model())


@pytest.fixture
def copy(hub: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(hub, tmp_path / "copy"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hub_names_equal_from_pretrained(tmp_path: Path, dtype: str) -> None:
    folder = checkpoints.save_hub(tmp_path, checkpoints.model(dtype=dtype))
    opened = open_checkpoint(folder)
    reference = VoxtralForConditionalGeneration.from_pretrained(folder, dtype="auto")
    assert (opened.layout, opened.family, opened.tied) == ("huggingface", "voxtral", False)
    assert opened.tensors["lm_head.weight"].dtype == dtype
    assert_equal(opened, reference.state_dict())


def test_shards_equal_from_pretrained(tmp_path: Path) -> None:
    folder = checkpoints.save_hub(tmp_path, checkpoints.model(dtype="bfloat16"), shard="50KB")
    opened = open_checkpoint(folder)
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert_equal(opened, VoxtralForConditionalGeneration.from_pretrained(folder).state_dict())
    assert {path.name for path in opened.files} == {path.name for path in folder.iterdir()}


def test_shards_are_read_by_their_numbers_without_an_index(tmp_path: Path) -> None:
    made = checkpoints.model()
    folder = checkpoints.save_hub(tmp_path, made, shard="100KB")
    (folder / "model.safetensors.index.json").unlink()
    assert_equal(open_checkpoint(folder), made.state_dict())
    last = max(folder.glob("model-*.safetensors"))
    last.unlink()
    with pytest.raises(CheckpointError, match=f"lacks {last.name}"):
        open_checkpoint(folder)


def test_memory_names(tmp_path: Path) -> None:
    made = checkpoints.model()
    assert_equal(open_checkpoint(checkpoints.save_memory(tmp_path, made)), made.state_dict())


def test_tied_head_is_the_embedding(tmp_path: Path) -> None:
    made = checkpoints.model(tied=True)
    for save in (checkpoints.save_memory, checkpoints.save_mistral):
        opened = open_checkpoint(save(tmp_path / save.__name__, made))
        assert opened.tied
        assert torch.equal(whole(opened, voxtral.LM_HEAD), made.get_input_embeddings().weight)
        assert opened.tensors[voxtral.LM_HEAD].name == voxtral.LM_HEAD


def test_a_head_beside_a_tied_configuration_is_used(tmp_path: Path) -> None:
    made = checkpoints.model()
    made.config.text_config.tie_word_embeddings = True
    opened = open_checkpoint(checkpoints.save_memory(tmp_path, made))
    assert not opened.tied
    assert torch.equal(whole(opened, voxtral.LM_HEAD), made.lm_head.weight)


@pytest.mark.parametrize("shards", [1, 3])
def test_mistral_layout_computes_what_the_model_computes(tmp_path: Path, shards: int) -> None:
    made = checkpoints.model(dtype="bfloat16").float()
    opened = open_checkpoint(checkpoints.save_mistral(tmp_path, made, shards=shards))
    assert opened.layout == "mistral"
    rebuilt = VoxtralForConditionalGeneration(VoxtralConfig.from_dict(dict(opened.config))).eval()
    rebuilt.load_state_dict({name: whole(opened, name) for name in opened.tensors})
    positions = made.get_submodule("model.audio_tower.embed_positions")
    positions.weight.data = whole(opened, voxtral.POSITIONS)
    ids = torch.tensor([[1, 3, *[24] * 10, 4, 300, 34]])
    mel = torch.randn(1, 16, 80, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = made(input_ids=ids, input_features=mel).logits
        assert torch.equal(rebuilt(input_ids=ids, input_features=mel).logits, expected)


def test_mistral_positions_are_whispers_sinusoids(tmp_path: Path) -> None:
    from transformers.models.whisper.modeling_whisper import sinusoids

    config = checkpoints.tiny_config(audio={"max_source_positions": 1500, "hidden_size": 64, "intermediate_size": 256})
    opened = open_checkpoint(checkpoints.save_mistral(tmp_path, checkpoints.model(config)))
    # the rates are float32: one unit in the last place of a rate turns position 1499 by up to 1e-4
    torch.testing.assert_close(whole(opened, voxtral.POSITIONS), sinusoids(1500, 64), atol=2e-4, rtol=0)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.data())
def test_half_split_rows_do_not_depend_on_the_block(heads: int, half: int, width: int, data: st.DataObject) -> None:
    rows = heads * 2 * half
    matrix = np.arange(rows * width, dtype=np.float32).reshape(rows, width)

    class Stored:
        name, shape, dtype = "w", matrix.shape, "float32"

        def rows(self, start: int, stop: int) -> Any:
            return matrix[start:stop]

    expected = torch.from_numpy(matrix).view(heads, half, 2, width).transpose(1, 2).reshape(rows, width)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    got = HalfSplit(Stored(), heads).rows(start, stop)
    assert np.array_equal(got, expected[start:stop].numpy())


@pytest.mark.parametrize("keys", ["hub", "memory", "mistral"])
def test_streamed_random_checkpoints_open(tmp_path: Path, keys: Any) -> None:
    size = write_random(
        tmp_path, checkpoints.tiny_config(), tokenizer=checkpoints.TEKKEN, keys=keys, shard_bytes=60_000
    )
    opened = open_checkpoint(tmp_path)
    assert sum(len(load_file(path)) for path in tmp_path.glob("*.safetensors")) == len(opened.tensors) - (
        keys == "mistral"
    )
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) > size > 100_000
    assert opened.config["text_config"] == checkpoints.tiny_config()["text_config"]
    assert 0.9 < whole(opened, "model.language_model.norm.weight").mean() < 1.1


def test_streamed_bfloat16_is_rounded_as_torch_rounds(tmp_path: Path) -> None:
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    for dtype in dtypes:
        write_random(tmp_path / dtype, checkpoints.tiny_config(), tokenizer=checkpoints.TEKKEN, dtype=dtype)
    full, half = (open_checkpoint(tmp_path / dtype) for dtype in dtypes)
    expected = whole(full, voxtral.LM_HEAD).to(torch.bfloat16).float()
    assert torch.equal(whole(half, voxtral.LM_HEAD), expected)


def test_source_and_generation_config(hub: Path) -> None:
    opened = open_checkpoint(hub)
    assert opened.name == "tiny"
    assert opened.tokenizer.name == "tekken.json"
    assert {file.path for file in opened.source.files} == {
        "model.safetensors",
        "config.json",
        "tekken.json",
        "generation_config.json",
    }
    assert opened.generation_config["bos_token_id"] == 1
    assert opened.adapters == ()


# what is refused


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def edit(folder: Path, *, drop: tuple[str, ...] = (), **put: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name not in drop} | put, path)


def test_every_gap_is_listed(copy: Path) -> None:
    edit(
        copy,
        drop=("language_model.model.norm.weight", "audio_tower.conv1.bias"),
        **{
            "vision_tower.weight": torch.zeros(2, 3),
            "multi_modal_projector.linear_2.weight": torch.zeros(4, 4),
            "language_model.lm_head.weight": torch.zeros(512, 48, dtype=torch.int8),
            "language_model.model.rotary_emb.inv_freq": torch.zeros(8),
        },
    )
    message = refusal(copy)
    for part in (
        "'model.language_model.norm.weight' 48 is missing",
        "'model.audio_tower.conv1.bias' 32 is missing",
        "'vision_tower.weight' 2 x 3 in 'model.safetensors' is no tensor of this family",
        "'multi_modal_projector.linear_2.weight' is 4 x 4, the configuration says 48 x 48",
        "'language_model.lm_head.weight' in",
        "is stored as I8 (possible: F32, F16, BF16)",
    ):
        assert part in message
    assert "inv_freq" not in message


def test_a_tensor_under_two_names(copy: Path) -> None:
    edit(copy, **{"lm_head.weight": torch.zeros(512, 48)})
    assert "is the same tensor as" in refusal(copy)


def test_float8_is_refused(copy: Path) -> None:
    edit(copy, **{"language_model.lm_head.weight": torch.zeros(512, 48).to(torch.float8_e4m3fn)})
    assert "stored as F8_E4M3" in refusal(copy)


def test_truncated_shard_is_named(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert f"'{path}' is not a whole safetensors file" in refusal(copy)


def test_missing_shard_and_wrong_index(tmp_path: Path) -> None:
    folder = checkpoints.save_hub(tmp_path, checkpoints.model(), shard="100KB")
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    shards = sorted(set(document["weight_map"].values()))
    document["weight_map"]["language_model.nowhere"] = shards[0]
    index.write_text(json.dumps(document))
    assert f"'language_model.nowhere' is not in '{shards[0]}'" in refusal(folder)
    (folder / shards[0]).unlink()
    (folder / shards[1]).unlink()
    assert f"lacks {shards[0]}, {shards[1]}" in refusal(folder)
    document["weight_map"]["language_model.nowhere"] = "../" + shards[0]
    index.write_text(json.dumps(document))
    assert "of its own folder" in refusal(folder)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = checkpoints.save_mistral(tmp_path, checkpoints.model(), shards=2)
    tensors = load_file(folder / "consolidated-00002-of-00002.safetensors")
    tensors["output.weight"] = torch.zeros(512, 48)
    tensors["norm.weight"] = torch.zeros(48)
    save_file(tensors, folder / "consolidated-00002-of-00002.safetensors")
    assert "hold the same tensors: '" in refusal(folder)


def test_pickles_are_refused_with_the_way_out(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    message = refusal(copy)
    assert "only pickled weights (pytorch_model.bin)" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "whisper"}, "model_type 'whisper' is of no known family (known: voxtral)"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": "_voxtral_layouts"}, "of no known family"),
        ({"audio_token_id": None}, "audio_token_id is None"),
        ({"quantization_config": {"quant_method": "fp8"}}, "its weights are quantized"),
        ({"text_config": {"hidden_size": "48"}}, "text_config.hidden_size is '48'"),
        ({"text_config": {"model_type": "gemma"}}, "text_config.model_type is 'gemma'"),
        ({"audio_config": {"intermediate_size": 77}}, "whole number of audio tokens"),
        ({"audio_config": []}, "audio_config is []"),
    ],
)
def test_configurations_refused(copy: Path, change: dict[str, Any], said: str) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert said in refusal(copy)


def test_folders_refused(copy: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is not a checkpoint (possible: config.json" in refusal(empty)
    assert "is a file" in refusal(copy / "config.json")
    assert "does not exist" in refusal(tmp_path / "absent")
    (copy / "tekken.json").unlink()
    assert "has no tokenizer (tekken.json or tokenizer.json)" in refusal(copy)
    (copy / "config.json").write_text("{")
    assert "config.json' cannot be read" in refusal(copy)
    (copy / "config.json").unlink()
    assert "no config.json" in refusal(copy)


def test_another_model_in_mistrals_layout(tmp_path: Path) -> None:
    folder = checkpoints.save_mistral(tmp_path, checkpoints.model())
    path = folder / "params.json"
    params = json.loads(path.read_text())
    del params["n_heads"]
    path.write_text(json.dumps(params))
    assert "does not describe a Voxtral: KeyError 'n_heads'" in refusal(folder)
    params["multimodal"]["whisper_model_args"]["encoder_args"]["causal"] = True
    path.write_text(json.dumps(params))
    assert "describes no known family (known: voxtral)" in refusal(folder)


# the hub


def test_hub_ids(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.update(repository=repository, **options)
        return str(hub)

    names = ["config.json", "model-00001-of-00002.safetensors", "consolidated.safetensors", "pytorch_model.bin"]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert open_checkpoint("org/voxtral@abc").name == "org/voxtral"
    assert asked == {
        "repository": "org/voxtral",
        "revision": "abc",
        "allow_patterns": ["*.json", "model*.safetensors"],
    }


def test_hub_unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"'org/absent' is no folder here and cannot be downloaded.*no route"):
        open_checkpoint("org/absent")


# safetensors files


@given(data=st.data())
def test_damaged_files_give_checkpoint_errors(hub: Path, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Whatever is cut or changed: a header that is read describes the file, or a CheckpointError is raised."""
    good = bytearray((hub / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(good[:8], "little")
    cut = data.draw(st.integers(0, len(good)) | st.integers(0, header))
    for _ in range(data.draw(st.integers(0, 3))):
        good[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    path.write_bytes(good[:cut] if data.draw(st.booleans()) else good)
    try:
        tensors = read_header(path)
    except CheckpointError:
        return
    assert all(tensor.offset <= path.stat().st_size for tensor in tensors.values())


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}', "names 'a' twice"),
        (b'{"a":1}', "does not describe 'a'"),
        (b'{"a":{"dtype":"X","shape":[1],"data_offsets":[0,4]}}', "unknown dtype 'X'"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "no proper shape"),
        (b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', "no proper shape"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}', "no proper shape"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "takes 4 bytes where F32 [2] takes 8"),
        (
            b'{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}}',
            "'b' begins at byte 2 of the numbers instead of 4",
        ),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "4 bytes of numbers instead of 8"),
        (b'{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}', "4 bytes of numbers instead of 2"),
    ],
)
def test_headers_refused(tmp_path: Path, header: bytes, said: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert said in str(caught.value)


def test_a_file_that_shrinks_after_its_header_was_read(copy: Path) -> None:
    opened = open_checkpoint(copy)
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="changed while it was read"):
        opened.tensors[voxtral.LM_HEAD].rows(0, 1)


def test_memory_is_bounded_by_the_rows_asked_for(tmp_path: Path) -> None:
    import tracemalloc

    config = configuration(
        audio=checkpoints.tiny_config()["audio_config"],
        text=checkpoints.tiny_config()["text_config"] | {"vocab_size": 200_000},
    )
    write_random(tmp_path, config, tokenizer=checkpoints.TEKKEN)
    tracemalloc.start()
    opened = open_checkpoint(tmp_path)
    opened.tensors[voxtral.LM_HEAD].rows(100_000, 100_100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
