"""Voxtral's names, sizes and prompts against transformers and mistral-common."""

import base64
import io
import re
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.chunk import AudioChunk, TextChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.transcription.request import TranscriptionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from ossicle.benchmarks.checkpoints import MINI_3B, SMALL_24B
from ossicle.compiler.families import family, known, voxtral
from ossicle.targets.contract import CheckpointError
from ossicle.targets.manifest import AudioFormat
from ossicle.tests import checkpoints
from transformers import VoxtralConfig, VoxtralForConditionalGeneration


def shell(config: dict[str, Any]) -> Any:
    """The transformers model of a configuration, without weights."""
    with torch.device("meta"):
        return VoxtralForConditionalGeneration(VoxtralConfig.from_dict(config))


# names and shapes


@pytest.mark.parametrize(
    "config",
    [
        checkpoints.tiny_config(),
        checkpoints.tiny_config(text={"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 1}),
        MINI_3B,
        SMALL_24B,
    ],
    ids=["tiny", "biases", "mini", "small"],
)
def test_parameters_are_transformers_own(config: dict[str, Any]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in shell(config).state_dict().items()}
    assert voxtral.parameters(config) == expected


def test_sizes_of_the_real_models() -> None:
    def numbers(config: dict[str, Any]) -> int:
        return sum(int(np.prod(shape)) for shape in voxtral.parameters(config).values())

    assert 4.6e9 < numbers(MINI_3B) < 4.7e9  # 9.3 GB in bfloat16
    assert 24.2e9 < numbers(SMALL_24B) < 24.3e9


def test_silent_configurations_are_filled_as_transformers_does() -> None:
    for document in (
        {"audio_token_id": 24},
        {"audio_token_id": 24, "text_config": {"head_dim": None, "num_key_value_heads": None, "rope_theta": 5.0}},
        {"audio_token_id": 24, "audio_config": {"d_model": 64, "encoder_layers": 3, "encoder_ffn_dim": 256}},
        {"audio_token_id": 24, "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}},
    ):
        ours = voxtral.huggingface_config(document)
        theirs = VoxtralConfig.from_dict(dict(document))
        for section in ("text_config", "audio_config"):
            for key, value in ours[section].items():
                assert getattr(theirs.to_dict() and getattr(theirs, section), key) == value, (document, section, key)
        again = VoxtralConfig.from_dict(ours)
        assert again.to_dict()["text_config"] == theirs.to_dict()["text_config"]
        assert again.to_dict()["audio_config"] == theirs.to_dict()["audio_config"]


def test_linear_layers_and_parts_are_the_modules_that_they_name() -> None:
    made = shell(checkpoints.tiny_config())
    parts = {
        "encoder": made.model.audio_tower,
        "projector": made.model.multi_modal_projector,
        "embedding": made.model.language_model.embed_tokens,
        "lm_head": made.lm_head,
        "decoder": made.model.language_model,
    }
    for name in made.state_dict():
        module, _, leaf = name.rpartition(".")
        owner = made.get_submodule(module)
        assert voxtral.linear(name) == (isinstance(owner, torch.nn.Linear) and leaf == "weight"), name
        assert voxtral.part(name) == next(part for part, root in parts.items() if owner in set(root.modules())), name
    assert voxtral.part("vision_tower.weight") is None


def test_facts() -> None:
    text, audio = voxtral.text_facts(MINI_3B), voxtral.audio_facts(MINI_3B)
    assert (text.hidden, text.layers, text.heads, text.kv_heads, text.head_dim) == (3072, 30, 32, 8, 128)
    assert (text.vocabulary, text.context, text.audio_token) == (131072, 131072, 24)
    assert (audio.hidden, audio.layers, audio.mel_bins) == (1280, 32, 128)
    assert voxtral.audio_format(MINI_3B) == AudioFormat(16000, 128, 400, 160, 3000, 375)


def test_names_that_fit_nowhere_stay_what_they_are() -> None:
    for name in ("layers.x.attention.wq.weight", "layers.0.attention.wz.weight", "ouput.weight", ""):
        assert voxtral.canonical(name, "mistral") == name
    assert voxtral.canonical("vision_tower.weight", "huggingface") == "vision_tower.weight"
    assert voxtral.canonical("language_model.model.rotary_emb.inv_freq", "huggingface") is None


@given(st.text(), st.sampled_from(["huggingface", "mistral"]))
def test_any_name_has_an_answer(name: str, layout: Any) -> None:
    assert isinstance(voxtral.canonical(name, layout), str | None)


JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=5
)


@given(st.dictionaries(st.sampled_from(["multimodal", "dim", "n_layers"]) | st.text(), JSON, max_size=4))
def test_any_params_json_is_answered(params: Any) -> None:
    assert not voxtral.in_mistral_layout(params)
    with pytest.raises(CheckpointError):
        voxtral.mistral_config(params)


def test_families() -> None:
    assert known() == ("voxtral",)
    assert family("voxtral").MODEL_TYPE == "voxtral"
    with pytest.raises(CheckpointError, match=r"'whisper' is of no known family \(known: voxtral\)"):
        family("whisper")


# prompts


@pytest.fixture(scope="module")
def tokenizer() -> MistralTokenizer:
    return MistralTokenizer.from_file(str(checkpoints.TEKKEN))


TEXT = voxtral.text_format(checkpoints.tiny_config(), {})
WINDOW = voxtral.audio_format(MINI_3B).tokens_per_window


def recording(seconds: float) -> str:
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(int(16000 * seconds), np.float32), 16000, format="WAV")
    return base64.b64encode(stream.getvalue()).decode()


def fill(template: str, **parts: list[Any]) -> list[Any]:
    """A template's specials and text, what is filled in spliced as it is."""
    pieces = re.split(r"\{(\w+)\}", template)
    return [item for i, piece in enumerate(pieces) for item in (parts[piece] if i % 2 else [("template", piece)])]


def audio(windows: int) -> list[Any]:
    return fill(TEXT.audio, audio=[("ids", [TEXT.audio_token] * windows * WINDOW)])


def ids(tokenizer: MistralTokenizer, items: list[Any]) -> list[int]:
    """Token ids: specials of templates by their name, all else by the tokenizer's own encoding."""
    tekken = tokenizer.instruct_tokenizer.tokenizer
    found: list[int] = []
    for kind, value in items:
        if kind == "ids":
            found += value
        elif kind == "text":
            found += tekken.encode(value, bos=False, eos=False)
        else:
            for piece in filter(None, re.split(r"(\[/?[A-Z_]+\]|</?s>)", value)):
                special = re.fullmatch(r"\[/?[A-Z_]+\]|</?s>", piece)
                found += [tekken.get_special_token(piece)] if special else tekken.encode(piece, bos=False, eos=False)
    return found


@pytest.mark.parametrize(("seconds", "windows"), [(1.5, 1), (30.0, 1), (30.5, 2)])
def test_transcription(tokenizer: MistralTokenizer, seconds: float, windows: int) -> None:
    for language, template in ((None, TEXT.transcribe), ("en", TEXT.transcribe_language)):
        request = TranscriptionRequest(audio=recording(seconds), language=language)
        expected = tokenizer.encode_transcription(request).tokens
        filled = fill(template, audio=audio(windows), language=[("text", language)])
        # the language is encoded with the text before it: "lang:en" is one string
        filled = [("template", TEXT.begin), *_joined(filled)]
        assert ids(tokenizer, filled) == expected


def _joined(items: list[Any]) -> list[Any]:
    """Neighbouring texts as one, as a tokenizer of the whole prompt sees them."""
    joined: list[Any] = []
    for kind, value in items:
        if joined and kind != "ids" and joined[-1][0] != "ids":
            joined[-1] = ("template", joined[-1][1] + value)
        else:
            joined.append((kind, value))
    return joined


def spliced(content: list[str | int]) -> list[Any]:
    """A user's texts and clips (of so many windows) in order; mistral-common puts an empty line between texts."""
    items: list[Any] = []
    for is_text, run in groupby(content, lambda part: isinstance(part, str)):
        if is_text:
            items.append(("text", "\n\n".join(map(str, run))))
        else:
            items += [item for windows in run for item in audio(int(windows))]
    return items


PLAIN = st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1).map(str.strip).filter(bool)


@given(
    system=st.none() | PLAIN,
    turns=st.lists(
        st.tuples(st.lists(PLAIN | st.sampled_from([1, 2]), min_size=1, max_size=3), PLAIN), min_size=1, max_size=2
    ),
)
@settings(max_examples=40)
def test_conversations(
    tokenizer: MistralTokenizer, system: str | None, turns: list[tuple[list[str | int], str]]
) -> None:
    """Text and clips in any order, several turns, a system prompt: the ids that mistral-common gives."""
    if any(isinstance(part, int) for content, _ in turns for part in content):
        system = None  # mistral-common refuses a system prompt beside audio before tokenizer version 13
    messages: list[Any] = [] if system is None else [SystemMessage(content=system)]
    items = [("template", TEXT.begin)]
    if system is not None:
        items += fill(TEXT.system, content=[("text", system)])
    for number, (content, reply) in enumerate(turns):
        chunks = [
            TextChunk(text=part) if isinstance(part, str) else AudioChunk(input_audio=recording(20.0 * part))
            for part in content
        ]
        messages.append(UserMessage(content=chunks))
        items += fill(TEXT.user, content=spliced(content))
        if number + 1 < len(turns):
            messages.append(AssistantMessage(content=reply))
            items += fill(TEXT.assistant, content=[("text", reply)])
    expected = tokenizer.encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
    assert ids(tokenizer, items) == expected


def test_stop_and_padding() -> None:
    config = checkpoints.tiny_config()
    assert (TEXT.stop_tokens, TEXT.pad_token) == ((2,), 11)
    for strange in ("</s>", [], [2, "</s>"], True):
        with pytest.raises(CheckpointError, match=r"eos_token_id is .*Correct generation_config\.json"):
            voxtral.text_format(config, {"eos_token_id": strange})
    given_by_files = voxtral.text_format(config, {"eos_token_id": [2, 7], "pad_token_id": 0})
    assert (given_by_files.stop_tokens, given_by_files.pad_token) == ((2, 7), 0)
